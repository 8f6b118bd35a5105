"""The table of held-out predictions: the only thing that evaluation sees of a model.

A table has one row per answer, keyed by (seed, scan, first line of the sample, lines seen). It is
read in three ways, so that models that look at windows, at growing scans and at whole scans are
compared on equal rows:

`scan`
    one final answer per seed and scan;
`lines`
    the answer that each scan had by line n, for a scan that is still running;
`window`
    each window on its own, for models that are trained on windows.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
from numpy.typing import NDArray

from scanbench.errors import UserError
from scanbench.parquet import read_parquet
from scanbench.split_file import read_split
from scanbench.store import Store

INTEGERS = ("label", "fold", "seed", "first_line", "lines_seen")
COLUMNS = ("scan_id", "group", *INTEGERS, "final")
KEY = ["seed", "scan_id", "first_line", "lines_seen"]

#: Where a table of one run says which weights it is of, as SHA-256.
WEIGHTS_KEY = b"weights_sha256"

# Softmax in float32 is off by 1e-6 at most; a table off by more did not come from a softmax.
SUM_TOLERANCE = 1e-4


def class_columns(classes: Sequence[str]) -> list[str]:
    """Return the names of the probability columns, in the order of `classes`."""
    return [f"p_{name}" for name in classes]


# ---------------------------------------------------------------------------------------------
# What the table must agree with


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """What is true of the scans, from the store and the split: nothing of any model.

    Parameters
    ----------
    classes
        Class names; a label is an index into them.
    scans
        Indexed by `scan_id`, with columns `label`, `group`, `n_lines`.
    folds
        For each fold, part name (`train`, `validation`, `test`) → scan ids.
    name
        The split file's name, for messages.
    """

    classes: tuple[str, ...]
    scans: pd.DataFrame
    folds: tuple[Mapping[str, frozenset[str]], ...]
    name: str = "split.json"

    @classmethod
    def load(cls, store: str | Path, split: str | Path) -> HeldOut:
        """Read labels, groups and lines from a store and the parts from its split file.

        Raises
        ------
        UserError
            If either is missing or malformed, or the split was made from another store.
        """
        with Store(store) as opened:
            document = read_split(split, opened)
            scans = pd.DataFrame(
                {
                    "label": opened.label.astype(np.int64),
                    "group": opened.group.astype(object),
                    "n_lines": opened.n_lines.astype(np.int64),
                },
                index=pd.Index(opened.scan_id.astype(object), name="scan_id"),
            )
            classes = tuple(opened.classes)
        folds = tuple(
            {part: frozenset(ids) for part, ids in fold.items()} for fold in document["folds"]
        )
        return cls(classes=classes, scans=scans, folds=folds, name=str(split))


# ---------------------------------------------------------------------------------------------
# Reading and checking


def read_experiment(
    name: str, paths: Iterable[str | Path], classes: Sequence[str], held_out: HeldOut
) -> pd.DataFrame:
    """Read the tables of one experiment's runs (folds × seeds) as one checked table.

    Parameters
    ----------
    name
        The experiment's name, for messages.
    paths
        One per run: its folder, or its `predictions.parquet`.
    classes
        Class names; the probability columns must be exactly theirs.
    held_out
        What the rows must agree with.

    Returns
    -------
    pandas.DataFrame
        The rows of all runs with columns `COLUMNS` and `class_columns(classes)`.

    Raises
    ------
    UserError
        Naming the experiment and file, if the table has holes, duplicates, non-finite values or
        wrong columns, or disagrees with store and split; leakage is one such disagreement.
    """
    frames = []
    for path in map(table_path, paths):
        frames.append(read_table(path, classes, f"experiment {name!r}: {path}"))
    if not frames:
        raise UserError(f"experiment {name!r}: no table of predictions is listed: name its runs")
    where = f"experiment {name!r}"
    table = pd.concat(frames, ignore_index=True)
    _check_unique(table, where)
    check_against(table, held_out, where)
    return table


def read_table(path: Path, classes: Sequence[str], where: str) -> pd.DataFrame:
    """Read one run's table, checked by itself.

    Parameters
    ----------
    path
        The Parquet file.
    classes
        Class names; the probability columns must be exactly theirs.
    where
        Begins every message.

    Returns
    -------
    pandas.DataFrame
        Columns `COLUMNS` and `class_columns(classes)`.

    Raises
    ------
    UserError
        If there is no such file, or it is malformed; see `check_table`.
    """
    frame = read_parquet(path, "run predict again", where=where)
    check_table(frame, classes, where)
    return frame[[*COLUMNS, *class_columns(classes)]]


def table_path(path: str | Path) -> Path:
    """Return the table of a run: the file itself, or that in the run's folder."""
    path = Path(path)
    return path / "predictions.parquet" if path.is_dir() else path


