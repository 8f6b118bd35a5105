"""Result tables as people read them: one content, written as CSV, Markdown and LaTeX."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from scanbench.files import replacing
from scanbench.plotting import METRIC_NAMES
from scanbench.text import number, plain, with_interval

__all__ = [
    "ResultTable",
    "audit_table",
    "ceiling_table",
    "class_table",
    "error_table",
    "exclusion_table",
    "latex",
    "main_table",
    "markdown",
    "pair_table",
    "part_table",
    "people_table",
    "progress_table",
    "rules_chosen_on",
    "settled_early",
    "settled_from",
    "settled_table",
    "stop_table",
    "write",
]

NUMBER = re.compile(r"[<+−–-]?[\d.,]*\d[\d.,]*( .*)?|–|")


@dataclass(frozen=True, kw_only=True)
class ResultTable:
    """One table in two forms.

    Attributes
    ----------
    name
        File name without suffix.
    title
        What it shows, as one sentence.
    raw
        Values with all their digits, for the CSV file.
    shown
        Text of each cell, for people.
    """

    name: str
    title: str
    raw: pd.DataFrame
    shown: pd.DataFrame

    @property
    def numeric(self) -> list[bool]:
        """Whether each shown column holds numbers, and so is set flush right."""
        return [
            any(self.shown[column]) and all(NUMBER.fullmatch(cell) for cell in self.shown[column])
            for column in self.shown.columns
        ]


def write(table: ResultTable, folder: Path) -> dict[str, Path]:
    """Write `folder/name.csv`, `.md` and `.tex`; return format → file."""
    paths = {form: folder / f"{table.name}.{form}" for form in ("csv", "md", "tex")}
    with replacing(paths["csv"]) as part:
        table.raw.to_csv(part, index=False, float_format="%.6g", lineterminator="\n")
    for form, text in (("md", markdown(table)), ("tex", latex(table))):
        with replacing(paths[form]) as part:
            part.write_text(text, encoding="utf-8", newline="\n")
    return paths


def markdown(table: ResultTable) -> str:
    """Return the table in GitHub's Markdown, its columns aligned also as plain text."""
    # A name must stay inside its cell and start no HTML or emphasis.
    rows = [
        [re.sub(r"([\\`*_|<>\[\]#~$])", r"\\\1", plain(cell)) for cell in row]
        for row in [list(table.shown.columns), *table.shown.to_numpy().tolist()]
    ]
    widths = [max(3, *(len(row[i]) for row in rows)) for i in range(len(rows[0]))]
    right = table.numeric

    def line(cells: Sequence[str]) -> str:
        padded = [
            cell.rjust(width) if flush else cell.ljust(width)
            for cell, width, flush in zip(cells, widths, right, strict=True)
        ]
        return f"| {' | '.join(padded)} |"

    rule = [
        "-" * (width - 1) + ":" if flush else "-" * width
        for width, flush in zip(widths, right, strict=True)
    ]
    return "\n".join([line(rows[0]), line(rule), *map(line, rows[1:])]) + "\n"


_LATEX = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#",
    "%": r"\%", "_": r"\_", "^": r"\textasciicircum{}", "~": r"\textasciitilde{}",
    "<": r"\textless{}", ">": r"\textgreater{}", "−": "$-$", "–": "--", "×": r"$\times$",
    "…": r"\ldots{}",
}  # fmt: skip


def latex(table: ResultTable) -> str:
    r"""Return the table as a LaTeX `table` that needs the package booktabs.

    Every character that LaTeX gives a meaning is escaped, so that no name can break the document.
    """

    def escaped(text: str) -> str:
        return "".join(_LATEX.get(character, character) for character in plain(text))

    columns = "".join("r" if flush else "l" for flush in table.numeric)
    lines = [
        "% \\usepackage{booktabs}",
        "\\begin{table}",
        "  \\centering",
        f"  \\caption{{{escaped(table.title)}}}",
        f"  \\label{{tab:{table.name}}}",
        f"  \\begin{{tabular}}{{{columns}}}",
        "    \\toprule",
        "    " + " & ".join(escaped(c) for c in table.shown.columns) + r" \\",
        "    \\midrule",
    ]
    for row in table.shown.to_numpy().tolist():
        # A row that starts with "[" would be read as an argument of the line break before it.
        lines.append("    {}" + " & ".join(escaped(cell) for cell in row) + r" \\")
    return "\n".join([*lines, "    \\bottomrule", "  \\end{tabular}", "\\end{table}", ""])


