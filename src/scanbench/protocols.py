"""The same experiments under several protocols, side by side: what leakage is worth.

Nothing is computed here but differences of what the comparisons' own tables hold.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from scanbench import plotting, text
from scanbench.plotting import BLUE, DOUBLE, GREEN, GREY, METRIC_NAMES, MM, VERMILLION, Sheet
from scanbench.scores import macro_row, read_scores
from scanbench.split_file import LEAKY
from scanbench.tables import ResultTable, write

METRICS = ("auroc", "balanced_accuracy")

#: Colour and marker of each protocol, in order.
STYLES = ((BLUE, "o"), (VERMILLION, "s"), (GREEN, "^"), (GREY, "D"))


def side_by_side(spec: Mapping[str, Any], scores: Mapping[str, str | Path], out: Path) -> None:
    """Write the table and the figure of several comparisons side by side.

    Parameters
    ----------
    spec
        What `scanbench.plan.protocols_spec` gives.
    scores
        Comparison → the folder that evaluate wrote for it.
    out
        Folder for `protocols.{csv,md,tex,svg,pdf,png}`.

    Raises
    ------
    UserError
        If a table is missing or lacks an experiment.
    """
    tables = {name: read_scores(folder, "metrics") for name, folder in scores.items()}
    raw = joined(spec, tables)
    write(table(spec, raw), out)
    figure = drawing(spec, raw)
    figure.note("; ".join(dict.fromkeys(wanted["data"] for wanted in spec["comparisons"])))
    plotting.save(figure, out, "protocols")


def label(wanted: Mapping[str, Any]) -> str:
    """Return the name of a protocol, marked if it leaks."""
    return f"{wanted['split']} (leaky)" if wanted["scheme"] in LEAKY else str(wanted["split"])


def joined(spec: Mapping[str, Any], tables: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Return one row for each experiment, metric and protocol.

    Parameters
    ----------
    spec
        As in `side_by_side`.
    tables
        Comparison → `metrics.csv`; the macro figures of the scan reading are used.

    Returns
    -------
    pandas.DataFrame
        `experiment,metric,comparison,split,scheme,leaky,value,low,high,more_than_first,seeds,
        groups,scans`; `more_than_first` is the value less that under the first protocol.
    """
    rows: list[dict[str, Any]] = []
    for experiment in spec["experiments"]:
        for metric in METRICS:
            first = None
            for wanted in spec["comparisons"]:
                name = wanted["comparison"]
                row = macro_row(tables[name], experiment, metric, name)
                first = float(row["value"]) if first is None else first
                rows.append(
                    {
                        "experiment": experiment,
                        "metric": metric,
                        "comparison": name,
                        "split": wanted["split"],
                        "scheme": wanted["scheme"],
                        "leaky": wanted["scheme"] in LEAKY,
                        **{key: float(row[key]) for key in ("value", "low", "high")},
                        "more_than_first": float(row["value"]) - first,
                        **{key: int(row[key]) for key in ("seeds", "groups", "scans")},
                    }
                )
    return pd.DataFrame(rows)


def table(spec: Mapping[str, Any], raw: pd.DataFrame) -> ResultTable:
    """Return the table as people read it: a row for each experiment and metric."""
    labels = {wanted["comparison"]: label(wanted) for wanted in spec["comparisons"]}
    shown = [
        {"Experiment": experiment, "Metric": METRIC_NAMES[str(metric)]}
        | {
            labels[str(row["comparison"])]: text.with_interval(
                row["value"], row["low"], row["high"]
            )
            for row in rows.to_dict("records")
        }
        for (experiment, metric), rows in raw.groupby(["experiment", "metric"], sort=False)
    ]
    return ResultTable(
        name="protocols",
        title=f"{spec['title']}: the same experiments under each protocol, mean over seeds "
        f"({spec['confidence']:.0%} interval from resampling groups and seeds). Leaky protocols "
        "say nothing about groups never seen.",
        raw=raw,
        shown=pd.DataFrame(shown, dtype=str),
    )


@plotting.styled
def drawing(spec: Mapping[str, Any], raw: pd.DataFrame) -> Sheet:
    """Draw each experiment's metrics under each protocol, with intervals."""
    experiments: Sequence[str] = spec["experiments"]
    comparisons = spec["comparisons"]
    figure = Sheet(DOUBLE, (16 + (2 + 2.6 * len(comparisons)) * len(experiments)) * MM)
    panels = figure.body.subplots(1, len(METRICS), squeeze=False, sharey=True).ravel()
    handles: dict[str, Any] = {}
    for axes, metric in zip(panels, METRICS, strict=True):
        for k, wanted in enumerate(comparisons):
            rows = raw[(raw["metric"] == metric) & (raw["comparison"] == wanted["comparison"])]
            rows = rows.set_index("experiment").loc[list(experiments)]
            colour, marker = STYLES[k % len(STYLES)]
            offset = (k - (len(comparisons) - 1) / 2) * 0.7 / len(comparisons)
            y = [i + offset for i in range(len(experiments))]
            axes.hlines(y, rows["low"], rows["high"], color=colour, linewidth=1.1)
            [line] = axes.plot(
                rows["value"], y, marker, color=colour, markersize=4,
                markerfacecolor="white" if wanted["scheme"] in LEAKY else colour,
            )  # fmt: skip
            handles[label(wanted)] = line
        axes.set_xlabel(METRIC_NAMES[metric])
        axes.set_yticks(range(len(experiments)), [text.plain(n, 44) for n in experiments])
        axes.set_ylim(len(experiments) - 0.4, -0.6)
        axes.grid(axis="x")
        axes.spines["left"].set_visible(False)
        axes.tick_params(axis="y", length=0)
    figure.body.legend(
        list(handles.values()), list(handles), loc="outside lower center", ncols=len(handles)
    )
    return figure
