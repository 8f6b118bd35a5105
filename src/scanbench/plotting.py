"""One look for every figure, saved byte for byte alike.

Figure functions take tables (docs/formats.md) and give a `matplotlib.figure.Figure`: no pyplot, no
global state, nothing read or written.

Colours are those of Okabe & Ito ("Color universal design", 2008), which people with any common
colour vision can tell apart; line style and marker repeat what the colour says, for grey print.
"""

from __future__ import annotations

import math
import re
import textwrap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec

import matplotlib.style
import numpy as np
from matplotlib.figure import Figure, SubFigure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from scanbench.files import replacing
from scanbench.text import plain

__all__ = [
    "CLASS_COLOURS",
    "DOUBLE",
    "FORMATS",
    "METRIC_NAMES",
    "SINGLE",
    "ExperimentStyle",
    "Sheet",
    "experiment_styles",
    "legend_below",
    "message",
    "save",
    "styled",
    "wrapped",
]

P = ParamSpec("P")

MM = 1 / 25.4
SINGLE = 85 * MM
"""Width of a single-column figure, inches."""
DOUBLE = 178 * MM
"""Width of a double-column figure, inches."""

FORMATS = ("svg", "pdf", "png")

BLACK, ORANGE, SKY, GREEN = "#000000", "#E69F00", "#56B4E9", "#009E73"
YELLOW, BLUE, VERMILLION, PURPLE = "#F0E442", "#0072B2", "#D55E00", "#CC79A7"
GREY = "#6E6E6E"
PALE = "#C8C8C8"

# The first four differ in lightness as well (46, 58, 71, 89), so they stay apart in grey print.
CLASS_COLOURS = (BLUE, GREEN, ORANGE, YELLOW, VERMILLION, SKY, PURPLE, BLACK)
EXPERIMENT_COLOURS = (BLUE, VERMILLION, GREEN, PURPLE, ORANGE, BLACK, SKY)
EXPERIMENT_LINES: tuple[Any, ...] = (
    "-",
    (0, (5, 1.5)),
    (0, (1.2, 1.2)),
    (0, (5, 1.2, 1.2, 1.2)),
    (0, (8, 1.5, 2, 1.5)),
)
EXPERIMENT_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "*")

METRIC_NAMES = {
    "auroc": "AUROC",
    "balanced_accuracy": "Balanced accuracy",
    "balanced_accuracy_fitted": "Balanced accuracy, fitted thresholds",
    "accuracy": "Accuracy",
    "f1": "F1",
    "ece": "ECE",
}

STYLE: dict[str, Any] = {
    "font.family": "DejaVu Sans",  # ships with Matplotlib: the same glyphs on every machine
    "font.size": 7.5,
    "axes.titlesize": 7.5,
    "axes.labelsize": 7.5,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "figure.titlesize": 8,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": "#E4E4E4",
    "grid.linewidth": 0.5,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "lines.linewidth": 1.1,
    "lines.markersize": 3.5,
    "patch.linewidth": 0.6,
    "hatch.linewidth": 0.5,
    "legend.frameon": False,
    "legend.handlelength": 2.6,
    "figure.dpi": 100,
    "figure.facecolor": "white",
    "savefig.dpi": 300,
    "image.interpolation": "nearest",
    "text.parse_math": False,  # a scan called "$x" is a name, not a formula
    "svg.fonttype": "path",
    "svg.hashsalt": "scanbench",
    "pdf.fonttype": 42,
}

_METADATA: dict[str, dict[str, str | None]] = {
    "svg": {"Date": None, "Creator": None},
    "pdf": {"CreationDate": None, "Creator": None, "Producer": None},
    "png": {"Software": None},
}


def styled(function: Callable[P, Sheet]) -> Callable[P, Sheet]:
    """Make a figure function draw in this module's style, whatever the user's matplotlibrc says."""

    @wraps(function)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> Sheet:
        with matplotlib.style.context(STYLE, after_reset=True):
            return function(*args, **kwargs)

    return wrapper


def save(
    figure: Figure, folder: Path, name: str, formats: Sequence[str] = FORMATS
) -> dict[str, Path]:
    """Write a figure as `folder/name.<format>`; the same figure gives the same bytes.

    Parameters
    ----------
    figure
        The figure, at its printed size.
    folder, name
        Where, and the file name without its suffix.
    formats
        Some of "svg", "pdf", "png" (300 dots per inch).

    Returns
    -------
    dict
        Format → file.
    """
    paths = {}
    with matplotlib.style.context(STYLE, after_reset=True):
        engine = figure.get_layout_engine()
        if engine is not None:
            # The first pass sizes body and foot, the second what stands in them; then it is fixed,
            # so that every format (and every later saving) shows the same picture.
            engine.execute(figure)
            engine.execute(figure)
            figure.set_layout_engine("none")
            _round_layout(figure)
        for form in formats:
            paths[form] = folder / f"{name}.{form}"
            with replacing(paths[form]) as part:
                figure.savefig(part, format=form, metadata=_METADATA[form])
    return paths


