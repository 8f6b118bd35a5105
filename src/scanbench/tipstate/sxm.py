"""Nanonis .sxm files, written.

A file is a text header, the bytes 1A 04, and big-endian float32 planes: for each channel the
forward, then the backward scan. Planes are in acquisition order, as the instrument stores them:
the first line is the one measured first (the lowest on the screen if the scan ran up), and a
backward line starts where the forward line ended. Lines that were never measured are NaN.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from scanbench.files import replacing


@dataclass(frozen=True, kw_only=True)
class Channel:
    """One recorded signal.

    Parameters
    ----------
    unit
        SI unit, such as ``m`` or ``A``.
    forward_LP, backward_LP
        Values [lines, pixels] in acquisition order, in that unit.
    """

    unit: str
    forward_LP: NDArray[np.floating]
    backward_LP: NDArray[np.floating]


@dataclass(frozen=True, kw_only=True)
class Header:
    """What the file says about the scan.

    Parameters
    ----------
    width_m, height_m
        Length of the fast and the slow axis.
    line_time_s
        Time of one line in one direction.
    bias_v, setpoint_a
        Sample bias and current set-point.
    slow_direction
        ``up`` or ``down`` on the instrument's screen.
    angle_deg
        Rotation of the scan frame.
    offset_m
        Centre of the frame (x, y).
    started
        When the scan began.
    comment
        Free text.
    """

    width_m: float
    height_m: float
    line_time_s: float
    bias_v: float
    setpoint_a: float
    slow_direction: str = "down"
    angle_deg: float = 0.0
    offset_m: tuple[float, float] = (0.0, 0.0)
    started: datetime = datetime(2000, 1, 1)
    comment: str = ""


def write_sxm(path: str | Path, header: Header, channels: Mapping[str, Channel]) -> None:
    """Write a scan as a Nanonis .sxm file, whole or not at all.

    Parameters
    ----------
    path
        The file, ending in ``.sxm``.
    header
        The scan's settings.
    channels
        Signals by name (``Z``, ``Current``), all of one shape.

    Raises
    ------
    ValueError
        If there is no channel, shapes differ, the direction is unknown, or a text would break the
        header.
    """
    planes = [
        plane
        for channel in channels.values()
        for plane in (channel.forward_LP, channel.backward_LP)
    ]
    shapes = {plane.shape for plane in planes}
    if len(shapes) != 1 or len(planes[0].shape) != 2:
        raise ValueError(f"channels must share one shape [lines, pixels], not {sorted(shapes)}")
    if header.slow_direction not in ("up", "down"):
        raise ValueError(f"slow_direction must be 'up' or 'down', not {header.slow_direction!r}")
    if any(line.startswith(":") for line in header.comment.splitlines()):
        raise ValueError("a line of the comment must not start with ':'")
    lines, pixels = planes[0].shape
    text = _header_text(Path(path).name, header, channels, lines, pixels)
    with replacing(path) as part, part.open("wb") as file:
        file.write(text.encode("utf-8"))
        file.write(b"\n\n\x1a\x04")
        for plane in planes:
            file.write(np.ascontiguousarray(plane, dtype=">f4").tobytes())


def _header_text(
    name: str, header: Header, channels: Mapping[str, Channel], lines: int, pixels: int
) -> str:
    # Times and lengths keep enough digits that reading gives back the same double.
    entries = {
        "NANONIS_VERSION": "2",
        "SCANIT_TYPE": "              FLOAT            MSBFIRST",
        "REC_DATE": f" {header.started:%d.%m.%Y}",
        "REC_TIME": f"{header.started:%H:%M:%S}",
        "REC_TEMP": "      290.0000000000",
        "ACQ_TIME": f"{2 * header.line_time_s * lines:12.1f}",
        "SCAN_PIXELS": f"{pixels:10d}{lines:10d}",
        "SCAN_FILE": name,
        "SCAN_TIME": f"  {header.line_time_s:.16E}  {header.line_time_s:.16E}",
        "SCAN_RANGE": f"  {header.width_m:.16E}  {header.height_m:.16E}",
        "SCAN_OFFSET": f"  {header.offset_m[0]:.16E}  {header.offset_m[1]:.16E}",
        "SCAN_ANGLE": f"  {header.angle_deg:.16E}",
        "SCAN_DIR": header.slow_direction,
        "BIAS": f"  {header.bias_v:.16E}",
        "Z-CONTROLLER": "\tName\ton\tSetpoint\tP-gain\tI-gain\tT-const\n"
        f"\tlog Current\t1\t{header.setpoint_a:.3E} A\t1.000E-11 m\t5.000E-8 m/s\t2.000E-4 s",
        "COMMENT": header.comment,
        "DATA_INFO": "\tChannel\tName\tUnit\tDirection\tCalibration\tOffset\n"
        + "".join(
            f"\t{_NUMBERS.get(name, 100 + i)}\t{name}\t{channel.unit}\tboth\t1.000E+0\t0.000E+0\n"
            for i, (name, channel) in enumerate(channels.items())
        ),
    }
    return "".join(f":{key}:\n{value}\n" for key, value in entries.items()) + ":SCANIT_END:\n"


_NUMBERS = {"Z": 14, "Current": 0}
"""The instrument's own numbers of the usual channels."""
