"""Createc `.dat` (STMAFM 4, `[Paramco32]`), read here: the `createc` library fails on most files.

16,384 bytes of text, then one zlib stream of little-endian float32: one value that is no pixel,
followed by the planes [lines, pixels] of Z and current forward and, where they were kept, Z and
current backward, in DAC units. All planes lie as on the screen, so backward lines must be mirrored
into acquisition order. Lines that were never measured are 0 throughout.

Readers that take the leading value for the first pixel find every line shifted by one, with the
last pixel of the line before in the first column. Z is DAC × `Dacto[A]z` × `GainZ`, as x and y are:
the steps of a metal terrace come out at 1.9 Å with the gain and at 0.6 Å without.
"""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from scanbench.tipstate.readers.raw import (
    Direction,
    RawScan,
    ReadOptions,
    bound,
    number,
    refusal,
)

_HEADER = 16_384
_ANGSTROM = 1e-10
#: Planes in their order: channel and direction.
_PLANES: tuple[tuple[str, Direction], ...] = (
    ("Z", "forward"),
    ("Current", "forward"),
    ("Z", "backward"),
    ("Current", "backward"),
)


def read(path: Path, options: ReadOptions) -> list[RawScan]:
    """Read the forward and, if it was kept, the backward scan of one channel of a Createc file."""
    raw = path.read_bytes()
    if not raw.startswith(b"[Paramco32]"):
        raise refusal(path, "is not a Createc scan ([Paramco32]); save it with STMAFM 4")
    if len(raw) <= _HEADER:
        raise refusal(path, "is truncated inside its header")
    header = _parse(raw[:_HEADER].decode("latin-1"))

    def value(key: str) -> float:
        result = number(header.get(key, ""))
        if result is None:
            raise refusal(path, f"lacks a number for {key} in its header")
        return result

    lines, pixels, planes = int(value("Num.Y")), int(value("Num.X")), int(value("Channels"))
    bound(path, lines, pixels, options)
    if planes not in (2, 4):
        raise refusal(path, f"holds {planes} planes; Z and current, once or twice, are known")
    needed = 4 * (1 + planes * lines * pixels)
    # Bounded: a small file that unpacks to gigabytes stops at what its header promised.
    unpacked = zlib.decompressobj().decompress(raw[_HEADER:], needed)
    if len(unpacked) < needed:
        raise refusal(path, f"is truncated: unpacks to {len(unpacked)} of {needed} bytes")
    values = np.frombuffer(unpacked, "<f4", offset=4).reshape(planes, lines, pixels)

    # ±10 V over the converter's range, stated as e.g. `20bit`.
    volts_per_dac = 20.0 / 2 ** int(header.get("DAC-Type", "20bit").removesuffix("bit"))
    scales = {
        "Z": value("Dacto[A]z") * value("GainZ") * _ANGSTROM,
        "Current": volts_per_dac / 10 ** value("GainPre 10^"),
    }
    channel = "Current" if options.wants_current else options.channel.upper()
    if channel not in scales:
        raise refusal(path, f"has no channel {options.channel}, only Z, Current")
    measured = _measured_lines(values)
    scans = []
    for plane, (name, direction) in zip(values, _PLANES, strict=False):
        if name != channel:
            continue
        heights = plane[:measured].astype(np.float64) * scales[name]
        if direction == "backward":
            heights = heights[:, ::-1]
        scans.append(
            RawScan(
                heights_LP=heights,
                planned_lines=lines,
                width_m=value("Length x[A]") * _ANGSTROM,
                height_m=value("Length y[A]") * _ANGSTROM,
                line_time_s=number(header.get("Sec/line:", "")),
                bias_v=value("BiasVolt.[mV]") * 1e-3,
                current_a=number(header.get("Current[A]", header.get("SetPoint", ""))),
                channel=name,
                unit={"Z": "m", "Current": "A"}[name],
                direction=direction,
            )
        )
    return scans


def _parse(text: str) -> dict[str, str]:
    """Return `key = value`; of a key in two languages (`Num.X / Num.X`) the English one."""
    header: dict[str, str] = {}
    for line in text.splitlines():
        key, equals, rest = line.partition("=")
        if equals:
            header.setdefault(key.split(" / ")[-1].strip(), rest.strip())
    return header


def _measured_lines(values: NDArray[np.float32]) -> int:
    """Return how many lines, counted from the first, are not 0 in every plane and pixel."""
    written = np.flatnonzero(values.any(axis=(0, 2)))
    return int(written[-1]) + 1 if written.size else 0
