"""Replayed scans as an animated image, for pages that run no script.

On the left the scan fills, on the right grows the course of its answers, above stands the advice.
The first picture is the end of the first scan, as it is all that a still shows; then come the other
scans, and the first one last.

Shape suffixes: L lines, P pixels of a line, A answers, C classes.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any

import matplotlib.style
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image
from tqdm import tqdm

from scanbench.errors import UserError
from scanbench.files import replacing
from scanbench.plotting import CLASS_COLOURS, GREY, STYLE, VERMILLION
from scanbench.text import plain
from scanbench.tipstate.replay_page import Replay, image_of

__all__ = ["FORMATS", "write"]

#: How each format is written. Lossless WebP is the smaller one: little changes between pictures.
FORMATS: dict[str, dict[str, Any]] = {
    ".webp": {"lossless": True, "method": 4},
    ".gif": {"disposal": 1},
    ".png": {},
}
#: Inches at so many dots each: 800 × 400 pixels.
SIZE, DOTS = (8, 4), 100
#: Seconds of a whole round, the least of one scan, and the share of it that its end is held.
ROUND_S, LEAST_S, HELD = 11.0, 4.0, 0.35
FRAME_S = 0.08
#: Sign, background and ink of each advice; the sign tells it without colour.
BANNERS = {
    "go on": ("●", "#E2F1EC", "#00432F"),
    "stop": ("■", "#A83A00", "#FFFFFF"),
    "recondition": ("↻", "#E69F00", "#1A1200"),
}
EMPTY = "#EDEDED"
#: Characters of a line of the note, of which there is room for two.
NOTE_WIDTH = 125
#: Opacity of what was measured against advice.
SPARED = 0.4


def write(replays: Sequence[Replay], out: Path, note: str = "") -> None:
    """Write an animated image that plays scans one after the other, for ever.

    Parameters
    ----------
    replays
        At least one.
    out
        File to write, of a suffix in `FORMATS`. The same replays give the same bytes.
    note
        Source and licence, written into the picture.

    Raises
    ------
    UserError
        If nothing was measured of a scan.
    """
    for replay in replays:
        if not len(replay.x_LP):
            raise UserError(f"{replay.name}: no line was measured; leave the recording out")
    share_s = max(LEAST_S, ROUND_S / len(replays))
    steps = round((1 - HELD) * share_s / FRAME_S)
    pictures: list[Image.Image] = []
    durations: list[int] = []
    with (
        matplotlib.style.context(STYLE, after_reset=True),
        tqdm(total=steps * len(replays), desc="draw", unit="picture") as bar,
    ):
        for replay in [*replays[1:], replays[0]]:
            drawing = _Drawing(replay, note)
            for line in _lines(len(replay.x_LP), steps):
                pictures.append(drawing.at(line))
                durations.append(round(1000 * FRAME_S))
                bar.update()
            durations[-1] = round(1000 * HELD * share_s)
    pictures = [pictures[-1], *pictures[:-1]]
    durations = [durations[-1], *durations[:-1]]
    with replacing(out) as part:
        pictures[0].save(
            part,
            save_all=True,
            append_images=pictures[1:],
            duration=durations,
            loop=0,
            **FORMATS[out.suffix.lower()],
        )


def _lines(measured: int, steps: int) -> Iterator[int]:
    """Yield the lines measured at each of the pictures of a scan, rising to all."""
    return (round(measured * (step + 1) / steps) for step in range(steps))


class _Drawing:
    """The picture of a scan: drawn once, then changed from line to line."""

    def __init__(self, replay: Replay, note: str) -> None:
        self.replay = replay
        self.figure = Figure(figsize=SIZE, dpi=DOTS)
        self.canvas = FigureCanvasAgg(self.figure)
        self._draw_banner()
        self._draw_scan()
        self._draw_course()
        told = "\n".join(textwrap.wrap(plain(note), NOTE_WIDTH)[:2])
        self.figure.text(0.5, 0.012, told, ha="center", va="bottom", fontsize=8, color=GREY)

    def at(self, line: int) -> Image.Image:
        """Return the picture when so many lines had been measured."""
        given = [answer for answer in self.replay.answers if answer["line"] <= line]
        advice = given[-1]["advice"] if given else "go on"
        why = "" if given else "no answer yet"
        if advice != "go on":
            same = takewhile(lambda answer: answer["advice"] == advice, reversed(given))
            since = min(answer["line"] for answer in same)
            left = 1 - since / self.replay.planned_lines
            why = f"since line {since}, with {left:.0%} of the scan still to come"

        sign, back, ink = BANNERS[advice]
        self.banner.set_facecolor(back)
        self.advice.set(text=f"{sign}  {advice.upper()}", color=ink)
        self.why.set(text=why, color=ink)
        self.count.set_text(f"line {line} of {self.replay.planned_lines}")

        number_L = np.arange(self.replay.planned_lines)
        advised = next((a["line"] for a in given if a["advice"] != "go on"), len(number_L))
        alpha_L = np.where(number_L >= advised, SPARED, 1.0) * (number_L < line)
        self._show_lines(alpha_L)
        at = line if not self.replay.upward else self.replay.planned_lines - line
        self.edge.set_ydata([at, at])
        self.cover.set_x(line)
        self.cursor.set_xdata([line, line])
        for c, text in enumerate(self.values):
            name = self.replay.classes[c]
            text.set_text(f"{given[-1]['p'][name]:.2f}" if given else "–")
        self.canvas.draw()
        return Image.fromarray(np.asarray(self.canvas.buffer_rgba())[..., :3].copy())

    def _draw_banner(self) -> None:
        self.banner = Rectangle((0.03, 0.86), 0.94, 0.11, transform=self.figure.transFigure)
        self.figure.add_artist(self.banner)
        self.advice = self.figure.text(0.05, 0.914, "", fontsize=14, weight="bold", va="center")
        self.why = self.figure.text(0.95, 0.914, "", fontsize=11, va="center", ha="right")

    def _draw_scan(self) -> None:
        lines = self.replay.planned_lines
        self.grey_LP = np.asarray(image_of(self.replay))
        axes = self.figure.add_axes((0.03, 0.12, 0.335, 0.7))
        axes.set_facecolor(EMPTY)
        axes.set_xticks([])
        axes.set_yticks([])
        axes.set_box_aspect(min(max(self.replay.aspect, 0.25), 4))
        axes.set_anchor("N")
        self.scan = axes.imshow(
            self.grey_LP, cmap="gray", vmin=1, vmax=255, aspect="auto", extent=(0, 1, lines, 0)
        )
        self.edge = axes.axhline(0, color=VERMILLION, linewidth=1.5)
        self.count = self.figure.text(0.74, 0.29, "", fontsize=10)

    def _show_lines(self, alpha_L: np.ndarray) -> None:
        """Show each line of the scan with an opacity; row 0 of the picture is the screen's top."""
        if self.replay.upward:
            alpha_L = alpha_L[::-1]
        rows = np.linspace(0, len(alpha_L) - 1, len(self.grey_LP)).round().astype(int)
        self.scan.set_alpha(alpha_L[rows, None] * (self.grey_LP > 0))

    def _draw_course(self) -> None:
        replay, lines = self.replay, self.replay.planned_lines
        axes = self.figure.add_axes((0.435, 0.22, 0.285, 0.6))
        axes.set(xlim=(0, lines), ylim=(0, 1), yticks=[0, 0.5, 1])
        axes.tick_params(labelsize=9)
        axes.set_xlabel("Scan line", fontsize=10)
        axes.set_ylabel("Probability", fontsize=10)
        colours = [CLASS_COLOURS[c % len(CLASS_COLOURS)] for c in range(len(replay.classes))]
        if replay.answers:
            ends = [answer["line"] for answer in replay.answers] + [len(replay.x_LP)]
            p_AC = np.array([[a["p"][name] for name in replay.classes] for a in replay.answers])
            p_AC = np.vstack([p_AC, p_AC[-1:]])
            axes.axvspan(0, ends[0], color=EMPTY, linewidth=0)
            axes.stackplot(ends, p_AC.T, step="post", colors=colours, linewidth=0)
        # A little larger than the axes, whose edge would shine through; below the axes' lines.
        self.cover = Rectangle((0, 0), 1.02 * lines, 1.02, color="white", linewidth=0, zorder=2.4)
        axes.add_patch(self.cover)
        self.cover.set_clip_on(False)
        self.cursor = axes.axvline(0, color=VERMILLION, linewidth=1.5, zorder=4)
        self.values = []
        for c, name in enumerate(replay.classes):
            y = 0.79 - 0.6 * c / max(len(replay.classes), 6)
            box = Rectangle((0.74, y - 0.016), 0.018, 0.036, transform=self.figure.transFigure)
            box.set(facecolor=colours[c], edgecolor="black", linewidth=0.5)
            self.figure.add_artist(box)
            self.figure.text(0.765, y, plain(name, 16), fontsize=10, va="center")
            self.values.append(self.figure.text(0.97, y, "", fontsize=10, va="center", ha="right"))
        self.figure.text(0.74, 0.23, plain(replay.by, 40), fontsize=8, color=GREY)
