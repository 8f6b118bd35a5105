"""The evaluate stage: prediction tables in, result tables with honest statistics out.

All experiments are scored by the same code on the same rows, or the stage fails. The files are
described in docs/formats.md ("tables/"), the statistics in docs/protocol.md.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tqdm import tqdm

from scanbench import comparison, metrics, policy, stopping, thresholds
from scanbench.comparison import Resamples
from scanbench.errors import UserError, did_you_mean
from scanbench.files import replacing_folder, sha256_of, write_json
from scanbench.metrics import Floats, Ints, Table
from scanbench.predictions import (
    HeldOut,
    Reading,
    check_same_rows,
    check_table,
    lines_reading,
    read_experiment,
    scan_reading,
    weights_of,
    window_reading,
)

# Examples of each class and kind (right, wrong) that examples.csv lists for an experiment.
EXAMPLES = 3


# Metrics whose way to the scan's end is told.
PROGRESS = ("auroc", "balanced_accuracy")

# Keys that name the comparison and choose nothing in it.
NAMES = frozenset({"comparison", "dataset", "split", "experiments"})


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What an evaluation may choose.

    Parameters
    ----------
    lines
        Numbers of lines at which a running scan is scored.
    bootstrap
        Resamples of groups and seeds behind each interval.
    permutations
        Swaps drawn for each test; all are enumerated where there are no more.
    confidence
        Of the intervals, between 0 and 1.
    ece_bins
        Equal-width bins of confidence.
    seed
        Of the random numbers.
    metrics
        Metrics that pairs of experiments are tested on; the first is the main one.
    baseline
        An experiment that each other is compared with, and with nothing else; None compares all
        pairs.
    stop_classes
        Classes for which a scan should be stopped early; those that the data do not have are
        passed over, and with none left no stopping rule is judged.
    stop_limits
        Shares of the other scans that a rule may stop.
    stop_patience
        Numbers of answers in a row that a rule may wait for.
    stop_first_line
        No rule stops a scan before so many lines.
    settled_within
        An answer is settled once it ranks scans worse than the last one by no more than this, in
        AUROC and by the lower end of the interval of the difference.
    classes, folds, seeds
        Where given, what store and predictions must hold.
    """

    lines: tuple[int, ...]
    bootstrap: int
    permutations: int
    confidence: float
    ece_bins: int
    seed: int
    metrics: tuple[str, ...] = ("auroc", "balanced_accuracy")
    stop_classes: tuple[str, ...] = ()
    stop_limits: tuple[float, ...] = (0.01, 0.05)
    stop_patience: tuple[int, ...] = (1, 2, 3)
    stop_first_line: int = 1
    settled_within: float = 0.01
    baseline: str | None = None
    classes: tuple[str, ...] | None = None
    folds: tuple[int, ...] | None = None
    seeds: tuple[int, ...] | None = None

    @classmethod
    def of(cls, spec: Mapping[str, Any]) -> Settings:
        """Check a spec of plain builtins; keys in `NAMES` may stand beside those of this class.

        Raises
        ------
        UserError
            Naming the key, if one is missing, unknown, or has an impossible value.
        """
        known = {field.name for field in fields(cls)}
        required = {field.name for field in fields(cls) if field.default is MISSING}
        if unknown := sorted(set(spec) - known - NAMES):
            raise UserError(
                f"evaluation: key {unknown[0]!r} is unknown; {did_you_mean(unknown[0], known)}"
            )
        if missing := sorted(required - set(spec)):
            raise UserError(f"evaluation: key {missing[0]!r} is missing: add it to the config")
        values: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value
            for key, value in spec.items()
            if key in known
        }
        settings = cls(**values)
        for name in ("bootstrap", "permutations", "ece_bins"):
            if getattr(settings, name) < 1:
                raise UserError(f"evaluation: {name} is {getattr(settings, name)}: give at least 1")
        if settings.stop_first_line < 1:
            raise UserError(
                f"evaluation: stop_first_line is {settings.stop_first_line}: give at least 1"
            )
        if not settings.settled_within >= 0:
            raise UserError(
                f"evaluation: settled_within is {settings.settled_within}: give 0 or more"
            )
        if not 0 < settings.confidence < 1:
            raise UserError(
                f"evaluation: confidence is {settings.confidence}: give a share, such as 0.95"
            )
        if any(count < 1 for count in settings.lines):
            raise UserError(f"evaluation: lines: {min(settings.lines)}: give numbers of at least 1")
        for metric in settings.metrics:
            if metric not in comparison.TESTABLE:
                raise UserError(
                    f"evaluation: metrics: {metric!r} cannot be tested; "
                    f"{did_you_mean(metric, comparison.TESTABLE)}"
                )
        return settings


