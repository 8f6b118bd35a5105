"""Read the split file, which `scanbench.splits` writes.

Apart from what divides and audits, so that a change there does not rerun what only reads.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scanbench.errors import UserError
from scanbench.files import read_json
from scanbench.store import Store

SCHEMA_VERSION = 1
PARTS = ("train", "validation", "test")

#: Schemes that divide scans at random, whatever their group: results under them are marked.
LEAKY = ("random", "copies")


def read_split(path: str | Path, store: Store | None = None) -> dict[str, Any]:
    """Read a split file and check it.

    Parameters
    ----------
    path
        The JSON file.
    store
        If given, the split must have been made from this very store.

    Raises
    ------
    UserError
        If the file is missing or malformed, a scan stands in two parts of a fold, or the store is
        another.
    """
    path = Path(path)
    split = read_json(path, "make it with `scanbench split`")
    if split.get("schema_version") != SCHEMA_VERSION:
        raise UserError(f"{path}: not a split file of schema_version {SCHEMA_VERSION}; split again")
    for key, kind in (("store_sha256", str), ("classes", list), ("folds", list), ("seed", int)):
        if not isinstance(split.get(key), kind):
            raise UserError(f"{path}: {key} is missing or no {kind.__name__}; split again")
    if not split["folds"]:
        raise UserError(f"{path}: folds is empty; split again")
    for number, fold in enumerate(split["folds"]):
        if not isinstance(fold, dict) or set(fold) != set(PARTS):
            raise UserError(f"{path}: fold {number} must have {', '.join(PARTS)}; split again")
        if not all(isinstance(fold[part], list) for part in PARTS):
            raise UserError(f"{path}: fold {number}: each part must be a list; split again")
        names = [name for part in PARTS for name in fold[part]]
        if not all(isinstance(name, str) for name in names):
            raise UserError(f"{path}: fold {number}: scan ids must be text; split again")
        if repeated := first_repeated(np.sort(np.array(names, dtype=str))):
            raise UserError(f"{path}: fold {number}: scan {repeated!r} stands twice; split again")
    if store is not None:
        if split["store_sha256"] != store.sha256:
            raise UserError(f"{path}: was made from another store than {store.path}; split again")
        for fold in split["folds"]:
            for part in PARTS:
                store.index_of(fold[part])
    return split


def first_repeated(names: NDArray[Any]) -> str | None:
    """Return the first of sorted names that stands twice."""
    repeated = np.flatnonzero(names[1:] == names[:-1])
    return str(names[repeated[0]]) if len(repeated) else None
