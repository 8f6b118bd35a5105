"""Numbers and names as they are written in figures, tables and messages."""

from __future__ import annotations

import math


def plain(text: object, width: int | None = None) -> str:
    """Return text that any backend can draw: one line, no control characters.

    Parameters
    ----------
    text
        A name out of the data.
    width
        Longest result in characters; the middle of a longer text becomes "…", because names of
        scans differ at either end.
    """
    line = " ".join("".join(c if c.isprintable() else " " for c in str(text)).split())
    if width is None or len(line) <= width:
        return line
    tail = (width - 1) // 2
    return f"{line[: width - 1 - tail]}…{line[len(line) - tail :]}"


def number(value: float, digits: int = 3) -> str:
    """Return a number as text: a dash where there is none, a minus sign that is one."""
    return "–" if math.isnan(value) else f"{value:.{digits}f}".replace("-", "−")


def with_interval(value: float, low: float, high: float, *, digits: int = 3) -> str:
    """Return "value (low–high)", or the value alone where it has no interval.

    Where an end is below 0 it is "value (low to high)", as a dash would be taken for a minus.
    """
    if math.isnan(low) or math.isnan(high):
        return number(value, digits)
    dash = " to " if low < 0 else "–"
    return f"{number(value, digits)} ({number(low, digits)}{dash}{number(high, digits)})"