# ---------------------------------------------------------------------------------------------
# Metrics of one table


def metrics_for(
    predictions: pd.DataFrame,
    classes: Sequence[str],
    *,
    lines: Sequence[int],
    ece_bins: int,
    where: str = "predictions",
) -> pd.DataFrame:
    """Score one table of predictions exactly as the report does, without intervals.

    Parameters
    ----------
    predictions
        A table as `scanbench.predictions` describes it. Rows with label −1 are left out.
    classes
        Class names.
    lines
        Numbers of lines at which running scans are scored.
    ece_bins
        Bins of confidence.
    where
        Name of the table, for messages.

    Returns
    -------
    pandas.DataFrame
        `reading,lines,metric,class,value,seeds,groups,scans,rows`. `value` is NaN for a figure that
        needs a class which the table does not hold.

    Raises
    ------
    UserError
        If the table is malformed, or no row has a label.
    """
    check_table(predictions, classes, where)
    labelled = predictions[predictions["label"] >= 0]
    if labelled.empty:
        raise UserError(f"{where}: no scan has a label: give labels to score against")
    rows: list[dict[str, Any]] = []
    for reading in _readings(labelled, classes, lines, where):
        _, unit_N = metrics.units_of(reading.group_N)
        values = _values(reading, unit_N, _once(unit_N), ece_bins, _fitted(reading))
        rows += _metric_rows(reading, values, classes)
    return _typed(pd.DataFrame(rows))


def _readings(
    table: pd.DataFrame, classes: Sequence[str], lines: Sequence[int], where: str
) -> list[Reading]:
    try:
        readings = [
            scan_reading(table, classes),
            *(lines_reading(table, classes, count) for count in sorted(set(lines))),
            window_reading(table, classes),
        ]
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    return [reading for reading in readings if reading is not None]


def _fitted(reading: Reading) -> Ints | None:
    """Classes by thresholds that are fitted to the answers of other folds."""
    return thresholds.cross_fitted_classes(reading.p_SNC, reading.label_N, reading.fold_N)


def _values(
    reading: Reading, unit_N: Ints, weight_BK: Floats, bins: int, fitted_SN: Ints | None
) -> Table:
    """Return all metrics for each weighting of the units: [S, B]."""
    return metrics.metric_values(
        reading.p_SNC,
        reading.label_N,
        unit_N,
        reading.fold_N,
        weight_BK,
        bins,
        fitted_SN=fitted_SN,
    )


def _once(unit_N: Ints) -> Floats:
    """Return the weighting that counts each row once: [1, K]."""
    return np.ones((1, int(unit_N.max()) + 1))


def _metric_rows(reading: Reading, values: Table, classes: Sequence[str]) -> list[dict[str, Any]]:
    return [
        {
            "reading": reading.name,
            "lines": reading.lines,
            "metric": metric,
            "class": None if index is None else classes[index],
            "value": float(values[metric, index].mean()),
            "seeds": len(reading.seeds),
            "groups": len(set(reading.group_N)),
            "scans": reading.scans,
            "rows": len(reading.label_N) * len(reading.seeds),
        }
        for metric in metrics.METRICS
        for index in (None, *range(len(classes)))
        if (metric, index) in values
    ]


def _typed(frame: pd.DataFrame) -> pd.DataFrame:
    """Keep `lines` whole numbers although some are empty."""
    return frame.astype({"lines": "Int64"})


# ---------------------------------------------------------------------------------------------
# The stage


@dataclass(frozen=True, kw_only=True)
class _Scored:
    """The scan reading of one experiment, and its metrics."""

    reading: Reading
    point: Table  # [S, 1]
    resampled: Table  # [S, B]


