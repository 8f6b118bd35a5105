"""MATLAB v7.3 `.mat` files (HDF5): `x_raw` [pixels, lines·n], one-hot `y`, `groups`, by h5py.

MATLAB stores arrays column by column, so h5py sees every shape reversed: `x_raw` is
[lines·n, pixels] there, line after line, as it was measured.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from scanbench.tipstate.readers.npz import label_names
from scanbench.tipstate.readers.raw import (
    RawScan,
    ReadOptions,
    bound,
    bound_container,
    refusal,
)

_FILTERS = (h5py.h5z.FILTER_DEFLATE, h5py.h5z.FILTER_SHUFFLE, h5py.h5z.FILTER_FLETCHER32)


def read(path: Path, options: ReadOptions) -> list[RawScan]:
    """Read every scan of a `.mat` file.

    `y` is one-hot over `options.label_names`, [classes, n] or [n, classes] in MATLAB, one entry
    per scan or one per line; it may be missing if `options.mat_lines` says how many lines a scan
    has. `groups`, which may be missing, is one whole number per scan: its session.
    """
    if not h5py.is_hdf5(path):
        raise refusal(path, "is not MATLAB v7.3 (HDF5); save it with save(…, '-v7.3')")
    with h5py.File(path, "r") as file:
        x = _dataset(path, file, "x_raw", options)
        y = _dataset(path, file, "y", options)
        groups = _dataset(path, file, "groups", options)
        if x is None:
            raise refusal(path, "holds no array x_raw [pixels, lines·n]")
        if x.ndim != 2:
            raise refusal(path, f"x_raw has shape {x.shape[::-1]}; give [pixels, lines·n]")
        total, pixels = x.shape
        onehot = None if y is None else _onehot(path, y[()], total, options)
        lines = options.mat_lines
        if not lines:
            if onehot is None or len(onehot) == total:
                raise refusal(path, "does not tell how many lines a scan has; set mat_lines")
            lines = total // len(onehot)
        if total % lines or (onehot is not None and len(onehot) not in (total, total // lines)):
            labels_text = "no" if onehot is None else str(len(onehot))
            raise refusal(
                path,
                f"x_raw has {total} lines of {pixels} pixels and y {labels_text} labels: "
                f"that does not make scans of {lines} lines; set mat_lines, or transpose x_raw",
            )
        bound(path, lines, pixels, options)
        heights_nLP = x[()].reshape(-1, lines, pixels)
        n = len(heights_nLP)
        group_names = [None] * n if groups is None else _group_names(path, groups, n)
    labels: list[str | None] = [None] * n
    if onehot is not None:
        if len(onehot) == total and lines > 1:
            per_line = onehot.reshape(n, lines, -1)
            mixed = np.flatnonzero((per_line != per_line[:, :1]).any(axis=(1, 2)))
            if mixed.size:
                raise refusal(path, f"y changes inside scan {mixed[0]}; give one label per scan")
            onehot = per_line[:, 0]
        labels = label_names(path, onehot, options)
    return [
        RawScan(
            heights_LP=heights_nLP[i],
            planned_lines=lines,
            unit="",
            name=f"{path.stem}-{i:06d}",
            group=group_names[i],
            label=labels[i],
        )
        for i in range(n)
    ]


def _dataset(path: Path, file: h5py.File, key: str, options: ReadOptions) -> Any:
    """Return a data set whose values lie in this very file and fit the bounds, or None."""
    link = file.get(key, getlink=True)
    if link is None:
        return None
    dataset = file[key] if isinstance(link, h5py.HardLink) else None
    if not isinstance(dataset, h5py.Dataset) or dataset.external or dataset.is_virtual:
        raise refusal(path, f"{key} is not an array stored in this file")
    pipeline = dataset.id.get_create_plist()
    for k in range(pipeline.get_nfilters()):
        if pipeline.get_filter(k)[0] not in _FILTERS:
            raise refusal(path, f"{key} is packed by a filter that MATLAB does not use")
    # A chunk is unpacked whole, however little of it belongs to the array.
    for shape in (dataset.shape, dataset.chunks or ()):
        bound_container(
            path, key, shape, dataset.dtype, options, packed=dataset.id.get_storage_size()
        )
    return dataset


def _group_names(path: Path, groups: h5py.Dataset, n: int) -> list[str]:
    """Return the group of each scan as text."""
    if groups.size != n or groups.dtype.kind not in "iuf":
        raise refusal(
            path,
            f"groups is {groups.dtype} of shape {groups.shape[::-1]} for {n} scans; "
            "give one whole number per scan, e.g. findgroups(names)",
        )
    values = np.ravel(groups[()])
    if not (np.isfinite(values).all() and (values == np.rint(values)).all()):
        raise refusal(path, "groups holds a value that is no whole number")
    return [str(int(value)) for value in values]


def _onehot(path: Path, y: NDArray[Any], total: int, options: ReadOptions) -> NDArray[Any]:
    """Return `y` as [n, classes], whichever way round MATLAB held it."""
    classes = len(options.label_names)
    fits = [
        turned
        for turned in (y, y.T)
        if turned.ndim == 2
        and turned.shape[1] == classes
        and total % len(turned) == 0
        and (turned.sum(axis=1) == 1).all()
    ]
    if not fits:
        raise refusal(
            path, f"y has shape {y.shape[::-1]}; give one-hot [{classes}, n] for {total} lines"
        )
    return fits[0]
