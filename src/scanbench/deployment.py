"""What an experiment loses on its way to a laboratory: against its teacher, and by its form.

The exported steps of every fold and seed are fed the scans that the fold held out, line by line,
and scored by the same metrics on the same rows as the runs themselves. Intervals of differences are
paired: both sides meet the same resamples of groups and seeds.

Shape suffixes: S seeds, N rows, C classes, B resamples, K units (groups).
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from scanbench import comparison, metrics, provenance
from scanbench.export import FORMS, metadata, model_card
from scanbench.files import read_json, replacing, replacing_folder, sha256_of, write_json
from scanbench.metrics import Table
from scanbench.predictions import (
    HeldOut,
    Reading,
    check_same_rows,
    lines_reading,
    read_experiment,
    scan_reading,
)
from scanbench.runs import load_run
from scanbench.tables import ResultTable, write
from scanbench.text import number, with_interval

#: The run itself, beside its exported forms.
PYTORCH = "PyTorch"
METRICS = ("auroc", "balanced_accuracy", "accuracy")
#: Columns of an interval of a difference to something.
AGAINST = ("", "_low", "_high")


@dataclass(frozen=True, kw_only=True)
class _Scored:
    """A reading with its metrics as they are [S, 1] and for each resample [S, B]."""

    reading: Reading
    point: Table
    resampled: Table


def deployment(spec: Mapping[str, Any], results: Path, store: Path, split: Path, out: Path) -> None:
    """Write what each form of a deployed experiment is worth, and a card for each.

    Parameters
    ----------
    spec
        What `scanbench.plan.deployment_spec` gives.
    results
        Folder that holds `runs/`.
    store, split
        What was predicted on.
    out
        Folder for `forms.{csv,md,tex}`, `card-FORM.md` and `deployment.json`; replaced as a whole.

    Raises
    ------
    UserError
        If a table is missing, malformed, or of other rows.
    """
    started = time.time()
    held_out = HeldOut.load(store, split)
    runs = [results / run for run in spec["runs"]]
    sources = {PYTORCH: [run / "predictions.parquet" for run in runs]}
    sources |= {form: [run / f"onnx/{form}.parquet" for run in runs] for form in spec["forms"]}
    if spec["teacher"] is not None:
        teachers = [results / run for run in spec["teacher_runs"]]
        sources[spec["teacher"]] = [run / "predictions.parquet" for run in teachers]
    tables = {
        name: read_experiment(name, paths, held_out.classes, held_out)
        for name, paths in sources.items()
    }
    raw = scores(tables, held_out.classes, spec)
    files = {form: _of_files(runs, form) for form in spec["forms"]}
    for column in ("largest_logit_difference", "megabytes"):
        raw[column] = [files.get(name, {}).get(column, np.nan) for name in raw["form"]]
    inputs = {f"{name}-{k}": path for name, own in sources.items() for k, path in enumerate(own)}
    with replacing_folder(out, marker="deployment.json") as folder:
        write(shown(raw, spec), folder)
        run = load_run(runs[0])
        told = metadata(run)
        for form in spec["forms"]:
            own = raw[(raw["form"] == form) & raw["metric"].isin(METRICS)].assign(**{"class": None})
            step = runs[0] / f"onnx/{form}.onnx"
            card = model_card(told, run.meta, own, source="forms.csv", form=form)
            card += (
                f"\n`{step.relative_to(results)}`: SHA-256 `{sha256_of(step)}`, "
                f"{step.stat().st_size / 1e6:.2f} MB. The results are of the steps of all "
                f"{len(runs)} runs (folds and seeds), each on scans that it never saw.\n"
            )
            with replacing(folder / f"card-{form}.md") as part:
                part.write_text(card, encoding="utf-8")
        record = provenance.record(spec, inputs=inputs, started=started, seed=spec["seed"])
        write_json(folder / "deployment.json", record)


def _of_files(runs: Sequence[Path], form: str) -> dict[str, float]:
    """Return what the files of a form tell: the largest difference of a logit, and the size."""
    differences, sizes = [], []
    for run in runs:
        path = run / f"onnx/{form}.json"
        found = read_json(path, "predict again")
        differences.append(found["largest_logit_difference"])
        sizes.append((run / f"onnx/{form}.onnx").stat().st_size / 1e6)
    return {"largest_logit_difference": max(differences), "megabytes": max(sizes)}


def scores(
    tables: Mapping[str, pd.DataFrame], classes: Sequence[str], spec: Mapping[str, Any]
) -> pd.DataFrame:
    """Score the run, its forms and its teacher on the same rows.

    Parameters
    ----------
    tables
        `PYTORCH`, each form, and the teacher if there is one, to its table of predictions.
    classes
        Class names.
    spec
        `lines`, `bootstrap`, `confidence`, `ece_bins`, `seed`, `teacher`.

    Returns
    -------
    pandas.DataFrame
        `form,reading,lines,metric,value,low,high`, `than_pytorch` and `than_teacher` (each with
        `_low` and `_high`: this value less theirs; empty where they have no such reading), and
        `seeds,groups,scans`.
    """
    readings = {name: _readings(table, classes, spec["lines"]) for name, table in tables.items()}
    check_same_rows({name: own["scan", None] for name, own in readings.items()})
    shared = readings[PYTORCH]["scan", None]
    groups, unit_N = metrics.units_of(shared.group_N)
    resamples = comparison.draw_resamples(
        shared.label_N,
        unit_N,
        shared.fold_N,
        units=len(groups),
        classes=len(classes),
        seeds=len(shared.seeds),
        count=spec["bootstrap"],
        seed=spec["seed"],
    )

    def scored(reading: Reading) -> _Scored:
        _, unit_N = metrics.units_of(reading.group_N)
        values = [
            metrics.metric_values(
                reading.p_SNC, reading.label_N, unit_N, reading.fold_N, weight_BK, spec["ece_bins"]
            )
            for weight_BK in (np.ones((1, len(groups))), resamples.unit_BK)
        ]
        return _Scored(reading=reading, point=values[0], resampled=values[1])

    found = {
        name: {key: scored(reading) for key, reading in own.items()}
        for name, own in readings.items()
    }
    against = {"than_pytorch": PYTORCH, "than_teacher": spec["teacher"]}
    rows: list[dict[str, Any]] = []
    for name, own in found.items():
        for key, mine in own.items():
            for metric in METRICS:
                at = (metric, None)
                low, high = comparison.interval(mine.resampled[at], resamples, spec["confidence"])
                value = float(mine.point[at].mean())
                row: dict[str, Any] = {"form": name, "reading": key[0], "lines": key[1]}
                row["metric"] = metric
                row |= {"value": value, "low": low, "high": high}
                for column, other in against.items():
                    theirs = found[other].get(key) if other and other != name else None
                    numbers: Sequence[float] = (np.nan,) * 3
                    if theirs is not None:
                        numbers = (
                            value - float(theirs.point[at].mean()),
                            *comparison.interval(
                                mine.resampled[at] - theirs.resampled[at],
                                resamples,
                                spec["confidence"],
                            ),
                        )
                    row |= {f"{column}{end}": x for end, x in zip(AGAINST, numbers, strict=True)}
                counts = {"seeds": len(shared.seeds), "groups": len(groups), "scans": shared.scans}
                rows.append(row | counts)
    return pd.DataFrame(rows).astype({"lines": "Int64"})


def _readings(
    table: pd.DataFrame, classes: Sequence[str], lines: Sequence[int]
) -> dict[tuple[str, int | None], Reading]:
    """Return the scan reading and that after each number of lines at which all scans have one."""
    found: dict[tuple[str, int | None], Reading] = {("scan", None): scan_reading(table, classes)}
    for count in sorted(set(lines)):
        if (reading := lines_reading(table, classes, count)) is not None:
            found["lines", count] = reading
    return found


def shown(raw: pd.DataFrame, spec: Mapping[str, Any]) -> ResultTable:
    """Return the table for people: the scan reading of each form."""
    rows = []
    for name in dict.fromkeys(raw["form"]):
        own = raw[(raw["form"] == name) & (raw["reading"] == "scan")].set_index("metric")
        row = {"Form": f"ONNX {name}" if name in FORMS else name}
        for metric, title in (("auroc", "AUROC"), ("balanced_accuracy", "Balanced accuracy")):
            row[title] = with_interval(*own.loc[metric, ["value", "low", "high"]].astype(float))
            for column, whose in (("than_pytorch", "PyTorch"), ("than_teacher", "the teacher")):
                ends = [f"{column}{end}" for end in AGAINST]
                row[f"{title} − {whose}"] = _difference(*own.loc[metric, ends].astype(float))
        first = own.iloc[0]
        row["Largest difference of a logit"] = _or_dash(first["largest_logit_difference"], ".1e")
        row["Size / MB"] = _or_dash(first["megabytes"], ".2f")
        rows.append(row)
    counts = raw.iloc[0]
    title = (
        f"{spec['name']}: experiment {spec['experiment']} on {spec['dataset_title']}, scans of "
        f"{counts['groups']} groups never seen ({counts['scans']} scans, "
        f"{spec['confidence']:.0%} intervals)"
    )
    return ResultTable(name="forms", title=title, raw=raw, shown=pd.DataFrame(rows))


def _difference(value: float, low: float, high: float) -> str:
    if np.isnan(value):
        return "–"
    # What a form costs shows in the fourth digit.
    return f"{number(value, 4)} ({number(low, 4)} to {number(high, 4)})"


def _or_dash(value: float, form: str) -> str:
    return "–" if np.isnan(value) else format(value, form)
