"""The stages that look for tip changes line by line: scores of a run, then all detectors judged.

A run's scores are written for the scans of its test part and, where changes are known, of its
validation part, on which thresholds are chosen. Detectors that no run is needed for (`PLAIN`)
are scored where all are judged.

Shape suffixes: N scans, L lines, S seeds, K groups, B resamples.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from scanbench import comparison, metrics, plotting, provenance, tables, text
from scanbench.change import drifts
from scanbench.comparison import Resamples
from scanbench.errors import UserError, did_you_mean
from scanbench.files import replacing, write_json
from scanbench.parquet import read_parquet
from scanbench.plotting import DOUBLE, GREY, MM, Sheet, experiment_styles, styled
from scanbench.runs import META, WEIGHTS, AnswerTimes, check_trained_on, load_run
from scanbench.split_file import read_split
from scanbench.store import Store
from scanbench.tables import ResultTable
from scanbench.text import plain
from scanbench.tipstate import tip_change
from scanbench.tipstate.tip_change import Bools, Counts, Floats, Watched

__all__ = ["tip_change_scores", "tip_changes"]

#: Columns of scores: what they are called, and what is wanted of a model for them.
LEARNED = {
    "bad": "probability of a bad class",
    "drift": "change of the answer",
    "attention": "attention shift",
}
#: Detectors that need no run, and whether they answer while the scan runs.
PLAIN = {"step chart": True, "cusum": True, "window": False, "pelt": False}
#: Scans that go through a model at once: their attention must fit into memory.
BATCH = 32
#: Penalties that PELT is tried with: from one above which next to nothing is found.
PENALTIES = tuple(float(p) for p in np.geomspace(20, 2000, 25).round(1))


# ---------------------------------------------------------------------------------------------
# Scores of a run


def tip_change_scores(
    spec: Mapping[str, Any], store: str | Path, split: str | Path, run: str | Path, out: str | Path
) -> None:
    """Write what a run says of a change at each line of held-out scans, and provenance beside it.

    Parameters
    ----------
    spec
        `bad`, the classes whose probability is a score, and `smoothing` of `change.Drift`.
    store, split
        What the run was trained on.
    run
        Folder of a trained run that answers while a scan runs.
    out
        The Parquet file; columns `scan_id`, `part`, `line` (from 0) and those of `LEARNED` that
        the model has.

    Raises
    ------
    UserError
        If the run is of other data, or answers about whole scans or windows only.
    """
    started = time.time()
    run, out = Path(run), Path(out)
    trained = load_run(run)
    meta, model = trained.meta, trained.model
    torch.set_num_threads(meta["training"]["num_threads"])
    if meta["window"] or AnswerTimes.of(model, meta["lines"]).at_end:
        raise UserError(
            f"{run}: {meta['name']} does not answer line by line about a whole scan; name "
            "experiments that do, such as causal or lrcn"
        )
    bad = [k for k, name in enumerate(trained.classes) if name in spec["bad"]]
    with Store(store) as data:
        document = read_split(split, data)
        check_trained_on(run, meta, data, split)
        parts = document["folds"][meta["fold"]]
        wanted = ["test", "validation"] if (data.change_line >= 0).any() else ["test"]
        frames = []
        for part in wanted:
            scans = np.sort(data.index_of(parts[part]))
            title = f"tip changes, {meta['name']} fold {meta['fold']} seed {meta['seed']}, {part}"
            for begin in tqdm(range(0, len(scans), BATCH), desc=title, unit="batch"):
                own = scans[begin : begin + BATCH]
                x_NLP = torch.from_numpy(data.read(own, meta["normalisation"]))
                scores = _learned(model, x_NLP, data.n_lines[own], bad, spec["smoothing"])
                line_NL = np.tile(np.arange(data.lines), (len(own), 1))
                measured = line_NL < data.n_lines[own][:, None]
                frames.append(
                    pd.DataFrame(
                        {
                            "scan_id": np.repeat(data.scan_id[own], data.lines)[measured.ravel()],
                            "part": part,
                            "line": line_NL[measured],
                            **{name: score_NL[measured] for name, score_NL in scores.items()},
                        }
                    )
                )
    inputs = {"store": store, "split": split, "weights": run / WEIGHTS, "model": run / META}
    write_json(out.with_suffix(".json"), provenance.record(spec, inputs=inputs, started=started))
    with replacing(out) as path:  # last, as in `predict`
        pd.concat(frames, ignore_index=True).to_parquet(path, index=False)


def _learned(
    model: torch.nn.Module,
    x_NLP: torch.Tensor,
    n_lines_N: Any,
    bad: Sequence[int],
    smoothing: float,
) -> dict[str, Floats]:
    """Return the scores of `LEARNED` that a model has, [N, L] each, NaN where it has no answer."""
    lines = x_NLP.shape[1]
    at_T = np.array(model.answer_lines()) - 1  # type: ignore[operator]
    n_lines = torch.as_tensor(np.asarray(n_lines_N, np.int64))
    shift_NL = None
    with torch.inference_mode():
        p_NTC = model(x_NLP, n_lines).double().softmax(-1).numpy()
        if hasattr(model, "attention"):
            attention_NYHLL = model.attention(x_NLP, n_lines)  # type: ignore[operator]
            shift_NL = tip_change.attention_shift(attention_NYHLL)
    scores = {name: np.full((len(x_NLP), lines), np.nan) for name in ("bad", "drift")}
    scores["bad"][:, at_T] = p_NTC[..., list(bad)].sum(-1)
    for n, p_TC in enumerate(p_NTC):
        scores["drift"][n, at_T] = drifts(p_TC, smoothing)
    return scores if shift_NL is None else {**scores, "attention": shift_NL}


def _plain(x_NLP: Any, n_lines_N: Any, spec: Mapping[str, Any]) -> dict[str, Floats]:
    """Return the scores of `PLAIN`, [N, L] each."""
    s_NLK = tip_change.statistics_of(
        x_NLP, lags=spec["lags"], bands=spec["bands"], max_shift=spec["max_shift"]
    )
    z_NLK = tip_change.self_standardised(s_NLK)
    # Statistics of few lines have wild deviations: the sums begin where alarms do.
    z_NLK[:, : spec["first_line"] - 1] = np.nan
    scores = {
        "step chart": tip_change.step_scores(x_NLP),
        "cusum": tip_change.cusum(z_NLK, spec["allowance"]),
    }
    for name, score in (
        ("window", lambda s_LK: tip_change.window_scores(s_LK, spec["window"])),
        ("pelt", lambda s_LK: tip_change.pelt_scores(s_LK, PENALTIES)),
    ):
        scores[name] = np.full(s_NLK.shape[:2], np.nan)
        for n, lines in enumerate(n_lines_N):
            scores[name][n, :lines] = score(s_NLK[n, :lines])
    return scores


# ---------------------------------------------------------------------------------------------
# All detectors judged


@dataclass(frozen=True, kw_only=True)
class _Detector:
    """Scores of all scans of the store by fold and seed; of one that needs no run, once for all."""

    name: str
    online: bool
    score_NL: Callable[[int, int], Floats]


def tip_changes(
    spec: Mapping[str, Any],
    scores: Mapping[tuple[str, int, int], str | Path],
    scans: str | Path,
    store: str | Path,
    split: str | Path,
    out: str | Path,
) -> None:
    """Judge detectors of tip changes: against known lines, and against people's labels of scans.

    Parameters
    ----------
    spec
        What `scanbench.plan.tip_change_spec` gives.
    scores
        Experiment, fold and seed → what `tip_change_scores` wrote of the run.
    scans
        Folder that ingest wrote.
    store, split
        What the runs were trained on.
    out
        Folder for the figure `tip-change.{svg,pdf,png}`, the tables `detection` and `scans`
        (`.{csv,md,tex}`) and `tip_change.json`.

    Raises
    ------
    UserError
        If scores are missing, or the data tell neither of lines nor of scans with a change.
    """
    started = time.time()
    out = Path(out)
    (out / "tip_change.json").unlink(missing_ok=True)
    with Store(store) as data:
        document = read_split(split, data)
        frames = {run: _scores(Path(path), data) for run, path in scores.items()}
        detectors = _detectors(spec, frames, data)
        unit = _Units(data, document["folds"], spec)
        judged = pd.DataFrame(columns=["detector", "online", "wanted", "figure", *_ENDS])
        if (data.change_line >= 0).any():
            judged = _detection(detectors, unit, data, spec)
        labelled = _labelled(Path(scans), data, spec)
        ranked = pd.DataFrame(columns=["detector", "online", *_ENDS, "changed", "scans", "groups"])
        if labelled is not None:
            ranked = _ranking(detectors, unit, labelled, spec)
    if judged.empty and ranked.empty:
        raise UserError(
            f"{store}: knows of no line and {scans} of no scan with a tip change; take simulated "
            "scans, or a data set with a score sheet"
        )
    simulated = " (simulated scans)" if spec["simulated"] else ""
    made = [_detection_table(judged, spec, simulated), _scan_table(ranked, spec, simulated)]
    for table in made:
        tables.write(table, out)
    figure = _figure(judged, ranked, spec)
    figure.note(spec["data"])
    plotting.save(figure, out, "tip-change")
    inputs: dict[str, str | Path] = {"store": store, "split": split}
    for (name, fold, seed), path in scores.items():
        inputs[f"{name}/fold{fold}-seed{seed}.parquet"] = path
    write_json(
        out / "tip_change.json",
        provenance.record(spec, inputs=inputs, started=started, seed=spec["seed"]),
    )


_ENDS = ("value", "low", "high")


def _scores(path: Path, data: Store) -> pd.DataFrame:
    frame = read_parquet(path, "run tip-change-scores")
    if missing := [c for c in ("scan_id", "part", "line", "bad", "drift") if c not in frame]:
        raise UserError(f"{path}: column {missing[0]!r} is missing; run tip-change-scores again")
    return frame.assign(scan=data.index_of(frame["scan_id"].tolist()))


def _detectors(
    spec: Mapping[str, Any],
    frames: Mapping[tuple[str, int, int], pd.DataFrame],
    data: Store,
) -> list[_Detector]:
    """Return all detectors; before `first_line` none has a score."""
    shape = len(data), data.lines

    def from_run(name: str, column: str) -> Callable[[int, int], Floats]:
        def score_NL(fold: int, seed: int) -> Floats:
            frame = frames[name, fold, seed]
            frame = frame[frame["line"] >= spec["first_line"] - 1]
            table = np.full(shape, np.nan)
            table[frame["scan"].to_numpy(), frame["line"].to_numpy()] = frame[column]
            return table

        return score_NL

    found = []
    for name in spec["experiments"]:
        first = next(frame for (own, _, _), frame in frames.items() if own == name)
        found += [
            _Detector(name=f"{name}: {title}", online=True, score_NL=from_run(name, column))
            for column, title in LEARNED.items()
            if column in first
        ]
    plain_scores = {name: np.full(shape, np.nan) for name in PLAIN}
    # Heights of whatever unit: `none` brings them to numbers of order one.
    needed = np.unique(np.concatenate([f["scan"].unique() for f in frames.values()]))
    for begin in tqdm(range(0, len(needed), BATCH), desc=", ".join(PLAIN), unit="batch"):
        own = needed[begin : begin + BATCH]
        for name, score_NL in _plain(data.read(own, "none"), data.n_lines[own], spec).items():
            measured = np.arange(data.lines) < data.n_lines[own][:, None]
            late = np.arange(data.lines) >= spec["first_line"] - 1
            plain_scores[name][own] = np.where(measured & late, score_NL, np.nan)
    found += [
        _Detector(
            name=name if online else f"{name} (offline)",
            online=online,
            score_NL=lambda fold, seed, name=name: plain_scores[name],  # type: ignore[misc]
        )
        for name, online in PLAIN.items()
    ]
    return found


class _Units:
    """The parts of each fold by their place in the store, and resamples of groups and seeds."""

    def __init__(
        self, data: Store, folds: Sequence[Mapping[str, Any]], spec: Mapping[str, Any]
    ) -> None:
        self.parts = {
            (fold, part): np.sort(data.index_of(folds[fold][part]))
            for fold in spec["folds"]
            for part in ("test", "validation")
        }
        self.tested = np.concatenate([self.parts[fold, "test"] for fold in spec["folds"]])
        self.fold_N = np.repeat(
            spec["folds"], [len(self.parts[fold, "test"]) for fold in spec["folds"]]
        )
        self.groups, self.unit_N = metrics.units_of(data.group[self.tested].astype(object))
        self.seeds = len(spec["seeds"])

    def draw(self, spec: Mapping[str, Any], positive_N: Bools) -> Resamples:
        """Draw resamples in which scans of both kinds stand in some fold."""
        return comparison.draw_resamples(
            positive_N.astype(np.int64),
            self.unit_N,
            self.fold_N,
            units=len(self.groups),
            classes=2,
            seeds=self.seeds,
            count=spec["bootstrap"],
            seed=spec["seed"],
        )


def _with_interval(value_SB: Floats, resamples: Resamples, confidence: float) -> dict[str, float]:
    """Return the mean over seeds of column 0, and its interval from the other columns."""
    low, high = comparison.interval(value_SB[:, 1:], resamples, confidence)
    return {"value": float(value_SB[:, 0].mean()), "low": low, "high": high}


def _weights(resamples: Resamples) -> Floats:
    """Return weights of the groups: each once, then the resamples."""
    return np.vstack([np.ones((1, resamples.unit_BK.shape[1])), resamples.unit_BK])


def _detection(
    detectors: Sequence[_Detector], units: _Units, data: Store, spec: Mapping[str, Any]
) -> pd.DataFrame:
    """Judge alarms against the known lines of change, at thresholds chosen on validation scans."""
    change_N = data.change_line.astype(np.int64)
    # A bad scan without a known line may have changed to and fro: its alarms prove nothing.
    bad_N = np.isin(data.label, [data.classes.index(name) for name in spec["bad"]])
    change_N[bad_N & (change_N < 0)] = tip_change.UNKNOWN
    changed_N = change_N[units.tested] >= 0
    if not changed_N.any() or changed_N.all():
        raise UserError(
            f"{data.path}: the tested scans have {'only' if changed_N.any() else 'no'} known tip "
            "changes; take more scans or another split"
        )
    resamples = units.draw(spec, changed_N)
    weight_BN = _weights(resamples)[:, units.unit_N]
    rows = []
    for detector in tqdm(detectors, desc="alarms", unit="detector"):
        for wanted in spec["false_alarms"]:
            figures_S = []
            for seed in spec["seeds"]:
                counts = []
                for fold in spec["folds"]:
                    score_NL = detector.score_NL(fold, seed)
                    tuned, tested = (
                        Watched(score_NL=score_NL[own], change_N=change_N[own])
                        for own in (units.parts[fold, "validation"], units.parts[fold, "test"])
                    )
                    threshold = tip_change.threshold_for(tuned, wanted, spec["tolerance"])
                    counts.append(Counts.of(tested, threshold, spec["tolerance"]))
                figures_S.append(Counts.joined(counts).figures(weight_BN))
            for name in tip_change.FIGURES:
                value_SB = np.stack([own[name] for own in figures_S])
                rows.append(
                    {
                        "detector": detector.name,
                        "online": detector.online,
                        "wanted": wanted,
                        "figure": name,
                        **_finite_interval(value_SB, resamples, spec["confidence"]),
                        "changes": int(changed_N.sum()),
                        "scans": len(units.tested),
                        "groups": len(units.groups),
                    }
                )
    return pd.DataFrame(rows)


def _finite_interval(value_SB: Floats, resamples: Resamples, confidence: float) -> dict[str, float]:
    """Return the interval over resamples in which the figure exists in every seed.

    A delay has none where no change was found, a precision none without an alarm.
    """
    there = np.isfinite(value_SB[:, 1:]).all(axis=0)
    if not there.any():
        return {"value": float(value_SB[:, 0].mean()), "low": np.nan, "high": np.nan}
    kept = Resamples(unit_BK=resamples.unit_BK[there], seed_BS=resamples.seed_BS[there])
    return _with_interval(value_SB[:, np.append(True, there)], kept, confidence)


def _labelled(scans: Path, data: Store, spec: Mapping[str, Any]) -> Bools | None:
    """Tell which scans of the store people called a tip change, [N]; None if nobody was asked."""
    if spec["column"] is None:
        return None
    try:
        manifest = pd.read_csv(scans / "manifest.csv", dtype={"scan_id": str}).set_index("scan_id")
    except (OSError, ValueError) as error:
        raise UserError(f"{scans / 'manifest.csv'}: cannot be read ({error})") from None
    column = f"score_{spec['column']}"
    if column not in manifest:
        known = [str(c).removeprefix("score_") for c in manifest if str(c).startswith("score_")]
        raise UserError(
            f"{scans / 'manifest.csv'}: no score of {spec['column']!r}; "
            f"{did_you_mean(spec['column'], known)}"
        )
    score_N = manifest[column].reindex(data.scan_id.astype(str)).to_numpy(np.float64)
    return np.nan_to_num(score_N) >= spec["label_threshold"]


def _ranking(
    detectors: Sequence[_Detector], units: _Units, changed_N: Bools, spec: Mapping[str, Any]
) -> pd.DataFrame:
    """Return the AUROC of each scan's largest score for scans labelled with a tip change."""
    positive_N = changed_N[units.tested]
    resamples = units.draw(spec, positive_N)
    weight_BK = _weights(resamples)
    rows = []
    for detector in tqdm(detectors, desc="largest scores", unit="detector"):
        auroc_SB = []
        for seed in spec["seeds"]:
            score_N = np.concatenate(
                [
                    tip_change.largest(detector.score_NL(fold, seed)[units.parts[fold, "test"]])
                    for fold in spec["folds"]
                ]
            )
            auroc_SB.append(
                metrics.auroc(score_N, positive_N, units.unit_N, units.fold_N, weight_BK)
            )
        rows.append(
            {
                "detector": detector.name,
                "online": detector.online,
                **_with_interval(np.stack(auroc_SB), resamples, spec["confidence"]),
                "changed": int(positive_N.sum()),
                "scans": len(positive_N),
                "groups": len(units.groups),
            }
        )
    return pd.DataFrame(rows)


