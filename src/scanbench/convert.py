"""Convert: NPZ shards and their manifest become one HDF5 store."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from importlib.metadata import version
from itertools import cycle
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
from scanbench.scans import OPTIONS, iterate_heights, read_manifest, read_options
from scanbench.store import (
    SCHEMA_VERSION,
    FloatArray,
    empty_statistics,
    line_statistics,
    sha256_of_scan,
)

MANIFEST = "manifest.csv"
INPUTS = (MANIFEST, OPTIONS)

# Heights beyond this are no measurement, and in picoamperes they would leave float32.
LARGEST = 1e25

_BLOCK_BYTES = 2**21  # written at once, so that what a call of HDF5 costs does not count
_LIBVER = ("v110", "v110")  # checksummed metadata; read by every HDF5 since 1.10 (2016)


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

    manifest = _checked_manifest(scans)
    classes = _classes(manifest, options["classes"], scans / MANIFEST)
    n, lines, pixels = len(manifest), options["lines"], options["pixels"]
    # Of the tables; heights are held by the hash of each scan's source file and of what is stored.
    inputs = {name: sha256_of(scans / name) for name in INPUTS if (scans / name).exists()}

    label = np.array([classes.index(name) if name else -1 for name in manifest["label"]], np.int16)
    label[manifest["excluded"].to_numpy() != ""] = -1
    planned = manifest["planned_lines"].to_numpy()
    n_lines = manifest["lines"].to_numpy() * lines // planned
    change = manifest["change_line"].fillna(-1).to_numpy(np.int64) * lines // planned
    change = np.where((change < 0) | (change >= n_lines), -1, change)

    write_store(
        out,
        attributes={
            "study": str(options["study"]),
            "classes": json.dumps(classes, ensure_ascii=False),
            "unit": manifest["unit"].tolist()[0],
            "channel": ", ".join(sorted(set(manifest["channel"]))),
            "ingest": canonical_json(read_options(scans)),
            "manifest_sha256": inputs[MANIFEST],
            "inputs": canonical_json(inputs),
            "convert": canonical_json({"lines": lines, "pixels": pixels}),
        },
        shape=(n, lines, pixels),
        numbers={"n_lines": n_lines, "label": label, "change_line": change},
        texts={
            "scan_id": manifest["scan_id"].tolist(),
            "group": manifest["group"].tolist(),
            "excluded": manifest["excluded"].tolist(),
            "file_sha256": manifest["sha256"].tolist(),
        },
        blocks=_resampled_blocks(manifest, scans, lines, pixels),
    )


def write_store(
    out: Path,
    *,
    attributes: Mapping[str, str],
    shape: tuple[int, int, int],
    numbers: Mapping[str, NDArray[Any]],
    texts: Mapping[str, Sequence[str]],
    blocks: Iterator[FloatArray],
) -> None:
    """Write a store (`docs/formats.md`) from scans that come in blocks, whole or not at all.

    Parameters
    ----------
    out
        The store to write.
    attributes
        Texts of its root, but for `schema_version`, `created_by` and `complete`.
    shape
        Scans, lines, pixels.
    numbers
        `n_lines`, `label` and `change_line` [N].
    texts
        `scan_id`, `group`, `excluded` and `file_sha256` [N].
    blocks
        float32 [some scans, lines, pixels] in order, 0 past measured lines. A block may be
        overwritten by the next but one.
    """
    n, lines, pixels = shape
    n_lines = numbers["n_lines"]
    with (
        replacing(out) as part,
        _DiskFile(part, "w+") as disk,
        h5py.File(disk, "w", libver=_LIBVER) as file,
    ):
        file.attrs["schema_version"] = SCHEMA_VERSION
        created = {"created_by": f"scanbench {version('scanbench')}"}
        for name, text in (dict(attributes) | created).items():
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
        scan_sha256: list[str] = []
        # HDF5 compresses one block in a thread while the next is read, described and hashed.
        with ThreadPoolExecutor(1) as beside:
            written: Future[None] | None = None
            for block_NLP in blocks:
                rows = slice(len(scan_sha256), len(scan_sha256) + len(block_NLP))
                for name, values in line_statistics(block_NLP, n_lines[rows]).items():
                    statistics[name][rows] = values
                scan_sha256 += [sha256_of_scan(x_LP) for x_LP in block_NLP]
                if written is not None:
                    written.result()
                    disk.check(out)
                written = beside.submit(heights.__setitem__, rows, block_NLP)
            assert written is not None, "a store holds at least one scan"
            written.result()
        disk.check(out)

        _write(file, "n_lines", n_lines.astype("<i4"))
        _write(file, "label", numbers["label"].astype("<i2"))
        _write(file, "change_line", numbers["change_line"].astype("<i4"))
        for name, values in statistics.items():
            _write(file, name, values)
        for name in ("scan_id", "group", "excluded"):
            _write_text(file, name, texts[name])
        _write_text(file, "file_sha256", texts["file_sha256"])
        _write_text(file, "scan_sha256", scan_sha256)
        file.flush()
        file.attrs["complete"] = 1
        file.flush()
        disk.check(out)


class _DiskFile(io.FileIO):
    """A file that keeps its first error for `check`, and takes what is written after it as written.

    HDF5 cannot close a file that it failed to write: it complains of every object in turn and then
    crashes when the process ends, whatever was caught.
    """

    error: OSError | None = None

    def write(self, data: Any) -> int:
        """Write all of `data`."""
        rest = memoryview(data).cast("B")
        size = len(rest)
        while rest and self.error is None:
            try:
                rest = rest[super().write(rest) :]
            except OSError as error:
                self.error = error
        return size

    def truncate(self, size: int | None = None) -> int:
        """Set the size of the file."""
        if self.error is None:
            try:
                return super().truncate(size)
            except OSError as error:
                self.error = error
        return size or 0

    def check(self, path: str | Path) -> None:
        """Raise the first error, in the name of `path`."""
        if self.error is not None:
            raise OSError(self.error.errno, self.error.strerror, str(path))


def _resampled_blocks(
    manifest: pd.DataFrame, scans: Path, lines: int, pixels: int
) -> Iterator[FloatArray]:
    """Yield blocks [some scans, lines, pixels] in the manifest's order, 0 past measured lines.

    A block is overwritten by the next but one, so that one can be written out meanwhile.
    """
    size = max(1, _BLOCK_BYTES // (4 * lines * pixels))
    buffers = cycle(np.empty((2, size, lines, pixels), "<f4"))
    needed = ["scan_id", "shard", "key", "planned_lines"]
    rows: list[Any] = list(manifest[needed].itertuples())
    heights = iterate_heights(scans, manifest)
    with tqdm(total=len(rows), desc="convert", unit="scan", mininterval=0.5) as progress:
        for first in range(0, len(rows), size):
            block = rows[first : first + size]
            block_NLP = next(buffers)[: len(block)]
            for into_LP, row, x_LP in zip(block_NLP, block, heights, strict=False):
                filled_LP = _filled(x_LP, scans, row)
                resampled = resample(filled_LP, row.planned_lines, lines, pixels)
                into_LP[: len(resampled)] = resampled
                into_LP[len(resampled) :] = 0
            progress.update(len(block))
            yield block_NLP


def _filled(x_LP: FloatArray, scans: Path, row: Any) -> FloatArray:
    """Fill a scan's missing pixels, and refuse what is no measurement."""
    # NaN and infinity survive a minimum or a maximum: these two passes clear nearly every scan.
    if max(x_LP.max(), -x_LP.min()) <= LARGEST:
        return x_LP
    where = f"{scans / row.shard}: {row.key} (scan {row.scan_id})"
    try:
        filled = fill_missing(x_LP)
    except ValueError:
        raise UserError(f"{where} has no finite pixel; take it out of {MANIFEST}") from None
    if max(filled.max(), -filled.min()) > LARGEST:
        raise UserError(f"{where} has heights beyond ±{LARGEST:g}; take it out of {MANIFEST}")
    return filled


