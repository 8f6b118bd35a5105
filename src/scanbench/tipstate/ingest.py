"""Ingest: a folder of instrument files in, the scans folder of `docs/formats.md` out."""

from __future__ import annotations

import collections
import dataclasses
import multiprocessing
import os
import re
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from tqdm import tqdm

from scanbench.errors import UserError, counted
from scanbench.files import check_apart, replacing_folder, sha256_of, write_json
from scanbench.processes import worker_pool
from scanbench.scans import OPTIONS, ScansWriter, write_tables
from scanbench.tipstate import CLASSES
from scanbench.tipstate.labels import (
    OWN_CLASSES,
    Label,
    ScoreSheet,
    match,
    read_score_sheet,
    read_table,
)
from scanbench.tipstate.readers import (
    FORMATS,
    RawScan,
    ReadOptions,
    is_other_channel,
    read_each,
    scans_of_index,
    suffix_of,
)

#: Time stamp that Omicron MATRIX gives to every file of a session, e.g. `2015Feb11-102853`.
SESSION = re.compile(r"\d{4}[A-Z][a-z]{2}\d{2}-\d{6}")

#: A file that Snakemake leaves in each folder that a rule makes; not a file of the user's.
SNAKEMAKE_MARK = ".snakemake_timestamp"

#: Files whose scans share shards, and that one process reads in one go.
FILES_PER_BATCH = 64

_GROUPS = ("session", "folder", "regex", "table", "scan")


@dataclass(frozen=True, kw_only=True)
class IngestOptions:
    """What ingest does; each field is a key of its part of the config.

    Parameters
    ----------
    channel, colormap, first_row, frame, label_names, mat_lines, max_pixels, max_container_pixels
        See `readers.ReadOptions`. `label_names` is by default `classes`.
    directions
        Directions of the fast axis to keep.
    classes
        Class names, in the order of every probability column.
    label_map
        Name in a label table or file → class, for tables that use other names. Names that are not
        in it stand for themselves.
    group
        What is never split between training and test: `session` (the MATRIX time stamp in the file
        name; the file's own group in an NPZ or `.mat`; else the folder), `folder`, `regex`, `table`
        (column `group` of the label table) or `scan` (every scan on its own, in all directions,
        which makes a grouped split a random one).
    group_pattern
        For `regex`: its group named `group`, or first group, or whole match in the file name. A
        file without it is refused, unread.
    min_lines
        Labelled scans with fewer lines are excluded, as `too few lines`.
    rows_without_scan
        What a row of the labels means whose scan is not there: an `error`, or `ignore` it.
    labels
        How a score sheet is read (see `labels.ScoreSheet`); None for a plain table.
    workers
        Processes that read files.
    """

    channel: str = "Z"
    directions: tuple[str, ...] = ("forward",)
    colormap: str = "orange"
    first_row: str = "top"
    frame: str = "square"
    mat_lines: int = 0
    max_pixels: int = ReadOptions.max_pixels
    max_container_pixels: int = ReadOptions.max_container_pixels
    classes: tuple[str, ...] = CLASSES
    label_names: tuple[str, ...] = ()
    label_map: Mapping[str, str] = dataclasses.field(default_factory=dict)
    group: str = "session"
    group_pattern: str = ""
    min_lines: int = 1
    rows_without_scan: str = "error"
    labels: ScoreSheet | None = None
    workers: int = 1

    @classmethod
    def from_spec(cls, spec: Mapping[str, Any]) -> IngestOptions:
        """Make options of plain builtins, as a config file holds them; unknown keys are errors."""
        values = dict(spec)
        _known_keys("ingest", values, cls)
        for key in ("directions", "classes", "label_names"):
            if key in values:
                if isinstance(values[key], str):
                    raise UserError(f"ingest.{key}: {values[key]!r} is a text; give a list")
                values[key] = tuple(values[key])
        policy = values.get("labels")
        if policy is not None and not isinstance(policy, ScoreSheet):
            _known_keys("ingest.labels", policy, ScoreSheet)
            values["labels"] = ScoreSheet(**policy)
        return cls(**values)

    def __post_init__(self) -> None:
        if self.group not in _GROUPS:
            raise UserError(f"ingest.group: {self.group!r} is not one of {', '.join(_GROUPS)}")
        if self.rows_without_scan not in ("error", "ignore"):
            raise UserError(
                f"ingest.rows_without_scan: {self.rows_without_scan!r} is not one of error, ignore"
            )
        if (self.group == "regex") != bool(self.group_pattern):
            raise UserError(
                "ingest.group_pattern: missing, but group is regex; give a pattern"
                if self.group == "regex"
                else f"ingest.group_pattern: of no use with group: {self.group}; leave it out, or "
                "set group: regex"
            )
        try:
            re.compile(self.group_pattern)
        except re.error as error:
            raise UserError(
                f"ingest.group_pattern: {self.group_pattern!r} is no regular expression ({error})"
            ) from error
        for key in ("min_lines", "workers"):
            value = getattr(self, key)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise UserError(f"ingest.{key}: {value!r} is not a whole number of 1 or more")
        unknown = [name for name in self.label_map.values() if name not in self.classes]
        if unknown:
            raise UserError(
                f"ingest.label_map: {unknown[0]!r} is not one of {', '.join(self.classes)}"
            )
        # Checks the values of the reader's own options.
        self.read_options()

    def read_options(self) -> ReadOptions:
        """Return the readers' part."""
        return ReadOptions(
            channel=self.channel,
            directions=self.directions,
            colormap=self.colormap,
            first_row=self.first_row,
            frame=self.frame,
            label_names=self.label_names or self.classes,
            mat_lines=self.mat_lines,
            max_pixels=self.max_pixels,
            max_container_pixels=self.max_container_pixels,
        )