# ---------------------------------------------------------------------------------------------
# Tables and figure


TITLES = {
    "false_alarms": "False alarms per 1,000 lines",
    "precision": "Precision",
    "recall": "Recall",
    "found": "Changes found by the scan's end",
    "delay": "Delay (lines)",
}


def _detection_table(judged: pd.DataFrame, spec: Mapping[str, Any], simulated: str) -> ResultTable:
    shown = []
    for _, rows in judged.groupby(["detector", "wanted"], sort=False):
        by, first = rows.set_index("figure"), rows.iloc[0]
        cells = {
            title: text.with_interval(
                *by.loc[figure, list(_ENDS)].to_numpy(float),
                digits=1 if figure in ("delay", "false_alarms") else 2,
            )
            for figure, title in TITLES.items()
        }
        shown.append({"Detector": first["detector"], "Wanted": f"{first['wanted']:g}"} | cells)
    columns = ["Detector", "Wanted", *TITLES.values()]
    return ResultTable(
        name="detection",
        title=f"Tip changes found line by line{simulated}: thresholds chosen on validation groups "
        "for a wanted number of false alarms per 1,000 lines; precision and recall within ±"
        f"{spec['tolerance']} lines; delay of the first alarm (interval from resampling groups and "
        "seeds). Offline detectors see the whole scan.",
        raw=judged,
        shown=pd.DataFrame(shown, columns=columns, dtype=str),
    )