# ---------------------------------------------------------------------------- text of single cells


def _interval(row: Any) -> str:
    return with_interval(*(float(row[k]) for k in ("value", "low", "high")))


def _count(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:,.0f}"


def _p(value: float) -> str:
    return "–" if math.isnan(value) else "<0.001" if value < 0.001 else f"{value:.3f}"


def _shown(rows: Sequence[Mapping[str, str]], columns: Sequence[str] = ()) -> pd.DataFrame:
    return pd.DataFrame(list(rows), columns=list(columns) or None, dtype=str).fillna("")


# -------------------------------------------------------------------------------------- the tables


def main_table(
    metrics: pd.DataFrame,
    costs: pd.DataFrame,
    windows: Mapping[str, int],
    *,
    simulated: bool,
    confidence: float,
    leaky: bool = False,
) -> ResultTable:
    """Return the table of a comparison: one row per experiment, the highest AUROC first.

    Parameters
    ----------
    metrics
        `metrics.csv`; the macro rows of the scan reading are used.
    costs
        `experiment`, `parameters`, `cpu_seconds` (mean over the runs).
    windows
        Experiment → number of windows, for those that look at windows of scans.
    simulated
        Whether the title must say so.
    confidence
        Of the intervals, 0 to 1.
    leaky
        Whether the split leaks, which the title must say too.
    """
    rows = metrics[(metrics["reading"] == "scan") & (metrics["class"].fillna("") == "")]
    auroc = rows[rows["metric"] == "auroc"].set_index("experiment")["value"]
    order = auroc.sort_values(ascending=False, kind="stable").index
    cost = costs.set_index("experiment")
    raw, shown = [], []
    for name in order:
        mine = rows[rows["experiment"] == name].set_index("metric")
        first = mine.iloc[0]
        facts = {
            "parameters": float(cost["parameters"].get(name, math.nan)),
            "cpu_seconds": float(cost["cpu_seconds"].get(name, math.nan)),
            **{k: float(first[k]) for k in ("seeds", "groups", "scans")},
            "windows": float(windows.get(name, math.nan)),
        }
        raw.append(
            {"experiment": name}
            | {
                f"{metric}{suffix}": float(mine.loc[metric, key])
                for metric in METRIC_NAMES
                if metric in mine.index
                for suffix, key in (("", "value"), ("_low", "low"), ("_high", "high"))
            }
            | facts
        )
        shown.append(
            {"Experiment": name}
            | {
                title: _interval(mine.loc[metric])
                for metric, title in METRIC_NAMES.items()
                if metric in mine.index
            }
            | {
                "Parameters": _count(facts["parameters"]),
                "Training (CPU s per run)": _count(facts["cpu_seconds"]),
                "Seeds": _count(facts["seeds"]),
                "Groups": _count(facts["groups"]),
                "Scans": _count(facts["scans"]),
                "Windows": _count(facts["windows"]),
            }
        )
    kind = "simulated scans" if simulated else "scans"
    fitted = "balanced_accuracy_fitted" in set(rows["metric"])
    return ResultTable(
        name="main",
        title=f"Experiments on {kind} that were held out: mean over seeds ({confidence:.0%} "
        "interval from resampling groups and seeds)."
        + (" Fitted thresholds are of the other folds." if fitted else "")
        + (" Leaky split: says nothing about groups never seen." if leaky else ""),
        raw=pd.DataFrame(raw),
        shown=_shown(shown),
    )


#: Columns of what an experiment costs, each with its title.
COSTS = {
    "parameters": "Parameters",
    "operations": "Operations per sample (10⁶)",
    "cpu_seconds": "Training (CPU s per run)",
    "peak_memory_mb": "Memory in training (MB)",
    "predict_cpu_seconds": "Prediction (CPU s per run)",
}


def cost_table(costs: pd.DataFrame) -> ResultTable:
    """Return what each experiment costs.

    Parameters
    ----------
    costs
        `experiment` and the keys of `COSTS`: means over the runs.
    """
    shown = [
        {"Experiment": str(row["experiment"])}
        | {
            title: _count(row[key] / 1e6 if key == "operations" else row[key])
            for key, title in COSTS.items()
        }
        for row in costs.to_dict("records")
    ]
    return ResultTable(
        name="costs",
        title="What each experiment costs. A sample is what a model sees at once: a scan, or a "
        "window of one. Operations are those of its matrix products, convolutions and attention. "
        "An ensemble costs what its members do; what a run starts from or is taught by is not "
        "counted.",
        raw=costs,
        shown=_shown(shown),
    )