def _known_keys(where: str, values: Mapping[str, Any], kind: Any) -> None:
    known = [item.name for item in dataclasses.fields(kind)]
    for key in values:
        if key not in known:
            raise UserError(f"{where}.{key}: unknown key; known are {', '.join(known)}")


@dataclass(frozen=True, kw_only=True)
class IngestSummary:
    """What ingest found.

    Parameters
    ----------
    inventory
        File, status (`read`, `refused`, `ignored`) and reason of every file seen, by name.
    scans
        Scans written.
    groups
        Groups among them.
    labels
        Class → scans that are used with it, in the order of the classes.
    excluded
        Reason → labelled scans that are not used, by reason.
    unlabelled
        Scans without label and without reason.
    rows_without_scan
        Rows of the label table that were ignored because their scan is not there.
    """

    inventory: list[tuple[str, str, str]]
    scans: int
    groups: int
    labels: dict[str, int]
    excluded: dict[str, int]
    unlabelled: int
    rows_without_scan: int


class _Read(NamedTuple):
    """What one file gave, by now in a shard; or the reason why it gave nothing."""

    file: str
    rows: list[dict[str, Any]]
    refused: list[str]


def ingest(
    spec: Mapping[str, Any],
    source: Path,
    labels: Path | None,
    out: Path,
    *,
    mend_label: str = OWN_CLASSES,
) -> IngestSummary:
    """Read a folder of scans, or one file, and write a scans folder.

    Parameters
    ----------
    spec
        Keys of `IngestOptions`, as plain builtins.
    source
        Folder of instrument files, read with its subfolders in the order of their names; or one
        file, such as an `.npz` or `.mat`.
    labels
        Label table, or score sheet if `spec` has `labels`; None: only what files hold themselves.
    out
        The scans folder to write; it appears whole or not at all.
    mend_label
        What the message says to do about a label that is no class.

    Returns
    -------
    IngestSummary
        Every file and what became of it, and the counts.

    Raises
    ------
    UserError
        If the source is missing or nothing in it can be read, it or the labels lie in `out` or
        `out` in it, or the labels are wrong. A file that cannot be read is listed and does not stop
        the others.
    """
    options = IngestOptions.from_spec(spec)
    check_apart(out, source, labels)
    root, files, inventory = _walk(source, options, except_for=labels)
    # Wrong labels are told before hours of reading.
    entries = _read_labels(labels, options, mend_label)

    rejected: list[tuple[str, str]] = []
    rows: list[dict[str, Any]] = []
    with (
        replacing_folder(out, marker=OPTIONS) as part,
        closing(_store_all(root, files, options, part)) as reads,
    ):
        for read in tqdm(reads, total=len(files), desc="ingest", mininterval=0.5):
            rejected += [(read.file, reason) for reason in read.refused]
            rows += read.rows
            inventory[read.file] = _outcome(read)
        if not rows:
            raise UserError(_nothing(source, rejected))
        _name(rows)
        found, without = _match(rows, entries, inventory, labels, options)
        for row in rows:
            _finish(row, found.get(row["scan_id"]), labels, options, mend_label)
        _check_groups(rows, found, labels, options)
        listing = [(file, *inventory[file]) for file in sorted(inventory)]
        write_tables(part, [_public(row) for row in rows], rejected, listing)
        write_json(part / OPTIONS, dataclasses.asdict(options.read_options()))
    return _summary(rows, listing, without, options)


