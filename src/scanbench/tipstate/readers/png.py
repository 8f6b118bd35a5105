"""PNG images of scans, turned back through their colour map into levels.

Averaging the three channels to grey is not the inverse of a colour map: it bends the scale of
heights. Every colour of the map has one level, so the level is looked up; a colour that is not of
the map means that the image is something else, and it is refused.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from scanbench.tipstate.readers.raw import RawScan, ReadOptions, bound, refusal

_LEVELS = 256


def orange_map() -> NDArray[np.uint8]:
    """Return the orange map of Gwyddion-like viewers, uint8 [256, 3]: black, orange, white.

    Red rises over the first half, blue over the second, and green over the whole, so green is the
    level and the sum of the channels rises with it.
    """
    level = np.arange(_LEVELS)
    half = np.rint(np.array([level, level - 128]) * 255 / 127).clip(0, 255)
    return np.stack([half[0], level, half[1]], axis=1).astype(np.uint8)


_ORANGE = orange_map()


def read(path: Path, options: ReadOptions) -> list[RawScan]:
    """Read one colour-mapped PNG as levels in [0, 1]; its rows are scan lines."""
    _check_chunks(path)
    with Image.open(path, formats=["PNG"]) as image:
        bound(path, image.height, image.width, options)
        if image.mode == "P":
            if "transparency" in image.info:
                raise refusal(path, "has transparent colours; save it opaque")
            palette = np.array(image.getpalette("RGB"), dtype=np.uint8).reshape(-1, 3)
            index_LP = np.asarray(image)
            used = np.unique(index_LP)
            if used[-1] >= len(palette):
                raise refusal(path, "uses colours that its palette lacks")
            table = np.full(256, np.nan, dtype=np.float32)
            table[used] = _levels(path, palette[used], options.colormap)
            levels_LP = table[index_LP]
        elif image.mode == "RGB":
            levels_LP = _levels(path, np.asarray(image), options.colormap)
        elif image.mode in ("L", "I;16") and options.colormap == "grey":
            values = np.asarray(image)
            levels_LP = values.astype(np.float32) / np.float32(np.iinfo(values.dtype).max)
        else:
            raise refusal(
                path,
                f"has mode {image.mode}, which the colour map {options.colormap} never makes; "
                "save it as opaque RGB, or set colormap",
            )
    if options.first_row == "bottom":
        levels_LP = levels_LP[::-1]
    return [
        RawScan(
            heights_LP=levels_LP,
            planned_lines=max(levels_LP.shape) if options.frame == "square" else len(levels_LP),
            unit="level",
            slow_direction="down" if options.first_row == "top" else "up",
        )
    ]


def _check_chunks(path: Path) -> None:
    """Refuse a file with a chunk that is longer than the file: Pillow would take memory for it."""
    size, at = path.stat().st_size, 8
    with path.open("rb") as file:
        while at < size:
            file.seek(at)
            at += 12 + int.from_bytes(file.read(4), "big")
    if at > size:
        raise refusal(path, "cannot be read: it ends within a chunk; is it truncated?")


def _levels(path: Path, rgb: NDArray[np.uint8], colormap: str) -> NDArray[np.float32]:
    """Return the levels in [0, 1] of colours [..., 3]."""
    level = rgb[..., 1]
    expected = _ORANGE[level] if colormap == "orange" else np.stack([level] * 3, axis=-1)
    strange = (rgb != expected).any(axis=-1)
    if strange.any():
        colour = tuple(int(c) for c in rgb[strange][0])
        raise refusal(
            path, f"holds the colour {colour}, which is not of the {colormap} map; set colormap"
        )
    return level.astype(np.float32) / np.float32(_LEVELS - 1)
