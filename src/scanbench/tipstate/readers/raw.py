"""What every reader returns, the options it obeys, and the checks that every scan must pass."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from scanbench.errors import UserError

Direction = Literal["forward", "backward"]
SlowDirection = Literal["up", "down"]

#: Bytes that may be unpacked from however few, and times that more may grow.
_ALWAYS_UNPACKED, _LARGEST_RATIO = 2**26, 100
_LONGEST_TEXT = 4 * 1024  # bytes; NumPy holds 4 a character, for the longest text in every entry


@dataclass(frozen=True, kw_only=True)
class ReadOptions:
    """How instrument files are read.

    Parameters
    ----------
    channel
        Channel to read: `Z` for heights, `Current` where the tip was held at constant height.
    directions
        Directions of the fast axis to read.
    colormap
        Colour map of PNG images: `orange` (black → (255, 128, 0) → white) or `grey`.
    first_row
        Row of a PNG image that was measured first: `top` or `bottom`.
    frame
        Lines that the scan of a PNG image was planned with: `square`, as many as a line has
        pixels, so that an image with fewer rows is an aborted scan; or `image`, its rows.
    label_names
        What the numbers of an NPZ's `labels`, or the columns of a one-hot label, mean.
    mat_lines
        Lines per scan of a `.mat` file; 0 takes them from the number of labels in `y`.
    max_pixels
        Largest scan accepted. It bounds the memory that a hostile file can ask for.
    max_container_pixels
        The same for all scans of one NPZ or `.mat` file together, at 8 bytes a pixel.
    """

    channel: str = "Z"
    directions: tuple[str, ...] = ("forward", "backward")
    colormap: str = "orange"
    first_row: str = "top"
    frame: str = "square"
    label_names: tuple[str, ...] = ()
    mat_lines: int = 0
    max_pixels: int = 2**24
    max_container_pixels: int = 2**30

    @staticmethod
    def recorded(ingest: Mapping[str, Any]) -> dict[str, Any]:
        """Return what a run's record of its ingest says of how files like its own are read."""
        kept = ("channel", "directions", "colormap", "first_row", "frame")
        return {key: ingest[key] for key in kept if key in ingest}

    def __post_init__(self) -> None:
        for key, allowed in (
            ("colormap", ("orange", "grey")),
            ("first_row", ("top", "bottom")),
            ("frame", ("square", "image")),
        ):
            if getattr(self, key) not in allowed:
                raise UserError(f"{key}: {getattr(self, key)!r} is not one of {', '.join(allowed)}")
        if not self.directions or not set(self.directions) <= {"forward", "backward"}:
            raise UserError(f"directions: {self.directions}; forward and backward are known")
        for key in ("mat_lines", "max_pixels", "max_container_pixels"):
            if getattr(self, key) < 0:
                raise UserError(f"{key}: {getattr(self, key)} is negative; give 0 or more")

    @property
    def wants_current(self) -> bool:
        """Whether the tunnelling current is asked for rather than the height."""
        return self.channel.lower() in ("i", "current")


@dataclass(frozen=True, kw_only=True, eq=False)
class RawScan:
    """One scan as it was measured.

    Parameters
    ----------
    heights_LP
        `[lines, pixels]` in acquisition order: line 0 was measured first, and pixel 0 of a
        line before pixel 1. A missing value is NaN. Readers hand out what the file holds; after
        `checked` it is float32 without the lines that were never measured.
    planned_lines
        Lines that the scan would have had if it had not been aborted.
    width_m, height_m
        Lengths of the planned scan along the fast and the slow axis, in metres.
    line_time_s
        Time for one line in one direction, in seconds.
    bias_v, current_a
        Bias in volts, and the current that the feedback held, in amperes.
    channel, unit
        Name and unit of the values; `level` where heights were lost, as in an image.
    direction, slow_direction
        Direction of the fast axis, and of the slow axis on the instrument's screen.
    part
        Tells scans of one file and one direction apart, e.g. the `down` frame of an up-down pair.
    name, group, label
        Scan id, group and label where the file itself holds them, else None.
    """

    heights_LP: NDArray[Any]
    planned_lines: int
    width_m: float | None = None
    height_m: float | None = None
    line_time_s: float | None = None
    bias_v: float | None = None
    current_a: float | None = None
    channel: str = "Z"
    unit: str = "m"
    direction: Direction = "forward"
    slow_direction: SlowDirection = "down"
    part: str = ""
    name: str | None = None
    group: str | None = None
    label: str | None = None

    @property
    def lines(self) -> int:
        """Lines that were measured."""
        return self.heights_LP.shape[0]

    @property
    def pixels(self) -> int:
        """Pixels of a line."""
        return self.heights_LP.shape[1]