def _walk(
    source: Path, options: IngestOptions, except_for: Path | None
) -> tuple[Path, list[str], dict[str, tuple[str, str]]]:
    """Return the data folder, the files to read, and status and reason of all other files."""
    if source.is_file():
        return source.parent, [source.name], {}
    if not source.is_dir():
        raise UserError(f"{source}: no such data folder or file")
    root = source.resolve()
    table = except_for.resolve() if except_for is not None else None
    read_options = options.read_options()
    files: list[str] = []
    ignored: dict[str, str] = {}
    indexes: dict[str, tuple[str, str]] = {}
    for folder, folders, names in os.walk(root):
        for name in list(folders):
            path = Path(folder) / name
            if name.startswith(".") or path.is_symlink():
                folders.remove(name)
                kind = "link to a folder" if path.is_symlink() else "hidden folder"
                ignored[f"{path.relative_to(root).as_posix()}/"] = kind
        for name in names:
            path = Path(folder) / name
            file = path.relative_to(root).as_posix()
            if name == SNAKEMAKE_MARK:
                continue
            if name.startswith(".") or not path.is_file():
                ignored[file] = "hidden, or no file"
            elif suffix_of(path) == ".mtrx":
                scans = scans_of_index(name, names)
                scans = [scan for scan in scans if not is_other_channel(Path(scan), read_options)]
                if scans:
                    indexes[file] = ("read", f"index of {counted(len(scans), 'MATRIX file')}")
                else:
                    ignored[file] = "MATRIX index without a file of its scans beside it"
            elif suffix_of(path) not in FORMATS:
                ignored[file] = "label table" if path == table else "not a known scan format"
            elif path.is_symlink() and not path.resolve().is_relative_to(root):
                ignored[file] = "link that leaves the data folder"
            elif is_other_channel(path, read_options):
                ignored[file] = f"not channel {options.channel}"
            else:
                files.append(file)
    others = {file: ("ignored", reason) for file, reason in ignored.items()}
    return root, sorted(files), others | indexes


def _store_all(root: Path, files: list[str], options: IngestOptions, out: Path) -> Generator[_Read]:
    """Write the scans of all files, and yield what each gave, in their order.

    Files are dealt out in batches with shards of their own, so that no heights pass between
    processes, and the shards do not depend on how many processes there are.
    """
    batches = [files[k : k + FILES_PER_BATCH] for k in range(0, len(files), FILES_PER_BATCH)]
    store = partial(_store_batch, root, options, out)
    if options.workers == 1 or len(batches) < 2:
        for number, batch in enumerate(batches):
            yield from store(number, batch)
        return
    # Imported once, not by every process.
    multiprocessing.get_context("forkserver").set_forkserver_preload([__name__])
    with worker_pool(min(options.workers, len(batches)), "forkserver") as pool:
        for reads in pool.map(partial(_at_once, store), range(len(batches)), batches):
            yield from reads