def _checked_manifest(scans: Path) -> pd.DataFrame:
    """Read a manifest, with scans of one shard together, and check what the store relies on."""
    path = scans / MANIFEST
    table = read_manifest(scans)
    if not len(table):
        raise UserError(f"{path}: lists no scan; see rejected.csv beside it")
    wrong = (table["lines"] < 1) | (table["pixels"] < 1) | (table["planned_lines"] < table["lines"])
    if wrong.any():
        raise UserError(
            f"{path}: scan {table['scan_id'][wrong].tolist()[0]} needs lines ≥ 1, pixels ≥ 1 and "
            "planned_lines ≥ lines; ingest again"
        )
    for name in table["shard"].unique():
        if Path(name).name != name or not (scans / name).is_file():
            raise UserError(f"{path}: shard {name!r} is not in this folder; ingest again")
    units = table["unit"].unique()
    if len(units) > 1:
        of_unit = [table[table["unit"] == unit] for unit in units]
        counts = ", ".join(
            f"{unit or '(none)'}: {len(own)}, such as {own['file'].iloc[0]}"
            for unit, own in zip(units, of_unit, strict=True)
        )
        raise UserError(
            f"{path}: scans in several units ({counts}); ingest one channel at a time, or move the "
            "odd files elsewhere"
        )
    return pd.concat([rows for _, rows in table.groupby("shard", sort=False)], ignore_index=True)


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