def weights_of(paths: Iterable[str | Path]) -> list[str]:
    """Return the SHA-256 of the weights that tables of predictions are of; an ensemble has none."""
    told = [pq.read_schema(table_path(path)).metadata or {} for path in paths]
    return [own[WEIGHTS_KEY].decode("ascii") for own in told if WEIGHTS_KEY in own]


def check_table(frame: pd.DataFrame, classes: Sequence[str], where: str) -> None:
    """Check what can be told from a table alone.

    Raises
    ------
    UserError
        One line that begins with `where`: a missing or foreign column, a wrong type, an empty
        table, a missing or non-finite value, probabilities that do not sum to 1, a duplicate row,
        or a sample without exactly one final answer.
    """
    wanted = class_columns(classes)
    found = [str(column) for column in frame.columns if str(column).startswith("p_")]
    if missing := [column for column in (*COLUMNS, *wanted) if column not in frame.columns]:
        raise UserError(f"{where}: column {missing[0]!r} is missing: run predict again")
    if foreign := sorted(set(found) - set(wanted)):
        raise UserError(
            f"{where}: column {foreign[0]!r} is of no class in {list(classes)}: "
            "the run was trained on other classes; train and predict again"
        )
    if frame.empty:
        raise UserError(f"{where}: the table has no rows: run predict again")
    for column in ("scan_id", "group"):
        if pd.api.types.infer_dtype(frame[column]) != "string":
            raise UserError(f"{where}: column {column!r} must hold text: run predict again")
    for column in INTEGERS:
        if not pd.api.types.is_integer_dtype(frame[column]):
            raise UserError(
                f"{where}: column {column!r} must hold whole numbers, not {frame[column].dtype}"
            )
    if not pd.api.types.is_bool_dtype(frame["final"]):
        raise UserError(f"{where}: column 'final' must hold true/false, not {frame['final'].dtype}")
    for column in COLUMNS:
        if frame[column].isna().any():
            raise UserError(f"{where}: column {column!r} has empty cells: run predict again")
    for column in wanted:
        if not pd.api.types.is_float_dtype(frame[column]):
            raise UserError(
                f"{where}: column {column!r} must hold floats, not {frame[column].dtype}"
            )

    p_RC = frame[wanted].to_numpy(np.float64)
    checks = (
        (~np.isfinite(p_RC).all(axis=1), "a probability that is NaN or infinite"),
        ((p_RC < 0).any(axis=1), "a negative probability"),
        (np.abs(p_RC.sum(axis=1) - 1) > SUM_TOLERANCE, "probabilities that do not sum to 1"),
        ((frame["first_line"] < 0).to_numpy(), "a negative first_line"),
        ((frame["lines_seen"] <= frame["first_line"]).to_numpy(), "lines_seen not past first_line"),
    )
    for bad_R, what in checks:
        if np.any(bad_R):
            raise UserError(
                f"{where}: {_row(frame, np.asarray(bad_R))} has {what}: run predict again"
            )
    _check_unique(frame, where)

    sample = ["seed", "scan_id", "first_line"]
    ordered = frame.sort_values(KEY, kind="stable")
    last_R = ~ordered.duplicated(sample, keep="last").to_numpy()
    if (wrong_R := ordered["final"].to_numpy() != last_R).any():
        raise UserError(
            f"{where}: {_row(ordered, wrong_R)}: 'final' must mark the last answer of each sample "
            "and no other: run predict again"
        )


def _check_unique(frame: pd.DataFrame, where: str) -> None:
    if (twice_R := frame.duplicated(KEY).to_numpy()).any():
        raise UserError(
            f"{where}: {_row(frame, twice_R)} stands there twice: give each run once, "
            "and each scan to one fold's test part"
        )


