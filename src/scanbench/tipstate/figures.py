"""Figures of scans: the data set at a glance, scans of each class, answers beside their scan.

Legend of shapes: L lines (slow axis, the first measured on top), P pixels, C classes.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from scanbench.copies import original
from scanbench.plotting import (
    CLASS_COLOURS,
    DOUBLE,
    GREY,
    MM,
    PALE,
    SINGLE,
    Sheet,
    experiment_styles,
    message,
    styled,
)
from scanbench.predictions import is_windowed, windows_so_far
from scanbench.render import Drawing, Material
from scanbench.store import Store
from scanbench.tables import exclusion_table, in_split
from scanbench.text import plain

__all__ = [
    "Example",
    "Picture",
    "dataset_glance",
    "draw_scan",
    "drawings",
    "line_answers",
    "people_and_models",
    "picture",
    "scan_answers",
    "scans_by_class",
]

Floats = npt.NDArray[Any]


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A scan to be shown.

    Attributes
    ----------
    x_LP
        Heights of the measured lines, in acquisition order.
    title
        Its name.
    aspect
        Height over width of what was measured, in physical units.
    width_m
        Length of a line, m; None if unknown.
    lines
        Lines of the whole scan at this size, and as the instrument planned it; None if unknown.
    """

    x_LP: Floats
    title: str
    aspect: float
    width_m: float | None = None
    lines: tuple[int, int] | None = None


@dataclass(frozen=True, kw_only=True)
class Example:
    """A scan with the answers that a model gave while it ran.

    Attributes
    ----------
    picture
        The scan.
    label, predicted
        Class names: people's (or the simulation's) and the model's last.
    answers
        Index `lines_seen`, a column of probabilities per class (`line_answers`).
    change_line
        Line of a known tip change.
    """

    picture: Picture
    label: str
    predicted: str
    answers: pd.DataFrame
    change_line: int | None = None


def line_answers(predictions: pd.DataFrame, scan_id: str, classes: Sequence[str]) -> pd.DataFrame:
    """Return a scan's probabilities by lines seen, as means over the seeds.

    As in the evaluation, windows count once they have ended, and their mean so far is the answer.

    Parameters
    ----------
    predictions
        Rows of `predictions.parquet` of all runs of one experiment; all its scans tell whether it
        looks at windows.
    scan_id
        The scan.
    classes
        Class names, giving the columns.

    Returns
    -------
    DataFrame
        Index `lines_seen`, rising; columns `classes`.
    """
    rows = predictions[predictions["scan_id"] == scan_id]
    columns = [f"p_{c}" for c in classes]
    if is_windowed(predictions):
        ended = rows.sort_values("lines_seen", kind="stable")
        rows = windows_so_far(ended.drop_duplicates(["seed", "first_line"], keep="last"), columns)
    mean = rows.groupby("lines_seen")[columns].mean().sort_index()
    return mean.set_axis(list(classes), axis=1)


def flattened(x_LP: Floats) -> tuple[Floats, float, float]:
    """Subtract each line's median; return the limits that show 98 % of the pixels.

    Missing pixels (NaN) stay missing; some must not be.
    """
    flat = np.full_like(x_LP, np.nan)
    any_L = np.isfinite(x_LP).any(axis=1)
    flat[any_L] = x_LP[any_L] - np.nanmedian(x_LP[any_L], axis=1, keepdims=True)
    low, high = np.nanpercentile(flat, [1, 99])
    return flat, float(low), float(max(high, low + np.finfo(np.float32).tiny))


def draw_scan(axes: Axes, picture: Picture) -> None:
    """Draw a scan in grey, each line's median taken out, with a scale bar if its size is known."""
    flat, low, high = flattened(picture.x_LP)
    lines = len(flat)
    axes.imshow(
        flat, cmap="gray", vmin=low, vmax=high, extent=(0, 1, lines, 0), interpolation="nearest"
    )
    axes.set_aspect(picture.aspect / lines)
    axes.set_xticks([])
    axes.spines[:].set_visible(False)
    if picture.width_m:
        _draw_scale(axes, picture.width_m)


_UNITS = (("pm", 1e-12), ("nm", 1e-9), ("µm", 1e-6), ("mm", 1e-3), ("m", 1.0))


