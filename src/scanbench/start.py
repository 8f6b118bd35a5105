"""What a training rests on: the weights of another run, which must not have seen what is tested.

Every run tells in `seen.txt` the scans that had a part in its weights: those of its training and
validation parts, and all that the run it started from has seen. So a start that knows a scan of the
test part is refused whatever its data set is called, through any number of runs. A scan is known by
its source file, and by its heights as they were stored: saved in another format it is the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from scanbench.errors import UserError, counted
from scanbench.files import canonical_json, replacing, sha256_of
from scanbench.runs import Run, load_run
from scanbench.store import Store

SEEN = "seen.txt"


@dataclass(frozen=True, kw_only=True)
class Foundation:
    """A trained run that another rests on.

    Attributes
    ----------
    folder
        Where it lies, for messages.
    run
        The model in evaluation mode, and its `model.json`.
    seen
        SHA-256 of the source files, and of the stored heights, of the scans that had a part in it.
    """

    folder: Path
    run: Run
    seen: frozenset[str]


def load_foundation(folder: str | Path) -> Foundation:
    """Read a run to rest another on.

    Raises
    ------
    UserError
        If a file is missing, damaged, or of another training.
    """
    folder = Path(folder)
    return Foundation(folder=folder, run=load_run(folder), seen=read_seen(folder))


def read_seen(folder: Path) -> frozenset[str]:
    """Return the SHA-256 of the files, and of the stored heights, of all scans that a run knows.

    Raises
    ------
    UserError
        If its list is missing or damaged.
    """
    try:
        seen = (folder / SEEN).read_text(encoding="ascii").split()
    except FileNotFoundError:
        raise UserError(f"{folder / SEEN}: no such file; train the run again") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{folder / SEEN}: cannot be read ({error}); train the run again") from None
    return frozenset(seen)


def write_seen(folder: Path, data: Store, scans: np.ndarray, below: Iterable[Foundation]) -> None:
    """Write the hashes of scans of a store, and those that the runs below have seen."""
    own = (data.file_sha256[scans].tolist(), data.scan_sha256[scans].tolist())
    seen = set().union(*own, *(found.seen for found in below))
    with replacing(folder / SEEN) as part:
        part.write_text("".join(f"{sha256}\n" for sha256 in sorted(seen)), encoding="ascii")


def check_unseen(
    foundation: Foundation, data: Store, split: Path, document: Mapping[str, Any], fold: int
) -> None:
    """Refuse a run that has seen a scan, or another one of the same file, of the tested groups.

    A run of the same fold of the same split has not: its own training held them out.

    Parameters
    ----------
    foundation
        The run below.
    data, split, document, fold
        The data set, its division (file and content), and the fold to be trained.

    Raises
    ------
    UserError
        If it has.
    """
    meta = foundation.run.meta
    mine = (data.sha256, sha256_of(split), fold)
    if (meta["store_sha256"], meta["split_sha256"], meta["fold"]) == mine:
        return
    tested = np.unique(data.group[data.index_of(document["folds"][fold]["test"])])
    held_out = np.flatnonzero(np.isin(data.group, tested))
    hashes = np.stack([data.file_sha256[held_out], data.scan_sha256[held_out]])
    known = int(np.isin(hashes, list(foundation.seen)).any(0).sum())
    if known:
        raise UserError(
            f"{foundation.folder}: has seen {counted(known, 'scan')} of the groups "
            f"that {split}, fold {fold} tests; start from a run on other data, or on the same "
            "data in the same split and fold"
        )


def check_alike(foundation: Foundation, wanted: Mapping[str, Any]) -> None:
    """Refuse a run of another model, options, normalisation, unit or size of a sample.

    Parameters
    ----------
    foundation
        The run below.
    wanted
        What the keys of its `model.json` must hold.

    Raises
    ------
    UserError
        Naming the first that differs.
    """
    meta = foundation.run.meta
    for key, value in wanted.items():
        if canonical_json(meta[key]) != canonical_json(value):
            raise UserError(
                f"{foundation.folder}: has {key} {meta[key]!r}, not {value!r}; start from a run "
                "that has the same"
            )


def take_over(model: nn.Module, foundation: Foundation, classes: list[str]) -> None:
    """Give a model the weights of a run, but for its head where the classes are others.

    Parameters
    ----------
    model
        The model, as it is built; it keeps its head if the run's classes are not `classes`.
    foundation
        A run of the same architecture.
    classes
        Of the model's data, in the order of its outputs.

    Raises
    ------
    UserError
        If the classes are others and the model has no head that training would renew.
    """
    weights = foundation.run.model.state_dict()
    if foundation.run.classes != classes:
        why = ""
        if hasattr(model, "fit"):
            why = "is fitted at once and keeps its classes; start from a run with the same"
        elif not hasattr(model, "head"):
            why = "has no head to renew; start from a run with the same classes"
        if why:
            raise UserError(
                f"{foundation.folder}: has classes {', '.join(foundation.run.classes)}, not "
                f"{', '.join(classes)}, and model {foundation.run.meta['model']} {why}"
            )
        own = model.state_dict()
        weights |= {name: own[name] for name in own if name.startswith("head.")}
    model.load_state_dict(weights)