def evaluate(
    spec: Mapping[str, Any],
    predictions: Mapping[str, Sequence[str | Path]],
    store: str | Path,
    split: str | Path,
    out: str | Path,
) -> None:
    """Write the result tables of one comparison.

    Parameters
    ----------
    spec
        The keys of `Settings`, and of `NAMES`, as plain builtins.
    predictions
        Experiment → its runs, one per fold and seed, each a folder or its `predictions.parquet`.
        Tables keep this order.
    store, split
        What was predicted on; labels, groups and parts are checked against them.
    out
        Folder that is replaced as a whole. The same inputs give the same bytes.

    Raises
    ------
    UserError
        If the spec is wrong, a table is malformed, incomplete or leaky, the experiments do not have
        the same rows, or a class is absent from the test scans.
    """
    settings = Settings.of(spec)
    if not predictions:
        raise UserError("evaluation: no experiment is listed: name at least one in the config")
    if settings.baseline not in (None, *predictions):
        raise UserError(
            f"evaluation: baseline {settings.baseline!r} is not one of the experiments; "
            f"{did_you_mean(str(settings.baseline), predictions)}"
        )
    held_out = HeldOut.load(store, split)
    classes = held_out.classes
    if settings.classes not in (None, classes):
        raise UserError(
            f"evaluation: classes {settings.classes} are not those of {store}, {classes}: "
            "convert again or mend the config"
        )

    readings: dict[str, list[Reading]] = {}
    stops: dict[str, dict[int, stopping.Courses]] = {}
    folds: set[int] = set()
    progress = tqdm(predictions.items(), desc="read predictions", unit="experiment")
    for name, paths in progress:
        table = read_experiment(name, paths, classes, held_out)
        folds |= set(table["fold"].unique().tolist())
        _check_wanted(name, table, settings)
        readings[name] = _readings(table, classes, settings.lines, f"experiment {name!r}")
        stops[name] = _courses(table, held_out, settings)
    check_same_rows({name: own[0] for name, own in readings.items()})

    shared = next(iter(readings.values()))[0]
    groups, unit_N = metrics.units_of(shared.group_N)
    _check_classes(shared, classes, held_out, sorted(folds))
    resamples = comparison.draw_resamples(
        shared.label_N,
        unit_N,
        shared.fold_N,
        units=len(groups),
        classes=len(classes),
        seeds=len(shared.seeds),
        count=settings.bootstrap,
        seed=settings.seed,
    )
    metric_frame, progress_frame, scored = _score(readings, classes, groups, resamples, settings)
    pair_frame = _pairs(scored, unit_N, resamples, settings)
    best = max(scored, key=lambda name: float(scored[name].point["auroc", None].mean()))
    stop_tables, policies = _stopping(stops, settings)
    tables = {
        "metrics": metric_frame,
        "progress": progress_frame,
        "pairs": pair_frame,
        "roc": _roc(scored, classes),
        "confusion": _confusion(scored, classes),
        "calibration": _calibration(scored, settings.ece_bins),
        "groups": _by_group(scored, groups, unit_N, settings.ece_bins),
        "examples": pd.concat(
            [_examples(name, own.reading, classes) for name, own in scored.items()],
            ignore_index=True,
        ),
        **stop_tables,
    }

    pairs = len(pairs_of(scored, settings.baseline))
    class_groups = {
        name: len(set(shared.group_N[shared.label_N == c])) for c, name in enumerate(classes)
    }
    summary = {
        "schema_version": 1,
        "settings": dict(spec),
        "experiments": list(scored),
        "best": best,
        "seeds": list(shared.seeds),
        "folds": sorted(folds),
        "groups": len(groups),
        "scans": shared.scans,
        "class_scans": {name: int((shared.label_N == c).sum()) for c, name in enumerate(classes)},
        "class_groups": class_groups,
        "windows": {
            name: len(reading.label_N)
            for name, own in readings.items()
            for reading in own
            if reading.name == "window"
        },
        "pairs": pairs,
        "caution": comparison.claims(
            groups=len(groups),
            seeds=len(shared.seeds),
            pairs=pairs,
            permutations=settings.permutations,
            confidence=settings.confidence,
            class_groups=class_groups,
        ),
    }
    with replacing_folder(out, marker="evaluate.json") as folder:
        for name, frame in tables.items():
            frame.to_csv(
                folder / f"{name}.csv", index=False, float_format="%.8g", lineterminator="\n"
            )
        write_json(folder / "evaluate.json", summary)
        write_json(
            folder / "policy.json",
            policy.policy_document(
                classes=_bad(held_out, settings),
                first_line=settings.stop_first_line,
                store_sha256=sha256_of(store),
                split_sha256=sha256_of(split),
                weights={name: weights_of(paths) for name, paths in predictions.items()},
                policies=policies,
                names={key: spec[key] for key in sorted(NAMES - {"experiments"}) if key in spec},
            ),
        )