def _draw_scale(axes: Axes, width_m: float) -> None:
    """Draw a bar of 1, 2 or 5 times a power of ten, about a third of the width."""
    rough = width_m / 3
    power = 10.0 ** math.floor(math.log10(rough))
    length = max(step * power for step in (1, 2, 5) if step * power <= rough * 1.0001)
    unit, factor = next((u, f) for u, f in _UNITS if length < 1000 * f)
    axes.plot(
        [0.06, 0.06 + length / width_m], [0.06, 0.06], transform=axes.transAxes, color="white",
        linewidth=2, solid_capstyle="butt", path_effects=_outline(3),
    )  # fmt: skip
    axes.text(
        0.06, 0.09, f"{length / factor:g} {unit}", transform=axes.transAxes, color="white",
        fontsize=7, va="bottom", path_effects=_outline(1.6),
    )  # fmt: skip


def _outline(width: float) -> list[patheffects.AbstractPathEffect]:
    return [patheffects.withStroke(linewidth=width, foreground="black")]


def _class_handles(classes: Sequence[str]) -> list[Patch]:
    return [
        Patch(facecolor=_colour(i), edgecolor="black", linewidth=0.4) for i in range(len(classes))
    ]


def _colour(i: int) -> str:
    return CLASS_COLOURS[i % len(CLASS_COLOURS)]


@styled
def scan_answers(
    examples: Mapping[str, Mapping[str, Example]], classes: Sequence[str], experiment: str
) -> Sheet:
    """Draw scans with a model's answers beside them, line by line.

    Beside each scan the probabilities of all classes are stacked along the same axis of lines: at
    the height of a line stands the answer given when that line had been measured.

    Parameters
    ----------
    examples
        Class → kind (`right`, `wrong`) → example.
    classes
        Classes, in the order of rows and colours.
    experiment
        Whose answers they are.
    """
    rows = [c for c in classes if examples.get(c)]
    if not rows:
        return message(f"No examples: {experiment} has none in the tables.")
    figure = Sheet(DOUBLE, (14 + 51 * len(rows)) * MM)
    grid = figure.body.subplots(len(rows), 4, squeeze=False)
    for r, label in enumerate(rows):
        for pair, kind in ((grid[r, :2], "right"), (grid[r, 2:], "wrong")):
            example = examples[label].get(kind)
            if example is None:
                for axes in pair:
                    axes.axis("off")
                pair[0].text(0, 0.5, f"{plain(label)}: no scan {kind}", color=GREY)
                continue
            scan, answers = pair
            _draw_pair(scan, answers, example, classes)
            verdict = "right" if kind == "right" else f"taken for {plain(example.predicted)}"
            scan.set_title(
                f"{plain(example.label)}: {verdict}\n{plain(example.picture.title, 48)}", loc="left"
            )
    figure.body.suptitle(f"Answers of {plain(experiment)} while the scan runs")
    _class_legend(figure, classes, 4)
    return figure


@styled
def scan_answer(example: Example, classes: Sequence[str]) -> Sheet:
    """Draw one scan with a model's answers beside it, line by line (see `scan_answers`)."""
    figure = Sheet(SINGLE, 62 * MM)
    scan, answers = figure.body.subplots(1, 2)
    _draw_pair(scan, answers, example, classes)
    labelled = f" (labelled {plain(example.label)})" if example.label else ""
    if example.picture.lines is not None:
        lines, planned = example.picture.lines
        of = f"of {lines}" if lines == planned else f"of {lines}, resampled from {planned}"
        scan.set_ylabel(f"Scan line\n({of})")
    figure.body.suptitle(
        f"{plain(example.picture.title, 48)}\n{plain(example.predicted)}{labelled}"
    )
    _class_legend(figure, classes, 2)
    return figure


def _class_legend(figure: Sheet, classes: Sequence[str], columns: int) -> None:
    figure.body.legend(
        _class_handles(classes), [plain(c) for c in classes], loc="outside lower center",
        ncols=min(columns, len(classes)),
    )  # fmt: skip


def _draw_pair(scan: Axes, answers: Axes, example: Example, classes: Sequence[str]) -> None:
    """Draw a scan, and its answers along the same axis of lines."""
    draw_scan(scan, example.picture)
    _draw_answers(answers, example, classes, len(example.picture.x_LP))
    # Both boxes are as wide as each other, so their lines stand side by side.
    height = max(example.picture.aspect, 0.25)
    for axes in (scan, answers):
        axes.set_aspect("auto")
        axes.set_box_aspect(height)
    scan.set_ylabel("Scan line")
    scan.tick_params(axis="y", length=2)
    scan.yaxis.set_major_locator(MaxNLocator(max(2, min(5, round(5 * height))), integer=True))
    answers.set_xlabel("Probability", labelpad=1)


