"""Figures of explanations: attributions beside their scan, and what they are worth.

Legend of shapes: L lines (slow axis, the first measured on top), P pixels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from scanbench.plotting import (
    BLACK,
    BLUE,
    DOUBLE,
    GREY,
    MM,
    PALE,
    VERMILLION,
    Sheet,
    experiment_styles,
    message,
    styled,
)
from scanbench.text import plain
from scanbench.tipstate.figures import Floats, Picture, draw_scan

__all__ = ["Attributed", "attributed_scans", "checks", "perturbation"]

#: Short names of the methods, for narrow panels.
TITLES = {
    "attention": "attention",
    "rollout": "rollout",
    "saliency": "saliency",
    "input-x-gradient": "input ×\ngradient",
    "integrated-gradients": "integrated\ngradients",
    "line-step": "line step\n(no model)",
    "height-step": "height step\n(no model)",
    "random": "random",
}
#: The share of pixels that are drawn below full strength.
STRONG = 99.5


@dataclass(frozen=True, kw_only=True)
class Attributed:
    """A scan and what moved a model's answer about it.

    Attributes
    ----------
    picture
        The scan.
    label, predicted, explained
        Class names; `explained` is the one whose log-odds were attributed.
    heat_LP
        Attribution of each pixel, positive for the explained class.
    by_line
        Method → attribution of each line [L].
    change_line
        Line of a known tip change.
    """

    picture: Picture
    label: str
    predicted: str
    explained: str
    heat_LP: Floats
    by_line: Mapping[str, Floats]
    change_line: int | None = None


@styled
def attributed_scans(scans: Sequence[Attributed], experiment: str, simulated: bool) -> Sheet:
    """Draw scans, what each pixel did for the explained class, and what each line did.

    The heat map shows integrated gradients over the scan: blue spoke for the class, orange against
    it. Beside it each method's attributions by line, along the same axis of lines and scaled to
    their largest size.

    Parameters
    ----------
    scans
        One row each.
    experiment
        Whose answers they are.
    simulated
        Whether the scans are simulated.
    """
    if not scans:
        return message(f"No examples: {experiment} explains no scan.")
    methods = [name for name in TITLES if name in scans[0].by_line]
    figure = Sheet(DOUBLE, (20 + 36 * len(scans)) * MM)
    grid = figure.body.subplots(
        len(scans), 2 + len(methods), squeeze=False, sharey="row",
        width_ratios=[2.1, 2.1, *[1.0] * len(methods)],
    )  # fmt: skip
    for row, scan in zip(grid, scans, strict=True):
        for axes in row[:2]:
            draw_scan(axes, scan.picture)
            axes.set_aspect("auto")
        _overlay(row[1], scan.heat_LP)
        row[1].tick_params(axis="y", length=0)
        row[0].set_ylabel(
            f"label: {plain(scan.label)}\nmodel: {plain(scan.predicted)}\n"
            f"explained: {plain(scan.explained)}\n\nscan line",
            fontsize=6,
        )
        row[0].tick_params(axis="y", length=2)
        row[0].yaxis.set_major_locator(MaxNLocator(4, integer=True))
        for axes, method in zip(row[2:], methods, strict=True):
            _bars(axes, scan.by_line[method])
        if scan.change_line is not None:
            for axes in row[1:]:
                axes.axhline(scan.change_line + 0.5, color=BLACK, linewidth=0.8, linestyle="--")
    grid[0, 0].set_title("scan")
    grid[0, 1].set_title("integrated gradients")
    for axes, method in zip(grid[0, 2:], methods, strict=True):
        axes.set_title(TITLES[method], fontsize=6.5)
    kind = " (simulated scans)" if simulated else ""
    figure.body.suptitle(f"What moved the answers of {plain(experiment)}{kind}")
    handles: list[Patch | Line2D] = [Patch(color=BLUE), Patch(color=VERMILLION)]
    labels = ["for the explained class", "against it"]
    if any(scan.change_line is not None for scan in scans):
        handles.append(Line2D([], [], color=BLACK, linewidth=0.8, linestyle="--"))
        labels.append("known tip change")
    figure.body.legend(handles, labels, loc="outside lower center", ncols=len(handles))
    return figure


def _overlay(axes: Axes, heat_LP: Floats) -> None:
    """Draw a signed heat map over a scan: stronger is more opaque."""
    strongest = np.percentile(np.abs(heat_LP), STRONG)
    strength = np.clip(np.abs(heat_LP) / (float(strongest) or 1.0), 0, 1)
    rgba = np.empty((*heat_LP.shape, 4))
    rgba[..., :3] = np.where(heat_LP[..., None] > 0, to_rgb(BLUE), to_rgb(VERMILLION))
    rgba[..., 3] = strength
    axes.imshow(
        rgba, extent=(0, 1, len(heat_LP), 0), interpolation="nearest", aspect="auto"
    )  # fmt: skip


def _bars(axes: Axes, value_L: Floats) -> None:
    lines = len(value_L)
    largest = float(np.abs(value_L).max()) or 1.0
    edge_L = np.arange(lines + 1)
    for sign, colour in ((1, BLUE), (-1, VERMILLION)):
        part_L = np.clip(sign * value_L, 0, None) / largest
        axes.fill_betweenx(
            edge_L, 0, sign * np.append(part_L, part_L[-1]), step="post", color=colour, linewidth=0
        )
    axes.axvline(0, color=GREY, linewidth=0.4)
    axes.set_xlim(min(-0.02, 1.05 * float(value_L.min()) / largest), 1.05)
    axes.set_xticks([])
    axes.tick_params(axis="y", length=0)
    axes.spines[:].set_visible(False)


@styled
def checks(
    localisation: pd.DataFrame,
    faithfulness: pd.DataFrame,
    experiments: Sequence[str],
    tolerance: int,
    simulated: bool,
) -> Sheet:
    """Draw what each method is worth: hits, and areas against random orders, with intervals.

    Parameters
    ----------
    localisation, faithfulness
        `localisation.csv` and `faithfulness.csv`.
    experiments
        In the order of the legend.
    tolerance
        Lines that a hit may be off.
    simulated
        Whether the scans are simulated.
    """
    hits = localisation[localisation["scans_of"] == "all"]
    panels = [
        ("deletion", "Deletion: area less random\n(left is better)", "difference"),
        ("insertion", "Insertion: area less random\n(right is better)", "difference"),
    ]
    methods = [m for m in TITLES if m in {*hits["method"], *faithfulness["method"]}]
    with_hits = not hits.empty
    figure = Sheet(DOUBLE, (26 + (3 + 2.4 * len(experiments)) * len(methods)) * MM)
    grid = figure.body.subplots(1, len(panels) + with_hits, sharey=True, squeeze=False)[0]
    styles = experiment_styles(experiments)
    if with_hits:
        title = f"Tip changes hit within ±{tolerance} lines\n(right is better)"
        _dots(grid[0], hits, "value", methods, experiments)
        chance = hits.loc[hits["method"] == "random", "value"].mean()
        grid[0].axvline(chance, color=GREY, linewidth=0.8, linestyle=":")
        grid[0].set_xlabel(title)
        grid[0].set_xlim(0, 1)
    for axes, (metric, title, column) in zip(grid[int(with_hits) :], panels, strict=True):
        rows = faithfulness[faithfulness["metric"] == metric]
        _dots(axes, rows, column, methods, experiments)
        axes.axvline(0, color=GREY, linewidth=0.8, linestyle=":")
        axes.xaxis.set_major_locator(MaxNLocator(4))  # labels of three digits beside each other
        axes.set_xlabel(title)
    grid[0].set_yticks(range(len(methods)), [TITLES[m].replace("\n", " ") for m in methods])
    grid[0].set_ylim(len(methods) - 0.4, -0.6)
    handles = [
        Line2D([], [], color=styles[n].colour, marker=styles[n].marker, linestyle="")
        for n in experiments
    ]
    figure.body.legend(
        handles, [plain(n) for n in experiments], loc="outside lower center",
        ncols=min(4, len(experiments)),
    )  # fmt: skip
    kind = "simulated scans" if simulated else "held-out scans"
    figure.body.suptitle(f"What the attributions are worth ({kind})")
    return figure


def _dots(
    axes: Axes,
    rows: pd.DataFrame,
    column: str,
    methods: Sequence[str],
    experiments: Sequence[str],
) -> None:
    """Draw one value with its interval for each method and experiment."""
    low, high = ("low", "high") if column == "value" else (f"{column}_low", f"{column}_high")
    styles = experiment_styles(experiments)
    for k, name in enumerate(experiments):
        mine = rows[rows["experiment"] == name].set_index("method")
        shown = [m for m in methods if m in mine.index]
        y = [methods.index(m) + (k + 0.5) * 0.7 / len(experiments) - 0.35 for m in shown]
        style = styles[name]
        axes.hlines(y, mine.loc[shown, low], mine.loc[shown, high], color=style.colour)
        axes.plot(mine.loc[shown, column], y, style.marker, color=style.colour, markersize=3.5)
    axes.grid(axis="x")
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0)


@styled
def perturbation(curves: pd.DataFrame, experiments: Sequence[str], simulated: bool) -> Sheet:
    """Draw the mean deletion and insertion curves of every method, a column per experiment.

    Parameters
    ----------
    curves
        `curves.csv`.
    experiments
        In the order of the columns.
    simulated
        Whether the scans are simulated.
    """
    methods = [name for name in TITLES if name in set(curves["method"])]
    styles = experiment_styles(methods)
    figure = Sheet(DOUBLE, 100 * MM)
    grid = figure.body.subplots(2, len(experiments), squeeze=False, sharex=True, sharey=True)
    for column, experiment in zip(grid.T, experiments, strict=True):
        mine = curves[curves["experiment"] == experiment]
        for axes, metric in zip(column, ("deletion", "insertion"), strict=True):
            for method in methods:
                rows = mine[mine["method"] == method]
                random = method == "random"
                axes.plot(
                    rows["share"], rows[metric], linewidth=1.8 if random else 1.0,
                    color=PALE if random else styles[method].colour,
                    linestyle="-" if random else styles[method].line,
                )  # fmt: skip
            axes.grid()
        column[0].set_title(plain(experiment, 20))
        column[1].set_xlabel("Share of lines")
    for axes, name in zip(grid[:, 0], ("deleted", "inserted"), strict=True):
        axes.set_ylabel(f"P (predicted class),\nlines {name}")
    grid[0, 0].set_xlim(0, 1)
    grid[0, 0].set_ylim(0, 1)
    handles = [
        Line2D([], [], color=PALE, linewidth=1.8)
        if method == "random"
        else Line2D([], [], color=styles[method].colour, linestyle=styles[method].line)
        for method in methods
    ]
    figure.body.legend(
        handles, [TITLES[m].replace("\n", " ") for m in methods], loc="outside lower center",
        ncols=4,
    )  # fmt: skip
    kind = "simulated scans" if simulated else "held-out scans"
    figure.body.suptitle(f"Deletion and insertion of lines ({kind}, mean)")
    return figure