def refusal(path: Path, reason: str) -> UserError:
    """Return the error that refuses `path`, on one line."""
    return UserError(f"{path}: {' '.join(reason.split())}")


def bound(path: Path, lines: int, pixels: int, options: ReadOptions) -> None:
    """Refuse a scan whose stated size is impossible or too large, before it is unpacked."""
    if lines < 1 or pixels < 2:
        raise refusal(path, f"states {lines} lines of {pixels} pixels; a scan has at least 1 of 2")
    if lines * pixels > options.max_pixels:
        raise refusal(
            path,
            f"states {lines} × {pixels} pixels, more than max_pixels = {options.max_pixels}; "
            "raise max_pixels if the file is genuine",
        )


def bound_container(
    path: Path,
    key: str,
    shape: tuple[int, ...],
    dtype: np.dtype[Any],
    options: ReadOptions,
    *,
    packed: int,
) -> None:
    """Refuse an array of an NPZ or `.mat` that would need too much memory, before it is read.

    `max_container_pixels` counts pixels of at most 8 bytes each; a text may have 1,024 characters.
    A large array that takes `packed` bytes of the file may not unpack to `_LARGEST_RATIO` times as
    many: heights are noisy, and noise hardly shrinks.
    """
    size = math.prod(shape) * dtype.itemsize
    if size > 8 * options.max_container_pixels:
        raise refusal(
            path,
            f"{key} is {dtype} of shape {shape}: more than max_container_pixels = "
            f"{options.max_container_pixels} at 8 bytes each; raise it if the file is genuine",
        )
    if size > max(_ALWAYS_UNPACKED, _LARGEST_RATIO * packed):
        raise refusal(
            path,
            f"{key} unpacks from {packed} to {size} bytes; save it without compression if the "
            "file is genuine",
        )
    if dtype.kind in "SU" and dtype.itemsize > _LONGEST_TEXT:
        raise refusal(path, f"{key} holds texts of {dtype.itemsize} bytes; shorten them")


def bound_file(path: Path, planes: int, options: ReadOptions) -> None:
    """Refuse a file too large for so many scans of 4 bytes a pixel, before a library reads it."""
    size = path.stat().st_size
    if size > 4 * planes * options.max_pixels:
        raise refusal(
            path,
            f"has {size} bytes, more than {planes} scans of max_pixels = {options.max_pixels} "
            "have; raise max_pixels if the file is genuine",
        )


def checked(path: Path, scan: RawScan) -> RawScan:
    """Cut off what was never measured and refuse what is no scan.

    Parameters
    ----------
    path
        File that the scan came from, for the message.
    scan
        Scan whose lines at the end, if they hold nothing but NaN, count as not measured.

    Returns
    -------
    RawScan
        With contiguous float32 heights `[measured lines, pixels]`.

    Raises
    ------
    UserError
        If the array is not two-dimensional, or the scan is empty, infinite somewhere, more than
        half NaN, or constant.
    """
    heights = scan.heights_LP
    what = f"{scan.name or ' '.join(filter(None, (scan.channel, scan.part, scan.direction)))} "
    if heights.ndim != 2 or heights.shape[0] < 1 or heights.shape[1] < 2:
        raise refusal(path, f"{what}has shape {heights.shape}; a scan is [lines, pixels]")
    if heights.dtype.kind not in "fiub":
        raise refusal(path, f"{what}holds {heights.dtype} values; a scan holds real numbers")
    with np.errstate(over="ignore"):
        heights_LP = np.ascontiguousarray(heights, dtype=np.float32)
    # NaN and infinity both survive a minimum or a maximum, so a clean scan is told in two passes.
    low, high = float(heights_LP.min()), float(heights_LP.max())
    if not (np.isfinite(low) and np.isfinite(high)):
        if np.isinf(heights_LP).any():
            raise refusal(path, f"{what}holds infinite values; export the scan again")
        missing_LP = np.isnan(heights_LP)
        measured = np.flatnonzero(~missing_LP.all(axis=1))
        if measured.size == 0:
            raise refusal(path, f"{what}holds no measured value, only NaN")
        lines = int(measured[-1]) + 1
        heights_LP, missing_LP = heights_LP[:lines], missing_LP[:lines]
        if missing_LP.mean() > 0.5:
            raise refusal(path, f"{what}lacks more than half of its pixels (NaN)")
        low, high = float(np.nanmin(heights_LP)), float(np.nanmax(heights_LP))
    if low == high:
        raise refusal(
            path,
            f"{what}is constant; for a constant-height scan read another channel, e.g. Current",
        )
    return replace(scan, heights_LP=heights_LP)


def number(value: object) -> float | None:
    """Return the number that `value` starts with (`2.5E-10 A` is 2.5e-10), or None."""
    try:
        result = float(str(value).split()[0])
    except (ValueError, IndexError):
        return None
    return result if np.isfinite(result) else None