def _draw_answers(axes: Axes, example: Example, classes: Sequence[str], lines: int) -> None:
    p_TC = example.answers[list(classes)].to_numpy(float)
    seen = example.answers.index.to_numpy(float)
    edge = np.zeros(len(seen))
    for c in range(len(classes)):
        # An answer given after line n stands until the next one.
        axes.fill_betweenx(
            np.append(seen, lines), np.append(edge, edge[-1]),
            np.append(edge + p_TC[:, c], edge[-1] + p_TC[-1, c]), step="post",
            facecolor=_colour(c), edgecolor="white", linewidth=0.3,
        )  # fmt: skip
        edge = edge + p_TC[:, c]
    if seen[0] >= lines:
        # A model with one answer gives it when the scan is over: shown as a strip at its end.
        edge = np.zeros(1)
        for c in range(len(classes)):
            axes.barh(
                lines * 0.96, p_TC[-1, c], left=edge[0], height=lines * 0.08,
                color=_colour(c), edgecolor="white", linewidth=0.3,
            )  # fmt: skip
            edge = edge + p_TC[-1, c]
    else:
        axes.axhspan(0, seen[0], facecolor="none", edgecolor="#BBBBBB", hatch="////", linewidth=0)
    if example.change_line is not None:
        axes.axhline(example.change_line, color="black", linewidth=1, linestyle="--")
    axes.set_ylim(lines, 0)
    axes.set_xlim(0, 1)
    axes.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
    axes.set_yticks([])


@styled
def scans_by_class(
    pictures: Mapping[str, Sequence[Picture]], classes: Sequence[str], columns: int = 6
) -> Sheet:
    """Draw a row of scans for each class.

    Parameters
    ----------
    pictures
        Class → scans; the first `columns` are shown.
    classes
        Classes, in the order of the rows.
    columns
        Scans in a row.
    """
    rows = [c for c in classes if pictures.get(c)]
    if not rows:
        return message("No labelled scans to show.")
    figure = Sheet(DOUBLE, 30 * len(rows) * MM)
    grid = figure.body.subplots(len(rows), columns, squeeze=False)
    for r, label in enumerate(rows):
        shown = list(pictures[label])[:columns]
        for axes in grid[r, len(shown) :]:
            axes.axis("off")
        for axes, picture in zip(grid[r], shown, strict=False):
            draw_scan(axes, picture)
            axes.set_yticks([])
        grid[r, 0].set_ylabel(plain(label).replace("/", "/\n"))
    return figure


