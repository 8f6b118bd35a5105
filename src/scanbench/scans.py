"""The scans folder: a manifest, shards of heights, and the list of what could not be read.

See `docs/formats.md`. Any study writes it with `ScansWriter` and reads it with `read_manifest` and
`iterate_heights`.
"""

from __future__ import annotations

import csv
import io
import mmap
import struct
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from tokenize import TokenError
from types import TracebackType
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from scanbench.errors import UserError, first_line
from scanbench.files import read_json

SCANS_PER_SHARD = 256

#: Columns of `manifest.csv` and how they are read; `score_<name>` columns (float) may follow.
#: Options that ingest read the files with, as JSON.
OPTIONS = "ingest.json"
COLUMNS = {
    "scan_id": "text",
    "group": "text",
    "file": "text",
    "sha256": "text",
    "shard": "text",
    "key": "text",
    "lines": "int",
    "pixels": "int",
    "planned_lines": "int",
    "width_m": "float",
    "height_m": "float",
    "line_time_s": "float",
    "bias_v": "float",
    "current_a": "float",
    "channel": "text",
    "unit": "text",
    "direction": "text",
    "slow_direction": "text",
    "label": "text",
    "excluded": "text",
    "responses": "maybe int",
    "change_line": "maybe int",
}
# Of a ZIP entry's header, the lengths of the name and of the extra field that follow it.
_LOCAL_HEADER = struct.Struct("<26xHH")
# What `zipfile` and NumPy make of a damaged file; RuntimeError: it seems to be encrypted, or is
# nested too deeply; SyntaxError, TokenError, TypeError: the header of an array is no literal.
_BROKEN = (
    OSError, EOFError, ValueError, KeyError, RuntimeError, struct.error, zlib.error,
    zipfile.BadZipFile, SyntaxError, TokenError, TypeError,
)  # fmt: skip
#: Bytes that a .npy file may have beside its values.
_LONGEST_HEADER = 10_000
_DTYPES: dict[str, Any] = {"int": "int64", "maybe int": "Int64", "float": "float64"}


class ScansWriter:
    """Write a scans folder, scan by scan, in memory that does not grow with their number.

    Parameters
    ----------
    folder
        Existing folder, as `scanbench.files.replacing_folder` gives it.
    stem
        What names of shards begin with. Writers of several processes fill one folder, each with its
        own; one of them then writes the tables of all (`write_tables`).
    """

    def __init__(self, folder: Path, stem: str = "shard") -> None:
        self._folder = folder
        self._stem = stem
        self._shard: zipfile.ZipFile | None = None
        self._count = 0

    def __enter__(self) -> ScansWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._shard is not None:
            self._shard.close()

    def add(self, heights_LP: NDArray[np.float32]) -> dict[str, Any]:
        """Store one scan.

        Parameters
        ----------
        heights_LP
            float32 [lines, pixels] in acquisition order and physical units.

        Returns
        -------
        dict
            The columns `shard`, `key`, `lines`, `pixels` of its row in the manifest.
        """
        assert heights_LP.dtype == np.float32
        assert heights_LP.ndim == 2
        heights_LP = np.ascontiguousarray(heights_LP)
        number, place = divmod(self._count, SCANS_PER_SHARD)
        name = f"{self._stem}-{number:05d}.npz"
        if place == 0:
            if self._shard is not None:
                self._shard.close()
            self._shard = zipfile.ZipFile(self._folder / name, "w", zipfile.ZIP_STORED)
        assert self._shard is not None
        key = f"scan-{self._count:06d}"
        # What np.savez writes, but one array at a time: entries carry no time, so the same scans
        # give the same bytes.
        with self._shard.open(f"{key}.npy", "w", force_zip64=True) as file:
            file.write(_npy_header(*heights_LP.shape))
            file.write(heights_LP.data.cast("B"))
        self._count += 1
        lines, pixels = heights_LP.shape
        return {"shard": name, "key": key, "lines": lines, "pixels": pixels}

    def finish(
        self,
        rows: Iterable[Mapping[str, Any]],
        rejected: Iterable[tuple[str, str]],
        inventory: Iterable[tuple[str, str, str]],
    ) -> None:
        """Write the three tables, with one row per stored scan; see `write_tables`."""
        rows = list(rows)
        assert len(rows) == self._count, "one manifest row per stored scan"
        write_tables(self._folder, rows, rejected, inventory)


def write_tables(
    folder: Path,
    rows: Sequence[Mapping[str, Any]],
    rejected: Iterable[tuple[str, str]],
    inventory: Iterable[tuple[str, str, str]],
) -> None:
    """Write the three tables of a scans folder.

    Parameters
    ----------
    folder
        Where the shards are.
    rows
        One per scan, in the order of its shards, with the columns of `COLUMNS` and `score_…`; a
        missing value is None or absent.
    rejected
        File and reason of what could not be read.
    inventory
        File, status (`read`, `refused`, `ignored`) and reason of every file seen.
    """
    ids = [row["scan_id"] for row in rows]
    assert len(set(ids)) == len(ids), "scan ids are unique"
    scores = sorted({key for row in rows for key in row} - COLUMNS.keys())
    assert all(key.startswith("score_") for key in scores), scores
    columns = [*COLUMNS, *scores]
    cells = ([row.get(column) for column in columns] for row in rows)
    _write_csv(folder / "manifest.csv", columns, cells)
    _write_csv(folder / "rejected.csv", ["file", "reason"], rejected)
    _write_csv(folder / "inventory.csv", ["file", "status", "reason"], inventory)