def check_against(frame: pd.DataFrame, held_out: HeldOut, where: str) -> None:
    """Check a table against the store and the split.

    Raises
    ------
    UserError
        One line that begins with `where`: a fold that the split lacks, a scan that the store
        lacks, a label or group that disagrees, an answer from lines that were never measured, a
        scan outside the fold's test part (leakage), a test scan without a prediction, or seeds
        with different folds.
    """
    count = len(held_out.folds)
    if (bad_R := ~frame["fold"].between(0, count - 1).to_numpy()).any():
        raise UserError(
            f"{where}: fold {frame['fold'][bad_R].iloc[0]} is not in {held_out.name}, "
            f"which has {count}: predict again with this split"
        )
    if (bad_R := ~frame["scan_id"].isin(held_out.scans.index).to_numpy()).any():
        raise UserError(
            f"{where}: {_row(frame, bad_R)} is not in the store: predict again from this store"
        )
    truth = held_out.scans.loc[frame["scan_id"]]
    for column in ("label", "group"):
        bad_R = np.asarray(frame[column].to_numpy() != truth[column].to_numpy(), dtype=bool)
        if bad_R.any():
            raise UserError(
                f"{where}: {_row(frame, bad_R)} has {column} {frame[column][bad_R].iloc[0]!s} but "
                f"{truth[column][bad_R].iloc[0]!s} in the store: predict again from this store"
            )
    if (bad_R := frame["lines_seen"].to_numpy() > truth["n_lines"].to_numpy()).any():
        raise UserError(
            f"{where}: {_row(frame, bad_R)} answers after more lines than the scan has "
            f"({truth['n_lines'][bad_R].iloc[0]}): run predict again"
        )

    folds_of: dict[int, set[int]] = {}
    for seed, fold in sorted(set(zip(frame["seed"], frame["fold"], strict=True))):
        folds_of.setdefault(seed, set()).add(fold)
        parts = held_out.folds[fold]
        of_run = (frame["seed"] == seed) & (frame["fold"] == fold)
        predicted = frozenset(frame["scan_id"][of_run])
        if stray := sorted(predicted - parts["test"]):
            home = [part for part in ("train", "validation") if stray[0] in parts.get(part, ())]
            raise UserError(
                f"{where}: scan {stray[0]!r} (seed {seed}) is in {home[0] if home else 'no part'} "
                f"of fold {fold} of {held_out.name}, not in test: scores on it would be leakage; "
                "predict again with this split"
            )
        if unanswered := sorted(parts["test"] - predicted):
            raise UserError(
                f"{where}: {len(unanswered)} test scan(s) of fold {fold} have no prediction of "
                f"seed {seed}, first {unanswered[0]!r}: run predict again"
            )
    folds = set[int]().union(*folds_of.values())
    for seed, own in folds_of.items():
        if lacking := sorted(folds - own):
            raise UserError(f"{where}: seed {seed} lacks fold {lacking[0]}: run it or leave it out")


def _row(frame: pd.DataFrame, bad_R: NDArray[np.bool_]) -> str:
    """Name the first bad row as a user would look for it."""
    row = frame.iloc[int(np.argmax(bad_R))]
    return (
        f"scan {row['scan_id']!r} (seed {row['seed']}, first_line {row['first_line']}, "
        f"lines_seen {row['lines_seen']})"
    )


# ---------------------------------------------------------------------------------------------
# The three readings


@dataclass(frozen=True, kw_only=True)
class Reading:
    """Predictions read in one way: the same N rows for each of S seeds.

    Parameters
    ----------
    name
        `scan`, `lines` or `window`.
    lines
        Lines seen in a `lines` reading, else None.
    seeds
        The S seeds, rising.
    scan_id_N, first_line_N, label_N, group_N, fold_N
        What the rows are, sorted by scan id and first line, and the fold whose models answered.
    p_SNC
        Probabilities, float64.
    """

    name: str
    lines: int | None
    seeds: tuple[int, ...]
    scan_id_N: NDArray[np.object_]
    first_line_N: NDArray[np.int64]
    label_N: NDArray[np.int64]
    group_N: NDArray[np.object_]
    fold_N: NDArray[np.int64]
    p_SNC: NDArray[np.float64]

    @property
    def scans(self) -> int:
        """Number of scans that the rows are of."""
        return len(set(self.scan_id_N))


def is_windowed(table: pd.DataFrame) -> bool:
    """Tell whether samples are windows of scans rather than scans from their first line."""
    return bool((table["first_line"] > 0).any())


def scan_reading(table: pd.DataFrame, classes: Sequence[str]) -> Reading:
    """Read one final answer per seed and scan.

    A model that sees the scan from its first line has one final answer. For a model that sees
    windows, the answer is the mean of the probabilities over the scan's windows (the sum rule of
    Kittler et al., IEEE TPAMI 20, 226 (1998)), so that it has used every line that its windows
    cover. Those are all lines of a scan if its lines past the first window are a multiple of the
    stride; else the last ones, fewer than a stride, are in no window.
    """
    columns = class_columns(classes)
    return _stack(_mean_of_windows(table[table["final"]], columns), columns, "scan", None)


def lines_reading(table: pd.DataFrame, classes: Sequence[str], lines: int) -> Reading | None:
    """Read the answer that each scan had by line `lines`, or None where one had none.

    That is the latest answer with `lines_seen` ≤ `lines`, so a scan that is shorter keeps its last.
    For a model that sees windows it is the mean over the windows that have ended by then, as in the
    scan reading, which is where it arrives. An answer inside a window does not count: it rests on
    fewer lines, in turn few and many as one window follows another, and a model trained on its last
    answer never learned to give it.
    """
    columns = class_columns(classes)
    windowed = is_windowed(table)
    seen = table[table["final"]] if windowed else table
    seen = seen[seen["lines_seen"] <= lines]
    key = ["seed", "scan_id"]
    if windowed:
        answers = _mean_of_windows(seen, columns)
    else:
        answers = seen.sort_values([*key, "lines_seen"]).drop_duplicates(key, keep="last")
    if len(answers) < len(table.drop_duplicates(key)):
        return None
    return _stack(answers.assign(first_line=0), columns, "lines", lines)