@styled
def dataset_glance(
    manifest: pd.DataFrame,
    rejected: pd.DataFrame,
    split: Mapping[str, Any],
    classes: Sequence[str],
) -> Sheet:
    """Draw the classes, groups, sizes and exclusions of a data set.

    Parameters
    ----------
    manifest, rejected
        `manifest.csv` and `rejected.csv`.
    split
        `split.json`: what it names is used.
    classes
        Classes, in the order of colours.
    """
    used = manifest[manifest["scan_id"].isin(in_split(split))]
    figure = Sheet(DOUBLE, 128 * MM)
    upper, lower = figure.body.subfigures(2, 1, height_ratios=[1, 1.25], squeeze=False).flat
    shares, sizes, reasons = upper.subplots(1, 3)

    counts = used["label"].value_counts().reindex(list(classes)).fillna(0).to_numpy(float)
    total = max(counts.sum(), 1)
    _bars(
        shares, [plain(c, 18).replace("/", "/\n") for c in classes], counts,
        [f"{n:,.0f} ({n / total:.0%})" for n in counts], [_colour(i) for i in range(len(classes))],
    )  # fmt: skip
    shares.set_title("Scans used, by class", loc="left")

    whole = manifest["lines"] >= manifest["planned_lines"]
    size = manifest["planned_lines"].astype(str) + " × " + manifest["pixels"].astype(str)
    kinds: pd.Series = (size + np.where(whole, "", ", aborted")).value_counts()
    _bars(sizes, *_longest(kinds, 6), ["#8A8A8A"] * 7)
    sizes.set_title("Scans read, by lines × pixels", loc="left")

    left_out = exclusion_table(manifest, rejected, split).raw.query("what != 'used'")
    refused = left_out["what"] == "refused"
    why = left_out.set_index(left_out["reason"].where(~refused, "refused: " + left_out["reason"]))[
        "count"
    ]
    if len(why):
        _bars(reasons, *_longest(why, 7), ["#8A8A8A"] * 8)
    else:
        reasons.axis("off")
        reasons.text(0, 0.9, "none", transform=reasons.transAxes, color=GREY)
    reasons.set_title("Not used, by reason", loc="left")

    axes = lower.subplots()
    table = (
        used.groupby(["group", "label"]).size().unstack(fill_value=0)
        .reindex(columns=list(classes), fill_value=0).sort_index()
    )  # fmt: skip
    bottom = np.zeros(len(table))
    place = np.arange(len(table))
    for i, label in enumerate(classes):
        height = table[label].to_numpy(float)
        axes.bar(
            place, height, 0.8, bottom=bottom, color=_colour(i), edgecolor="white", linewidth=0.4,
            label=plain(label),
        )  # fmt: skip
        bottom = bottom + height
    axes.set_ylabel("Scans used")
    axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.set_xlim(-0.7, len(table) - 0.3)
    axes.grid(axis="y")
    if len(table) <= 45:
        names = [plain(g, 22) for g in table.index]
        fits = max(map(len, names), default=0) * len(names) < 110
        axes.set_xticks(place, names, rotation=0 if fits else 90)
        axes.tick_params(axis="x", length=0)
    else:
        axes.set_xticks([])
        axes.set_xlabel(f"{len(table)} groups, in the order of their names")
    axes.set_title(f"Groups ({len(table)}) and their classes", loc="left")
    axes.legend(
        loc="lower right", bbox_to_anchor=(1, 1), borderaxespad=0.1, columnspacing=1.4,
        ncols=len(classes) if len(classes) <= 5 else 4,
    )  # fmt: skip
    return figure


def _longest(counts: pd.Series, most: int) -> tuple[list[str], Floats, list[str]]:
    """Return labels, values and texts of the `most` largest counts; the rest become one."""
    ordered = counts.sort_values(ascending=False, kind="stable")
    head = ordered.iloc[:most]
    labels = [textwrap.fill(plain(k, 44), 24) for k in head.index]
    values = list(head.to_numpy(float))
    if len(ordered) > most:
        labels.append(f"{len(ordered) - most} others")
        values.append(float(ordered.iloc[most:].sum()))
    return labels, np.array(values), [f"{v:,.0f}" for v in values]


def _bars(
    axes: Axes, labels: Sequence[str], values: Floats, texts: Sequence[str], colours: Sequence[str]
) -> None:
    place = np.arange(len(values))
    axes.barh(place, values, 0.72, color=list(colours)[: len(values)])
    for y, value, text in zip(place, values, texts, strict=True):
        axes.annotate(text, (value, y), (2, 0), textcoords="offset points", va="center", fontsize=7)
    axes.set_yticks(place, list(labels))
    axes.set_ylim(max(len(values), 4) - 0.4, -0.6)
    axes.set_xlim(0, max(1.0, float(values.max(initial=0)) * 1.55))
    axes.tick_params(axis="y", length=0)
    axes.set_xticks([])
    axes.spines["bottom"].set_visible(False)


# ---------------------------------------------------------------------------- for the render stage