def search_table(
    searches: Mapping[str, Sequence[Mapping[str, Any] | None]], costs: pd.DataFrame
) -> ResultTable:
    """Return how each experiment's setting was chosen.

    Parameters
    ----------
    searches
        Experiment → of each run, what `scanbench.tuning.choose` wrote, or None.
    costs
        `experiment` and `search_cpu_seconds`: the mean over the runs.
    """
    spent = costs.set_index("experiment")["search_cpu_seconds"]
    rows = []
    for name, runs in searches.items():
        found = [run for run in runs if run]
        search = found[0]["search"] if found else {}
        rows.append(
            {
                "experiment": name,
                "searched": "; ".join(f"{key}: {_listed(search[key])}" for key in sorted(search)),
                "possible": found[0]["possible"] if found else 1,
                "tried": len(found[0]["trials"]) if found else 1,
                "chosen": "; ".join(
                    f"{key}: {_listed(sorted({run['setting'][key] for run in found}, key=str))}"
                    for key in sorted(search)
                ),
                "cpu_seconds": spent[name],
            }
        )
    raw = pd.DataFrame(rows)
    shown = [
        {
            "Experiment": str(row["experiment"]),
            "Searched": str(row["searched"]) or "nothing",
            "Settings": _count(row["possible"]),
            "Tried": _count(row["tried"]),
            "Chosen, of all folds": str(row["chosen"]) or "–",
            "Search (CPU s per fold)": _count(row["cpu_seconds"]),
        }
        for row in raw.to_dict("records")
    ]
    return ResultTable(
        name="search",
        title="How settings were chosen: each fold tries as many of each experiment's, and takes "
        "the one that is best on its validation scans.",
        raw=raw,
        shown=_shown(shown),
    )


def _listed(values: Sequence[Any]) -> str:
    return ", ".join(f"{v:g}" if isinstance(v, float) else str(v) for v in values)


def class_table(
    metrics: pd.DataFrame, experiments: Sequence[str], classes: Sequence[str]
) -> ResultTable:
    """Return the AUROC of each class against the rest, with intervals."""
    rows = metrics[
        (metrics["reading"] == "scan")
        & (metrics["metric"] == "auroc")
        & metrics["class"].isin(list(classes))
        & metrics["experiment"].isin(list(experiments))
    ]
    cells = rows.set_index(["experiment", "class"])
    shown = [
        {"Experiment": name}
        | {c: _interval(cells.loc[(name, c)]) if (name, c) in cells.index else "–" for c in classes}
        for name in experiments
    ]
    return ResultTable(
        name="classes",
        title="AUROC of each class against the rest (interval).",
        raw=rows[["experiment", "class", "value", "low", "high"]],
        shown=_shown(shown),
    )


def settled_from(progress: pd.DataFrame, experiment: str, within: float) -> float:
    """Return the lines from which on an experiment's AUROC is settled; NaN if it never is.

    From there on, at every number of lines that was looked at, it lies below that of the last
    answer by no more than `within`, by the lower end of the interval of the paired difference: a
    claim of being no worse, not of being equal. What has no interval is never settled.

    Parameters
    ----------
    progress
        `progress.csv`.
    experiment
        Name.
    within
        `settled_within` of the evaluation.
    """
    rows = progress[(progress["experiment"] == experiment) & (progress["metric"] == "auroc")]
    rows = rows.sort_values("lines", ascending=False)
    holds = (rows["low"] >= -within).cummin()
    return float(rows["lines"][holds].min()) if holds.any() else math.nan


def settled_early(
    progress: pd.DataFrame, experiments: Sequence[str], within: float
) -> dict[str, float]:
    """Return the experiments whose AUROC is settled before the last line, each with its line."""
    settled = {name: settled_from(progress, name, within) for name in experiments}
    return {name: line for name, line in settled.items() if line < progress["lines"].max()}


