"""Nanonis `.sxm`, by nanonispy2.

The file holds every channel in acquisition order: forward lines from their first pixel, backward
lines from theirs (so they look mirrored), and the first measured line first, whether the slow axis
ran up or down. Nothing must be flipped. Lines that were never measured are NaN.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from nanonispy2.read import Scan

from scanbench.tipstate.readers.raw import (
    Direction,
    RawScan,
    ReadOptions,
    bound,
    number,
    refusal,
)


class _Scan(Scan):
    """nanonispy2's scan, which maps its data and knows channels kept in one direction only."""

    def _load_data(self) -> dict[str, dict[str, Any]]:
        info = self.header["data_info"]
        pixels, lines = (int(n) for n in self.header["scan_pixels"])
        planes = [
            (name, direction)
            for name, kept in zip(info["Name"], info["Direction"], strict=True)
            for direction in (("forward", "backward") if kept == "both" else (kept,))
        ]
        size = Path(self.fname).stat().st_size - self.byte_offset
        needed = 4 * lines * pixels * len(planes)
        if size < needed or needed <= 0:
            raise refusal(Path(self.fname), f"is truncated: holds {size} of {needed} bytes of data")
        data = np.memmap(
            self.fname, self.data_format, "r", self.byte_offset, (len(planes), lines, pixels)
        )
        signals: dict[str, dict[str, Any]] = {}
        for plane, (name, direction) in zip(data, planes, strict=True):
            signals.setdefault(name, {})[direction] = plane
        return signals


def read(path: Path, options: ReadOptions) -> list[RawScan]:
    """Read the forward and the backward scan of one channel of a Nanonis `.sxm` file."""
    file = _Scan(str(path))
    header = file.header
    pixels, lines = (int(n) for n in header["scan_pixels"])
    bound(path, lines, pixels, options)
    slow_direction = header["scan_dir"]
    if slow_direction not in ("up", "down"):
        raise refusal(path, f"states slow direction {slow_direction!r}; up or down is known")
    wanted = "current" if options.wants_current else options.channel.lower()
    channels = {name.lower(): name for name in file.signals}
    if wanted not in channels:
        raise refusal(path, f"has no channel {options.channel}, only {', '.join(file.signals)}")
    channel = channels[wanted]
    info = header["data_info"]
    unit = info["Unit"][info["Name"].index(channel)]
    setpoint = header.get("z-controller", {}).get("Setpoint", ("",))[0]
    width_m, height_m = (float(length) for length in header["scan_range"])
    directions: tuple[Direction, ...] = ("forward", "backward")
    scans = []
    for direction, line_time_s in zip(directions, header["scan_time"], strict=True):
        if direction not in file.signals[channel]:
            continue
        scans.append(
            RawScan(
                heights_LP=file.signals[channel][direction],
                planned_lines=lines,
                width_m=width_m,
                height_m=height_m,
                line_time_s=float(line_time_s),
                bias_v=float(header["bias"]),
                current_a=number(setpoint) if setpoint.endswith("A") else None,
                channel=channel,
                unit=unit,
                direction=direction,
                slow_direction=slow_direction,
            )
        )
    return scans
