"""Gwyddion `.gwy`, by gwyfile.

A `.gwy` file keeps pictures, not acquisitions: row 0 is the top of the picture and nothing tells
which row was measured first. Row 0 is taken as the first line (`slow_direction` is `down`), and
fields whose title says backward are mirrored into acquisition order.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import gwyfile

from scanbench.tipstate.readers.raw import RawScan, ReadOptions, bound, refusal

_FIELD = re.compile(r"/(\d+)/data")
_HEIGHT = re.compile(r"\bz\b|topograph|height", re.IGNORECASE)
_CURRENT = re.compile(r"\bi\b|current", re.IGNORECASE)
_BACKWARD = re.compile(r"backward|retrace|\bbwd\b|right to left", re.IGNORECASE)


def read(path: Path, options: ReadOptions) -> list[RawScan]:
    """Read the data fields of the asked channel from a Gwyddion file.

    A field belongs to channel `Z` if its title says so or its unit is the metre. The only field of
    a file is taken whatever its title.
    """
    with path.open("rb") as file:
        magic = file.read(4)
    if magic == b"GWYO":
        raise refusal(path, "is a Gwyddion 1.x file (GWYO); open and save it with Gwyddion 2")
    if magic != b"GWYP":
        raise refusal(path, "is not a Gwyddion file")
    container = gwyfile.load(str(path))
    numbers = sorted(int(match[1]) for key in container if (match := _FIELD.fullmatch(key)))
    if not numbers:
        raise refusal(path, "holds no data field")
    fields = {n: container[f"/{n}/data"] for n in numbers}
    titles = {n: str(container.get(f"/{n}/data/title", "")) for n in numbers}
    chosen = [n for n in numbers if _matches(titles[n], _unit(fields[n], "si_unit_z"), options)]
    if not chosen and len(numbers) == 1:
        chosen = numbers
    if not chosen:
        names = ", ".join(repr(title) for title in titles.values())
        raise refusal(path, f"has no channel {options.channel}, only {names}")

    scans = []
    seen: set[str] = set()
    for n in chosen:
        field = fields[n]
        lines, pixels = int(field["yres"]), int(field["xres"])
        bound(path, lines, pixels, options)
        heights = field.data
        backward = bool(_BACKWARD.search(titles[n]))
        if backward:
            heights = heights[:, ::-1]
        lateral = _unit(field, "si_unit_xy") == "m"
        direction = "backward" if backward else "forward"
        scans.append(
            RawScan(
                heights_LP=heights,
                planned_lines=lines,
                width_m=float(field.xreal) if lateral else None,
                height_m=float(field.yreal) if lateral else None,
                channel=titles[n] or options.channel,
                unit=_unit(field, "si_unit_z"),
                direction="backward" if backward else "forward",
                part=str(n) if direction in seen else "",
            )
        )
        seen.add(direction)
    return scans


def _unit(field: Any, key: str) -> str:
    unit = field.get(key)
    return str(unit.get("unitstr", "")) if unit is not None else ""


def _matches(title: str, unit: str, options: ReadOptions) -> bool:
    if options.wants_current:
        return bool(_CURRENT.search(title)) or unit == "A"
    if options.channel.lower() == "z":
        return bool(_HEIGHT.search(title)) or (unit == "m" and not _CURRENT.search(title))
    return options.channel.lower() in title.lower()