def progress_table(
    metrics: pd.DataFrame, progress: pd.DataFrame, experiments: Sequence[str], *, simulated: bool
) -> ResultTable:
    """Return how good each experiment is after n lines, and how far that is from its end.

    Parameters
    ----------
    metrics, progress
        `metrics.csv` and `progress.csv`.
    experiments
        Names, in the order shown.
    simulated
        Whether the title must say so.
    """
    keys = ["experiment", "lines", "metric"]
    macro = metrics[(metrics["reading"] == "lines") & (metrics["class"].fillna("") == "")]
    columns = {"difference": "difference", "low": "difference_low", "high": "difference_high"}
    raw = macro[[*keys, "value", "low", "high"]].merge(
        progress.rename(columns=columns)[[*keys, *columns.values()]], on=keys, validate="one_to_one"
    )
    shown = []
    for name in experiments:
        for lines, rows in raw[raw["experiment"] == name].astype({"lines": int}).groupby("lines"):
            by = rows.set_index("metric")
            cells = {METRIC_NAMES[metric]: _interval(by.loc[metric]) for metric in by.index}
            change = by.loc["auroc", list(columns.values())].to_numpy(float)
            shown.append(
                {"Experiment": name, "Lines seen": f"{lines}"}
                | cells
                | {"AUROC, difference to the end": with_interval(*change)}
            )
    return ResultTable(
        name="progress",
        title=f"How good, and how soon{', on simulated scans' if simulated else ''}: the latest "
        "answer that each scan had after so many lines (interval from resampling groups and "
        "seeds).",
        raw=raw,
        shown=_shown(shown),
    )


def settled_table(
    metrics: pd.DataFrame,
    progress: pd.DataFrame,
    experiments: Sequence[str],
    *,
    within: float,
    simulated: bool,
) -> ResultTable:
    """Return from which line on each experiment's answer is settled, as `settled_from` has it."""
    auroc = metrics[(metrics["metric"] == "auroc") & (metrics["class"].fillna("") == "")]
    running = auroc[auroc["reading"] == "lines"].set_index(["experiment", "lines"])
    final = auroc[auroc["reading"] == "scan"].set_index("experiment")
    marked = settled_early(progress, experiments, within)
    counts = sorted(set(progress["lines"]))
    raw, shown = [], []
    for name in experiments:
        settled = settled_from(progress, name, within)
        raw.append({"experiment": name, "settled_from": settled, "within": within})
        shown.append(
            {"Experiment": name}
            | {
                f"After {n}": _interval(running.loc[(name, n)])
                if (name, n) in running.index
                else "–"
                for n in counts
                if n in SETTLED_SHOWN
            }
            | {"At the end": _interval(final.loc[name]), "Settled from line": _count(settled)}
        )
    return ResultTable(
        name="settled",
        title=f"From which line on the AUROC{' on simulated scans' if simulated else ''} is at "
        f"most {within:g} below that of the last answer, by the lower end of the interval of the "
        "paired difference, at this line and all later ones that were looked at."
        + ("" if marked else " None is before the end of the scan."),
        raw=pd.DataFrame(raw),
        shown=_shown(shown),
    )


#: Numbers of lines that `settled_table` shows beside the end.
SETTLED_SHOWN = (5, 10, 15, 20)

#: What a stopping rule did (`stopping.FIGURES`), each with its title.
STOP_FIGURES = {
    "wrong_stops": "Good scans stopped",
    "saved": "Lines of bad scans saved",
    "lines_spent": "Lines spent on a bad scan",
    "time_saved": "Scan time saved",
}


def rules_chosen_on(folds: int) -> str:
    """Tell on which scans stopping rules are chosen (`stopping.cross_fitted`), for a caption."""
    return "the scans of all other folds" if folds > 1 else "one half of the groups for the other"


