"""Labels of scans: a plain table, or the score sheet of the H:Si(100) images.

Columns are named and never indexed: a study that merged the sheet's columns by their order called
asymmetries "atoms".
"""

from __future__ import annotations

import zipfile
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import openpyxl
import pandas as pd

from scanbench.errors import UserError

#: Unpacked size that a workbook may have; the H:Si(100) sheet has 4 MB.
_LARGEST_WORKBOOK = 2**27
#: Cells, empty ones included, that a sheet may span; the H:Si(100) sheet spans 40,000.
_MOST_CELLS = 10_000_000

#: What to do about a label that is no class, where classes can be chosen.
OWN_CLASSES = (
    "mend it, or name your own classes: `classes: [A, B]` in the data set, --classes A,B by hand"
)

#: Characters of a table's header that are looked at for its separator.
_LONGEST_HEADER = 10_000

#: Classes of the study → columns of the H:Si(100) score sheet.
H_SI100_MERGE: Mapping[str, tuple[str, ...]] = {
    "atoms": ("Individual Atoms",),
    "asymmetry/dimer": ("Asymmetries", "Dimers"),
    "rows": ("Rows",),
    "defect": ("Tip Change", "Bad/Blurry"),
}


@dataclass(frozen=True, kw_only=True)
class Label:
    """What is known about one scan.

    Parameters
    ----------
    label
        Class name; empty if it has none.
    excluded
        Why a scan that people labelled is not used; empty if it is.
    group
        Session, where the table names it.
    change_line
        Line of a known tip change.
    responses
        How many people labelled it.
    scores
        The table's own scores, unmerged.
    row
        Row of the table, counted from 1 with the header, for messages.
    """

    label: str = ""
    excluded: str = ""
    group: str = ""
    change_line: int | None = None
    responses: int | None = None
    scores: Mapping[str, float] = field(default_factory=dict)
    row: int = 0


@dataclass(frozen=True, kw_only=True)
class ScoreSheet:
    """How scores of several people become one label.

    Parameters
    ----------
    sheet
        Sheet whose scores count: `Mean_Score`, or `Weighted_Score`.
    merge
        Class → columns of the sheet that count as this class.
    rule
        How the columns of a class become its score: their `max` or their `sum`.
    threshold
        Least score that a class needs to be the label.
    min_agreement
        Least mean of the sheet `Agreement_Score`.
    ties
        What two best classes mean: `exclude` the scan, or take the `first` in the order of `merge`.
    """

    sheet: str = "Mean_Score"
    merge: Mapping[str, Sequence[str]] = field(default_factory=lambda: dict(H_SI100_MERGE))
    rule: str = "max"
    threshold: float = 0.5
    min_agreement: float = 0.0
    ties: str = "exclude"

    def __post_init__(self) -> None:
        for key, allowed in (
            ("sheet", ("Mean_Score", "Weighted_Score")),
            ("rule", ("max", "sum")),
            ("ties", ("exclude", "first")),
        ):
            if getattr(self, key) not in allowed:
                raise UserError(
                    f"labels.{key}: {getattr(self, key)!r} is not one of {', '.join(allowed)}"
                )
        for key in ("threshold", "min_agreement"):
            value = getattr(self, key)
            if isinstance(value, bool) or not isinstance(value, int | float) or value < 0:
                raise UserError(f"labels.{key}: {value!r} is not a number of 0 or more")


