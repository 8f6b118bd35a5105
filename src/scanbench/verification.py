"""Recheck every checksum of a results folder, from the raw files to the figures."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from scanbench import records
from scanbench.errors import counted
from scanbench.records import Record

#: What lies in a results folder and is no result: messages, times and curves of running jobs, and
#: pages that Snakemake makes of results.
NO_RESULTS = (records.FOLDER, "logs", "benchmarks")
CURVES = "tensorboard"

#: What Snakemake leaves in a folder that a job wrote.
MARK = ".snakemake_timestamp"
NO_RESULT_FILES = ("README.md", "report*.html")

#: The mend of what a job wrote: Snakemake makes a job's outputs anew once they are gone.
AGAIN = "verify --delete, then run again"

#: That of a file of which nobody knows what made it; `delete` keeps it.
FOREIGN = "delete or move away, then run again"


@dataclass(frozen=True)
class Fault:
    """Something that does not hold.

    Attributes
    ----------
    path
        What is at fault, by its path in the results folder (a raw file: as configured).
    what
        What is wrong with it.
    mend
        What to do about it.
    job
        Record whose job must run again, if one must.
    """

    path: str
    what: str
    mend: str
    job: str | None = None

    def __str__(self) -> str:
        return f"{self.path}: {self.what}: {self.mend}"


@dataclass(kw_only=True)
class Verification:
    """What `verify` found.

    Attributes
    ----------
    faults
        One for each file, or record, that does not hold; sorted by path.
    notes
        What could not be checked.
    records, files, size
        How much was checked; the size in bytes.
    makers
        Each file → the record that tells of its bytes.
    """

    faults: list[Fault] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    records: int = 0
    files: int = 0
    size: int = 0
    makers: dict[str, str] = field(default_factory=dict)


def verify(results: str | Path) -> Verification:
    """Recheck what the records of a results folder say.

    Every output has the recorded SHA-256; what a job read is what another is recorded to have
    written, or a raw file of the user that has not changed; no file is without record. A raw
    folder that is not there cannot be checked, which is a note and no fault, so that results can be
    moved.

    Parameters
    ----------
    results
        The folder.

    Raises
    ------
    UserError
        If there is no such folder, or it holds no records.
    """
    root = Path(results)
    known, damaged = records.read_records(root)
    found = Verification(records=len(known) + len(damaged))
    found.faults += [Fault(name, one.why, AGAIN, name) for name, one in damaged.items()]

    makers: dict[str, list[str]] = defaultdict(list)
    for name, record in known.items():
        for output in record.outputs:
            makers[output].append(name)
    there = _results(root)
    raw = _raw(root, known, found)
    checked = [*(root / name for name in makers if name in there), *raw.values()]
    digests = records.hashes(checked, "verify")
    found.files, found.size = len(digests), sum(path.stat().st_size for path in digests)

    makers, replaced = _latest(root, known, makers, digests)
    found.makers = {path: names[0] for path, names in makers.items()}
    found.faults += replaced
    for name, record in known.items():
        own = {path: sha for path, sha in record.outputs.items() if makers[path] == [name]}
        found.faults += _outputs(root, name, own, record, digests)
        found.faults += _stale(name, record, makers, known)
        found.faults += [
            Fault(path, _differs(digests[raw[path]], sha, name), "restore it, or run again with it")
            for path, sha in record.raw.items()
            if path in raw and digests[raw[path]] != sha
        ]
    nobodys = there - makers.keys()
    nobodys -= {path for one in damaged.values() for path in one.claims}
    if damaged:  # a file whose name is damaged in its record is known by its hash
        known_hashes = frozenset().union(*(one.hashes for one in damaged.values()))
        digest_of = records.hashes([root / path for path in sorted(nobodys)], "verify")
        nobodys = {path for path in nobodys if digest_of[root / path] not in known_hashes}
    found.faults += _unclaimed(root, nobodys, makers, known)
    found.faults.sort(key=lambda fault: fault.path)
    return found


def delete(results: str | Path, found: Verification) -> int:
    """Delete all that the jobs at fault wrote, and their records.

    The next run makes it anew, and what rests on it. Raw files of the user, files without record
    and files that another job wrote since are left alone.

    Returns
    -------
    int
        Number of files deleted.
    """
    root = Path(results).resolve()
    known, damaged = records.read_records(root)
    count = 0
    for name in sorted({fault.job for fault in found.faults if fault.job}):
        outputs = known[name].outputs if name in known else damaged[name].claims
        own = [file for file in outputs if found.makers.get(file, name) == name]
        for path in (root / file for file in (*own, name)):
            if path.is_file() and path.resolve().is_relative_to(root):
                path.unlink()
                count += 1
            _tidy(path.parent, root)
    return count


def _tidy(folder: Path, root: Path) -> None:
    """Remove folders in which no result is left; Snakemake's mark of a folder is none."""
    while folder != root and folder.is_relative_to(root) and folder.is_dir():
        if any(path.name != MARK for path in folder.iterdir()):
            return
        (folder / MARK).unlink(missing_ok=True)
        folder.rmdir()
        folder = folder.parent