def _write_csv(path: Path, columns: list[str], rows: Iterable[Iterable[Any]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(rows)


def read_manifest(folder: str | Path) -> pd.DataFrame:
    """Read `manifest.csv` with the types of `docs/formats.md`.

    Parameters
    ----------
    folder
        A scans folder.

    Returns
    -------
    DataFrame
        One row per scan. Text that is missing is empty, a missing float NaN, a missing integer NA.

    Raises
    ------
    UserError
        If there is no manifest, a column is missing or misspelt, a value has the wrong type, or a
        scan stands in it twice.
    """
    path = Path(folder) / "manifest.csv"
    if not path.is_file():
        raise UserError(f"{path}: no such manifest; run ingest first, or name a scans folder")
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
    # A line with too many cells, no line at all, bytes that are no text.
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path}: is no CSV table ({reason}); run ingest again") from error
    missing = [column for column in COLUMNS if column not in table]
    strange = [c for c in table if c not in COLUMNS and not str(c).startswith("score_")]
    if missing or strange:
        raise UserError(
            f"{path}: columns missing: {', '.join(missing) or 'none'}; "
            f"unknown: {', '.join(map(str, strange)) or 'none'}"
        )
    for column in table:
        dtype = _DTYPES.get(COLUMNS.get(str(column), "float"))
        if dtype is None:
            continue
        try:
            # Empty is missing: NA where the type has it, an error where it has not.
            numbers = pd.to_numeric(table[column].where(table[column] != ""), errors="raise")
            table[column] = numbers.astype(dtype)
        except (ValueError, TypeError) as error:
            raise UserError(f"{path}: column {column} is not all numbers ({error})") from error
    twice = table["scan_id"][table["scan_id"].duplicated()]
    if len(twice):
        raise UserError(f"{path}: scan_id {twice.iloc[0]} stands in it twice; ids are unique")
    return table


def read_options(folder: str | Path) -> dict[str, Any]:
    """Return the options that a folder's files were read with; empty if they are not recorded.

    Raises
    ------
    UserError
        If `ingest.json` is no JSON object.
    """
    path = Path(folder) / OPTIONS
    return read_json(path, "run ingest again") if path.exists() else {}


def iterate_heights(folder: str | Path, manifest: pd.DataFrame) -> Iterator[NDArray[np.float32]]:
    """Yield the heights of each row of a manifest, float32 [lines, pixels], in its order.

    Arrays cannot be written to: they are views of the shard, which the system reads when asked.

    Raises
    ------
    UserError
        If a shard or an array in it is missing, broken, a pickle, or not of the stated shape.
    """
    folder = Path(folder)
    # Only what is needed, as Python's own values: a pandas row costs as much as a small scan.
    columns = [manifest[name].tolist() for name in ("shard", "key", "lines", "pixels")]
    for shard, rows in groupby(zip(*columns, strict=True), key=itemgetter(0)):
        if Path(shard).name != shard:
            raise UserError(f"{folder / 'manifest.csv'}: shard {shard!r} is not a file name")
        path = folder / shard
        try:
            with zipfile.ZipFile(path) as archive, path.open("rb") as file:
                mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
                for _, key, lines, pixels in rows:
                    entry = archive.getinfo(f"{key}.npy")
                    if entry.file_size > 4 * lines * pixels + _LONGEST_HEADER:
                        raise ValueError(f"{key} unpacks to {entry.file_size} bytes")
                    yield _array(_content(mapped, archive, entry), key, lines, pixels)
        except _BROKEN as error:
            reason = first_line(error)
            raise UserError(f"{path}: broken shard ({reason}); run ingest again") from error


def _content(mapped: mmap.mmap, archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> memoryview:
    """Return an entry's bytes; where it is not compressed, as a view of the file, not a copy.

    `zipfile` reads in small pieces, at a third of the speed.
    """
    if entry.compress_type != zipfile.ZIP_STORED:
        return memoryview(archive.read(entry))
    name_length, extra_length = _LOCAL_HEADER.unpack_from(mapped, entry.header_offset)
    start = entry.header_offset + _LOCAL_HEADER.size + name_length + extra_length
    content = memoryview(mapped)[start : start + entry.file_size]
    if zlib.crc32(content) != entry.CRC:
        raise zipfile.BadZipFile(f"Bad CRC-32 for file {entry.filename!r}")
    return content


def _array(content: memoryview, key: str, lines: int, pixels: int) -> NDArray[Any]:
    """Return the array of a .npy file, without parsing a header that is as `add` writes it."""
    header = _npy_header(lines, pixels)
    if content[: len(header)] == header and len(content) == len(header) + 4 * lines * pixels:
        return np.frombuffer(content, "<f4", offset=len(header)).reshape(lines, pixels)
    file = io.BytesIO(content)
    np.lib.format.read_magic(file)
    shape, by_columns, dtype = np.lib.format.read_array_header_1_0(file)
    if shape != (lines, pixels):
        raise ValueError(f"{key} has shape {shape}")
    if dtype != np.float32:
        raise ValueError(f"{key} holds {dtype}, not float32")
    values = np.frombuffer(content, dtype, lines * pixels, file.tell())
    return values.reshape(shape, order="F" if by_columns else "C")


@lru_cache
def _npy_header(lines: int, pixels: int) -> bytes:
    """Return what a .npy file of float32 [lines, pixels] begins with."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        file, {"descr": "<f4", "fortran_order": False, "shape": (lines, pixels)}
    )
    return file.getvalue()
