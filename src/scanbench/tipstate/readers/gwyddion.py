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
    content = path.read_bytes()
    magic = content[:4]
    if magic == b"GWYO":
        raise refusal(path, "is a Gwyddion 1.x file (GWYO); open and save it with Gwyddion 2")
    if magic != b"GWYP":
        raise refusal(path, "is not a Gwyddion file")
    # The library loops for ever on a text that does not end, as in a truncated file.
    if _object_end(content, 4, len(content)) != len(content):
        raise refusal(path, "has bytes after its end; is it damaged?")
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


_SIZES = {b"b": 1, b"c": 1, b"i": 4, b"q": 8, b"d": 8, b"C": 1, b"I": 4, b"Q": 8, b"D": 8}
_DEEPEST = 50


def _object_end(content: bytes, start: int, limit: int, depth: int = 0) -> int:
    """Return where a serialised object ends; every part of it must end before `limit`.

    An object is its name, NUL, a uint32 size and that many bytes of components: name, NUL, a type
    letter and the value (Gwyddion user guide, "Gwyddion native data file format").
    """
    at = _text_end(content, start, limit) + 4
    end = at + int.from_bytes(content[at - 4 : at], "little")
    if end > limit or depth > _DEEPEST:
        raise ValueError("an object does not end")
    while at < end:
        at = _text_end(content, at, end)
        kind = content[at : at + 1]
        at += 1
        count = 1
        if kind.isupper():
            count = int.from_bytes(content[at : at + 4], "little")
            at += 4
        if kind in _SIZES:
            at += count * _SIZES[kind]
        elif kind in (b"s", b"S"):
            for _ in range(count):
                at = _text_end(content, at, end)
        elif kind in (b"o", b"O"):
            for _ in range(count):
                at = _object_end(content, at, end, depth + 1)
        else:
            raise ValueError(f"unknown type {kind!r}")
        if at > end:
            raise ValueError("a value does not end")
    return end


def _text_end(content: bytes, start: int, limit: int) -> int:
    """Return the place after the NUL that ends a text."""
    return content.index(b"\0", start, limit) + 1


def _unit(field: Any, key: str) -> str:
    unit = field.get(key)
    return str(unit.get("unitstr", "")) if unit is not None else ""


def _matches(title: str, unit: str, options: ReadOptions) -> bool:
    if options.wants_current:
        return bool(_CURRENT.search(title)) or unit == "A"
    if options.channel.lower() == "z":
        return bool(_HEIGHT.search(title)) or (unit == "m" and not _CURRENT.search(title))
    return options.channel.lower() in title.lower()
