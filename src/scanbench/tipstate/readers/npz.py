"""NPZ files that a user brings: `images` [n, lines, pixels], `labels`, `groups`, `scan_ids`."""

from __future__ import annotations

import math
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scanbench.tipstate.readers.raw import (
    RawScan,
    ReadOptions,
    bound,
    bound_container,
    refusal,
)

_KNOWN = ("images", "labels", "groups", "scan_ids")


def read(path: Path, options: ReadOptions) -> list[RawScan]:
    """Read every scan of an NPZ file.

    `images` holds numbers [n, lines, pixels] in acquisition order, with lines that were never
    measured NaN. `labels` is [n] text, [n] integers (−1: none), or one-hot [n, classes]; `groups`
    and `scan_ids` are [n]. All but `images` may be missing. Pickled arrays are refused.
    """
    arrays = {key: array for key in _KNOWN if (array := _member(path, key, options)) is not None}
    if "images" not in arrays:
        raise refusal(path, "holds no array `images` [n, lines, pixels]")
    images = arrays["images"]
    if images.ndim != 3:
        raise refusal(path, f"`images` has shape {images.shape}; give [n, lines, pixels]")
    n, lines, pixels = images.shape
    bound(path, lines, pixels, options)
    for key, array in arrays.items():
        if len(array) != n:
            raise refusal(path, f"`{key}` has {len(array)} entries for {n} images")
    labels = label_names(path, arrays["labels"], options) if "labels" in arrays else [None] * n
    groups = [str(g) for g in arrays["groups"]] if "groups" in arrays else [None] * n
    names = (
        [str(name) for name in arrays["scan_ids"]]
        if "scan_ids" in arrays
        else [f"{path.stem}-{i:06d}" for i in range(n)]
    )
    return [
        RawScan(
            heights_LP=images[i],
            planned_lines=lines,
            unit="",
            name=names[i],
            group=groups[i],
            label=labels[i],
        )
        for i in range(n)
    ]


def _member(path: Path, key: str, options: ReadOptions) -> NDArray[Any] | None:
    """Return one array, after its header was found to promise no more than is allowed."""
    with zipfile.ZipFile(path) as archive:
        try:
            entry = archive.getinfo(f"{key}.npy")
        except KeyError:
            return None
        with archive.open(entry) as file:
            version = np.lib.format.read_magic(file)
            if version not in ((1, 0), (2, 0)):
                raise refusal(path, f"`{key}` has the unknown NumPy format {version}")
            header = {
                (1, 0): np.lib.format.read_array_header_1_0,
                (2, 0): np.lib.format.read_array_header_2_0,
            }[version]
            shape, _, dtype = header(file)
    if dtype.hasobject:
        raise refusal(path, f"`{key}` is a pickle (object array); save it as a plain array")
    bound_container(path, key, shape, dtype, options, packed=entry.compress_size)
    if math.prod(shape) * dtype.itemsize > entry.file_size:
        raise refusal(path, f"`{key}` is truncated: its header promises more than it holds")
    with np.load(path, allow_pickle=False) as file:
        array: NDArray[Any] = file[key]
    return array


def label_names(path: Path, labels: NDArray[Any], options: ReadOptions) -> list[str | None]:
    """Return the label of every scan as a class name, None where it has none.

    Parameters
    ----------
    path
        For the message.
    labels
        [n] text, [n] integers into `options.label_names` (−1: none), or one-hot [n, classes].
    options
        Holds `label_names`.
    """
    names = options.label_names
    if labels.ndim == 1 and labels.dtype.kind in "US":
        texts = labels.astype(str)
        return [str(text) or None for text in texts]
    if labels.ndim == 2:
        if labels.shape[1] != len(names):
            raise refusal(
                path, f"labels have {labels.shape[1]} columns for {len(names)} label_names"
            )
        wrong = np.flatnonzero(~(np.isin(labels, (0, 1)).all(axis=1) & (labels.sum(axis=1) == 1)))
        if wrong.size:
            raise refusal(path, f"label of scan {wrong[0]} is not one-hot: {labels[wrong[0]]}")
        labels = labels.argmax(axis=1)
    if labels.ndim != 1 or labels.dtype.kind not in "iuf" or (labels != np.rint(labels)).any():
        raise refusal(path, f"labels are {labels.dtype} {labels.shape}; give [n] names or integers")
    wrong = np.flatnonzero((labels < -1) | (labels >= len(names)))
    if wrong.size:
        raise refusal(
            path,
            f"label {labels[wrong[0]]} of scan {wrong[0]} is out of range: "
            f"−1 (none) to {len(names) - 1} are known",
        )
    return [None if label < 0 else names[int(label)] for label in labels]