def _round_layout(figure: Figure) -> None:
    """Round where a figure's parts stand, in fractions of the figure.

    The solver of the constrained layout orders its variables by their addresses in memory, so its
    answers differ by rounding errors from one process to the next.
    """
    for box in (sub.bbox_relative for sub in _subfigures(figure)):
        box.p0, box.p1 = np.round(box.p0, 6), np.round(box.p1, 6)
    for axes in figure.axes:
        axes.set_position(np.round(axes.get_position(original=True).bounds, 6))


def _subfigures(figure: Figure | SubFigure) -> Iterator[SubFigure]:
    for sub in figure.subfigs:
        yield sub
        yield from _subfigures(sub)


def wrapped(text: str, width: int) -> str:
    """Break a name into lines of at most `width` characters, after spaces, hyphens and slashes."""
    lines = [""]
    for piece in re.findall(r"[^-/ ]*[-/ ]*", plain(text)):
        if len(lines[-1] + piece.rstrip()) > width and lines[-1]:
            lines.append("")
        lines[-1] += piece
    return "\n".join(line.rstrip() for line in lines) or " "


@dataclass(frozen=True)
class ExperimentStyle:
    """How one experiment is drawn in every figure: colour, line style and marker."""

    colour: str
    line: Any
    marker: str


def experiment_styles(experiments: Sequence[str]) -> dict[str, ExperimentStyle]:
    """Give each experiment its look, by its place in the order; up to 35 are unlike each other."""
    return {
        name: ExperimentStyle(
            EXPERIMENT_COLOURS[i % len(EXPERIMENT_COLOURS)],
            EXPERIMENT_LINES[i % len(EXPERIMENT_LINES)],
            EXPERIMENT_MARKERS[i % len(EXPERIMENT_MARKERS)],
        )
        for i, name in enumerate(experiments)
    }


class Sheet(Figure):
    """A figure with a body for panels and legend, and a foot for its source.

    Parameters
    ----------
    width, height
        Size of the body at print, inches.
    """

    def __init__(self, width: float, height: float) -> None:
        super().__init__(figsize=(width, height), layout="constrained")
        engine = self.get_layout_engine()
        assert isinstance(engine, ConstrainedLayoutEngine)
        engine.set(w_pad=0.03, h_pad=0.03, wspace=0.03, hspace=0.03)
        self._rows = self.add_gridspec(2, 1, height_ratios=[1, 1e-3])
        self.body = self.add_subfigure(self._rows[0])
        self._foot = self.add_subfigure(self._rows[1])

    def grow(self, height: float) -> None:
        """Make the figure taller (inches)."""
        self.set_size_inches(self.get_figwidth(), self.get_figheight() + height)

    def note(self, text: str) -> None:
        """Write a note under the figure; it grows by the lines that the text needs."""
        width, height = self.get_size_inches()
        lines = textwrap.wrap(plain(text), max(20, int(width / MM / 1.32)))
        strip = (1.5 + 3.2 * len(lines)) * MM
        self.grow(strip)
        self._rows.set_height_ratios([height, strip])
        with matplotlib.style.context(STYLE, after_reset=True):
            self._foot.text(
                1 * MM / width, 0.9, "\n".join(lines), fontsize=7, color=GREY, ha="left", va="top",
                linespacing=1.1,
            )  # fmt: skip


@styled
def message(text: str) -> Sheet:
    """Return a figure that says why there is nothing to show, so that each promised file exists."""
    figure = Sheet(SINGLE, 22 * MM)
    figure.body.text(0.5, 0.5, textwrap.fill(plain(text), 48), ha="center", va="center", color=GREY)
    return figure


def legend_below(figure: Sheet, handles: Sequence[Any], labels: Sequence[str]) -> None:
    """Put a legend under the panels, in as many columns as its longest entry leaves room for."""
    longest = max(len(label) for label in labels)
    columns = max(1, int(figure.get_figwidth() / MM / (12 + 1.45 * longest)))
    figure.grow((2 + 3.6 * math.ceil(len(labels) / columns)) * MM)
    figure.body.legend(
        handles, labels, loc="outside lower center", ncols=min(columns, len(labels)),
        columnspacing=1.4, borderaxespad=0.2,
    )  # fmt: skip