def _bad(held_out: HeldOut, settings: Settings) -> list[str]:
    """Return the classes for which a scan should be stopped, in the order of the data."""
    return [name for name in held_out.classes if name in settings.stop_classes]


def _courses(
    table: pd.DataFrame, held_out: HeldOut, settings: Settings
) -> dict[int, stopping.Courses]:
    """Return how scans went, by seed; nothing for a model that answers at their end only."""
    bad = _bad(held_out, settings)
    lines = held_out.scans["n_lines"]
    early = table["lines_seen"].to_numpy() < lines.loc[table["scan_id"]].to_numpy()
    if not bad or len(bad) == len(held_out.classes) or not early.any():
        return {}
    return {
        seed: stopping.courses(table[table["seed"] == seed], held_out.classes, bad, lines)
        for seed in sorted(table["seed"].unique().tolist())
    }


def _stopping(
    stops: Mapping[str, Mapping[int, stopping.Courses]], settings: Settings
) -> tuple[dict[str, pd.DataFrame], list[dict[str, Any]]]:
    """Return the tables of what stopping rules save and spoil, and the policies."""
    choice = stopping.Choice(
        limits=settings.stop_limits,
        patience=settings.stop_patience,
        first_line=settings.stop_first_line,
    )
    curves, limits, policies = [], [], []
    for name, own in stops.items():
        if not own:
            continue
        courses = list(own.values())
        together = stopping.Courses.joined(courses)
        curves += [
            stopping.trade_off(together, patience, choice.first_line).assign(experiment=name)
            for patience in choice.patience
        ]
        tried = {seed: stopping.cross_fitted(course, choice) for seed, course in own.items()}
        table = stopping.limits_table(
            courses,
            list(tried.values()),
            choice.limits,
            resamples=settings.bootstrap,
            confidence=settings.confidence,
            seed=settings.seed,
        )
        limits.append(table.assign(experiment=name))
        policies += policy.policies(name, tried, table)
    tables = {
        "stopping": _joined(curves, stopping.TRADE_OFF),
        "stops": _joined(limits, stopping.LIMITS),
    }
    return tables, policies


def _joined(frames: Sequence[pd.DataFrame], columns: Sequence[str]) -> pd.DataFrame:
    order = ["experiment", *columns]
    if not frames:
        return pd.DataFrame(columns=order)
    return pd.concat(frames, ignore_index=True)[order]


def _check_wanted(name: str, table: pd.DataFrame, settings: Settings) -> None:
    for column, wanted in (("fold", settings.folds), ("seed", settings.seeds)):
        found = set(table[column].unique().tolist())
        if wanted is not None and (odd := sorted(found ^ set(wanted))):
            what = "without predictions" if odd[0] in wanted else "predicted but not asked for"
            raise UserError(
                f"experiment {name!r}: {column} {odd[0]} is {what}: mend the list of runs"
            )


def _check_classes(
    reading: Reading, classes: Sequence[str], held_out: HeldOut, folds: list[int]
) -> None:
    """Refuse a class without a (positive, negative) pair of test scans in any one fold."""
    for c, name in enumerate(classes):
        positive_N = reading.label_N == c
        together_N = np.zeros_like(reading.label_N)
        if metrics.pair_counts(positive_N, together_N, reading.fold_N, np.ones((1, 1))) > 0:
            continue
        what = "no scan beside another class" if positive_N.any() else "no scan"
        raise UserError(
            f"{held_out.name}: class {name!r} has {what} in the test part of fold(s) "
            f"{', '.join(map(str, folds))}, so nothing can be scored on it: split otherwise, "
            "evaluate more folds, or take the class out of the config"
        )


