"""Divide a data set into training, validation and test parts so that no group stands in two.

Scans of one session (micrograph, part) are not independent: a model that has seen some of them
knows more about the others than about a session to come. Groups are therefore assigned whole.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scanbench.audit import audit
from scanbench.errors import UserError, counted, did_you_mean
from scanbench.files import write_json
from scanbench.split_file import LEAKY, PARTS, SCHEMA_VERSION, first_repeated
from scanbench.store import Store

DEFAULTS: dict[str, Any] = {
    "scheme": "kfold",
    "folds": 5,
    "copies": 4,
    "test_fraction": 0.2,
    "test_groups": None,
    "validation_fraction": 0.15,
    "min_lines": 1,
    "near_duplicate_threshold": 0.9,
    "allow_missing_classes": False,
    "seed": 0,
}
_CANDIDATES = 2048  # assignments of groups that are drawn at once; the best one is taken
_CANDIDATE_STEPS = 100_000  # fewer candidates for many groups, which balance anyway

Fold = dict[str, list[str]]


@dataclass(frozen=True)
class Keys:
    """Where the configuration says what a split depends on, for messages.

    Attributes
    ----------
    dataset, split
        Their names in the configuration; empty for a split that is made by hand.
    """

    dataset: str = ""
    split: str = ""

    def of_split(self, key: str) -> str:
        """Return the name of a key of the split."""
        return f"splits.{self.split}.{key}" if self.split else key

    @property
    def more_groups(self) -> str:
        """What to do about too few groups."""
        group = f"datasets.{self.dataset}.ingest.group" if self.dataset else "`group` of ingest"
        return (
            f"bring more sessions, or tell them apart by {group} (table, regex, folder; scan at "
            "the price of leakage) or an array `groups` in the NPZ or .mat"
        )


def write_split(
    spec: Mapping[str, Any], store: str | Path, out: str | Path, keys: Keys | None = None
) -> None:
    """Divide a store's scans and write the split file (`docs/formats.md`) with its audit."""
    with Store(store) as opened:
        write_json(out, make_split(spec, opened, keys))


def make_split(spec: Mapping[str, Any], store: Store, keys: Keys | None = None) -> dict[str, Any]:
    """Divide the labelled scans of a store, and audit the division.

    The result depends on the scans, their groups and labels and the seed, not on their order.

    Parameters
    ----------
    spec
        `scheme`: `kfold` (each group is tested in one of `folds` folds), `fixed` (one fold; the
        test part is `test_groups`, or about `test_fraction` of the scans), `random` (as `kfold`
        but ignoring groups: leaky, to show what leakage is worth) or `copies` (as `random`, of a
        store that `scanbench.copies` made, with `copies` of each scan). `validation_fraction` of
        what is not tested validates. Also `min_lines` (a scan needs so many measured lines),
        `near_duplicate_threshold`, `allow_missing_classes` and `seed`.
    store
        The scans.
    keys
        Names of what a message tells to change.

    Returns
    -------
    dict
        The split as `docs/formats.md` has it.

    Raises
    ------
    UserError
        If a key is wrong, there are too few groups, or a class is absent from a part.
    """
    for key in spec:
        if key not in DEFAULTS:
            raise UserError(f"split: unknown key {key!r}; {did_you_mean(key, DEFAULTS)}")
    config = {**DEFAULTS, **spec}
    keys = keys or Keys()
    scheme, seed = config["scheme"], config["seed"]

    usable = np.flatnonzero((store.label >= 0) & (store.n_lines >= config["min_lines"]))
    if not (store.label >= 0).any():
        raise UserError(
            f"{store.path}: no scan has a label; name a label table for these scans, or check that "
            "it names them"
        )
    if not len(usable):
        raise UserError(
            f"{store.path}: no labelled scan has {counted(config['min_lines'], 'line')}; "
            f"lower {keys.of_split('min_lines')}"
        )
    usable = usable[np.argsort(store.scan_id[usable])]
    scan_id, label = store.scan_id[usable], store.label[usable].astype(np.int64)
    if repeated := first_repeated(scan_id):
        raise UserError(f"{store.path}: scan {repeated!r} stands twice; convert the scans again")
    group = scan_id if scheme in LEAKY else store.group[usable]

    classes = len(store.classes)
    if scheme == "fixed":
        test = _fixed_test(config, group, label, classes, store.path, keys)
        tested_in = np.where(test, 0, 1)
        folds = 1
    elif scheme == "kfold" or scheme in LEAKY:
        folds = config["folds"]
        what = "scan" if scheme in LEAKY else "group"
        mend = "bring more" if scheme in LEAKY else keys.more_groups
        if len(np.unique(group)) < folds:
            raise UserError(
                f"{store.path}: {counted(len(np.unique(group)), what)} for {folds} folds; "
                f"lower {keys.of_split('folds')}, {mend}"
            )
        tested_in = partition(group, label, np.full(folds, 1 / folds), classes, [seed])
    else:
        raise UserError(
            f"split: scheme {scheme!r}; {did_you_mean(scheme, ('kfold', 'fixed', *LEAKY))}"
        )

    part_of_folds = []
    for fold in range(folds):
        part = np.where(tested_in == fold, PARTS.index("test"), PARTS.index("train"))
        rest = np.flatnonzero(tested_in != fold)
        if len(np.unique(group[rest])) < 2:
            raise UserError(
                f"{store.path}: fold {fold} leaves {counted(len(np.unique(group[rest])), 'group')} "
                f"to train and validate on, and needs 2; {keys.more_groups}"
            )
        fraction = config["validation_fraction"]
        validates = partition(
            group[rest], label[rest], np.array([1 - fraction, fraction]), classes, [seed, fold]
        )
        part[rest[validates == 1]] = PARTS.index("validation")
        part_of_folds.append(part)

    counts = [
        row
        for fold, part in enumerate(part_of_folds)
        for row in _counts(fold, part, store.group[usable], label, store.classes)
    ]
    if not config["allow_missing_classes"]:
        fixed = scheme == "fixed"
        mend = f"{'change' if fixed else 'lower'} "
        mend += keys.of_split("test_fraction" if fixed else "folds")
        for row in counts:
            for name in store.classes:
                if row[name] == 0:
                    raise UserError(
                        f"{store.path}: fold {row['fold']}: no scan of class {name!r} in the "
                        f"{row['part']} part ({counted(row['groups'], 'group')}); "
                        f"{mend}, try another {keys.of_split('seed')}, or set "
                        f"{keys.of_split('allow_missing_classes')}: true"
                    )
    return {
        "schema_version": SCHEMA_VERSION,
        "store_sha256": store.sha256,
        "config": dict(spec),
        "seed": seed,
        "classes": store.classes,
        "folds": [
            {name: scan_id[part == k].tolist() for k, name in enumerate(PARTS)}
            for part in part_of_folds
        ],
        "audit": audit(
            store,
            usable,
            [{name: np.flatnonzero(p == k) for k, name in enumerate(PARTS)} for p in part_of_folds],
            threshold=config["near_duplicate_threshold"],
        ),
        "counts": counts,
    }