def stop_table(
    stops: pd.DataFrame, bad: Sequence[str], *, folds: int, simulated: bool
) -> ResultTable:
    """Return what stopping rules did that were chosen on other scans.

    Parameters
    ----------
    stops
        `stops.csv`.
    bad
        Classes for which a scan is stopped.
    folds
        Number of folds.
    simulated
        Whether the title must say so.
    """
    shown = []
    for _, rows in stops.groupby(["experiment", "limit"], sort=False):
        by, limit = rows.set_index("figure"), float(rows["limit"].iloc[0])
        cells = {}
        for figure, title in STOP_FIGURES.items():
            value = by.loc[figure, ["value", "low", "high"]].to_numpy(float)
            share = figure != "lines_spent"
            cells[title] = with_interval(*(100 * value if share else value), digits=1)
            cells[title] += " %" if share and not math.isnan(value[0]) else ""
        shown.append(
            {"Experiment": str(rows["experiment"].iloc[0]), "Wanted at most": f"{100 * limit:g} %"}
            | cells
        )
    named = ", ".join(bad) or "no class, by evaluation.stop_classes"
    return ResultTable(
        name="stopping",
        title=f"What stopping bad {'simulated ' if simulated else ''}scans early saves "
        f"(bad: {named}): rules chosen, for a wanted share of good scans stopped, on "
        f"{rules_chosen_on(folds)} (interval). Scan time saved: lines of bad scans saved, of all "
        "scans' lines.",
        raw=stops,
        shown=_shown(shown, ("Experiment", "Wanted at most", *STOP_FIGURES.values())),
    )


def pair_table(pairs: pd.DataFrame) -> ResultTable:
    """Return each pair's difference, its interval and its p-values; scan reading."""
    rows = pairs[pairs["reading"] == "scan"].sort_values(
        ["metric", "p_holm", "experiment_a", "experiment_b"], kind="stable"
    )
    shown = [
        {
            "A": str(row["experiment_a"]),
            "B": str(row["experiment_b"]),
            "Metric": METRIC_NAMES.get(str(row["metric"]), str(row["metric"])),
            "A − B": number(float(row["difference"])),
            "Interval": f"{number(float(row['low']))} to {number(float(row['high']))}",
            "p": _p(float(row["p"])),
            "p (Holm)": _p(float(row["p_holm"])),
        }
        for _, row in rows.iterrows()
    ]
    return ResultTable(
        name="pairs",
        title="Differences between experiments: interval from a paired bootstrap over groups and "
        "seeds, p from swapping the two group by group, corrected by Holm's method.",
        raw=rows,
        shown=_shown(shown, ("A", "B", "Metric", "A − B", "Interval", "p", "p (Holm)")),
    )


def in_split(split: Mapping[str, Any]) -> set[str]:
    """Return the names of all scans of a split: each fold has them all."""
    return {name for part in split["folds"][0].values() for name in part}


def exclusion_table(
    manifest: pd.DataFrame, rejected: pd.DataFrame, split: Mapping[str, Any]
) -> ResultTable:
    """Return how many scans are used, and how many are not, by reason.

    Parameters
    ----------
    manifest, rejected
        `manifest.csv` and `rejected.csv`.
    split
        `split.json`, which leaves out scans that are too short after resampling.
    """
    labelled = manifest["label"].fillna("") != ""
    excluded = manifest["excluded"].fillna("")
    used = manifest["scan_id"].isin(in_split(split))
    usable = labelled & (excluded == "")
    raw: list[dict[str, Any]] = [
        {"what": "used", "reason": "", "count": int((usable & used).sum())}
    ]
    if short := int((usable & ~used).sum()):
        least = split["config"].get("min_lines", 1)
        why = f"fewer than {least} lines after resampling"
        raw.append({"what": "read, not used", "reason": why, "count": short})
    for reason, count in excluded[excluded != ""].value_counts().sort_index().items():
        raw.append({"what": "read, not used", "reason": str(reason), "count": int(count)})
    if unlabelled := int((~labelled & (excluded == "")).sum()):
        raw.append({"what": "read, not used", "reason": "no label", "count": unlabelled})
    # Readers may name the place of a fault; what is alike before it is counted together.
    reasons = rejected["reason"].fillna("").astype(str).str.split(":").str[0]
    for reason, count in reasons.value_counts().sort_index().items():
        raw.append({"what": "refused", "reason": str(reason), "count": int(count)})
    frame = pd.DataFrame(raw)
    shown = [
        {"Scans or files": r["what"], "Reason": r["reason"], "Number": _count(r["count"])}
        for r in raw
    ]
    return ResultTable(
        name="exclusions",
        title="What was used of the data set, and what was not, by reason.",
        raw=frame,
        shown=_shown(shown),
    )