def _results(root: Path) -> set[str]:
    """Return the files that records should tell of, by their path in the folder."""
    names = (path.relative_to(root) for path in records.files_below(root))
    return {
        name.as_posix()
        for name in names
        if name.parts[0] not in NO_RESULTS
        and CURVES not in name.parts
        and not (len(name.parts) == 1 and any(map(name.match, NO_RESULT_FILES)))
    }


def _raw(root: Path, known: Mapping[str, Record], found: Verification) -> dict[str, Path]:
    """Return the user's raw files that are there; say what is not."""
    raw: dict[str, Path] = {}
    for name, record in known.items():
        # A relative path was given from where the results folder lies.
        paths = {path: root.absolute().parent / path for path in record.raw}
        here = {path: full for path, full in paths.items() if full.is_file()}
        absent = sorted(paths.keys() - here.keys())
        if absent and not here:
            found.notes.append(
                f"{absent[0]} and all other files from outside that {name} tells of "
                f"({len(absent):,}) are not here: not checked"
            )
        else:
            mend = "restore it, or run again without it"
            found.faults += [Fault(path, f"missing; {name} tells of it", mend) for path in absent]
        raw |= here
    return raw


def _latest(
    root: Path,
    known: Mapping[str, Record],
    makers: Mapping[str, list[str]],
    digests: Mapping[Path, str],
) -> tuple[dict[str, list[str]], list[Fault]]:
    """Leave each file the one record that tells of its bytes, where several claim it."""
    kept: dict[str, list[str]] = defaultdict(list)
    replaced: dict[str, Fault] = {}
    for path, names in makers.items():
        digest = digests.get(root / path)
        matching = [name for name in names if known[name].outputs[path] == digest]
        kept[path] = (matching or names)[:1]
        for name in names:
            if [name] != kept[path] and name not in replaced:
                what = f"tells of {path}, which {kept[path][0]} replaced"
                replaced[name] = Fault(name, what, "delete this record")
    return kept, list(replaced.values())


def _outputs(
    root: Path,
    name: str,
    own: Mapping[str, str],
    record: Record,
    digests: Mapping[Path, str],
) -> Iterator[Fault]:
    """Check what a job wrote."""
    lasting = [path for path in own if path not in record.temporary]
    missing = [path for path in lasting if root / path not in digests]
    if lasting and len(missing) == len(lasting) > 1:
        what = f"nothing is left of the {len(lasting):,} files that it tells of, {missing[0]} first"
        yield Fault(name, what, "run again, or delete this record", name)
        missing = []
    for path in missing:
        yield Fault(path, f"missing; {name} tells of it", AGAIN, name)
    for path, sha in own.items():
        digest = digests.get(root / path)
        if digest is not None and digest != sha:
            yield Fault(path, _differs(digest, sha, name), AGAIN, name)


def _differs(digest: str, recorded: str, name: str) -> str:
    return f"its SHA-256 is {digest[:12]}…, {name} says {recorded[:12]}…"


def _stale(
    name: str, record: Record, makers: Mapping[str, list[str]], known: Mapping[str, Record]
) -> Iterator[Fault]:
    """Check that a job read what others are recorded to have written."""
    others = [
        (path, sha, known[makers[path][0]].outputs[path])
        for path, sha in record.inputs.items()
        if makers.get(path)
    ]
    changed = [(path, sha, now) for path, sha, now in others if sha != now]
    if changed:
        path, sha, now = changed[0]
        more = f", and {counted(len(changed) - 1, 'other file')}" if len(changed) > 1 else ""
        yield Fault(
            next(iter(record.outputs), name),
            f"made from another {path} ({sha[:12]}…) than lies there now ({now[:12]}…){more}",
            AGAIN,
            name,
        )


def _unclaimed(
    root: Path, nobodys: set[str], makers: Mapping[str, list[str]], known: Mapping[str, Record]
) -> Iterator[Fault]:
    """Name the files that no record tells of, folder by folder."""
    folders: dict[str, list[str]] = defaultdict(list)
    for path in sorted(nobodys):
        folder, _, file = path.rpartition("/")
        folders[folder].append(file)
    for folder, files in folders.items():
        if len(files) == 1:
            yield Fault(f"{folder}/{files[0]}".lstrip("/"), "no record tells of it", FOREIGN)
        else:
            names = ", ".join(files[:3]) + (", …" if len(files) > 3 else "")
            what = f"{len(files):,} files that no record tells of: {names}"
            yield Fault(f"{folder}/", what, FOREIGN)
    told: set[str] = set()
    for name, record in known.items():
        lost = [path for path in record.inputs if path not in makers and path not in told]
        lost = [path for path in lost if not (root / path).exists()]
        told |= set(lost)
        if lost:
            more = f", and {counted(len(lost) - 1, 'other file')}" if len(lost) > 1 else ""
            what = f"missing, without record; {name} says that it was read{more}"
            # A finished run does not ask for what it once read: its reader must.
            yield Fault(lost[0], what, f"run again, with --forcerun {root.name}/{name}")