def read_table(path: Path, classes: Sequence[str], mend: str = OWN_CLASSES) -> dict[str, Label]:
    """Read a label table: CSV, TSV or XLSX with columns `scan`, `label`, `group`, `change_line`.

    Parameters
    ----------
    path
        The table. `scan` is a scan id, or a file's name or path in the data folder, with or without
        its suffix; `group` and `change_line` may be missing. An empty label means none.
    classes
        Labels that may stand in it.
    mend
        What the message says to do about another.

    Returns
    -------
    dict
        What the table calls the scan → its label, in the table's order.

    Raises
    ------
    UserError
        If a column is missing or unknown, a label is not of `classes`, or a scan has two
        different rows; the message names the row.
    """
    table = read_frame(path)
    columns = ("scan", "label", "group", "change_line")
    _need_columns(path, table, columns[:2])
    strange = [column for column in table if column not in columns]
    if strange:
        raise UserError(f"{path}: unknown column {strange[0]!r}; known are {', '.join(columns)}")
    labels: dict[str, Label] = {}
    for i, row in enumerate(table.to_dict("records")):
        scan, label = row["scan"].strip(), row["label"].strip()
        where = f"{path} row {i + 2}"
        if not scan:
            raise UserError(f"{where}: names no scan")
        if label and label not in classes:
            raise UserError(f"{where}: label {label!r} is not one of {', '.join(classes)}; {mend}")
        change = row.get("change_line", "").strip()
        # Of digits alone `isdigit` is true for "²" too, which is no number.
        if change and not (change.isascii() and change.isdecimal()):
            raise UserError(f"{where}: change_line {change!r} is not a line number, 0 or more")
        entry = Label(
            label=label,
            group=row.get("group", "").strip(),
            change_line=int(change) if change else None,
            row=i + 2,
        )
        earlier = labels.get(scan)
        if earlier is not None and _content(earlier) != _content(entry):
            raise UserError(f"{where}: {scan} was given otherwise in row {earlier.row}; keep one")
        labels.setdefault(scan, entry)
    return labels


def _content(label: Label) -> tuple[str, str, int | None]:
    return label.label, label.group, label.change_line


def read_score_sheet(path: Path, policy: ScoreSheet, classes: Sequence[str]) -> dict[str, Label]:
    """Read the score sheet of the H:Si(100) images and give every image one label or a reason.

    Parameters
    ----------
    path
        Workbook with the sheets `Mean_Score`, `Weighted_Score` and `Agreement_Score`, each with
        a column `Name` (Gordon et al. 2020, arXiv 1907.13401).
    policy
        How scores become a label.
    classes
        The study's classes; `policy.merge` gives the columns of each.

    Returns
    -------
    dict
        File name of the image → its label, in the sheet's order.

    Raises
    ------
    UserError
        If a sheet or column is missing, the sheets name different images, or a score is no number.
    """
    unknown = [name for name in policy.merge if name not in classes]
    if unknown:
        raise UserError(
            f"labels.merge: {unknown[0]!r} is not a class; known are {', '.join(classes)}"
        )
    scores = read_frame(path, policy.sheet)
    agreement = read_frame(path, "Agreement_Score")
    columns = [column for merged in policy.merge.values() for column in merged]
    twice = [column for column in columns if columns.count(column) > 1]
    if twice:
        raise UserError(f"labels.merge: column {twice[0]!r} stands in two classes; keep one")
    _need_columns(path, scores, ("Name", "No. Responses", *columns), policy.sheet)
    _need_columns(path, agreement, ("Name", "Mean"), "Agreement_Score")
    if scores["Name"].tolist() != agreement["Name"].tolist():
        raise UserError(
            f"{path}: {policy.sheet} and Agreement_Score do not name the same images in one order"
        )
    if scores["Name"].duplicated().any():
        row = int(np.flatnonzero(scores["Name"].duplicated())[0]) + 2
        raise UserError(f"{path} {policy.sheet} row {row}: image stands in it twice; keep one")

    own = [str(column) for column in scores if column not in ("Name", "No. Responses")]
    score_NK = _numbers(path, scores, own, policy.sheet)
    agreement_N = _numbers(path, agreement, ["Mean"], "Agreement_Score")[:, 0]
    responses_N = _numbers(path, scores, ["No. Responses"], policy.sheet)[:, 0]
    merged_NC = np.stack(
        [
            getattr(score_NK[:, [own.index(column) for column in merged]], policy.rule)(axis=1)
            for merged in policy.merge.values()
        ],
        axis=1,
    )
    names = list(policy.merge)
    labels = {}
    for i, image in enumerate(scores["Name"]):
        label, excluded = _decide(merged_NC[i], agreement_N[i], policy)
        labels[image] = Label(
            label=names[label] if label is not None else "",
            excluded=excluded,
            responses=int(responses_N[i]),
            scores=dict(zip(own, score_NK[i].tolist(), strict=True)),
            row=i + 2,
        )
    return labels


