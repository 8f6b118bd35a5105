"""The record of a job: what went in and what came out, each file by its SHA-256.

Every rule of the workflow runs its command through `scanbench record`, which writes one record per
job below `results/records`. Files are named by their path in the results folder, so that it can be
moved. Together the records are a graph from each figure down to the raw files: `verification`
checks it, `tracing` walks it, `crate` exports it. A record holds no times: the same job on the same
inputs with the same code writes the same bytes.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from tqdm import tqdm

from scanbench import provenance, sources
from scanbench.errors import UserError
from scanbench.files import canonical_json, parse_json, sha256_of, watching, write_json

T = TypeVar("T")

SCHEMA_VERSION = 1

#: Folder of the records in the results folder.
FOLDER = "records"

#: Files hashed at the same time; hashing lets go of the interpreter.
THREADS = 4

_SHA256 = re.compile(r"[0-9a-f]{64}")
_KEY = re.compile(r'"([^"]+)": ')


@dataclass(frozen=True, kw_only=True)
class Record:
    """What one job read and wrote.

    Attributes
    ----------
    stage
        The stage: the first word of the command.
    command
        The command without its `--spec`, which is `config`.
    config
        The part of the configuration that the job was given; empty if none.
    commit, dirty
        Of the source tree; None where it is no git checkout.
    code
        SHA-256 over names and contents of the sources that the rule lists as its inputs.
    versions
        Of Python, Scanbench and the packages that can change a number.
    inputs, outputs
        Path in the results folder → SHA-256.
    raw
        Path outside the results folder, as the configuration names it → SHA-256: the user's own.
    temporary
        Outputs that the workflow removes once nothing needs them any more.
    """

    stage: str
    command: str
    config: Mapping[str, Any]
    commit: str | None
    dirty: bool | None
    code: str
    versions: Mapping[str, str]
    inputs: Mapping[str, str]
    outputs: Mapping[str, str]
    raw: Mapping[str, str] = field(default_factory=dict)
    temporary: Sequence[str] = ()

    @property
    def seeds(self) -> dict[str, Any]:
        """Every seed of the configuration, by its dotted key."""
        return {
            key: value
            for key, value in flattened(self.config).items()
            if key.rpartition(".")[2] in ("seed", "seeds")
        }


def flattened(config: Mapping[str, Any], below: str = "") -> dict[str, Any]:
    """Return the values of nested mappings by dotted keys; lists stay whole."""
    found: dict[str, Any] = {}
    for key, value in config.items():
        name = f"{below}{key}"
        if isinstance(value, Mapping):
            found |= flattened(value, f"{name}.")
        else:
            found[name] = value
    return found


# ----------------------------------------------------------------------------------------- hashing


def files_below(path: Path) -> list[Path]:
    """Return a file, or the files of a folder, sorted; hidden ones are nobody's result."""
    if not path.is_dir():
        return [path]
    found = []
    for folder, folders, names in os.walk(path):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(folder, name) for name in names if not name.startswith(".")]
    return sorted(found)


def hashes(paths: Sequence[Path], what: str) -> dict[Path, str]:
    """Hash many files, in chunks, some at a time, with a bar that counts bytes.

    Parameters
    ----------
    paths
        The files.
    what
        What the bar says is being done.

    Raises
    ------
    OSError
        If a file cannot be read.
    """
    paths = list(dict.fromkeys(paths))
    sizes = {path: path.stat().st_size for path in paths}
    with (
        ThreadPoolExecutor(THREADS) as pool,
        # A short job needs no bar.
        tqdm(total=sum(sizes.values()), desc=what, unit="B", unit_scale=True, delay=2) as bar,
    ):
        found = {}
        for path, digest in zip(paths, pool.map(sha256_of, paths), strict=True):
            found[path] = digest
            bar.update(sizes[path])
    return found


# ----------------------------------------------------------------------------------------- writing


