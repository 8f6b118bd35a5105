"""Readers of instrument files: one module per format, behind one registry by suffix."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Iterable
from pathlib import Path

from scanbench.errors import UserError
from scanbench.tipstate.readers.raw import RawScan, ReadOptions, checked, refusal

__all__ = [
    "FORMATS",
    "RawScan",
    "ReadOptions",
    "is_other_channel",
    "read",
    "read_each",
    "scans_of_index",
    "suffix_of",
]

#: Suffix (lower case) → module of this package that reads it.
FORMATS = {
    ".sxm": "nanonis",
    ".z_mtrx": "matrix",
    ".i_mtrx": "matrix",
    ".gwy": "gwyddion",
    ".dat": "createc",
    ".sm4": "rhk",
    ".png": "png",
    ".npz": "npz",
    ".mat": "matlab",
}


def suffix_of(path: Path) -> str:
    """Return the suffix that decides the reader, in lower case."""
    return path.suffix.lower()


def read(path: Path, options: ReadOptions | None = None) -> list[RawScan]:
    """Read all scans of one file; as `read_each`, but a file without a good scan is an error.

    Raises
    ------
    UserError
        If the file cannot be read or none of its scans is good, in one line.
    """
    scans, refused = read_each(path, options)
    if not scans:
        raise refused[0]
    return scans


def read_each(
    path: Path, options: ReadOptions | None = None
) -> tuple[list[RawScan], list[UserError]]:
    """Read the scans of one file, and tell which of them are refused.

    Parameters
    ----------
    path
        File with a suffix of `FORMATS`.
    options
        How to read it; by default the height channel in both directions.

    Returns
    -------
    scans : list of RawScan
        The good scans of the asked directions.
    refused : list of UserError
        Why the others are not scans, one line each. Not empty where `scans` is.

    Raises
    ------
    UserError
        If the file as a whole cannot be read, whatever the reason, in one line.
    """
    options = options or ReadOptions()
    if suffix_of(path) not in FORMATS:
        raise refusal(path, f"has no known format; known are {', '.join(sorted(FORMATS))}")
    if path.stat().st_size == 0:
        raise refusal(path, "is empty")
    # Imported on use: a Nanonis user need not wait for every other library.
    module = importlib.import_module(f"{__name__}.{FORMATS[suffix_of(path)]}")
    scans: list[RawScan] = []
    refused: list[UserError] = []
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found: list[RawScan] = module.read(path, options)
    except UserError:
        raise
    # The libraries raise whatever a broken file makes of them; each file stands for itself.
    except Exception as error:
        cause = f"{type(error).__name__}: {error}"
        raise refusal(
            path, f"cannot be read ({cause}); is it truncated, or not what its name says?"
        ) from error
    for scan in found:
        if scan.direction in options.directions:
            try:
                scans.append(checked(path, scan))
            except UserError as error:
                refused.append(error)
    if not scans and not refused:
        raise refusal(path, f"holds no {' or '.join(options.directions)} scan")
    return scans, refused


def is_other_channel(path: Path, options: ReadOptions) -> bool:
    """Return whether a file's very suffix says that it holds another channel (MATRIX)."""
    return suffix_of(path) == (".z_mtrx" if options.wants_current else ".i_mtrx")


def scans_of_index(index: str, names: Iterable[str]) -> list[str]:
    """Return which files of a folder are read with a MATRIX index (`SESSION_0001.mtrx`)."""
    session = index.removesuffix("_0001.mtrx")
    return [
        name
        for name in names
        if name.startswith(f"{session}--") and name.lower().endswith((".z_mtrx", ".i_mtrx"))
    ]