def _decide(
    score_C: np.ndarray[Any, np.dtype[np.float64]], agreement: float, policy: ScoreSheet
) -> tuple[int | None, str]:
    """Return the class index and why there is none, one of them empty."""
    best = float(score_C.max())
    # Scores are small fractions (of two or three people): equal means equal but for rounding.
    winners = np.flatnonzero(np.isclose(score_C, best, rtol=0, atol=1e-9))
    if best <= 0 or best < policy.threshold:
        return None, "no label above threshold"
    if agreement < policy.min_agreement:
        return None, "low agreement"
    if len(winners) > 1 and policy.ties == "exclude":
        return None, "tie"
    return int(winners[0]), ""


def match(
    path: Path,
    labels: Mapping[str, Label],
    scans: Iterable[tuple[str, str]],
    files: Collection[str],
    rows_without_scan: str = "error",
) -> tuple[dict[str, Label], int]:
    """Find the scan that every row of a label table means.

    Parameters
    ----------
    path
        The table, for messages.
    labels
        What the table calls a scan → its label.
    scans
        Scan id and file (relative, `/`-separated) of every scan that was read.
    files
        Every file seen, also those that could not be read: a label for one of them is no mistake.
    rows_without_scan
        `error` or `ignore`.

    Returns
    -------
    found : dict
        Scan id → label. A row that names a file labels all scans of this file but for those that
        another row names by their own id.
    without : int
        Rows that were ignored because their scan is not there.

    Raises
    ------
    UserError
        If a row names no scan, or files of several folders; or two rows disagree on a scan.
    """
    by_id: dict[str, str] = {}
    by_file: dict[str, list[str]] = {}
    for scan_id, file in scans:
        by_id[scan_id] = file
        by_file.setdefault(file, []).append(scan_id)
    by_name: dict[str, set[str]] = {}
    for file in files:
        name = PurePosixPath(file)
        for alias in {file, str(name.with_suffix("")), name.name, name.stem}:
            by_name.setdefault(alias, set()).add(file)

    of_file: dict[str, Label] = {}
    own: dict[str, Label] = {}
    without = 0
    for scan, label in labels.items():
        where = f"{path} row {label.row}"
        # A path may be written as the system writes it.
        if scan not in by_id and scan not in by_name:
            scan = str(PurePosixPath(scan.replace("\\", "/")))
        found, named = of_file, by_name.get(scan, set())
        if scan in named:
            named = {scan}
        if scan in by_id and (len(named) != 1 or by_id[scan] not in named):
            found, scan_ids = own, [scan]
        elif len(named) > 1:
            raise UserError(
                f"{where}: {scan} may be {' or '.join(sorted(named)[:2])}; give the path"
            )
        elif named:
            scan_ids = by_file.get(next(iter(named)), [])
        elif rows_without_scan == "error":
            raise UserError(
                f"{where}: no scan {scan} is there; mend its name (a file is named as "
                f"{min(files)}, from the data folder on), take it out, or pass over such rows: "
                "`ingest: {rows_without_scan: ignore}` in the data set, "
                """--spec '{"rows_without_scan": "ignore"}' by hand"""
            )
        else:
            without += 1
            continue
        for scan_id in scan_ids:
            earlier = found.get(scan_id)
            if earlier is not None and _content(earlier) != _content(label):
                raise UserError(f"{where}: {scan} was given otherwise in row {earlier.row}")
            found[scan_id] = label
    return {**of_file, **own}, without


