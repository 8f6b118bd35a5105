"""Convert: NPZ shards and their manifest become one HDF5 store."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin
import numpy as np
import pandas as pd
from numpy.typing import NDArray
from tqdm import tqdm

from scanbench.errors import UserError, did_you_mean
from scanbench.files import canonical_json, replacing, sha256_of
from scanbench.resample import fill_missing, resample
from scanbench.store import (
    SCHEMA_VERSION,
    FloatArray,
    empty_statistics,
    first_line,
    line_statistics,
    sha256_of_scan,
)

MANIFEST = "manifest.csv"

# Heights beyond this are no measurement, and their differences would leave float32.
LARGEST = 1e30

_BLOCK = 64  # scans written at once
_LIBVER = ("v110", "v110")  # checksummed metadata; read by every HDF5 since 1.10 (2016)
_MANIFEST_TEXTS = ("scan_id", "group", "sha256", "shard", "key", "unit", "label", "excluded")
_MANIFEST_NUMBERS = ("lines", "pixels", "planned_lines")


def convert(spec: Mapping[str, Any], scans: str | Path, out: str | Path) -> None:
    """Write the scans of a folder into one HDF5 store, in memory bounded by a few scans.

    Parameters
    ----------
    spec
        `study` (text), `classes` (names in the order of the label indices; if missing or null,
        the manifest's labels sorted), `lines` and `pixels` (size of a whole scan, default 128).
    scans
        Folder with `manifest.csv` and the shards that it names.
    out
        The store to write; replaced whole or not at all.

    Raises
    ------
    UserError
        If a key of `spec`, the manifest or a shard is missing or wrong.
    """
    scans, out = Path(scans), Path(out)
    options: dict[str, Any] = {"study": "", "classes": None, "lines": 128, "pixels": 128}
    for key in spec:
        if key not in options:
            raise UserError(f"convert: unknown key {key!r}; {did_you_mean(key, options)}")
    options |= spec
    for key in ("lines", "pixels"):
        if not isinstance(options[key], int) or options[key] < 1:
            raise UserError(f"convert: {key} is {options[key]!r}; give a whole number above 0")

    manifest = _read_manifest(scans / MANIFEST)
    classes = _classes(manifest, options["classes"], scans / MANIFEST)
    n, lines, pixels = len(manifest), options["lines"], options["pixels"]
    shards = sorted(manifest["shard"].unique())
    inputs = {name: sha256_of(_shard_path(scans, name)) for name in shards}
    inputs[MANIFEST] = sha256_of(scans / MANIFEST)

    label = np.array([classes.index(name) if name else -1 for name in manifest["label"]], np.int16)
    label[manifest["excluded"].to_numpy() != ""] = -1
    n_lines = manifest["lines"].to_numpy() * lines // manifest["planned_lines"].to_numpy()
    change = manifest["change_line"].to_numpy() * lines // manifest["planned_lines"].to_numpy()
    change = np.where((change < 0) | (change >= n_lines), -1, change)

    with replacing(out) as part, h5py.File(part, "w", libver=_LIBVER) as file:
        attributes = {
            "study": str(options["study"]),
            "classes": json.dumps(classes, ensure_ascii=False),
            "unit": manifest["unit"].tolist()[0],
            "manifest_sha256": inputs[MANIFEST],
            "inputs": canonical_json(inputs),
            "created_by": f"scanbench {version('scanbench')}",
            "convert": canonical_json({"lines": lines, "pixels": pixels}),
        }
        file.attrs["schema_version"] = SCHEMA_VERSION
        for name, text in attributes.items():
            # Of fixed length, so that it stands in the checksummed object header.
            file.attrs.create(name, *_fixed_text([text], scalar=True))
        heights = file.create_dataset(
            "scans",
            (n, lines, pixels),
            "<f4",
            chunks=(1, lines, pixels),
            fletcher32=True,
            track_times=False,
            **hdf5plugin.Bitshuffle(cname="lz4"),
        )
        statistics = empty_statistics(n, lines)
        scan_sha256 = []
        for first, block_NLP in _resampled_blocks(manifest, scans, n_lines, lines, pixels):
            rows = slice(first, first + len(block_NLP))
            heights[rows] = block_NLP
            for name, values in line_statistics(block_NLP, n_lines[rows]).items():
                statistics[name][rows] = values
            scan_sha256 += [sha256_of_scan(x_LP) for x_LP in block_NLP]

        _write(file, "n_lines", n_lines.astype("<i4"))
        _write(file, "label", label.astype("<i2"))
        _write(file, "change_line", change.astype("<i4"))
        for name, values in statistics.items():
            _write(file, name, values)
        for name in ("scan_id", "group", "excluded"):
            _write_text(file, name, manifest[name].tolist())
        _write_text(file, "file_sha256", manifest["sha256"].tolist())
        _write_text(file, "scan_sha256", scan_sha256)
        file.flush()
        file.attrs["complete"] = 1


def _resampled_blocks(
    manifest: pd.DataFrame,
    scans: Path,
    n_lines: NDArray[np.int64],
    lines: int,
    pixels: int,
) -> Iterator[tuple[int, FloatArray]]:
    """Yield (first row, heights [≤ _BLOCK, lines, pixels]) in the manifest's order."""
    shard: Any = None
    open_name = None
    try:
        progress = tqdm(total=len(manifest), desc="convert", unit="scan", mininterval=0.5)
        for first in range(0, len(manifest), _BLOCK):
            rows: list[Any] = list(manifest.iloc[first : first + _BLOCK].itertuples(index=False))
            block_NLP = np.zeros((len(rows), lines, pixels), "<f4")
            for k, row in enumerate(rows):
                if row.shard != open_name:
                    if shard is not None:
                        shard.close()
                    shard, open_name = _open_shard(scans / row.shard), row.shard
                x_LP = _scan_of(shard, scans / row.shard, row)
                kept = n_lines[first + k]
                block_NLP[k, :kept] = resample(x_LP, row.planned_lines, lines, pixels)
                progress.update()
            yield first, block_NLP
        progress.close()
    finally:
        if shard is not None:
            shard.close()


def _scan_of(shard: Any, path: Path, row: Any) -> FloatArray:
    """Read, check and fill one scan."""
    where = f"{path}: {row.key} (scan {row.scan_id})"
    try:
        x_LP = shard[row.key]
    except KeyError:
        raise UserError(
            f"{path}: no array {row.key!r} (scan {row.scan_id}); ingest again"
        ) from None
    except (ValueError, zipfile.BadZipFile, OSError, EOFError) as error:
        raise UserError(f"{where} cannot be read ({first_line(error)}); ingest again") from None
    if x_LP.dtype.kind not in "fiu" or x_LP.shape != (row.lines, row.pixels):
        raise UserError(
            f"{where} is {x_LP.dtype} {list(x_LP.shape)}, but {MANIFEST} says "
            f"[{row.lines}, {row.pixels}] numbers; ingest again"
        )
    try:
        filled = fill_missing(x_LP.astype(np.float32, copy=False))
    except ValueError:
        raise UserError(f"{where} has no finite pixel; take it out of {MANIFEST}") from None
    if max(filled.max(), -filled.min()) > LARGEST:
        raise UserError(f"{where} has heights beyond ±{LARGEST:g}; take it out of {MANIFEST}")
    return filled


def _open_shard(path: Path) -> Any:
    try:
        return np.load(path, allow_pickle=False)
    except (ValueError, zipfile.BadZipFile, OSError, EOFError) as error:
        raise UserError(f"{path}: not an NPZ file ({first_line(error)}); ingest again") from None


def _shard_path(scans: Path, name: str) -> Path:
    path = scans / name
    if Path(name).name != name or not path.is_file():
        raise UserError(f"{scans / MANIFEST}: shard {name!r} is not in this folder; ingest again")
    return path


def _read_manifest(path: Path) -> pd.DataFrame:
    """Read the columns of a manifest that the store needs, and check them."""
    try:
        # As text first: a session may well be called "NA" or "007".
        table = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; run ingest first") from None
    except (ValueError, pd.errors.ParserError) as error:
        raise UserError(f"{path}: not a CSV table ({first_line(error)}); ingest again") from None
    needed = (*_MANIFEST_TEXTS, *_MANIFEST_NUMBERS, "change_line")
    for column in needed:
        if column not in table:
            raise UserError(f"{path}: column {column!r} is missing; ingest again")
    table = table[list(needed)]
    if not len(table):
        raise UserError(f"{path}: lists no scan; see rejected.csv beside it")
    table["change_line"] = table["change_line"].replace("", "-1")
    for column in (*_MANIFEST_NUMBERS, "change_line"):
        wrong = ~table[column].str.fullmatch(r"-?\d{1,9}(\.0)?")
        if wrong.any():
            row = int(np.flatnonzero(wrong)[0])
            raise UserError(
                f"{path}: line {row + 2}: {column} is {table[column].iloc[row]!r}, "
                "not a whole number"
            )
        table[column] = table[column].astype(float).astype(np.int64)
    size_wrong = (table["lines"] < 1) | (table["pixels"] < 1)
    size_wrong |= table["planned_lines"] < table["lines"]
    if size_wrong.any():
        row = int(np.flatnonzero(size_wrong)[0])
        raise UserError(
            f"{path}: line {row + 2}: needs lines ≥ 1, pixels ≥ 1 and planned_lines ≥ lines"
        )
    repeated = table["scan_id"][table["scan_id"].duplicated()]
    if len(repeated):
        raise UserError(f"{path}: scan_id {repeated.iloc[0]!r} stands twice; give each its own")
    units = table["unit"].unique()
    if len(units) > 1:
        counts = ", ".join(f"{unit or '(none)'}: {(table['unit'] == unit).sum()}" for unit in units)
        raise UserError(f"{path}: scans in several units ({counts}); ingest one channel at a time")
    return table


def _classes(manifest: pd.DataFrame, given: Sequence[str] | None, path: Path) -> list[str]:
    found = sorted(set(manifest["label"]) - {""})
    if given is None:
        return found
    classes = list(given)
    if len(set(classes)) != len(classes) or not all(isinstance(c, str) and c for c in classes):
        raise UserError(f"convert: classes {classes} must be different, non-empty names")
    for name in found:
        if name not in classes:
            raise UserError(f"{path}: label {name!r} is no class; {did_you_mean(name, classes)}")
    return classes


def _fixed_text(values: Sequence[str], scalar: bool = False) -> tuple[Any, None, Any]:
    """Return (data, no shape, dtype) of UTF-8 with fixed length, as `attrs.create` takes it."""
    encoded = [value.encode() for value in values]
    dtype = h5py.string_dtype("utf-8", max(1, *map(len, encoded), 1))
    return (np.array(encoded[0] if scalar else encoded, dtype), None, dtype)


def _write_text(file: Any, name: str, values: Sequence[str]) -> None:
    _write(file, name, _fixed_text(values)[0])


def _write(file: Any, name: str, values: NDArray[Any]) -> None:
    chunks = (min(len(values), 1024), *values.shape[1:])
    file.create_dataset(name, data=values, chunks=chunks, fletcher32=True, track_times=False)