def _scan_table(ranked: pd.DataFrame, spec: Mapping[str, Any], simulated: str) -> ResultTable:
    shown = [
        {
            "Detector": row["detector"],
            "AUROC": text.with_interval(*(float(row[end]) for end in _ENDS)),
            "Labelled": f"{row['changed']:,}",
            "Scans": f"{row['scans']:,}",
            "Groups": f"{row['groups']:,}",
        }
        for row in ranked.to_dict("records")
    ]
    return ResultTable(
        name="scans",
        title=f"AUROC of a scan's largest score for scans labelled {spec['column'] or 'a change'}"
        f"{simulated}, against all others tested (interval from resampling groups and seeds).",
        raw=ranked,
        shown=pd.DataFrame(
            shown, columns=["Detector", "AUROC", "Labelled", "Scans", "Groups"], dtype=str
        ),
    )


@styled
def _figure(judged: pd.DataFrame, ranked: pd.DataFrame, spec: Mapping[str, Any]) -> Sheet:
    """Draw each detector's figures with their intervals, those that there are."""
    panels = [
        *(((figure, TITLES[figure]) for figure in TITLES) if len(judged) else ()),
        *((("auroc", "AUROC of the largest score"),) if len(ranked) else ()),
    ]
    names = list(dict.fromkeys([*judged["detector"], *ranked["detector"]]))
    styles = experiment_styles(names)
    wanted = sorted(set(judged["wanted"]))
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    figure = Sheet(DOUBLE, (10 + rows * (16 + 7 * len(names))) * MM)
    grid = figure.body.subplots(rows, columns, squeeze=False, sharey=True).ravel().tolist()
    for axes in grid[len(panels) :]:
        axes.remove()
    for axes, (name, title) in zip(grid, panels, strict=False):
        own = ranked.assign(wanted=np.nan) if name == "auroc" else judged[judged["figure"] == name]
        for row in own.to_dict("records"):
            j = wanted.index(row["wanted"]) if row["wanted"] in wanted else 0
            level = 0.0 if name == "auroc" else 0.4 * (j - (len(wanted) - 1) / 2)
            place = names.index(row["detector"]) + level
            style = styles[row["detector"]]
            axes.hlines(place, row["low"], row["high"], color=style.colour, linewidth=1)
            axes.plot(
                row["value"], place, style.marker, color=style.colour, markersize=4,
                markerfacecolor="white" if j == 0 and name != "auroc" else style.colour,
            )  # fmt: skip
        if name == "auroc":
            axes.axvline(0.5, color=GREY, linestyle=":", linewidth=0.8)
        else:
            low, high = axes.get_xlim()
            axes.set_xlim(min(low, -0.03 * high), high)  # a marker at 0 is drawn whole
        for rate in wanted if name == "false_alarms" else ():
            axes.axvline(rate, color=GREY, linestyle=":", linewidth=0.8)
        axes.set_xlabel(title)
        axes.set_yticks(range(len(names)), [plain(n, 44) for n in names])
        axes.set_ylim(len(names) - 0.4, -0.6)
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="x")
    simulated = "Simulated scans. " if spec["simulated"] else ""
    if wanted:
        told = [f"{rate:g} ({'open' if not j else 'filled'})" for j, rate in enumerate(wanted)]
        grid[0].set_title(f"{simulated}Wanted: {', '.join(told)}", loc="left")
    return figure