def recorded(
    run: Callable[[], None],
    *,
    command: Sequence[str],
    config: Mapping[str, Any],
    inputs: Iterable[Path],
    outputs: Sequence[Path],
    results: Path,
    record: Path,
    temporary: Sequence[str] = (),
) -> Record:
    """Run a job's stage, and write the record of what it read and wrote.

    Inputs and sources are hashed before the stage begins and must not change until it ends, so that
    the record tells of what it read and ran. What is no longer what another job wrote is not read
    at all: nothing is made from a damaged file.

    Parameters
    ----------
    run
        The stage.
    command
        Its words, without the name of the program.
    config
        The part of the configuration that it is given.
    inputs
        Files and folders; sources of this package among them count as code.
    outputs
        Files and folders in `results` that it promises, the record itself may be among them. What
        else it writes there counts too.
    results
        The results folder.
    record
        The JSON file to write.
    temporary
        Names of outputs that the workflow will remove.

    Raises
    ------
    UserError
        If an input is missing or damaged, an input or a source changes while the stage runs, or an
        output is missing after the run or lies outside `results`.
    """
    stage = command[0]
    wanted = list(inputs)
    code = [path for path in wanted if path.resolve().is_relative_to(sources.ROOT)]

    def read() -> tuple[dict[Path, tuple[int, ...]], dict[Path, str]]:
        data = [file for path in wanted if path not in set(code) for file in files_below(path)]
        for path in (*code, *data):
            if not path.is_file():
                raise FileNotFoundError(errno.ENOENT, f"missing: {stage} needs it", str(path))
        # States first: what changes while the others are hashed has changed, too.
        states = {path: _state(path) for path in data}
        return states, hashes(data, f"hash what {stage} reads")

    config = json.loads(canonical_json(dict(config)))  # a stage may take its options apart
    states, before = _patiently(read)
    commit, dirty = provenance.git_state()
    sources_before = _code_digest(code)
    inside = {path: digest for path, digest in before.items() if _name(path, results)}
    _check_undamaged(inside, wanted, results)
    with watching() as placed:
        run()
    touched = [path for path, state in states.items() if _state(path) != state]
    after = _patiently(lambda: hashes(touched, f"hash again what {stage} read"))
    changed = [path for path in touched if after[path] != before[path]]
    if changed or _code_digest(code) != sources_before:
        what = changed[0] if changed else f"a source of {stage}"
        raise UserError(f"{what}: changed while {stage} ran, which may have read both; run again")
    for path in outputs:
        if not _name(path, results):
            raise UserError(f"{path}: lies outside {results}: results are written there")
        if path != record and not path.exists():
            raise UserError(f"{path}: {stage} should have written it")
    made = _patiently(
        lambda: hashes(_made({*outputs, *placed} - {record}, results), f"hash what {stage} wrote")
    )
    written = Record(
        stage=stage,
        command=provenance.command_line(_without_spec(command)),
        config=config,
        commit=commit,
        dirty=dirty,
        code=sources_before,
        versions=provenance.versions(),
        inputs=_named(inside, results),
        outputs=_named(made, results),
        raw={path.as_posix(): digest for path, digest in before.items() if path not in inside},
        temporary=[_name(path, results) for path in made if path.name in temporary],
    )
    write_json(record, _sealed(written))
    return written


def _check_undamaged(digests: Mapping[Path, str], wanted: Sequence[Path], results: Path) -> None:
    """Compare files in the results folder with the records of the jobs that wrote them.

    Parameters
    ----------
    digests
        File → its SHA-256.
    wanted
        The files, or folders that hold them, as a job is given them.
    results
        The results folder.

    Raises
    ------
    UserError
        Naming the first file that is not what was written, or a record that cannot tell.
    """
    written: dict[str, dict[str, str]] = {}
    for name, path in _records_about({_name(file, results) for file in digests}, results):
        try:
            record = read_record(path)
        except UserError as error:
            raise UserError(
                f"{path}: {error}; delete it and what its job wrote, and run again"
            ) from None
        for output, digest in record.outputs.items():
            written.setdefault(output, {})[digest] = name
    for file, digest in digests.items():
        told = written.get(_name(file, results), {})
        if told and digest not in told:
            folder = next(path for path in wanted if file == path or path in file.parents)
            recorded_sha, name = next(iter(told.items()))
            raise UserError(
                f"{file}: is damaged: its SHA-256 is {digest[:12]}…, {name} says "
                f"{recorded_sha[:12]}…; delete {folder} and run again"
            )


def _records_about(names: Collection[str], results: Path) -> Iterator[tuple[str, Path]]:
    """Give the records that may tell of these files, without opening thousands of others.

    A record lies where the files of its job do or above them, or is named by parts of their paths.
    """
    paths = [PurePosixPath(name) for name in names]
    folders = {folder for path in paths for folder in path.parents}
    words = {word for path in (*paths, *folders) for word in (path.name, path.stem)}
    for name, file in record_files(results):
        below = PurePosixPath(name).relative_to(FOLDER)
        if below.parent in folders or words.issuperset(below.with_suffix("").parts[1:]):
            yield name, file


def _name(path: Path, results: Path) -> str:
    """Return a path in the results folder as the records name it; nothing if it is not in there."""
    full, root = Path(os.path.abspath(path)), Path(os.path.abspath(results))
    return full.relative_to(root).as_posix() if full.is_relative_to(root) else ""


def _made(paths: Iterable[Path], results: Path) -> list[Path]:
    """Return the files of what is there of `paths` and is no scratch file, sorted by name."""
    files = {
        _name(file, results): file
        for path in paths
        if path.exists() and "/." not in f"/{_name(path, results)}"
        for file in files_below(path)
    }
    return [file for name, file in sorted(files.items()) if name]


def _named(digests: Mapping[Path, str], results: Path) -> dict[str, str]:
    return {_name(path, results): digest for path, digest in digests.items()}