def _store_batch(
    root: Path, options: IngestOptions, out: Path, number: int, files: list[str]
) -> Iterator[_Read]:
    with ScansWriter(out, f"shard-{number:05d}") as writer:
        for file in files:
            try:
                scans, sha256, refused = _read_one(root, options, file)
            except (UserError, OSError) as error:
                yield _Read(file, [], [_reason(root / file, error)])
                continue
            rows = [_row(file, sha256, scan) | writer.add(scan.heights_LP) for scan in scans]
            yield _Read(file, rows, [_reason(root / file, error) for error in refused])


def _at_once(store: Callable[[int, list[str]], Iterator[_Read]], *batch: Any) -> list[_Read]:
    return list(store(*batch))


def _read_one(
    root: Path, options: IngestOptions, file: str
) -> tuple[list[RawScan], str, list[UserError]]:
    """Return the good scans of a file, its SHA-256, and why its other scans are refused."""
    if options.group == "regex" and not _group_in_name(options.group_pattern, file):
        raise UserError(
            f"ingest.group_pattern {options.group_pattern!r} finds no group in its name"
        )
    scans, refused = read_each(root / file, options.read_options())
    return scans, sha256_of(root / file), refused


def _outcome(read: _Read) -> tuple[str, str]:
    """Return what the inventory says of a file that was opened: its status and what to know."""
    if not read.rows:
        return "refused", read.refused[0]
    said = [counted(len(read.rows), "scan")] if len(read.rows) > 1 else []
    if len(read.refused) > 1:
        said.append(f"{len(read.refused)} of its scans refused; first: {read.refused[0]}")
    else:
        said += read.refused
    return "read", "; ".join(said)


def _reason(path: Path, error: Exception) -> str:
    return str(error).removeprefix(f"{path}: ")


def _row(file: str, sha256: str, scan: RawScan) -> dict[str, Any]:
    """Return a scan's row so far; keys that start with `_` do not get into the manifest."""
    return {
        "_name": scan.name,
        "_group": scan.group,
        "_label": scan.label,
        "_part": scan.part,
        "file": file,
        "sha256": sha256,
        "planned_lines": scan.planned_lines,
        "width_m": scan.width_m,
        "height_m": scan.height_m,
        "line_time_s": scan.line_time_s,
        "bias_v": scan.bias_v,
        "current_a": scan.current_a,
        "channel": scan.channel,
        "unit": scan.unit,
        "direction": scan.direction,
        "slow_direction": scan.slow_direction,
    }


def _public(row: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if not key.startswith("_")}


def _name(rows: list[dict[str, Any]]) -> None:
    """Give every row its `scan_id`: the stem, longer only where two files would share it."""
    files = {row["file"] for row in rows}
    stems = collections.Counter(PurePosixPath(file).stem for file in files)
    paths = collections.Counter(str(PurePosixPath(file).with_suffix("")) for file in files)
    for row in rows:
        file = PurePosixPath(row["file"])
        stem = file.stem
        if stems[stem] > 1:
            stem = str(file.with_suffix(""))
            if paths[stem] > 1:
                stem = str(file)
        backward = "backward" if row["direction"] == "backward" else ""
        row["scan_id"] = row["_name"] or ":".join(filter(None, (stem, row["_part"], backward)))
    ids = collections.Counter(row["scan_id"] for row in rows)
    for row in rows:
        if ids[row["scan_id"]] > 1:
            raise UserError(f"{row['file']}: scan_id {row['scan_id']} is there twice; rename one")


def _read_labels(path: Path | None, options: IngestOptions, mend: str) -> dict[str, Label]:
    if path is None:
        if options.labels is not None:
            raise UserError("ingest.labels: tells how to read a score sheet, but none is named")
        return {}
    if options.labels is not None:
        return read_score_sheet(path, options.labels, options.classes)
    names = [*options.classes, *(n for n in options.label_map if n not in options.classes)]
    return read_table(path, names, mend)


def _match(
    rows: list[dict[str, Any]],
    entries: Mapping[str, Label],
    inventory: Mapping[str, tuple[str, str]],
    path: Path | None,
    options: IngestOptions,
) -> tuple[dict[str, Label], int]:
    if path is None:
        return {}, 0
    return match(
        path,
        entries,
        [(row["scan_id"], row["file"]) for row in rows],
        [file for file in inventory if suffix_of(Path(file)) in FORMATS],
        options.rows_without_scan,
    )