def _need_columns(path: Path, table: pd.DataFrame, columns: Iterable[str], sheet: str = "") -> None:
    missing = [column for column in columns if column not in table]
    if missing:
        raise UserError(
            f"{path}{f' {sheet}' if sheet else ''}: lacks the column {missing[0]!r}; "
            f"it has {', '.join(map(str, table.columns))}"
        )


def _numbers(
    path: Path, table: pd.DataFrame, columns: list[str], sheet: str
) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Return columns as float64 [rows, columns], all finite."""
    numbers = table[columns].apply(pd.to_numeric, errors="coerce").to_numpy(np.float64)
    wrong = np.argwhere(~np.isfinite(numbers))
    if len(wrong):
        row, column = wrong[0]
        raise UserError(
            f"{path} {sheet} row {row + 2}: {columns[column]} is "
            f"{table[columns[column]].iloc[row]!r}, not a number"
        )
    return numbers


def read_frame(path: Path, sheet: str | None = None) -> pd.DataFrame:
    """Read a table, or a sheet of a workbook, with every cell as text; missing cells are empty.

    Raises
    ------
    UserError
        If there is no such file or sheet, it is empty, or it is not .csv, .tsv or .xlsx.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such label table")
    suffix = path.suffix.lower()
    try:
        if suffix in (".csv", ".tsv"):
            table = pd.read_csv(
                path,
                sep="\t" if suffix == ".tsv" else _separator(path),
                dtype=str,
                keep_default_na=False,
                encoding="utf-8-sig",
            )
            if not isinstance(table.index, pd.RangeIndex):
                raise UserError(f"{path}: its rows have more cells than its header; take them out")
            return table
        if suffix == ".xlsx":
            _bound_workbook(path, sheet)
            table = pd.read_excel(
                path, sheet_name=sheet or 0, dtype=str, keep_default_na=False, engine="openpyxl"
            )
            if not len(table.columns):
                raise UserError(_empty(path, sheet))
            return table
    except UserError:
        raise
    except pd.errors.EmptyDataError:
        raise UserError(_empty(path, sheet)) from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: is not UTF-8 text; save it as CSV UTF-8, or as .xlsx") from None
    # pandas and openpyxl raise whatever a broken file makes of them.
    except Exception as error:
        cause = " ".join(f"{type(error).__name__}: {error}".split())
        raise UserError(f"{path}: cannot be read as a label table ({cause})") from error
    raise UserError(f"{path}: a label table is .csv, .tsv or .xlsx")


def _empty(path: Path, sheet: str | None) -> str:
    if sheet:
        return f"{path} {sheet}: is empty; give the sheet with its header"
    return f"{path}: is empty; give a header, `scan,label`, and a row for each scan"


def _bound_workbook(path: Path, sheet: str | None) -> None:
    """Refuse a sheet that would need too much memory.

    A few bytes can name a cell in the last row and one in the last column: all cells between them
    would be made.
    """
    with zipfile.ZipFile(path) as archive:
        size = sum(entry.file_size for entry in archive.infolist())
    if size > _LARGEST_WORKBOOK:
        raise UserError(f"{path}: unpacks to {size} bytes; save a smaller table")
    book = openpyxl.load_workbook(path, read_only=True, data_only=True, keep_links=False)
    try:
        rows = columns = 0
        for cells in (book[sheet] if sheet else book.worksheets[0]).iter_rows(values_only=True):
            rows, columns = rows + 1, max(columns, len(cells))
            if rows * columns > _MOST_CELLS:
                raise UserError(
                    f"{path}: a sheet has more than {_MOST_CELLS:,} cells; take out what lies "
                    "beside and below the table"
                )
    finally:
        book.close()


def _separator(path: Path) -> str:
    """Return what separates the cells of a CSV file: many programs write `;` or a tab for `,`."""
    with path.open(encoding="utf-8-sig") as file:
        header = file.readline(_LONGEST_HEADER)
    return max((",", ";", "\t"), key=header.count)
