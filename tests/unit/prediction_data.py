"""Small prediction tables, stores and splits that tests change one thing of."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np
import pandas as pd

from scanbench.files import sha256_of
from scanbench.predictions import HeldOut, class_columns

CLASSES = ("atoms", "asymmetry/dimer", "rows", "defect")
LINES = 32


def scans(
    groups: int = 6, per_group: int = 8, *, classes: int = 4, partial: int | None = None
) -> pd.DataFrame:
    """Scans whose labels go round the classes; scan 3 may stop at line `partial`."""
    count = groups * per_group
    n_lines = np.full(count, LINES)
    if partial is not None:
        n_lines[3] = partial
    return pd.DataFrame(
        {
            "label": np.arange(count) % classes,
            "group": [f"session {k:02d}" for k in np.repeat(np.arange(groups), per_group)],
            "n_lines": n_lines,
        },
        index=pd.Index([f"scan {i:04d}" for i in range(count)], name="scan_id"),
    )


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities over the last axis."""
    exponential = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return exponential / exponential.sum(axis=-1, keepdims=True)


def table(
    held: pd.DataFrame,
    *,
    skill: float,
    seed: int = 0,
    fold: int = 0,
    samples: tuple[tuple[int, tuple[int, ...]], ...] = ((0, (LINES,)),),
    classes: int = 4,
) -> pd.DataFrame:
    """Answers of a model for scans: per sample its first line and the lines seen at each answer.

    An answer that a partial scan never reaches is given at the scan's end instead.
    """
    rng = np.random.default_rng([seed, fold, int(1000 * skill)])
    rows = []
    for scan_id, scan in held.iterrows():
        for first_line, answers in samples:
            if first_line >= scan.n_lines:
                continue
            seen = sorted({min(answer, scan.n_lines) for answer in answers})
            rows += [
                (scan_id, scan.group, scan.label, fold, seed, first_line, line, line == seen[-1])
                for line in seen
            ]
    frame = pd.DataFrame(
        rows,
        columns=["scan_id", "group", "label", "fold", "seed", "first_line", "lines_seen", "final"],
    )
    logits = rng.normal(size=(len(frame), classes))
    logits[np.arange(len(frame)), frame["label"]] += skill
    p = softmax(logits).astype(np.float32)
    return frame.assign(**dict(zip(class_columns(CLASSES[:classes]), p.T, strict=True)))


def held_out(every: pd.DataFrame, *test_groups: int) -> HeldOut:
    """One fold per number: that many of the last groups are tested, the rest trained on."""
    names = sorted(every["group"].unique())
    folds = []
    for count in test_groups or (len(names),):
        in_test = every["group"].isin(names[len(names) - count :])
        folds.append(
            {
                "train": frozenset(every.index[~in_test]),
                "validation": frozenset[str](),
                "test": frozenset(every.index[in_test]),
            }
        )
    classes = CLASSES[: every["label"].max() + 1]
    return HeldOut(classes=classes, scans=every, folds=tuple(folds))


def write_store(path: Path, every: pd.DataFrame, classes: tuple[str, ...] = CLASSES) -> Path:
    """The part of a store that evaluation reads."""
    with h5py.File(path, "w") as file:
        attributes = {"schema_version": 1, "study": "test", "unit": "m", "complete": 1}
        file.attrs.update({**attributes, "classes": json.dumps(classes)})
        file.create_dataset("scans", (len(every), LINES, 4), np.float32)
        file["label"] = every["label"].to_numpy(np.int16)
        file["n_lines"] = every["n_lines"].to_numpy(np.int32)
        for name, values in (("scan_id", every.index), ("group", every["group"])):
            file[name] = np.array([value.encode() for value in values])
    return path


def write_split(path: Path, held: HeldOut, store: Path, classes: tuple[str, ...] = CLASSES) -> Path:
    """The part of a split file that evaluation reads."""
    folds = [{part: sorted(ids) for part, ids in fold.items()} for fold in held.folds]
    head = {"schema_version": 1, "seed": 0, "store_sha256": sha256_of(store)}
    path.write_text(json.dumps({**head, "classes": classes, "folds": folds}))
    return path