def _score(
    readings: Mapping[str, Sequence[Reading]],
    classes: Sequence[str],
    groups: Sequence[str],
    resamples: Resamples,
    settings: Settings,
) -> tuple[pd.DataFrame, pd.DataFrame, dict[str, _Scored]]:
    """Metrics with intervals of every reading, and how far they are from the scan's end.

    The scan readings are kept for what follows.
    """
    rows: list[dict[str, Any]] = []
    progress: list[dict[str, Any]] = []
    scored: dict[str, _Scored] = {}
    everything = [(name, reading) for name, own in readings.items() for reading in own]
    for name, reading in tqdm(everything, desc="metrics and intervals", unit="reading"):
        own_groups, unit_N = metrics.units_of(reading.group_N)
        assert own_groups == list(groups), "all readings hold the same scans"
        fitted_SN = _fitted(reading)
        point, resampled = (
            _values(reading, unit_N, weight_BK, settings.ece_bins, fitted_SN)
            for weight_BK in (_once(unit_N), resamples.unit_BK)
        )
        for row in _metric_rows(reading, point, classes):
            index = None if row["class"] is None else classes.index(row["class"])
            low, high = comparison.interval(
                resampled[row["metric"], index], resamples, settings.confidence
            )
            rows.append({"experiment": name, **row, "low": low, "high": high})
        if reading.name == "scan":
            scored[name] = _Scored(reading=reading, point=point, resampled=resampled)
        if reading.name == "lines":
            last = scored[name]
            progress += [
                {
                    "experiment": name,
                    "metric": metric,
                    "lines": reading.lines,
                    "difference": float((point[metric, None] - last.point[metric, None]).mean()),
                    **_interval_of(
                        resampled[metric, None] - last.resampled[metric, None], resamples, settings
                    ),
                }
                for metric in PROGRESS
            ]
    order = ["experiment", "reading", "lines", "metric", "class", "value", "low", "high"]
    return (
        _typed(pd.DataFrame(rows))[[*order, "seeds", "groups", "scans", "rows"]],
        pd.DataFrame(
            progress, columns=["experiment", "metric", "lines", "difference", "low", "high"]
        ),
        scored,
    )


def _interval_of(value_SB: Floats, resamples: Resamples, settings: Settings) -> dict[str, float]:
    low, high = comparison.interval(value_SB, resamples, settings.confidence)
    return {"low": low, "high": high}


def pairs_of(experiments: Iterable[str], baseline: str | None) -> list[tuple[str, str]]:
    """Return which experiments are compared, (a, b) for the difference a − b.

    Every pair once, in the order given; or each experiment with the baseline, which is b.
    """
    if baseline is None:
        return list(combinations(experiments, 2))
    return [(name, baseline) for name in experiments if name != baseline]


def _pairs(
    scored: Mapping[str, _Scored], unit_N: Ints, resamples: Resamples, settings: Settings
) -> pd.DataFrame:
    """Compare the scan readings pair by pair; Holm's adjustment runs over a metric's pairs."""
    swaps = comparison.draw_swaps(resamples.unit_BK.shape[1], settings.permutations, settings.seed)
    columns = ["experiment_a", "experiment_b", "reading", "metric", "difference", "low", "high"]
    columns += ["p", "p_holm", "seeds", "groups", "scans"]
    rows: list[dict[str, Any]] = []
    compared = pairs_of(scored, settings.baseline)
    jobs = [(m, a, b) for m in settings.metrics for a, b in compared]
    for metric, a, b in tqdm(jobs, desc="paired tests", unit="test"):
        reading_a, reading_b = scored[a].reading, scored[b].reading
        difference, p = comparison.swap_test(
            reading_a.p_SNC,
            reading_b.p_SNC,
            reading_a.label_N,
            unit_N,
            reading_a.fold_N,
            swaps,
            metric,
        )
        low, high = comparison.interval(
            scored[a].resampled[metric, None] - scored[b].resampled[metric, None],
            resamples,
            settings.confidence,
        )
        rows.append(
            {
                "experiment_a": a,
                "experiment_b": b,
                "reading": "scan",
                "metric": metric,
                "difference": difference,
                "low": low,
                "high": high,
                "p": p,
                "seeds": len(reading_a.seeds),
                "groups": swaps.swap_BK.shape[1],
                "scans": reading_a.scans,
            }
        )
    frame = pd.DataFrame(rows, columns=[name for name in columns if name != "p_holm"])
    frame["p_holm"] = np.nan
    for _, family in frame.groupby("metric"):
        frame.loc[family.index, "p_holm"] = comparison.holm(family["p"].tolist())
    return frame[columns]