def _finish(
    row: dict[str, Any], label: Label | None, path: Path | None, options: IngestOptions, mend: str
) -> None:
    """Add label, exclusion and group to a row."""
    own = row["_label"]
    if label is None:
        label = Label(label=own or "")
    elif own and label.label and own != label.label:
        raise UserError(
            f"{path} row {label.row}: {row['scan_id']} is {label.label}, but its file says {own}"
        )
    name = options.label_map.get(label.label, label.label)
    if name and name not in options.classes:
        raise UserError(
            f"{row['file']}: label {name!r} of {row['scan_id']} is not one of "
            f"{', '.join(options.classes)}; {mend}"
        )
    excluded = label.excluded
    if name and row["lines"] < options.min_lines:
        excluded = "too few lines"
    row |= {
        "label": name,
        "excluded": excluded,
        "responses": label.responses,
        "change_line": label.change_line,
        "group": _group(row, label, options),
    }
    row |= {f"score_{key}": value for key, value in label.scores.items()}


def _group(row: Mapping[str, Any], label: Label, options: IngestOptions) -> str:
    file = PurePosixPath(row["file"])
    if options.group == "scan":
        # The directions of a scan show the same lines; an NPZ or .mat names each of its scans.
        return str(row["_name"] or file)
    if options.group == "table":
        group = label.group or row["_group"]
        if not group:
            raise UserError(
                f"{row['file']}: no group for {row['scan_id']} in the label table; "
                "add it, or set ingest.group to folder or session"
            )
        return str(group)
    if options.group == "regex":
        return _group_in_name(options.group_pattern, row["file"])
    if options.group == "session":
        if row["_group"]:
            return str(row["_group"])
        if stamp := SESSION.search(file.name):
            return stamp[0]
    # Files that lie in the data folder itself are one group, named by its only sign, the dot.
    return str(file.parent)


def _check_groups(
    rows: list[dict[str, Any]],
    found: Mapping[str, Label],
    path: Path | None,
    options: IngestOptions,
) -> None:
    """Refuse groups that part scans which the label table has in one."""
    if options.group in ("table", "scan"):  # the latter parts all scans, and says so
        return
    first: dict[str, Mapping[str, Any]] = {}
    for row in rows:
        label = found.get(row["scan_id"])
        if label is None or not label.group:
            continue
        other = first.setdefault(label.group, row)
        if other["group"] != row["group"]:
            raise UserError(
                f"{path}: has {other['scan_id']} and {row['scan_id']} in one group, "
                f"{label.group!r}, but ingest.group: {options.group} puts them into two, "
                f"{other['group']!r} and {row['group']!r}, so that one could be tested on what "
                "the other taught; set ingest.group to table, or take the column group out"
            )


def _group_in_name(pattern: str, file: str) -> str:
    """Return what a pattern finds in a file's name; empty if nothing."""
    found = re.search(pattern, PurePosixPath(file).name)
    if found is None:
        return ""
    if "group" in found.re.groupindex:
        return found["group"] or ""
    return (found[1] if found.re.groups else found[0]) or ""


def _nothing(source: Path, rejected: list[tuple[str, str]]) -> str:
    if not rejected:
        return f"{source}: holds no scan file; known are {', '.join(sorted(FORMATS))}"
    file, reason = rejected[0]
    return f"{source}: none of its files could be read; first: {file}: {reason}"


def _summary(
    rows: list[dict[str, Any]],
    listing: list[tuple[str, str, str]],
    without: int,
    options: IngestOptions,
) -> IngestSummary:
    used = collections.Counter(row["label"] for row in rows if not row["excluded"])
    excluded = collections.Counter(row["excluded"] for row in rows if row["excluded"])
    return IngestSummary(
        inventory=listing,
        scans=len(rows),
        groups=len({row["group"] for row in rows}),
        labels={name: used[name] for name in options.classes},
        excluded=dict(sorted(excluded.items())),
        unlabelled=used[""],
        rows_without_scan=without,
    )