def drawings(material: Material) -> list[Drawing]:
    """Draw what is special to scans, for `scanbench.render`."""
    experiment = line_answering(material)
    runs = [f"{experiment}/{run.name}/predictions.parquet" for run in material.runs[experiment]]
    order = "in the order of acquisition: the line measured first is on top"
    return [
        Drawing(
            name="dataset",
            title="The data set at a glance",
            caption="Classes, sizes and groups of the scans, and what was not used, by reason. "
            "A group stands wholly in one part of each split.",
            figure=dataset_glance(
                material.manifest, material.rejected, material.split, material.classes
            ),
            inputs=["scans/manifest.csv", "scans/rejected.csv", "split.json"],
        ),
        Drawing(
            name="scans",
            title="Scans of each class",
            caption="Scans from groups spread over the data set, picked by their place in it and "
            f"not by hand, {order}. The median of each line is subtracted; grey spans the middle "
            "98 % of the heights.",
            figure=scans_by_class(_pictures_by_class(material), material.classes),
            inputs=["store.h5", "scans/manifest.csv"],
        ),
        Drawing(
            name="examples",
            title="Right and wrong answers, line by line",
            caption=f"The most confident right and wrong answer of {experiment} for each class. "
            f"Scans stand {order}. Beside each are the probabilities (mean over seeds) of the "
            "answer given when that line had been measured; hatched: no answer yet; dashed: "
            "line of a known tip change. Scans aborted very early are drawn taller than they are.",
            figure=scan_answers(_examples(material, experiment), material.classes, experiment),
            inputs=[
                "scores/examples.csv",
                "scores/metrics.csv",
                "store.h5",
                "scans/manifest.csv",
                *runs,
            ],
        ),
        Drawing(
            name="agreement",
            title="Models against people",
            caption="Held-out scans with exactly two responses. Left: of the volunteers who named "
            "a class, the share whose fellow volunteer did so too (black), and for whose scans the "
            "model did. Each model names a class as often as volunteers do: its threshold is found "
            "on the held-out scans of other folds. Right: the difference, on the same scans; "
            f"intervals ({_level(material)}) resample groups and seeds. Where two columns of one "
            "class were named once each, the sheet does not tell if by one volunteer (filled; left "
            "panel) or by two (open); the grey bar spans what people reach in between. The scans "
            "that people disagree on, and so have no label, count.",
            figure=people_and_models(material.people["agreement"], material.experiments)
            if material.people
            else message(
                "No comparison with people: the data set does not tell what people named."
            ),
            inputs=["agreement/agreement.csv"] if material.people else [],
        ),
    ]


def _level(material: Material) -> str:
    return f"{float(material.evaluation['settings']['confidence']):.0%}"


@styled
def people_and_models(agreement: pd.DataFrame, experiments: Sequence[str]) -> Sheet:
    """Draw, per class, how often a model and a second volunteer name what a volunteer named.

    Parameters
    ----------
    agreement
        `agreement.csv`.
    experiments
        Names, in the order shown.
    """
    rows = agreement[agreement["experiment"].isin(list(experiments))]
    if rows.empty:
        return message("No comparison with people: the data set does not tell what people named.")
    rows = rows.assign(name=rows["class"].where(rows["class"].fillna("") != "", "mean of classes"))
    names = list(dict.fromkeys(rows["name"]))
    shown = [name for name in experiments if name in set(rows["experiment"])]
    styles = experiment_styles(experiments)
    figure = Sheet(DOUBLE, (16 + len(names) * (5 + 3.2 * (len(shown) + 1))) * MM)
    left, right = figure.body.subplots(1, 2, sharey=True)
    ticks = []
    step = len(shown) + 2.5
    for i, name in enumerate(names):
        of_class = rows[rows["name"] == name]
        people = of_class.drop_duplicates("reading").set_index("reading")
        y = i * step
        ticks.append(y + (len(shown)) / 2)
        span = people.loc["fewest", "people"], people.loc["most", "people"]
        left.plot(span, (y, y), color=PALE, linewidth=5, solid_capstyle="butt", zorder=1)
        fewest = people.loc["fewest"]
        left.hlines(y, fewest["people_low"], fewest["people_high"], color="black", linewidth=1.0)
        left.plot(fewest["people"], y, "D", color="black", markersize=4)
        for k, experiment in enumerate(shown):
            mine = of_class[of_class["experiment"] == experiment].set_index("reading")
            style, at = styles[experiment], y + k + 1
            value = mine.loc["fewest"]
            left.hlines(
                at, value["model_low"], value["model_high"], color=style.colour, linewidth=1
            )
            left.plot(value["model"], at, style.marker, color=style.colour)
            for how, lift, face in (("fewest", -0.18, style.colour), ("most", 0.18, "white")):
                value = mine.loc[how]
                ends = value["difference_low"], value["difference_high"]
                right.hlines(at + lift, *ends, color=style.colour, linewidth=0.8)
                right.plot(
                    value["difference"], at + lift, style.marker, color=style.colour,
                    markerfacecolor=face, markersize=3,
                )  # fmt: skip
        if i:
            for axes in (left, right):
                axes.axhline(y - 0.9, color=PALE, linewidth=0.5)
    right.axvline(0, color=GREY, linewidth=0.8, zorder=0)
    left.set_yticks(ticks, [plain(name, 24) for name in names])
    left.set_ylim(len(names) * step - 1, -1)
    left.set_xlabel("P(names the class | a volunteer named it)")
    right.set_xlabel("Model − second volunteer")
    for axes in (left, right):
        axes.tick_params(axis="y", length=0)
        axes.xaxis.set_major_locator(MaxNLocator(6))
        axes.grid(axis="x")
    handles = [Line2D([], [], color="black", marker="D", markersize=4, linewidth=1.0)]
    handles += [
        Line2D([], [], color=styles[n].colour, marker=styles[n].marker, linewidth=1) for n in shown
    ]
    figure.body.legend(
        handles, ["Second volunteer", *(plain(name, 30) for name in shown)],
        loc="outside lower center", ncols=4,
    )  # fmt: skip
    return figure