def part_table(counts: Sequence[Mapping[str, Any]], classes: Sequence[str]) -> ResultTable:
    """Return the groups, scans and classes of each part of each fold (`counts` of split.json)."""
    columns = ["fold", "part", "groups", "scans", *classes]
    raw = pd.DataFrame([{c: row.get(c, 0) for c in columns} for row in counts], columns=columns)
    shown = [
        {"Fold": str(row["fold"]), "Part": str(row["part"])}
        | {c.capitalize() if c in ("groups", "scans") else c: _count(row[c]) for c in columns[2:]}
        for _, row in raw.iterrows()
    ]
    return ResultTable(
        name="split",
        title="Groups and scans in each part.",
        raw=raw,
        shown=_shown(shown),
    )


AUDIT_COLUMNS = {
    "fold": "Fold",
    "parts": "Parts",
    "shared_groups": "Shared groups",
    "shared_files": "Shared files",
    "exact_duplicates": "Exact duplicates",
    "near_duplicates": "Near-duplicates",
    "example": "Example",
}


def audit_table(audit: Sequence[Mapping[str, Any]]) -> ResultTable:
    """Return what the split's audit found across the parts of each fold (`audit` of split.json)."""
    raw = pd.DataFrame(
        [
            {
                "fold": row["fold"],
                "parts": row["parts"],
                "shared_groups": len(row["shared_groups"]),
                "shared_files": row["shared_files"],
                "exact_duplicates": row["exact_duplicates"],
                "near_duplicates": row["near_duplicates"],
                "example": next(
                    (f"{a} ~ {b} (r = {r:.2f})" for a, b, r in row.get("examples", ())), ""
                ),
            }
            for row in audit
        ],
        columns=list(AUDIT_COLUMNS),
    )
    shown = raw.astype(str).rename(columns=AUDIT_COLUMNS)
    return ResultTable(
        name="audit",
        title="Leakage audit: what stands on both sides of the split.",
        raw=raw,
        shown=shown,
    )


def people_table(agreement: pd.DataFrame) -> ResultTable:
    """Return the table of models against second volunteers, of `agreement.csv`."""
    shown = []
    for row in agreement.to_dict("records"):

        def text(name: str, row: Any = row) -> str:
            return with_interval(*(float(row[f"{name}{s}"]) for s in ("", "_low", "_high")))

        shown.append(
            {
                "Experiment": row["experiment"],
                "Class": row["class"] or "mean",
                "Two columns, once each": row["reading"],
                "Second volunteer": text("people"),
                "Model": text("model"),
                "Difference": text("difference"),
                "Positive agreement, difference": text("positive_difference"),
                "Names it (people)": number(float(row["people_rate"])),
                "Names it (model)": number(float(row["model_rate"])),
                "Scans": _count(float(row["scans"])),
            }
        )
    return ResultTable(
        name="agreement",
        title="Models against people: how often a second volunteer, or the model at the "
        "volunteers' own rate, names a class that a volunteer named",
        raw=agreement,
        shown=_shown(shown),
    )


def ceiling_table(ceiling: pd.DataFrame) -> ResultTable:
    """Return the table of what readers reach on labels of one or more volunteers."""
    macro = ceiling[ceiling["class"].fillna("") == ""]
    shown = []
    for (reader, labels), rows in macro.groupby(["reader", "labels"], sort=False):
        by = rows.set_index("metric")
        cells = {
            name: _interval(by.loc[metric]) if metric in by.index else ""
            for metric, name in (
                ("auroc", "AUROC"), ("balanced_accuracy", "Balanced accuracy"),
                ("accuracy", "Accuracy"), ("unanimous", "Unanimous"),
            )
        }  # fmt: skip
        count = _count(float(rows["scans"].iloc[0]))
        shown.append({"Reader": str(reader), "Labels of": str(labels), **cells, "Scans": count})
    return ResultTable(
        name="ceiling",
        title="What readers reach on labels as noisy as these (estimates; assumptions in "
        "docs/protocol.md)",
        raw=ceiling,
        shown=_shown(shown),
    )


def error_table(errors: pd.DataFrame) -> ResultTable:
    """Return the table of where the errors of each experiment lie."""
    shown = [
        {
            "Experiment": row["experiment"],
            "By": row["by"],
            "Which": row["value"],
            "Scans": _count(float(row["scans"])),
            "Error rate": with_interval(*(float(row[k]) for k in ("rate", "low", "high"))),
        }
        for row in errors.to_dict("records")
        if row["by"] != "group"
    ]
    return ResultTable(
        name="errors",
        title="Where errors lie (each group is in the CSV file)",
        raw=errors,
        shown=_shown(shown),
    )