def partition(
    group: NDArray[Any],
    label: NDArray[np.int64],
    shares: NDArray[np.float64],
    classes: int,
    seed: Sequence[int],
) -> NDArray[np.int64]:
    """Assign each scan to a part, groups whole, with classes and sizes as near `shares` as can be.

    Many assignments are drawn and the best is taken. Each takes the groups in a random order, large
    ones rather earlier, and gives each to the part where it lowers the imbalance most, which is
    Σ (n − t)²/t over parts and classes for n scans where the shares would have t (χ²).

    Parameters
    ----------
    group, label
        Of each scan [n]; sorted by scan for a result that does not depend on the scans' order.
    shares
        Fraction of the scans that each part should have [K], summing to 1.
    classes
        Number of classes.
    seed
        Seed of the drawing.

    Returns
    -------
    ndarray
        Part of each scan [n]. No part is empty if there are at least as many groups as parts.
    """
    names, group_of = np.unique(group, return_inverse=True)
    groups, parts = len(names), len(shares)
    assert groups >= parts, f"{groups} groups for {parts} parts"
    count_GC = np.zeros((groups, classes))
    np.add.at(count_GC, (group_of, label), 1)
    present = count_GC.any(axis=0)
    count_GC = count_GC[:, present]
    target_KC = shares[:, None] * count_GC.sum(axis=0)

    rng = np.random.default_rng(list(seed))
    candidates = int(np.clip(_CANDIDATE_STEPS // groups, 8, _CANDIDATES))
    size_G = np.log(count_GC.sum(axis=1))
    order_RG = np.argsort(-size_G + rng.gumbel(size=(candidates, groups)), axis=1)
    each = np.arange(candidates)
    filled_RKC = np.zeros((candidates, parts, count_GC.shape[1]))
    part_RG = np.empty((candidates, groups), np.int64)
    for step in range(groups):
        added_RC = count_GC[order_RG[:, step]]
        change_RK = (
            added_RC[:, None] * (2 * (filled_RKC - target_KC) + added_RC[:, None]) / target_KC
        ).sum(axis=2)
        # The last groups go to parts that are still empty, if there are as many of these.
        empty_RK = ~filled_RKC.any(axis=2)
        forced_R = empty_RK.sum(axis=1) >= groups - step
        change_RK[forced_R[:, None] & ~empty_RK] = np.inf
        chosen_R = change_RK.argmin(axis=1)
        filled_RKC[each, chosen_R] += added_RC
        part_RG[each, order_RG[:, step]] = chosen_R
    missing_R = (filled_RKC == 0).sum(axis=(1, 2))
    imbalance_R = ((filled_RKC - target_KC) ** 2 / target_KC).sum(axis=(1, 2))
    best = np.lexsort((imbalance_R, missing_R))[0]
    return part_RG[best, group_of]


def _fixed_test(
    config: Mapping[str, Any],
    group: NDArray[Any],
    label: NDArray[np.int64],
    classes: int,
    path: Path,
    keys: Keys,
) -> NDArray[np.bool_]:
    """Return which scans are in the test part [n]."""
    wanted = config["test_groups"]
    names = set(group.tolist())
    if wanted is not None:
        for name in wanted:
            if name not in names:
                raise UserError(
                    f"split: test_groups: {path} has no labelled scan of group {name!r}; "
                    f"{did_you_mean(name, names)}"
                )
        if not wanted:
            raise UserError("split: test_groups: is empty; name a group, or give null")
        return np.isin(group, wanted)
    if len(names) < 2:
        raise UserError(f"{path}: one group only, nothing can be held out; {keys.more_groups}")
    share = config["test_fraction"]
    return partition(group, label, np.array([share, 1 - share]), classes, [config["seed"]]) == 0


def _counts(
    fold: int,
    part: NDArray[np.int64],
    group: NDArray[Any],
    label: NDArray[np.int64],
    classes: Sequence[str],
) -> list[dict[str, Any]]:
    rows = []
    for k, name in enumerate(PARTS):
        inside = part == k
        per_class = np.bincount(label[inside], minlength=len(classes)).tolist()
        row = {"fold": fold, "part": name, "groups": len(np.unique(group[inside]))}
        rows.append(
            {**row, "scans": int(inside.sum()), **dict(zip(classes, per_class, strict=True))}
        )
    return rows