def line_answering(material: Material) -> str:
    """Return the experiment with examples that answers line by line and has the highest AUROC.

    If none of those with examples answers before the end of a scan, the best of them is taken.
    """
    metrics = material.scores["metrics"]
    known = set(material.scores["examples"]["experiment"]) & set(material.experiments)
    macro = metrics[(metrics["class"] == "") & (metrics["metric"] == "auroc")]
    first = macro[macro["reading"] == "lines"].groupby("experiment")["lines"].min()
    final = macro[macro["reading"] == "scan"].set_index("experiment")["value"]

    def early(name: str) -> bool:
        return bool(first.get(name, math.inf) < material.store.lines)

    candidates = [name for name in material.experiments if name in known] or material.experiments
    return max(candidates, key=lambda name: (early(name), float(final[name])))


def listed(manifest: pd.DataFrame, scan_id: str) -> pd.Series:
    """Return a scan's row of the manifest; of a copy in the store, that of its original."""
    rows = manifest[manifest["scan_id"] == scan_id]
    if rows.empty:
        rows = manifest[manifest["scan_id"] == original(scan_id)]
    return rows.iloc[0]


def picture(store: Store, manifest: pd.DataFrame, k: int) -> Picture:
    """Return scan `k` of the store, in its physical aspect if that is known, else of its pixels."""
    scan_id, seen = str(store.scan_id[k]), int(store.n_lines[k])
    row = listed(manifest, scan_id)
    width, height = float(row["width_m"]), float(row["height_m"])
    known = math.isfinite(width) and math.isfinite(height) and width > 0 and height > 0
    whole = height / width if known else float(row["planned_lines"]) / float(row["pixels"])
    return Picture(
        x_LP=store.read([k])[0, :seen],
        title=scan_id,
        aspect=whole * seen / store.lines,
        width_m=width if known else None,
        lines=(store.lines, int(row["planned_lines"])),
    )


def _pictures_by_class(material: Material, number: int = 6) -> dict[str, list[Picture]]:
    store = material.store
    pictures = {}
    for c, name in enumerate(material.classes):
        mine = np.flatnonzero(store.label == c)
        mine = mine[np.lexsort((store.scan_id[mine], store.group[mine]))]
        # Whole scans first: an aborted one shows its class less well.
        whole = mine[store.n_lines[mine] == store.lines]
        mine = whole if len(whole) >= number else mine
        chosen = mine[np.linspace(0, len(mine) - 1, min(number, len(mine))).astype(int)]
        pictures[name] = [picture(store, material.manifest, int(k)) for k in chosen]
    return pictures


def example_rows(material: Material, experiment: str) -> list[dict[Hashable, Any]]:
    """Return an experiment's most confident right and wrong answer for each class."""
    rows = material.scores["examples"]
    mine = rows[rows["experiment"] == experiment]
    return mine.drop_duplicates(["label", "kind"]).to_dict("records")


def _examples(material: Material, experiment: str) -> dict[str, dict[str, Example]]:
    predictions = material.predictions(experiment)
    store = material.store
    examples: dict[str, dict[str, Example]] = {}
    for row in example_rows(material, experiment):
        k = int(store.index_of([row["scan_id"]])[0])
        change = int(store.change_line[k])
        examples.setdefault(row["label"], {})[row["kind"]] = Example(
            picture=picture(store, material.manifest, k),
            label=row["label"],
            predicted=row["predicted"],
            answers=line_answers(predictions, row["scan_id"], material.classes),
            change_line=change if change >= 0 else None,
        )
    return examples