def _roc(scored: Mapping[str, _Scored], classes: Sequence[str]) -> pd.DataFrame:
    frames = []
    for name, own in scored.items():
        for c, of_class in enumerate(classes):
            for seed, p_NC in zip(own.reading.seeds, own.reading.p_SNC, strict=True):
                fpr, tpr = metrics.roc_points(
                    p_NC[:, c], own.reading.label_N == c, own.reading.fold_N
                )
                curve = {"experiment": name, "class": of_class, "seed": seed}
                frames.append(pd.DataFrame({**curve, "fpr": fpr, "tpr": tpr}))
    return pd.concat(frames, ignore_index=True)


def _confusion(scored: Mapping[str, _Scored], classes: Sequence[str]) -> pd.DataFrame:
    rows = []
    for name, own in scored.items():
        label_N = own.reading.label_N
        for seed, p_NC in zip(own.reading.seeds, own.reading.p_SNC, strict=True):
            counts = metrics.confusion_by_unit(
                label_N, p_NC.argmax(axis=1), np.zeros_like(label_N), 1, len(classes)
            )[0]
            rows += [
                (name, seed, true, predicted, int(counts[i, j]))
                for i, true in enumerate(classes)
                for j, predicted in enumerate(classes)
            ]
    return pd.DataFrame(rows, columns=["experiment", "seed", "true", "predicted", "count"])


def _calibration(scored: Mapping[str, _Scored], bins: int) -> pd.DataFrame:
    frames = []
    for name, own in scored.items():
        frame = metrics.reliability(own.reading.p_SNC, own.reading.label_N, bins)
        frame.insert(0, "experiment", name)
        frames.append(frame)
    return pd.concat(frames, ignore_index=True)


def _by_group(
    scored: Mapping[str, _Scored], groups: Sequence[str], unit_N: Ints, bins: int
) -> pd.DataFrame:
    """Score each group on its own, over the classes that it holds; mean over seeds."""
    scans_K = np.bincount(unit_N)
    rows = []
    for name, own in scored.items():
        reading = own.reading
        values = _values(reading, unit_N, np.eye(len(groups)), bins, None)
        classes = range(reading.p_SNC.shape[2])
        by_metric = {
            "auroc": _mean_present([values["auroc", c] for c in classes]),
            "balanced_accuracy": _mean_present([values["recall", c] for c in classes]),
            "accuracy": values["accuracy", None],
        }
        rows += [
            (name, group, int(scans_K[k]), metric, float(value_SK[:, k].mean()))
            for k, group in enumerate(groups)
            for metric, value_SK in by_metric.items()
        ]
    return pd.DataFrame(rows, columns=["experiment", "group", "scans", "metric", "value"])


def _mean_present(value_CSK: list[Floats]) -> Floats:
    """Mean over the classes that have a value; NaN where none has."""
    stacked = np.stack(value_CSK)
    present = np.isfinite(stacked)
    count = present.sum(axis=0)
    return np.where(present, stacked, 0).sum(axis=0) / np.where(count > 0, count, np.nan)


def _examples(name: str, reading: Reading, classes: Sequence[str]) -> pd.DataFrame:
    """List the most confident right and wrong answers of each true class, seeds averaged."""
    p_NC = reading.p_SNC.mean(axis=0)
    rows_N = np.arange(len(p_NC))
    predicted_N = p_NC.argmax(axis=1)
    frame = pd.DataFrame(
        {
            "experiment": name,
            "scan_id": reading.scan_id_N,
            "label": [classes[c] for c in reading.label_N],
            "predicted": [classes[c] for c in predicted_N],
            "p_label": p_NC[rows_N, reading.label_N],
            "p_predicted": p_NC[rows_N, predicted_N],
            "kind": np.where(predicted_N == reading.label_N, "right", "wrong"),
            "class_index": reading.label_N,
        }
    )
    ordered = frame.sort_values(
        ["class_index", "kind", "p_predicted", "scan_id"], ascending=[True, True, False, True]
    )
    chosen = ordered.groupby(["class_index", "kind"], sort=False).head(EXAMPLES)
    return chosen.drop(columns="class_index").reset_index(drop=True)
