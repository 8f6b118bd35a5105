"""Experiments against a number of theirs: label efficiency, for one.

Each series of experiments is a curve. How far along it one must go to do as well as the
comparison's baseline is read off the differences from it, and so is the interval of that. Nothing
is computed here but crossings of what the comparison's own tables hold.

Shape suffix: K points of a series.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, NullLocator

from scanbench import plotting, provenance
from scanbench.errors import UserError
from scanbench.files import write_json
from scanbench.plotting import (
    BLACK,
    DOUBLE,
    EXPERIMENT_COLOURS,
    EXPERIMENT_LINES,
    EXPERIMENT_MARKERS,
    GREY,
    METRIC_NAMES,
    MM,
    SINGLE,
    Sheet,
)
from scanbench.scores import macro_row, read_scores
from scanbench.tables import ResultTable, write
from scanbench.text import number, with_interval

#: Before a number where it is not met: at the first point already, or not at the last.
AT_MOST, MORE_THAN = "≤", ">"


class Crossing(NamedTuple):
    """Where a curve first reaches a height.

    `bound` is empty, or says that `x` is only a bound: the curve is there at its first point
    already (`≤`), or not yet at its last (`>`).
    """

    x: float
    bound: str

    def __str__(self) -> str:
        """Return it as people read it."""
        return f"{self.bound} {self.x:.2g}".strip()


def draw_curves(spec: Mapping[str, Any], scores: str | Path, out: Path) -> None:
    """Write the curves of a comparison, and how far along each its baseline is reached.

    Parameters
    ----------
    spec
        What `scanbench.plan.curves_spec` gives.
    scores
        The folder that evaluate wrote for the comparison.
    out
        Folder for `curves.{svg,pdf,png}`, `points.{csv,md,tex}`, `reached.{csv,md,tex}` and
        `curves.json`, their provenance.

    Raises
    ------
    UserError
        If a table is missing or lacks an experiment.
    """
    started = time.time()
    raw = points(spec, read_scores(scores, "metrics"), read_scores(scores, "pairs"))
    reached = reaches(spec, raw)
    write(point_table(spec, raw), out)
    write(reach_table(spec, reached), out)
    figure = drawing(spec, raw, reached)
    figure.note(spec["data"])
    plotting.save(figure, out, "curves")
    inputs = {name: Path(scores) / f"{name}.csv" for name in ("metrics", "pairs")}
    write_json(out / "curves.json", provenance.record(spec, inputs=inputs, started=started))


def points(spec: Mapping[str, Any], metrics: pd.DataFrame, pairs: pd.DataFrame) -> pd.DataFrame:
    """Return one row for each metric, series and point.

    Parameters
    ----------
    spec
        As in `draw_curves`.
    metrics, pairs
        Tables of scores; the macro figures of the scan reading are used.

    Returns
    -------
    pandas.DataFrame
        `metric,series,x,experiment,value,low,high,difference,difference_low,difference_high,p_holm,
        seeds,groups,scans`; `difference` is the value less that of the baseline.

    Raises
    ------
    UserError
        If a row is missing.
    """
    rows: list[dict[str, Any]] = []
    for metric in spec["metrics"]:
        for series in spec["series"]:
            for x, experiment in series["points"]:
                row = macro_row(metrics, experiment, metric, spec["comparison"])
                rows.append(
                    {
                        "metric": metric,
                        "series": series["name"],
                        "x": x,
                        "experiment": experiment,
                        **{key: float(row[key]) for key in ("value", "low", "high")},
                        **_difference(spec, pairs, experiment, metric),
                        **{key: int(row[key]) for key in ("seeds", "groups", "scans")},
                    }
                )
    return pd.DataFrame(rows)


def _difference(
    spec: Mapping[str, Any], pairs: pd.DataFrame, experiment: str, metric: str
) -> dict[str, float]:
    names = ("difference", "difference_low", "difference_high", "p_holm")
    if experiment == spec["baseline"]:
        return dict.fromkeys(names[:3], 0.0) | {"p_holm": np.nan}
    found = pairs[
        (pairs["experiment_a"] == experiment)
        & (pairs["experiment_b"] == spec["baseline"])
        & (pairs["metric"] == metric)
        & (pairs["reading"] == "scan")
    ]
    if len(found) != 1:
        raise UserError(
            f"comparison {spec['comparison']!r}: {len(found)} rows of {metric} of {experiment!r} "
            f"against {spec['baseline']!r}; evaluate again"
        )
    row = found.iloc[0]
    return {
        name: float(row[key])
        for name, key in zip(names, ("difference", "low", "high", "p_holm"), strict=True)
    }


def crossing(x_K: Sequence[float], y_K: Sequence[float], scale: str) -> Crossing:
    """Return where a curve, straight between its points, first reaches 0 from below.

    Parameters
    ----------
    x_K
        Rising.
    y_K
        Heights.
    scale
        `linear`, or `log`: straight over the logarithm of x.
    """
    if y_K[0] >= 0:
        return Crossing(x_K[0], AT_MOST)
    for (x0, y0), (x1, y1) in pairwise(zip(x_K, y_K, strict=True)):
        if y0 < 0 <= y1:
            share = y0 / (y0 - y1)
            if y1 == 0:
                return Crossing(x1, "")
            if scale == "log":
                return Crossing(x0 * (x1 / x0) ** share, "")
            return Crossing(x0 + (x1 - x0) * share, "")
    return Crossing(x_K[-1], MORE_THAN)


def reaches(spec: Mapping[str, Any], raw: pd.DataFrame) -> pd.DataFrame:
    """Return, for each metric and series, the number at which it reaches the baseline.

    `low` is where the upper end of the interval of the difference reaches 0, so that being worse
    is not shown any more; `high` where its lower end does, so that being as good is shown.

    Returns
    -------
    pandas.DataFrame
        `metric,series,baseline,x,bound,low,low_bound,high,high_bound`.
    """
    rows = []
    for (metric, series), own in raw.groupby(["metric", "series"], sort=False):
        row: dict[str, Any] = {"metric": metric, "series": series, "baseline": spec["baseline"]}
        for prefix, column in (
            ("", "difference"), ("low_", "difference_high"), ("high_", "difference_low"),
        ):  # fmt: skip
            found = crossing(own["x"].tolist(), own[column].tolist(), spec["scale"])
            row |= {prefix.rstrip("_") or "x": found.x, f"{prefix}bound": found.bound}
        rows.append(row)
    return pd.DataFrame(rows)


def point_table(spec: Mapping[str, Any], raw: pd.DataFrame) -> ResultTable:
    """Return the table of the points as people read it."""
    shown = [
        {
            "Series": str(row["series"]),
            spec["label"]: f"{row['x']:g}",
            "Metric": METRIC_NAMES[str(row["metric"])],
            "Value": with_interval(row["value"], row["low"], row["high"]),
            f"Value − {spec['baseline']}": "–"
            if row["experiment"] == spec["baseline"]
            else f"{number(row['difference'])} ({number(row['difference_low'])} to "
            f"{number(row['difference_high'])})",
        }
        for row in raw.to_dict("records")
    ]
    return ResultTable(
        name="points",
        title=f"{spec['title']}: mean over seeds ({spec['confidence']:.0%} interval from "
        "resampling groups and seeds), and the difference from the baseline, paired.",
        raw=raw,
        shown=pd.DataFrame(shown, dtype=str),
    )


def reach_table(spec: Mapping[str, Any], reached: pd.DataFrame) -> ResultTable:
    """Return the table of where the baseline is reached, as people read it."""
    shown = []
    for row in reached.to_dict("records"):
        low, high = (Crossing(row[end], row[f"{end}_bound"]) for end in ("low", "high"))
        shown.append(
            {
                "Series": str(row["series"]),
                "Metric": METRIC_NAMES[str(row["metric"])],
                f"{spec['label']} needed": str(Crossing(row["x"], row["bound"])),
                "Interval": f"{low} to {high}",
            }
        )
    return ResultTable(
        name="reached",
        title=f"{spec['title']}: {spec['label']} needed to do as well as {spec['baseline']}, "
        f"interpolated between points ({spec['confidence']:.0%} interval: from where being worse "
        "is not shown to where being as good is).",
        raw=reached,
        shown=pd.DataFrame(shown, dtype=str),
    )


@plotting.styled
def drawing(spec: Mapping[str, Any], raw: pd.DataFrame, reached: pd.DataFrame) -> Sheet:
    """Draw each series with its intervals, the baseline, and where it is reached."""
    metrics: Sequence[str] = spec["metrics"]
    width = SINGLE if len(metrics) == 1 else DOUBLE
    figure = Sheet(width, 62 * MM)
    panels = figure.body.subplots(1, len(metrics), squeeze=False).ravel()
    handles: dict[str, Any] = {}
    rings = False
    spread = 1.03 if spec["scale"] == "log" else 0.0
    for axes, metric in zip(panels, metrics, strict=True):
        mine = raw[raw["metric"] == metric]
        for k, series in enumerate(spec["series"]):
            own = mine[mine["series"] == series["name"]]
            # Side by side, so that intervals at one number do not hide each other.
            shift = spread ** (2 * k - len(spec["series"]) + 1) if spread else 1.0
            x_K = own["x"].to_numpy(float) * shift
            colour = EXPERIMENT_COLOURS[k]
            axes.vlines(x_K, own["low"], own["high"], color=colour, linewidth=0.9)
            [handles[series["name"]]] = axes.plot(
                x_K, own["value"], color=colour, marker=EXPERIMENT_MARKERS[k],
                linestyle=EXPERIMENT_LINES[k], markersize=4,
            )  # fmt: skip
            found = reached[(reached["metric"] == metric) & (reached["series"] == series["name"])]
            height = float((own["value"] - own["difference"]).iloc[0])
            itself = own["x"][own["experiment"] == spec["baseline"]].isin(found["x"]).any()
            if not found["bound"].iloc[0] and not itself:
                axes.plot(
                    found["x"], [height], marker="o", markersize=8, color=colour,
                    markerfacecolor="none", linestyle="",
                )  # fmt: skip
                rings = True
        handles[f"{spec['baseline']} (baseline)"] = axes.axhline(
            height, color=BLACK, linewidth=1.0, linestyle=(0, (1, 1.5)), zorder=1
        )
        axes.set_xscale(spec["scale"])
        ticks = sorted(set(raw["x"]))
        axes.xaxis.set_major_locator(FixedLocator(ticks))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xticklabels([f"{x:g}" for x in ticks])
        axes.set_xlabel(spec["label"])
        axes.set_ylabel(METRIC_NAMES[metric])
        axes.grid(axis="y")
    if rings:
        handles["as good as the baseline"] = Line2D(
            [], [], marker="o", markersize=8, color=GREY, markerfacecolor="none", linestyle=""
        )
    plotting.legend_below(figure, list(handles.values()), list(handles))
    return figure
