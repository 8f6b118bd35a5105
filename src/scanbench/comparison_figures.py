"""Figures of a comparison, which any study shares; `plotting` gives their look.

Each takes tables (docs/formats.md). `experiments` lists the names in the order of the legend; one
without rows is left out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from scanbench.plotting import (
    BLUE,
    DOUBLE,
    GREY,
    METRIC_NAMES,
    MM,
    ORANGE,
    PALE,
    SINGLE,
    ExperimentStyle,
    Sheet,
    experiment_styles,
    legend_below,
    message,
    styled,
    wrapped,
)
from scanbench.text import plain, with_interval

__all__ = [
    "History",
    "by_lines",
    "confusion_matrices",
    "differences",
    "group_dots",
    "learning_curves",
    "reliability",
    "roc_curves",
    "trade_offs",
]

# More curves than this in one panel hide each other's bands.
FEW = 4


def _present(experiments: Sequence[str], frame: pd.DataFrame) -> list[str]:
    have = set(frame["experiment"])
    return [name for name in experiments if name in have]


def _grid(
    n: int, columns: int, panel_height: float, *, width: float = DOUBLE, **kwargs: Any
) -> tuple[Sheet, list[Axes]]:
    """Return a figure with `n` panels in rows of `columns`; `panel_height` is in inches."""
    columns = min(columns, n)
    rows = math.ceil(n / columns)
    figure = Sheet(width, rows * panel_height)
    axes = figure.body.subplots(rows, columns, squeeze=False, **kwargs).ravel().tolist()
    for spare in axes[n:]:
        spare.remove()
    return figure, axes[:n]


def _lowest(axes: Sequence[Axes], columns: int) -> list[Axes]:
    """Return the panels that have none below them."""
    return list(axes[-min(columns, len(axes)) :])


def _experiment_legend(
    figure: Sheet,
    experiments: Sequence[str],
    styles: Mapping[str, ExperimentStyle],
    *,
    markers: bool,
) -> None:
    handles = []
    for name in experiments:
        style = styles[name]
        marker = style.marker if markers else ""
        handles.append(Line2D([], [], color=style.colour, linestyle=style.line, marker=marker))
    legend_below(figure, handles, [plain(name) for name in experiments])


def _share_axis(axes: Axes, *, x: bool = False, y: bool = False) -> None:
    ticks = [0, 0.25, 0.5, 0.75, 1]
    labels = ["0", "", "0.5", "", "1"]
    if x:
        axes.set_xlim(-0.02, 1.02)
        axes.set_xticks(ticks, labels)
    if y:
        axes.set_ylim(-0.02, 1.02)
        axes.set_yticks(ticks, labels)


# ------------------------------------------------------------------------------ how good, and when


@styled
def roc_curves(roc: pd.DataFrame, experiments: Sequence[str], classes: Sequence[str]) -> Sheet:
    """Draw one-vs-rest ROC curves, a panel per class.

    The bold curve is the mean true-positive rate over the seeds at each false-positive rate
    (vertical averaging; Fawcett 2006, doi:10.1016/j.patrec.2005.10.010, section 8.1); thin curves
    are the seeds, shown where at most four experiments are compared. A seed's curve is in turn the
    mean over its folds (`metrics.roc_points`), so the area under it is the AUROC of the tables.

    Parameters
    ----------
    roc
        `roc.csv`: experiment, class, seed, fpr, tpr.
    experiments
        Names, in the order shown.
    classes
        Classes, in the order of the panels.
    """
    styles = experiment_styles(experiments)
    shown = _present(experiments, roc)
    if not shown:
        return message("No ROC curves: no experiment gave probabilities for whole scans.")
    columns = min(4, len(classes))
    figure, panels = _grid(len(classes), columns, 48 * MM, sharey=True)
    grid = np.linspace(0, 1, 201)
    for axes, name in zip(panels, classes, strict=True):
        axes.plot([0, 1], [0, 1], color=PALE, linewidth=0.8, zorder=0)
        for experiment in shown:
            style = styles[experiment]
            rows = roc[(roc["experiment"] == experiment) & (roc["class"] == name)]
            curves = []
            for _, seed in rows.groupby("seed"):
                fpr, tpr = seed["fpr"].to_numpy(float), seed["tpr"].to_numpy(float)
                order = np.lexsort((tpr, fpr))
                fpr, tpr = fpr[order], tpr[order]
                # At a vertical step the curve holds the highest rate reached there.
                last = np.append(fpr[1:] != fpr[:-1], True)
                curve = np.interp(grid, fpr[last], np.maximum.accumulate(tpr[last]))
                curves.append(curve)
                if len(shown) <= FEW:
                    axes.plot(fpr, tpr, color=style.colour, linewidth=0.4, alpha=0.45)
            if curves:
                mean = np.concatenate([[0.0], np.mean(curves, axis=0)])
                axes.plot(
                    np.concatenate([[0.0], grid]), mean, color=style.colour, linestyle=style.line,
                    linewidth=1.3 if len(shown) <= FEW else 1.0,
                )  # fmt: skip
        axes.set_title(wrapped(name, 24))
        axes.set_aspect("equal")
        _share_axis(axes, x=True, y=True)
    for axes in panels[::columns]:
        axes.set_ylabel("True-positive rate")
    for axes in _lowest(panels, columns):
        axes.set_xlabel("False-positive rate")
    _experiment_legend(figure, shown, styles, markers=False)
    return figure


@styled
def confusion_matrices(
    confusion: pd.DataFrame, experiments: Sequence[str], classes: Sequence[str]
) -> Sheet:
    """Draw one confusion matrix per experiment: each row as shares of the true class, with counts.

    Parameters
    ----------
    confusion
        `confusion.csv`: experiment, seed, true, predicted, count. Counts are summed over seeds.
    experiments
        Names, in the order shown.
    classes
        Classes, in the order of rows and columns.
    """
    shown = _present(experiments, confusion)
    if not shown:
        return message("No confusion matrices: no experiment gave predictions for whole scans.")
    columns = max(1, 16 // len(classes))
    # A cell of 9 mm holds "100%" in 7 pt.
    cells = 9 * len(classes)
    width = min(DOUBLE, (26 + (cells + 3) * min(columns, len(shown))) * MM)
    figure, panels = _grid(
        len(shown), columns, (cells + 8) * MM, width=max(width, SINGLE), sharey=True
    )
    figure.grow(16 * MM)
    labels = [wrapped(c, 12) for c in classes]
    for axes, experiment in zip(panels, shown, strict=True):
        rows = confusion[confusion["experiment"] == experiment]
        counts = (
            rows.pivot_table(index="true", columns="predicted", values="count", aggfunc="sum")
            .reindex(index=list(classes), columns=list(classes))
            .fillna(0)
            .to_numpy(float)
        )
        totals = counts.sum(axis=1, keepdims=True)
        shares = np.divide(counts, totals, out=np.zeros_like(counts), where=totals > 0)
        axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        for (row, column), share in np.ndenumerate(shares):
            axes.text(
                column, row, f"{share:.0%}\n{counts[row, column]:,.0f}", ha="center", va="center",
                fontsize=7, linespacing=1.0, color="white" if share > 0.6 else "black",
            )  # fmt: skip
        axes.set_title(wrapped(experiment, 22))
        axes.set_xticks([])
        axes.set_yticks(range(len(classes)), labels)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
    for axes in _lowest(panels, columns):
        axes.set_xticks(range(len(classes)), labels, rotation=90, linespacing=0.9)
        axes.set_xlabel("Predicted class")
    for axes in panels[::columns]:
        axes.set_ylabel("True class")
    return figure


@styled
def by_lines(
    metrics: pd.DataFrame,
    experiments: Sequence[str],
    chance: Mapping[str, float] | None = None,
    settled: Mapping[str, float] | None = None,
) -> Sheet:
    """Draw how good each experiment is after n scan lines, on a logarithmic axis of lines.

    The upper panels show all experiments, a metric each; an experiment that answers only once is a
    point with its interval. Below, each of the others has a small panel of its own with AUROC and
    balanced accuracy and their interval bands, and a vertical line where its AUROC is settled.

    Parameters
    ----------
    metrics
        `metrics.csv`; the macro rows of reading `lines` are used.
    experiments
        Names, in the order shown.
    chance
        Metric → value of guessing, drawn as a dotted line.
    settled
        Experiment → line from which on its AUROC is settled (`tables.settled_early`).
    """
    styles = experiment_styles(experiments)
    rows = metrics[(metrics["reading"] == "lines") & _macro(metrics)]
    shown = _present(experiments, rows)
    names = [m for m in ("auroc", "balanced_accuracy") if m in set(rows["metric"])]
    if not shown or not names:
        return message("No experiment was read line by line.")
    running = [
        name for name in shown if rows.loc[rows["experiment"] == name, "lines"].nunique() > 1
    ]
    columns = 4
    below = math.ceil(len(running) / columns)
    figure = Sheet(DOUBLE, (56 + 38 * below) * MM)
    heights = [56, 38 * below] if below else [56]
    top, *rest = figure.body.subfigures(
        len(heights), 1, height_ratios=heights, squeeze=False
    ).ravel()

    def draw(axes: Axes, metric: str, experiment: str, line: Any, *, band: bool) -> None:
        data = rows[(rows["metric"] == metric) & (rows["experiment"] == experiment)]
        data = data.sort_values("lines")
        x, y = data["lines"].to_numpy(float), data["value"].to_numpy(float)
        low, high = data["low"].to_numpy(float), data["high"].to_numpy(float)
        style = styles[experiment]
        if band and len(x) > 1:
            axes.fill_between(x, low, high, color=style.colour, alpha=0.2, linewidth=0)
        if len(x) == 1:
            axes.vlines(x, low, high, color=style.colour, linewidth=1)
        axes.plot(
            x, y, color=style.colour, linestyle=line, linewidth=1.1, marker=style.marker,
            markersize=3,
        )  # fmt: skip

    last = float(rows["lines"].max())
    ticks = [n for n in (1, 2, 5, 10, 20, 50, 100, 200, 500) if n <= last]

    def finish(axes: Axes, metrics: Sequence[str]) -> None:
        for metric in metrics:
            if chance and metric in chance:
                axes.axhline(chance[metric], color=GREY, linestyle=":", linewidth=0.8, zorder=0)
        axes.set_xscale("log")
        axes.set_xlim(0.9, last * 1.12)
        axes.set_xticks(ticks, [str(n) for n in ticks])
        axes.minorticks_off()
        axes.grid(axis="y")

    panels = np.ravel(top.subplots(1, len(names), squeeze=False))
    for axes, metric in zip(panels, names, strict=True):
        for experiment in shown:
            draw(axes, metric, experiment, styles[experiment].line, band=False)
        finish(axes, [metric])
        axes.set_ylabel(METRIC_NAMES[metric])
        axes.set_xlabel("Scan lines seen")
    _experiment_legend(figure, shown, styles, markers=True)
    if not below:
        return figure
    grid = list(rest[0].subplots(below, columns, squeeze=False, sharex=True, sharey=True).flat)
    for axes in grid[len(running) :]:
        axes.remove()
    kinds: dict[str, Any] = dict(zip(names, ("-", "--"), strict=False))
    for axes, experiment in zip(grid, running, strict=False):
        for metric, line in kinds.items():
            draw(axes, metric, experiment, line, band=True)
        finish(axes, names)
        axes.set_title(wrapped(experiment, 26))
        if settled and experiment in settled:
            axes.axvline(settled[experiment], color="black", linewidth=0.8)
    for axes in _lowest(grid[: len(running)], columns):
        axes.tick_params(labelbottom=True)
        axes.set_xlabel("Scan lines seen")
    drawn = zip(("Solid", "dashed"), (METRIC_NAMES[metric] for metric in kinds), strict=False)
    key = [f"{line}: {metric}" for line, metric in drawn]
    if any(experiment in (settled or {}) for experiment in running):
        key.append("vertical: from here on AUROC stays near its end")
    rest[0].suptitle("; ".join(key), x=0.01, ha="left", fontsize=7)
    return figure


# ---------------------------------------------------------------------------------------- training


@dataclass(frozen=True)
class History:
    """The course of one training run.

    Attributes
    ----------
    fold, seed
        Which run it is.
    frame
        `history.csv` of the run.
    best_epoch
        Epoch whose weights were kept; None where nothing was trained by epochs.
    """

    fold: int
    seed: int
    frame: pd.DataFrame
    best_epoch: int | None


@styled
def learning_curves(
    histories: Mapping[str, Sequence[History]], experiments: Sequence[str]
) -> Sheet:
    """Draw loss and accuracy against the epoch, training against validation, for each experiment.

    Every run (fold and seed) is a curve; a ring marks the epoch whose weights were kept. Between
    training and validation accuracy the gap is shaded (mean over runs), and its mean at the kept
    epochs is written. Training accuracy is a running mean over the epoch, under augmentation and
    dropout, so a gap may be negative and is no measure of overfitting by itself.

    Parameters
    ----------
    histories
        Experiment → its runs. Experiments without a second epoch are left out.
    experiments
        Names, in the order shown.
    """
    shown = [n for n in experiments if any(len(run.frame) > 1 for run in histories.get(n, ()))]
    if not shown:
        return message(
            "No learning curves: no experiment here was trained for more than one epoch."
        )
    columns = min(4, max(2, len(shown)))
    blocks = math.ceil(len(shown) / columns)
    figure = Sheet(DOUBLE, blocks * 66 * MM)
    grid = figure.body.subplots(2 * blocks, columns, squeeze=False)
    styles: dict[str, tuple[str, Any]] = {"train": (ORANGE, (0, (3, 1.2))), "val": (BLUE, "-")}
    kept: dict[str, Any] = {
        "marker": "o", "markersize": 4.5, "markerfacecolor": "white", "zorder": 4, "clip_on": False
    }  # fmt: skip
    for i in range(blocks * columns):
        block, column = divmod(i, columns)
        loss, accuracy = grid[2 * block, column], grid[2 * block + 1, column]
        if i >= len(shown):
            loss.remove()
            accuracy.remove()
            continue
        name = shown[i]
        gaps, best_gaps = [], []
        for run in histories[name]:
            if not len(run.frame):
                continue
            epochs = run.frame["epoch"].to_numpy(float)
            for part, (colour, line) in styles.items():
                for axes, quantity in ((loss, "loss"), (accuracy, "accuracy")):
                    values = run.frame[f"{part}_{quantity}"].to_numpy(float)
                    axes.plot(epochs, values, color=colour, linestyle=line, linewidth=0.8)
            gap = run.frame.set_index("epoch")[["train_accuracy", "val_accuracy"]]
            gaps.append(gap)
            best = run.frame[run.frame["epoch"] == run.best_epoch]
            if len(best):
                loss.plot(best["epoch"], best["val_loss"], color=BLUE, **kept)
                accuracy.plot(best["epoch"], best["val_accuracy"], color=BLUE, **kept)
                best_gaps.append(float((best["train_accuracy"] - best["val_accuracy"]).iloc[0]))
        mean = pd.concat(gaps).groupby(level=0).mean()
        accuracy.fill_between(
            mean.index.to_numpy(float), mean["train_accuracy"], mean["val_accuracy"],
            color=PALE, alpha=0.45, linewidth=0, zorder=0,
        )  # fmt: skip
        if best_gaps:
            accuracy.text(
                0.97, 0.05, f"gap {np.mean(best_gaps):+.2f}", transform=accuracy.transAxes,
                ha="right", va="bottom", fontsize=7,
            )  # fmt: skip
        loss.set_title(wrapped(name, 24))
        loss.set_ylim(bottom=0)
        _share_axis(accuracy, y=True)
        loss.tick_params(labelbottom=False)
        for axes in (loss, accuracy):
            axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
            axes.grid(axis="y")
        loss.sharex(accuracy)
        if column == 0:
            loss.set_ylabel("Loss")
            accuracy.set_ylabel("Accuracy")
        accuracy.set_xlabel("Epoch")
    handles = [
        Line2D([], [], color=ORANGE, linestyle=styles["train"][1], linewidth=0.9),
        Line2D([], [], color=BLUE, linewidth=0.9),
        Line2D([], [], color=BLUE, linestyle="", **kept),
    ]
    legend_below(figure, handles, ["Training", "Validation", "Epoch kept"])
    return figure


# ------------------------------------------------------------------------------------- calibration


@styled
def reliability(
    calibration: pd.DataFrame, metrics: pd.DataFrame, experiments: Sequence[str]
) -> Sheet:
    """Draw how often a prediction of some confidence is right, a panel per experiment.

    Columns below show how the predictions are spread over the bins. The panel names the expected
    calibration error with its interval (Guo et al. 2017, arXiv 1706.04599).

    Parameters
    ----------
    calibration
        `calibration.csv`: experiment, bin_low, bin_high, confidence, accuracy, count.
    metrics
        `metrics.csv`, for the ECE of the scan reading.
    experiments
        Names, in the order shown.
    """
    shown = _present(experiments, calibration)
    if not shown:
        return message("No reliability diagram: no experiment gave probabilities.")
    columns = 4
    figure, panels = _grid(
        len(shown), columns, 52 * MM, width=DOUBLE if len(shown) > 2 else SINGLE, sharey=True
    )
    errors = metrics[
        (metrics["metric"] == "ece") & (metrics["reading"] == "scan") & _macro(metrics)
    ].set_index("experiment")
    for axes, name in zip(panels, shown, strict=True):
        rows = calibration[(calibration["experiment"] == name) & (calibration["count"] > 0)]
        rows = rows.sort_values("bin_low")
        share = rows["count"] / rows["count"].sum()
        axes.bar(
            rows["bin_low"], share, width=rows["bin_high"] - rows["bin_low"], align="edge",
            color=PALE, edgecolor="white", zorder=0,
        )  # fmt: skip
        axes.plot([0, 1], [0, 1], color=GREY, linewidth=0.8, linestyle=":", zorder=1)
        axes.plot(rows["confidence"], rows["accuracy"], color=BLUE, linewidth=0.7)
        # Rare confidences scatter; the size of a point says how much it rests on.
        axes.scatter(
            rows["confidence"], rows["accuracy"], s=5 + 35 * share / share.max(), color=BLUE,
            edgecolor="white", linewidth=0.4, zorder=3, clip_on=False,
        )  # fmt: skip
        title = wrapped(name, 24)
        if name in errors.index:
            title += f"\nECE {with_interval(*errors.loc[name, ['value', 'low', 'high']])}"
        axes.set_title(title)
        axes.set_aspect("equal")
        _share_axis(axes, x=True, y=True)
    for axes in panels[::columns]:
        axes.set_ylabel("Share that is right")
    for axes in _lowest(panels, columns):
        axes.set_xlabel("Confidence")
    legend_below(
        figure,
        [
            Line2D([], [], color=BLUE, marker="o", markersize=3),
            Line2D([], [], color=GREY, linestyle=":", linewidth=0.8),
            Line2D([], [], color=PALE, marker="s", markersize=5, linestyle=""),
        ],
        ["Observed", "Perfectly calibrated", "Share of all predictions"],
    )
    return figure


# ------------------------------------------------------------------------------------- comparisons


@styled
def differences(
    pairs: pd.DataFrame, experiments: Sequence[str], baseline: str | None = None
) -> Sheet:
    """Draw a forest plot: for each pair of experiments the difference with its interval.

    A filled marker has p < 0.05 after Holm's correction, an open one has not.

    Parameters
    ----------
    pairs
        `pairs.csv`; the scan reading is used.
    experiments
        Names, in the order shown.
    baseline
        If each experiment is compared with one, its name: differences then keep their sign, and
        experiments their order.
    """
    rows = pairs[
        (pairs["reading"] == "scan")
        & pairs["experiment_a"].isin(list(experiments))
        & pairs["experiment_b"].isin(list(experiments))
    ]
    names = [m for m in ("auroc", "balanced_accuracy") if m in set(rows["metric"])]
    names = names or list(dict.fromkeys(rows["metric"]))[:2]
    if not names:
        return message("No differences to show: there is only one experiment.")
    first = rows[rows["metric"] == names[0]]
    if baseline is None:
        # Each pair is turned so that its first metric's difference is positive: one reads down the
        # list from the largest to the smallest.
        largest = first["difference"].abs().sort_values(ascending=False, kind="stable").index
        first = first.reindex(largest)
    order: dict[frozenset[str], tuple[str, str]] = {}
    for row in first.itertuples():
        a, b = str(row.experiment_a), str(row.experiment_b)
        keep = baseline is not None or float(row.difference) >= 0  # type: ignore[arg-type]
        order[frozenset((a, b))] = (a, b) if keep else (b, a)
    labels = [f"{plain(a, 44)} − {plain(b, 44)}" for a, b in order.values()]
    place = {pair: i for i, pair in enumerate(order)}
    longest = max(len(label) for label in labels)
    wrap = longest > 46
    if wrap:
        labels = [label.replace(" − ", "\n− ") for label in labels]
    figure = Sheet(DOUBLE, (14 + (6.4 if wrap else 4.4) * len(order)) * MM)
    panels = figure.body.subplots(1, len(names), squeeze=False, sharey=True).ravel()
    for axes, metric in zip(panels, names, strict=True):
        axes.axvline(0, color=GREY, linewidth=0.8, zorder=0)
        for row in rows[rows["metric"] == metric].itertuples():
            pair = frozenset((str(row.experiment_a), str(row.experiment_b)))
            if pair not in order:
                continue
            sign = 1.0 if order[pair][0] == row.experiment_a else -1.0
            value, low, high, p = (
                float(v)  # type: ignore[arg-type]
                for v in (row.difference, row.low, row.high, row.p_holm)
            )
            y = place[pair]
            ends = sorted((sign * low, sign * high))
            axes.hlines(y, *ends, color=BLUE, linewidth=1.1)
            axes.plot(
                sign * value, y, "o", markersize=4, color=BLUE,
                markerfacecolor=BLUE if p < 0.05 else "white",
            )  # fmt: skip
            axes.text(
                1.02, y, _p_text(p), transform=axes.get_yaxis_transform(), va="center", fontsize=7
            )
        axes.text(
            1.02, -0.9, "p (Holm)", transform=axes.get_yaxis_transform(), va="center", fontsize=7
        )
        axes.set_xlabel(f"Difference in {_in_sentence(METRIC_NAMES.get(metric, metric))}")
        axes.set_yticks(range(len(labels)), labels)
        axes.set_ylim(len(labels) - 0.4, -1.4)
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.grid(axis="x")
        axes.spines["left"].set_visible(False)
        axes.tick_params(axis="y", length=0)
    return figure


@styled
def group_dots(
    groups: pd.DataFrame, experiments: Sequence[str], chance: Mapping[str, float] | None = None
) -> Sheet:
    """Draw each held-out group as a dot, so that one sees how far they lie apart.

    The area of a dot grows with its group's scans; the bar is the median group.

    Parameters
    ----------
    groups
        `groups.csv`: experiment, group, scans, metric, value. Empty values (a group without two
        classes has no AUROC) are left out.
    experiments
        Names, in the order shown.
    chance
        Metric → value of guessing, drawn as a dotted line.
    """
    rows = groups.dropna(subset=["value"])
    shown = _present(experiments, rows)
    names = [m for m in ("auroc", "balanced_accuracy") if m in set(rows["metric"])]
    if not shown or not names:
        return message("No held-out group has enough scans to be scored on its own.")
    styles = experiment_styles(experiments)
    figure = Sheet(DOUBLE, (13 + 9 * len(shown)) * MM)
    panels = figure.body.subplots(1, len(names), squeeze=False, sharey=True).ravel()
    most = float(rows["scans"].max())
    for axes, metric in zip(panels, names, strict=True):
        if chance and metric in chance:
            axes.axvline(chance[metric], color=GREY, linestyle=":", linewidth=0.8, zorder=0)
        for y, name in enumerate(shown):
            data = rows[(rows["metric"] == metric) & (rows["experiment"] == name)]
            data = data.sort_values(["value", "group"], kind="stable")
            values = data["value"].to_numpy(float)
            if not len(values):
                continue
            # Neighbours in value go to different heights, so that dots do not hide each other.
            lift = (np.arange(len(values)) % 5 - 2) * 0.13 if len(values) > 1 else np.zeros(1)
            axes.scatter(
                values, y + lift, s=4 + 46 * data["scans"].to_numpy(float) / most,
                facecolor=styles[name].colour, edgecolor="white", linewidth=0.4, alpha=0.75,
            )  # fmt: skip
            axes.vlines(np.median(values), y - 0.4, y + 0.4, color="black", linewidth=1.2, zorder=4)
        axes.set_xlabel(f"{METRIC_NAMES[metric]} of each held-out group")
        axes.set_yticks(range(len(shown)), [wrapped(name, 26) for name in shown])
        axes.set_ylim(len(shown) - 0.4, -0.6)
        axes.set_xlim(right=min(1.02, axes.get_xlim()[1]))
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="x")
    return figure


@styled
def trade_offs(
    trade_off: pd.DataFrame, limits: pd.DataFrame, experiments: Sequence[str], bad: Sequence[str]
) -> Sheet:
    """Draw what stopping early saves against what it spoils.

    Left, the Pareto curve of lines spent on bad scans against good scans stopped: the best that any
    threshold and patience could do on these scans, chosen with hindsight; a marker is what a rule
    did that was chosen on other scans. Right, the scan time that these rules saved.

    Parameters
    ----------
    trade_off
        `stopping.csv`.
    limits
        `stops.csv`.
    experiments
        Names, in the order of the legend.
    bad
        Classes that should be stopped.
    """
    styles = experiment_styles(experiments)
    shown = _present(experiments, trade_off)
    if not bad:
        return message("Nothing is to be stopped: no class is in evaluation.stop_classes.")
    if not shown:
        return message("No experiment answers before the end of a scan.")
    figure = Sheet(DOUBLE, 74 * MM)
    axes, time = figure.body.subplots(1, 2, width_ratios=[1.5, 1])
    least = 1e-3
    wanted = sorted(set(limits["limit"]))
    for k, name in enumerate(shown):
        style = styles[name]
        rows = trade_off[trade_off["experiment"] == name].sort_values("wrong_stops", kind="stable")
        x, y = rows["wrong_stops"].to_numpy(), np.minimum.accumulate(rows["lines_spent"].to_numpy())
        axes.step(
            100 * x.clip(min=least), y, where="post", color=style.colour, linestyle=style.line
        )
        tried = limits[limits["experiment"] == name].set_index(["figure", "limit"])
        for j, limit in enumerate(wanted):
            wrong, spent = tried.loc[("wrong_stops", limit)], tried.loc[("lines_spent", limit)]
            axes.errorbar(
                100 * max(wrong["value"], least),
                spent["value"],
                xerr=_reach(wrong, 100, least),
                yerr=_reach(spent),
                marker=style.marker, color=style.colour, linewidth=0.8, markersize=4,
                markerfacecolor=style.colour if j else "white",
            )  # fmt: skip
            saved = tried.loc[("time_saved", limit)]
            time.errorbar(
                100 * saved["value"],
                k + 0.5 * (j - (len(wanted) - 1) / 2) / len(wanted),
                xerr=_reach(saved, 100),
                marker=style.marker, color=style.colour, linewidth=0.8, markersize=4,
                markerfacecolor=style.colour if j else "white",
            )  # fmt: skip
    axes.set_xscale("log")
    axes.set_xlim(100 * least, 100)
    axes.set_ylim(0, None)
    axes.set_xticks([0.1, 1, 10, 100], ["≤ 0.1", "1", "10", "100"])
    axes.grid()
    axes.set_xlabel("Good scans stopped (%)")
    axes.set_ylabel("Mean lines spent on a bad scan")
    axes.set_title(f"Bad: {plain(', '.join(bad), 48)}", loc="left")
    time.set_yticks(range(len(shown)), [wrapped(name, 20) for name in shown])
    time.set_ylim(len(shown) - 0.4, -0.6)
    time.set_xlim(0, None)
    time.tick_params(axis="y", length=0)
    time.grid(axis="x")
    time.set_xlabel("Scan time saved (% of all scans' lines)")
    if wanted:
        less, more = f"{100 * wanted[0]:g} %", " and ".join(f"{100 * g:g} %" for g in wanted[1:])
        told = f"Wrong stops wanted:\n{less} (open)" + (f", {more} (filled)" if more else "")
        time.set_title(told, loc="left")
    _experiment_legend(figure, shown, styles, markers=True)
    return figure


def _reach(row: pd.Series, scale: float = 1.0, least: float = -math.inf) -> list[list[float]]:
    """Return how far an interval reaches to either side of its value, times `scale`, [2, 1]."""
    value, low, high = (max(float(row[key]), least) for key in ("value", "low", "high"))
    return [[scale * max(value - low, 0.0)], [scale * max(high - value, 0.0)]]


def _macro(frame: pd.DataFrame) -> npt.NDArray[np.bool_]:
    """Rows of the macro figure: their class is empty, which CSV readers may give as NaN."""
    return np.asarray(frame["class"].isna() | (frame["class"] == ""), dtype=bool)


def _p_text(p: float) -> str:
    if math.isnan(p):
        return "–"
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def _in_sentence(name: str) -> str:
    return name if name.isupper() or name[1:2].isupper() or name == "F1" else name.lower()
