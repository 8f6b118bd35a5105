"""Augmented copies of scans, made before anything is split: a leak, to measure what it is worth.

Published code of this family augmented its images first and divided them at random afterwards, so
that copies of one image stood in training and in test. This module makes such a data set on
purpose: a store in which every labelled scan stands several times. A random split of it has that
leak, and everything that is drawn from it says so.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from scanbench.convert import write_store
from scanbench.errors import UserError, did_you_mean
from scanbench.files import canonical_json
from scanbench.store import FloatArray, Store

#: White noise on every copy, in standard deviations of the scan, as `augmentation` has by default.
NOISE = 0.1

_BLOCK = 32  # scans read at once
_OPTIONS = {"copies": 4, "seed": 0}


def write_copies(spec: Mapping[str, Any], store: str | Path, out: str | Path) -> None:
    """Write a store with copies of each labelled scan beside it.

    Copy `k` of `scan` is called `scan~k`: mirrored along its lines for k = 1, 3, 5, …, in reverse
    order of lines for k = 2, 3, 6, 7, …, and with white noise. It keeps label, group and source
    file.

    Parameters
    ----------
    spec
        `copies` (of each scan, besides itself; default 4) and `seed` (of the noise).
    store
        The scans.
    out
        The store to write. The same inputs give the same bytes.

    Raises
    ------
    UserError
        If a key of `spec` is wrong, or the name of a copy is taken.
    """
    options: dict[str, Any] = _OPTIONS | dict(spec)
    for key in options:
        if key not in _OPTIONS:
            raise UserError(f"copies: unknown key {key!r}; {did_you_mean(key, _OPTIONS)}")
    if not isinstance(options["copies"], int) or options["copies"] < 1:
        raise UserError(f"copies: copies is {options['copies']!r}; give a whole number above 0")
    with Store(store) as opened:
        rows, copy = _rows(opened, options["copies"])
        scan_id = [named(str(opened.scan_id[i]), int(k)) for i, k in zip(rows, copy, strict=True)]
        if len(set(scan_id)) < len(scan_id):
            taken = next(name for name in scan_id if scan_id.count(name) > 1)
            raise UserError(f"{store}: scan {taken!r} is named like a copy; rename it")
        change, n_lines = opened.change_line[rows], opened.n_lines[rows]
        backwards = (copy & 2 > 0) & (change > 0)
        # What begins with line c of n, ends before line n − c of the reversed scan.
        change = np.where(backwards, n_lines - change, change)
        write_store(
            Path(out),
            attributes={
                "study": opened.study,
                "classes": json.dumps(opened.classes, ensure_ascii=False),
                "unit": opened.unit,
                "channel": opened.channel,
                "ingest": canonical_json(opened.ingest),
                "manifest_sha256": opened.manifest_sha256,
                "inputs": canonical_json({Path(store).name: opened.sha256}),
                "convert": canonical_json(
                    {"lines": opened.lines, "pixels": opened.pixels, **options}
                ),
            },
            shape=(len(rows), opened.lines, opened.pixels),
            numbers={"n_lines": n_lines, "label": opened.label[rows], "change_line": change},
            texts={
                "scan_id": scan_id,
                "group": opened.group[rows].tolist(),
                "excluded": opened.excluded[rows].tolist(),
                "file_sha256": opened.file_sha256[rows].tolist(),
            },
            blocks=_blocks(opened, rows, copy, options["seed"]),
        )


def named(scan_id: str, copy: int) -> str:
    """Return the name of a copy; copy 0 is the scan itself."""
    return f"{scan_id}~{copy}" if copy else scan_id


def original(name: str) -> str:
    """Return the name of the scan that a copy is of."""
    return name.rpartition("~")[0]


def _rows(store: Store, copies: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return for each scan to write where it stands in the store, and which copy it is."""
    pairs = [
        (i, k)
        for i, label in enumerate(store.label.tolist())
        for k in range(copies + 1 if label >= 0 else 1)
    ]
    rows, copy = np.array(pairs, np.int64).T
    return rows, copy


def _blocks(
    store: Store, rows: NDArray[np.int64], copy: NDArray[np.int64], seed: int
) -> Iterator[FloatArray]:
    starts = range(0, len(rows), _BLOCK)
    for start in tqdm(starts, desc="copies", unit="block", mininterval=0.5):
        block = slice(start, start + _BLOCK)
        x_NLP = store.read(rows[block])
        for x_LP, row, k in zip(x_NLP, rows[block], copy[block], strict=True):
            if k == 0:
                continue
            n = int(store.n_lines[row])
            # The noise of a copy depends on its scan and not on where that stands.
            word = int(str(store.scan_sha256[row])[:16], 16)
            noise_LP = np.random.default_rng([seed, word, int(k)]).normal(size=x_LP[:n].shape)
            noise_LP *= NOISE * store.statistics["scan_std"][row]
            x_LP[:n] = copied(x_LP[:n], int(k)) + noise_LP
        yield x_NLP


def copied(x_LP: FloatArray, copy: int) -> FloatArray:
    """Return the measured lines of a scan as copy number `copy` has them, without its noise."""
    if copy & 1:
        x_LP = x_LP[:, ::-1]
    if copy & 2:
        x_LP = x_LP[::-1]
    return x_LP.copy()
