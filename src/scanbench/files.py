"""Files that appear whole or not at all, and the hashes that tie results to them."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from scanbench.errors import UserError, first_line

#: Files of up to so many bytes are compared by content; Snakemake's `--max-checksum-file-size`.
SMALL = 1_000_000

_watchers: list[set[Path]] = []


@contextmanager
def watching() -> Iterator[set[Path]]:
    """Give a set to which every file and folder is added that this process puts in its place.

    That is what `replacing` and `replacing_folder` write; some may be gone again later.
    """
    placed: set[Path] = set()
    _watchers.append(placed)
    try:
        yield placed
    finally:
        _watchers.pop()


def _place(part: Path, path: Path) -> None:
    part.replace(path)
    for placed in _watchers:
        placed.add(path)


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Give a temporary path beside `path`; on success rename it onto `path`, else delete it.

    A killed process leaves at most a `.NAME.*.part` folder, which nothing ever reads and which the
    next writer of `path` on the same machine removes. The file gets the permissions that the umask
    gives, whatever its writer does.

    Parameters
    ----------
    path
        Where the whole file shall stand. Its folder is made if missing.

    Yields
    ------
    Path
        The file to write. It keeps `path`'s suffix, for writers that look at it.
    """
    path = Path(path)
    folder = _new_part(path)
    part = folder / path.name
    try:
        yield part
        with part.open("rb") as file:
            os.fsync(file.fileno())
        # The folder was made with 0o777 less the umask.
        part.chmod(folder.stat().st_mode & 0o666)
        _place(part, path)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def replacing_folder(path: str | Path, *, marker: str, option: str = "") -> Iterator[Path]:
    """Give a temporary folder beside `path`; on success it takes the place of `path`.

    Parameters
    ----------
    path
        Where the whole folder shall stand; what an earlier call wrote there is replaced.
    marker
        What every folder of this kind holds: one without it is somebody's own.
    option
        That names the folder, for the message; empty: it is an argument.

    Yields
    ------
    Path
        The folder to fill.

    Raises
    ------
    UserError
        If something else stands there.
    """
    path = Path(path)
    own = path.is_file() or (path.is_dir() and any(path.iterdir()))
    if own and not (path / marker).exists():
        raise UserError(
            f"{path}: exists and would be replaced, but was not written by this command; "
            f"{_named(option, 'another folder')}, or delete it"
        )
    part = _new_part(path)
    try:
        yield part
        if path.exists():
            shutil.rmtree(path)
        _place(part, path)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def check_apart(out: Path, folder: Path, *others: Path | None, option: str = "") -> None:
    """Check that a folder to be replaced is apart from what is read.

    Parameters
    ----------
    out
        What `replacing_folder` will replace.
    folder
        Is read with its subfolders; or a file.
    others
        Further files or folders that are needed.
    option
        That names `out`, for the message; empty: it is an argument.

    Raises
    ------
    UserError
        If an input lies in `out`, and would be lost; or `out` in `folder`: what is written there
        would be read the next time.
    """
    for path in (folder, *others):
        if path is not None and path.resolve().is_relative_to(out.resolve()):
            raise UserError(
                f"{out}: would be replaced, but holds {path}; {_named(option, 'another folder')}"
            )
    if folder.is_dir() and out.resolve().is_relative_to(folder.resolve()):
        raise UserError(
            f"{out}: lies in {folder}, so what is written there would be read the next time; "
            f"{_named(option, 'a folder outside')}"
        )


def _named(option: str, folder: str) -> str:
    return f"give {option} {folder}" if option else f"name {folder}"


def _new_part(path: Path) -> Path:
    """Make an empty folder beside `path` to write it in, and remove those of killed processes.

    Its name tells the machine and the process: of another machine's nobody knows if it lives.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    machine = hashlib.sha256(platform.node().encode()).hexdigest()[:8]
    mine = f".{path.name}.{machine}-"
    for name in os.listdir(path.parent):
        if name.startswith(mine) and name.endswith(".part"):
            pid = name.removeprefix(mine).partition("-")[0]
            if _dead(pid):
                shutil.rmtree(path.with_name(name), ignore_errors=True)
    # Unlike `mkdtemp`, `mkdir` keeps to the umask.
    part = path.with_name(f"{mine}{os.getpid()}-{secrets.token_hex(4)}.part")
    part.mkdir()
    return part


def _dead(pid: str) -> bool:
    """Return whether there is no such process on this machine."""
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except (OSError, ValueError, OverflowError):  # another user's process, or no process's number
        return False
    return False


def sha256_of(path: str | Path) -> str:
    """Return the SHA-256 of a file's bytes as 64 hex digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def files_digest(path: str | Path) -> str:
    """Return a digest of the files below a folder, or of one file, that changes when they do.

    It holds each file's name and size and, as Snakemake compares its inputs, the content of small
    files and the time of large ones: touching a small file changes nothing. Hidden files do not
    count, as ingest reads none. A path that is not there has the digest of an empty folder.
    """
    root = Path(path)
    files = [root]
    if not root.is_file():
        files = sorted(file for file in root.rglob("*") if file.is_file())
        files = [file for file in files if "/." not in f"/{file.relative_to(root)}"]
    digest = hashlib.sha256()
    for file in files:
        stat = file.stat()
        small = stat.st_size <= SMALL
        content = sha256_of(file) if small else f"{stat.st_size} {stat.st_mtime_ns}"
        entry = f"{file.relative_to(root.parent)}\t{content}\n"
        digest.update(entry.encode(errors="surrogateescape"))
    return digest.hexdigest()


def parse_json(text: str | bytes) -> Any:
    """Return what JSON text holds, of whatever origin.

    Raises
    ------
    ValueError
        If it is no JSON, is nested too deeply to be read, or holds NaN or infinity, which JSON does
        not know but Python would let pass.
    """
    try:
        return json.loads(text, parse_constant=_no_number)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _no_number(text: str) -> NoReturn:
    raise ValueError(f"{text} is no number")


def read_json(path: str | Path, mend: str) -> dict[str, Any]:
    """Return the JSON object that a file holds.

    Parameters
    ----------
    path
        The file.
    mend
        Ends each message: what to do about it.

    Raises
    ------
    UserError
        If the file is missing or holds anything else.
    """
    try:
        value = parse_json(Path(path).read_bytes())
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; {mend}") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not JSON ({first_line(error)}); {mend}") from None
    if not isinstance(value, dict):
        raise UserError(f"{path}: holds no JSON object; {mend}")
    return value


def canonical_json(value: Any) -> str:
    """Return `value` as JSON that is the same text whenever the value is the same.

    Keys are sorted and NaN is refused, so equal configurations compare equal as text. A `<` is
    written as its code: Snakemake puts what its rules are given into a script of its report as it
    is, where `</script>` in a title would end that script and begin another.
    """
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, allow_nan=False)
    return text.replace("<", "\\u003c")


def write_json(path: str | Path, value: Any) -> None:
    """Write `value` as indented JSON with sorted keys, whole or not at all."""
    with replacing(path) as part:
        part.write_text(
            json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n",
            encoding="utf-8",
        )