def window_reading(table: pd.DataFrame, classes: Sequence[str]) -> Reading | None:
    """Read each window's final answer on its own; None for a model that sees whole scans.

    Raises
    ------
    UserError
        If the seeds have different windows.
    """
    if not is_windowed(table):
        return None
    return _stack(table[table["final"]], class_columns(classes), "window", None)


def _mean_of_windows(final: pd.DataFrame, columns: list[str]) -> pd.DataFrame:
    """Return one row per seed and scan: the mean of its final answers, where it has several."""
    key = ["seed", "scan_id"]
    if not final.duplicated(key).any():
        return final
    mean = final.groupby(key, sort=False)[columns].mean()
    rows = (
        final.drop_duplicates(key)
        .drop(columns=columns)
        .merge(_settled(mean).reset_index(), on=key, validate="one_to_one")
    )
    return rows.assign(first_line=0)


def windows_so_far(final: pd.DataFrame, columns: list[str]) -> pd.DataFrame:
    """Return what a model that sees windows says of its running scans, as `lines_reading` has it.

    Parameters
    ----------
    final
        One row for each window: its last answer, with at least the columns of `KEY`.
    columns
        What is averaged.

    Returns
    -------
    pandas.DataFrame
        One row for each seed, scan and line at which windows ended, in this order: the mean over
        the windows that have ended by then.
    """
    scan = ["seed", "scan_id"]
    rows = final.sort_values([*scan, "lines_seen", "first_line"], kind="stable")
    mean = rows.groupby(scan, sort=False)[columns].expanding().mean()
    rows = rows.assign(**{name: mean[name].to_numpy(np.float64) for name in columns})
    return rows.drop_duplicates([*scan, "lines_seen"], keep="last")


def _settled(p: pd.DataFrame) -> pd.DataFrame:
    """Round to 40 significant bits.

    A mean over windows ends in rounding noise, which would rank scans of equal probability: a
    constant classifier must keep an AUROC of exactly one half.
    """
    mantissa, exponent = np.frexp(p.to_numpy(np.float64))
    return pd.DataFrame(
        np.ldexp(np.round(mantissa * 2.0**40), exponent - 40), index=p.index, columns=p.columns
    )


def _stack(rows: pd.DataFrame, columns: list[str], name: str, lines: int | None) -> Reading:
    rows = rows.sort_values(["seed", "scan_id", "first_line"], kind="stable")
    seeds = tuple(int(seed) for seed in sorted(rows["seed"].unique()))
    identity = ["scan_id", "first_line", "fold"]
    first = rows[rows["seed"] == seeds[0]]
    for seed in seeds[1:]:
        other = rows[rows["seed"] == seed]
        if not np.array_equal(first[identity].to_numpy(), other[identity].to_numpy()):
            raise UserError(
                f"seeds {seeds[0]} and {seed} have answers for different scans, windows or folds "
                f"({len(first)} and {len(other)} rows): run predict again for both"
            )
    return Reading(
        name=name,
        lines=lines,
        seeds=seeds,
        scan_id_N=first["scan_id"].to_numpy(object),
        first_line_N=first["first_line"].to_numpy(np.int64),
        label_N=first["label"].to_numpy(np.int64),
        group_N=first["group"].to_numpy(object),
        fold_N=first["fold"].to_numpy(np.int64),
        p_SNC=rows[columns].to_numpy(np.float64).reshape(len(seeds), len(first), len(columns)),
    )


def check_same_rows(readings: Mapping[str, Reading]) -> None:
    """Check that all experiments have the same rows of (seed, scan), so that they can be paired.

    Raises
    ------
    UserError
        Naming two experiments, and the first seed, scan, or scan in a fold that only one of them
        has.
    """
    (reference, first), *others = readings.items()
    for name, reading in others:
        for what, ours, theirs in (
            ("seed", set(first.seeds), set(reading.seeds)),
            ("scan", set(first.scan_id_N), set(reading.scan_id_N)),
            ("scan and fold", _scans_of_folds(first), _scans_of_folds(reading)),
        ):
            if difference := sorted(ours ^ theirs):
                has, lacks = (reference, name) if difference[0] in ours else (name, reference)
                raise UserError(
                    f"experiments {reference!r} and {name!r} cannot be compared: {what} "
                    f"{difference[0]!r} is in {has!r} but not in {lacks!r}: "
                    "run the same folds and seeds for both"
                )


def _scans_of_folds(reading: Reading) -> set[tuple[str, int]]:
    return set(zip(reading.scan_id_N.tolist(), reading.fold_N.tolist(), strict=True))