def _without_spec(command: Sequence[str]) -> list[str]:
    words = list(command)
    if "--spec" in words:
        at = words.index("--spec")
        del words[at : at + 2]
    return words


def _code_digest(code: Iterable[Path]) -> str:
    digest = hashlib.sha256()
    for path in sorted({path.resolve() for path in code}):
        name = path.relative_to(sources.ROOT).as_posix()
        digest.update(f"{name}\t{sha256_of(path)}\n".encode())
    return digest.hexdigest()


def _patiently(read: Callable[[], T]) -> T:
    """Return what `read` does; a file that is gone may be about to be replaced by another run."""
    for seconds in (0.1, 0.3, 1.0):
        try:
            return read()
        except FileNotFoundError:
            time.sleep(seconds)
    try:
        return read()
    except FileNotFoundError as error:
        raise UserError(f"{error.filename}: {error.strerror}") from None


def _state(path: Path) -> tuple[int, ...]:
    """Return what tells that a file is another one, or was written to; nothing if it is gone."""
    try:
        found = path.stat()
    except OSError:
        return ()
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def _sealed(record: Record) -> dict[str, Any]:
    """Return a record as JSON with a checksum over itself, so that no change goes unseen."""
    content = {"schema_version": SCHEMA_VERSION, **asdict(record)}
    return {**content, "sha256": _digest(content)}


def _digest(content: Mapping[str, Any]) -> str:
    text = json.dumps(content, sort_keys=True, ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


# ----------------------------------------------------------------------------------------- reading


def read_record(path: Path) -> Record:
    """Read a record, and refuse one that is not what was written.

    Raises
    ------
    UserError
        With what is wrong with it, without its path.
    """
    try:
        content = parse_json(path.read_bytes())
    except OSError as error:
        raise UserError(f"cannot be read ({error.strerror})") from None
    except ValueError:
        raise UserError("is damaged: it is no JSON") from None
    if not isinstance(content, dict) or "schema_version" not in content:
        raise UserError("is no record of a job")
    if content["schema_version"] != SCHEMA_VERSION:
        raise UserError(
            f"is a record of form {content['schema_version']!r}, and this version of Scanbench "
            f"reads form {SCHEMA_VERSION}"
        )
    seal = content.pop("sha256", None)
    try:
        if seal != _digest(content):
            raise UserError("is damaged: it does not match its own checksum")
        del content["schema_version"]
        record = Record(**content)
        for table in (record.inputs, record.outputs, record.raw):
            for name, digest in table.items():
                if not _SHA256.fullmatch(digest):
                    raise ValueError(digest)
                if table is not record.raw and not _stays_below(name):
                    raise UserError(f"names a file outside the results folder: {name!r}")
        if not isinstance(record.config, dict) or not isinstance(record.versions, dict):
            raise TypeError("config")
    except (TypeError, ValueError, AttributeError):
        raise UserError("is no record of a job") from None
    return record


def _stays_below(name: str) -> bool:
    path = PurePosixPath(name)
    return bool(path.parts) and not path.is_absolute() and ".." not in path.parts


def record_files(results: Path) -> Iterator[tuple[str, Path]]:
    """Give name in the results folder and path of each file that should be a record."""
    folder = results / FOLDER
    if folder.is_dir():
        for path in files_below(folder):
            yield path.relative_to(results).as_posix(), path


def read_records(results: Path) -> tuple[dict[str, Record], dict[str, Damaged]]:
    """Read all records of a results folder.

    Returns
    -------
    tuple
        Name of each record's file in the results folder → the record; and → what is wrong with it.

    Raises
    ------
    UserError
        If the folder is missing or holds no records.
    """
    if not results.is_dir():
        raise UserError(f"{results}: no such folder")
    good: dict[str, Record] = {}
    bad: dict[str, Damaged] = {}
    for name, path in record_files(results):
        try:
            good[name] = read_record(path)
        except UserError as error:
            bad[name] = Damaged.of(path, str(error))
    if not good and not bad:
        raise UserError(
            f"{results}: no {FOLDER}/ in it: nothing has run, or it was made by a version of "
            "Scanbench that kept no records; run again to have them"
        )
    return good, bad


@dataclass(frozen=True)
class Damaged:
    """A file that should be a record.

    Attributes
    ----------
    why
        What is wrong with it.
    claims
        The outputs that it still names.
    hashes
        All that it still names by SHA-256: where a name is damaged, the hash is not.
    """

    why: str
    claims: Sequence[str]
    hashes: frozenset[str]

    @classmethod
    def of(cls, path: Path, why: str) -> Damaged:
        """Read what can still be read of a damaged record."""
        try:
            text = path.read_text(encoding="utf-8", errors="replace")
        except OSError:
            return cls(why, [], frozenset())
        _, _, after = text.partition('"outputs": {')
        claims = [key for key in _KEY.findall(after.partition("}")[0]) if _stays_below(key)]
        return cls(why, claims, frozenset(_SHA256.findall(text)))
