"""Scans of kinds never trained on: how strange a model finds a scan, and whether that flags them.

`anomaly_scores` scores the test part of a run from whose training classes were withheld;
`anomaly` asks how well each score tells scans of the withheld classes from those of known ones, on
whole groups held out. Of every score, higher means stranger.

Shape suffixes: N scans, B samples of a batch, R samples, L scan lines, P pixels of a line, X any, T
answers, C known classes, F features, S seeds, K units (groups), W weightings of units.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.lines import Line2D
from numpy.typing import NDArray
from sklearn.covariance import LedoitWolf
from torch import Tensor, nn
from tqdm import tqdm

from scanbench import comparison, metrics, plotting, provenance
from scanbench.comparison import Resamples
from scanbench.errors import UserError
from scanbench.files import replacing, write_json
from scanbench.metrics import Floats
from scanbench.parquet import read_parquet
from scanbench.plotting import DOUBLE, GREY, MM, Sheet, experiment_styles, styled
from scanbench.predictions import HeldOut
from scanbench.runs import META, WEIGHTS, AnswerTimes, Run, check_trained_on, load_run
from scanbench.samples import trained_classes
from scanbench.split_file import read_split
from scanbench.store import Store
from scanbench.text import plain
from scanbench.tipstate.attention import Attentive, line_attention
from scanbench.tipstate.attribution import line_steps
from scanbench.windows import WindowReader

__all__ = [
    "BASELINE",
    "SCORES",
    "Gaussians",
    "anomaly",
    "anomaly_scores",
    "attention_entropy",
    "energy",
    "max_softmax",
]

#: Every score, in the order of tables and figures; `line-step` looks at no model.
SCORES = ("max-softmax", "energy", "mahalanobis", "attention-entropy", "line-step")
#: The score that the others are compared with (Hendrycks & Gimpel 2017 call it so too).
BASELINE = "max-softmax"

#: Samples that go through a model at once. A constant, so that the same scans give the same bytes.
BATCH = 64
#: Scans read at once, in 10⁶ bytes.
MEMORY_MB = 256
#: Below this, the deviation of a feature means that it is constant.
TINY = 1e-6


# ---------------------------------------------------------------------------------------------
# Scores


def max_softmax(logits_BC: Tensor) -> Tensor:
    """Return 1 − the largest probability, [B] (Hendrycks & Gimpel 2017, arXiv 1610.02136)."""
    return 1 - logits_BC.softmax(1).amax(1)


def energy(logits_BC: Tensor) -> Tensor:
    """Return −log Σ exp of the logits, [B] (Liu et al. 2020, arXiv 2010.03759, eq. 4, T = 1)."""
    return -logits_BC.logsumexp(1)


def attention_entropy(weight_BL: Tensor, n_lines_B: Tensor) -> Tensor:
    """Return how evenly an answer looks at the measured lines, [B]: 0 at one, 1 at all alike.

    The Shannon entropy of the attention by line over that of even attention, log n.

    Parameters
    ----------
    weight_BL
        Attention by line, in any unit, 0 past the measured lines.
    n_lines_B
        Measured lines.
    """
    share_BL = weight_BL / weight_BL.sum(1, keepdim=True)
    entropy_B = -torch.special.xlogy(share_BL, share_BL).sum(1)
    # Of one line nothing can be said: its entropy is 0.
    return entropy_B / n_lines_B.clamp(min=2).to(entropy_B.dtype).log()


@dataclass(frozen=True)
class Gaussians:
    """A Gaussian for each class on a model's features, all of one covariance.

    Lee et al. 2018 (arXiv 1807.03888, section 2.1), without their input perturbation and their
    ensemble of layers. Features are first divided by their deviation, and the covariance is shrunk
    (Ledoit & Wolf 2004), as there are about as many features as training scans.

    Attributes
    ----------
    scale_F
        Deviation of each feature.
    mean_CF
        Mean of each class, of scaled features.
    precision_FF
        Inverse of the covariance of scaled features about their class's mean.
    """

    scale_F: Floats
    mean_CF: Floats
    precision_FF: Floats

    @classmethod
    def of(cls, feature_RF: Floats, label_R: NDArray[np.int64], classes: int) -> Gaussians:
        """Fit them to training samples, of which each class has one at least."""
        scale_F = feature_RF.std(axis=0)
        scale_F = np.where(scale_F > TINY, scale_F, 1.0)
        scaled_RF = feature_RF / scale_F
        mean_CF = np.stack([scaled_RF[label_R == c].mean(axis=0) for c in range(classes)])
        fitted = LedoitWolf(assume_centered=True).fit(scaled_RF - mean_CF[label_R])
        return cls(scale_F, mean_CF, fitted.get_precision())

    def distance(self, feature_RF: Floats) -> Floats:
        """Return the squared Mahalanobis distance to the nearest class's mean, [R]."""
        off_CRF = feature_RF / self.scale_F - self.mean_CF[:, None]
        squared_CR = np.einsum("crf,fg,crg->cr", off_CRF, self.precision_FF, off_CRF, optimize=True)
        return np.asarray(squared_CR.min(axis=0))


# ---------------------------------------------------------------------------------------------
# One run


@dataclass(frozen=True)
class _Samples:
    """What a model says of R samples: scan (place in the store), logits, features, entropy."""

    scan: NDArray[np.int64]
    logits: Floats
    features: Floats | None
    entropy: Floats | None
    step: Floats


def anomaly_scores(store: str | Path, split: str | Path, run: str | Path, out: str | Path) -> None:
    """Score how strange each scan of a run's test part is to it.

    Parameters
    ----------
    store, split
        The data set and its division. Of the training part, scans of known classes are read, for
        the Gaussians.
    run
        Folder of a run from whose training classes were withheld.
    out
        The Parquet file to write, and beside it `NAME.json`, its provenance. The same inputs give
        the same bytes on the same machine.

    Raises
    ------
    UserError
        If a file is damaged, nothing was withheld from the run, it was trained on another data set
        or division, or a test scan is too short for its model.
    """
    started = time.time()
    run, out = Path(run), Path(out)
    trained = load_run(run, withheld=True)
    meta = trained.meta
    if not meta.get("withheld"):
        raise UserError(
            f"{run / META}: no class was withheld from its training, so it knows every kind of "
            "scan; give its experiment `withhold: [CLASS]` and train it again"
        )
    torch.set_num_threads(meta["training"]["num_threads"])
    device = "cuda" if torch.cuda.is_available() else "cpu"
    trained.model.to(device).eval()
    with Store(store) as data:
        document = read_split(split, data)
        check_trained_on(run, meta, data, split)
        kept, label_N = trained_classes(data.classes, meta["withheld"], data.label)
        assert kept == trained.classes, "the run's classes are those of the store that it kept"
        fold = document["folds"][meta["fold"]]
        known = data.index_of(fold["train"])
        known = known[label_N[known] >= 0]
        test = np.sort(data.index_of(fold["test"]))
        training, tested = (
            _samples(trained, data, scans, device, title)
            for scans, title in (
                (_long_enough(trained, data, known), "training features"),
                (test, f"anomaly {meta['name']} fold {meta['fold']} seed {meta['seed']}"),
            )
        )
        if lacking := sorted(set(test.tolist()) - set(tested.scan.tolist())):
            scan, lines = str(data.scan_id[lacking[0]]), int(data.n_lines[lacking[0]])
            raise UserError(
                f"{run / META}: its model cannot answer about test scan {scan!r}, which has "
                f"{lines} lines; raise splits.*.min_lines"
            )
        table = pd.DataFrame(
            {
                "scan_id": data.scan_id[test].astype(object),
                "group": data.group[test].astype(object),
                "label": data.label[test].astype(np.int64),
                "fold": meta["fold"],
                "seed": meta["seed"],
                "withheld": label_N[test] < 0,
            }
        )
        for name, value_R in _scores(tested, training, label_N, len(kept)).items():
            # A scan's score is the mean over its windows.
            table[f"score_{name}"] = pd.Series(value_R).groupby(tested.scan).mean()[test].to_numpy()
    record = provenance.record(
        {key: meta[key] for key in ("name", "fold", "seed", "withheld")},
        inputs={"store": store, "split": split, "weights": run / WEIGHTS, "model": run / META},
        started=started,
        device=torch.cuda.get_device_name() if device == "cuda" else None,
    )
    write_json(out.with_suffix(".json"), record)
    with replacing(out) as part:  # last, as in `predict`
        table.to_parquet(part, compression="zstd", index=False)


def _long_enough(run: Run, data: Store, scans: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the scans that the model can answer about."""
    least = max(AnswerTimes.of(run.model, run.meta["lines"]).fewest, 1)
    if run.meta["window"]:
        least = max(least, run.meta["window"]["lines"])
    return scans[data.n_lines[scans] >= least]


def _samples(run: Run, data: Store, scans: NDArray[np.int64], device: str, title: str) -> _Samples:
    """Ask a model about every sample (window, or whole scan) of scans, at its last answer."""
    window = run.meta["window"] or {"lines": None, "stride": 1}
    times = AnswerTimes.of(run.model, run.meta["lines"])
    found = []
    readers = {
        normalisation: WindowReader(
            data,
            _long_enough(run, data, scans),
            window=window["lines"],
            stride=window["stride"],
            normalisation=normalisation,
            batch_size=BATCH,
            shuffle=False,
            memory_mb=MEMORY_MB,
        )
        for normalisation in (run.meta["normalisation"], "scan")
    }
    reader, plainer = readers[run.meta["normalisation"]], readers["scan"]
    batches = zip(reader.epoch(), plainer.epoch(), strict=True)
    for batch, same in tqdm(batches, desc=title, total=len(reader), unit="batch"):
        x_BLP, n_B = (torch.from_numpy(a).to(device) for a in (batch.x, batch.n_lines))
        last_B = times.valid(n_B).sum(1) - 1
        with torch.inference_mode():
            logits_BC, feature_BF = answers_and_features(run.model, x_BLP, n_B, last_B)
            entropy_B = None
            if isinstance(run.model, Attentive):
                weight_BL = line_attention(run.model, x_BLP, n_B)["attention"]
                entropy_B = attention_entropy(weight_BL, n_B)
        step_BL = line_steps(torch.from_numpy(same.x)).numpy()
        # The first line has none before it, and past the measured lines there is nothing.
        steps_BL = (np.arange(step_BL.shape[1]) < same.n_lines[:, None]) * step_BL
        found.append(
            _Samples(
                scan=batch.scan,
                logits=logits_BC.double().cpu().numpy(),
                features=None if feature_BF is None else feature_BF.double().cpu().numpy(),
                entropy=None if entropy_B is None else entropy_B.double().cpu().numpy(),
                step=steps_BL.sum(1) / np.maximum(same.n_lines - 1, 1),
            )
        )
    return _joined(found)


def _joined(parts: Sequence[_Samples]) -> _Samples:
    columns: dict[str, Any] = {}
    for name in _Samples.__dataclass_fields__:
        values = [getattr(part, name) for part in parts]
        columns[name] = None if values[0] is None else np.concatenate(values)
    return _Samples(**columns)


def answers_and_features(
    model: nn.Module, x_BLP: Tensor, n_lines_B: Tensor, answer_B: Tensor
) -> tuple[Tensor, Tensor | None]:
    """Return logits [B, C] of one answer per sample, and what they were read from, [B, F].

    Features are what goes into the model's layer `head` (the mean, if it is asked several times, as
    about mirrored views), or what a model without one gives as `features`; None if it has neither.
    """
    seen: list[Tensor] = []
    head = getattr(model, "head", None)
    if isinstance(head, nn.Module):
        handle = head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        try:
            logits_BTC = model(x_BLP, n_lines_B)
        finally:
            handle.remove()
        feature = torch.stack(seen).mean(0)
    else:
        logits_BTC = model(x_BLP, n_lines_B)
        if not hasattr(model, "features"):
            return _picked(logits_BTC, answer_B), None
        feature = model.features(x_BLP, n_lines_B)  # type: ignore[operator]
    logits_BC = _picked(logits_BTC, answer_B)
    return logits_BC, _picked(feature, answer_B) if feature.ndim == 3 else feature


def _picked(value_BTX: Tensor, answer_B: Tensor) -> Tensor:
    return value_BTX[torch.arange(len(answer_B), device=answer_B.device), answer_B]


def _scores(
    tested: _Samples, training: _Samples, label_N: NDArray[np.int64], classes: int
) -> dict[str, Floats]:
    """Return every score that the model has, for each sample [R]; a score is named as in SCORES."""
    logits_RC = torch.from_numpy(tested.logits)
    scores = {
        "max-softmax": max_softmax(logits_RC).numpy(),
        "energy": energy(logits_RC).numpy(),
        "line-step": tested.step,
    }
    if training.features is not None and tested.features is not None:
        gaussians = Gaussians.of(training.features, label_N[training.scan], classes)
        scores["mahalanobis"] = gaussians.distance(tested.features)
    if tested.entropy is not None:
        scores["attention-entropy"] = tested.entropy
    return {name: scores[name] for name in SCORES if name in scores}


# ---------------------------------------------------------------------------------------------
# All runs together


def anomaly(
    spec: Mapping[str, Any],
    runs: Mapping[str, Sequence[Path]],
    store: str | Path,
    split: str | Path,
    out: Path,
) -> None:
    """Compare scores of strangeness, and write table, ROC curves, figure and provenance.

    Parameters
    ----------
    spec
        What `scanbench.plan.anomaly_spec` gives.
    runs
        Experiment → its run folders, each with `anomaly.parquet`.
    store, split
        What was scored.
    out
        Folder for `anomaly.csv`, `roc.csv`, `anomaly.{svg,pdf,png}` and `anomaly.json`.

    Raises
    ------
    UserError
        If a table is missing, is not about exactly the test scans, or no fold has scans of both
        withheld and known classes.
    """
    started = time.time()
    held_out = HeldOut.load(store, split)
    tables = {
        name: read_scores(name, folders, held_out, spec["withheld"])
        for name, folders in runs.items()
    }
    found = pd.concat(
        [
            aurocs(table, held_out.classes, spec).assign(experiment=name)
            for name, table in tqdm(tables.items(), desc="anomaly", unit="experiment")
        ],
        ignore_index=True,
    )
    found = found[["experiment", *(c for c in found.columns if c != "experiment")]]
    curves = pd.concat([_curves(name, table) for name, table in tables.items()], ignore_index=True)
    out.mkdir(parents=True, exist_ok=True)
    for stem, frame in (("anomaly", found), ("roc", curves)):
        with replacing(out / f"{stem}.csv") as part:
            frame.to_csv(part, index=False, float_format="%.6g", lineterminator="\n")
    figure = drawing(found, list(runs), spec["withheld"], spec["simulated"])
    figure.note(spec["data"])
    plotting.save(figure, out, "anomaly")
    inputs: dict[str, str | Path] = {
        f"{name}/{folder.name}": folder / "anomaly.parquet"
        for name, folders in runs.items()
        for folder in folders
    }
    inputs |= {"store": store, "split": split}
    write_json(out / "anomaly.json", provenance.record(spec, inputs=inputs, started=started))


def read_scores(
    name: str, folders: Sequence[Path], held_out: HeldOut, withheld: Sequence[str]
) -> pd.DataFrame:
    """Read the scores of an experiment's runs as one table, checked against store and split.

    Raises
    ------
    UserError
        If a table is missing or broken, a score is not finite, rows are not exactly the test scans
        of their fold with their label and group, or what was withheld is something else.
    """
    frames = []
    for folder in folders:
        path = folder / "anomaly.parquet"
        frame = read_parquet(path, "score the run again")
        scores = [column for column in frame.columns if str(column).startswith("score_")]
        if not np.isfinite(frame[scores].to_numpy(np.float64)).all():
            raise UserError(f"{path}: a score is NaN or infinite; score the run again")
        fold = int(frame["fold"].iloc[0])
        if fold >= len(held_out.folds) or sorted(frame["scan_id"]) != sorted(
            held_out.folds[fold]["test"]
        ):
            raise UserError(f"{path}: is not about the test scans of its fold; score the run again")
        true = held_out.scans.loc[frame["scan_id"]]
        kinds = [held_out.classes.index(c) for c in withheld]
        for column, wanted in (
            ("label", true["label"].to_numpy()),
            ("group", true["group"].to_numpy()),
            ("withheld", true["label"].isin(kinds).to_numpy()),
        ):
            if not np.array_equal(frame[column].to_numpy(), wanted):
                raise UserError(f"{path}: {column} disagrees with {held_out.name}; score it again")
        frames.append(frame)
    table = pd.concat(frames, ignore_index=True)
    if table.duplicated(["seed", "scan_id"]).any():
        raise UserError(f"experiment {name!r}: a scan is scored twice; give each run once")
    if table.groupby("seed")["scan_id"].agg(frozenset).nunique() > 1:
        raise UserError(f"experiment {name!r}: seeds have other folds; give the same runs for each")
    return table


def aurocs(table: pd.DataFrame, classes: Sequence[str], spec: Mapping[str, Any]) -> pd.DataFrame:
    """Return how well each score tells withheld kinds from all known ones, and from each.

    Parameters
    ----------
    table
        From `read_scores`.
    classes
        Of the store.
    spec
        `bootstrap`, `confidence`, `seed`, `withheld`.

    Returns
    -------
    DataFrame
        `score,against,value,low,high,difference,difference_low,difference_high,seeds,groups,scans,
        withheld`: the AUROC within folds, mean over seeds, and its difference from that of
        `max-softmax`; an empty `against` means all known classes, and `withheld` counts scans.

    Raises
    ------
    UserError
        If no fold's test part has scans of both kinds.
    """
    rows = []
    known = [c for c in classes if c not in spec["withheld"]]
    for against in ("", *known):
        part = table
        if against:
            part = table[table["withheld"] | (table["label"] == classes.index(against))]
        part = part.sort_values(["seed", "scan_id"], kind="stable")
        seeds = part["seed"].nunique()
        one = part.iloc[: len(part) // seeds]
        units, unit_N = metrics.units_of(one["group"].to_numpy(object))
        fold_N = one["fold"].to_numpy(np.int64)
        positive_N = one["withheld"].to_numpy(bool)
        ones = np.ones((1, len(units)))
        if not metrics.pair_counts(positive_N, unit_N, fold_N, ones)[0]:
            raise UserError(
                f"anomaly: no fold's test part has scans of {', '.join(spec['withheld'])} beside "
                f"{against or 'known classes'}; split again"
            )
        resamples = comparison.draw_resamples(
            positive_N.astype(np.int64), unit_N, fold_N, units=len(units), classes=2, seeds=seeds,
            count=spec["bootstrap"], seed=spec["seed"],
        )  # fmt: skip
        weight_WK = np.vstack([ones, resamples.unit_BK])
        by_score = {}
        for score in SCORES:
            if f"score_{score}" not in part.columns:
                continue
            value_SN = part[f"score_{score}"].to_numpy(np.float64).reshape(seeds, -1)
            by_score[score] = np.stack(
                [metrics.auroc(v, positive_N, unit_N, fold_N, weight_WK) for v in value_SN]
            )
        for score, value_SW in by_score.items():
            rows.append(
                {
                    "score": score,
                    "against": against,
                    **_with_interval("", value_SW, resamples, spec),
                    **_with_interval("difference", value_SW - by_score[BASELINE], resamples, spec),
                    "seeds": seeds,
                    "groups": len(units),
                    "scans": len(one),
                    "withheld": int(positive_N.sum()),
                }
            )
    return pd.DataFrame(rows)


def _with_interval(
    name: str, value_SW: Floats, resamples: Resamples, spec: Mapping[str, Any]
) -> dict[str, float]:
    """Return the mean over seeds and its interval; the first weighting counts each unit once."""
    low, high = comparison.interval(value_SW[:, 1:], resamples, spec["confidence"])
    keys = (name, f"{name}_low", f"{name}_high") if name else ("value", "low", "high")
    return dict(zip(keys, (float(value_SW[:, 0].mean()), low, high), strict=True))


def _curves(name: str, table: pd.DataFrame) -> pd.DataFrame:
    """Return the ROC curve of each score and seed, for all known classes together."""

    def curves() -> Iterator[pd.DataFrame]:
        for seed, part in table.groupby("seed"):
            for score in SCORES:
                if f"score_{score}" not in part.columns:
                    continue
                fpr, tpr = metrics.roc_points(
                    part[f"score_{score}"].to_numpy(np.float64),
                    part["withheld"].to_numpy(bool),
                    part["fold"].to_numpy(np.int64),
                )
                yield pd.DataFrame(
                    {"experiment": name, "score": score, "seed": seed, "fpr": fpr, "tpr": tpr}
                )

    return pd.concat(curves(), ignore_index=True)


@styled
def drawing(
    found: pd.DataFrame, experiments: Sequence[str], withheld: Sequence[str], simulated: bool
) -> Sheet:
    """Draw the AUROC of each score and experiment, against all known classes and each of them.

    Parameters
    ----------
    found
        `anomaly.csv`.
    experiments
        In the order of the legend.
    withheld
        The classes never trained on.
    simulated
        Whether the scans are simulated.
    """
    scores = [score for score in SCORES if score in set(found["score"])]
    sides = list(dict.fromkeys(found["against"]))
    figure = Sheet(DOUBLE, (24 + (3 + 2.4 * len(experiments)) * len(scores)) * MM)
    panels = figure.body.subplots(1, len(sides), sharex=True, sharey=True, squeeze=False)[0]
    styles = experiment_styles(experiments)
    for axes, against in zip(panels, sides, strict=True):
        for k, name in enumerate(experiments):
            rows = found[(found["experiment"] == name) & (found["against"] == against)]
            rows = rows.set_index("score")
            shown = [score for score in scores if score in rows.index]
            y = [scores.index(s) + (k + 0.5) * 0.7 / len(experiments) - 0.35 for s in shown]
            style = styles[name]
            axes.hlines(y, rows.loc[shown, "low"], rows.loc[shown, "high"], color=style.colour)
            axes.plot(rows.loc[shown, "value"], y, style.marker, color=style.colour, markersize=3.5)
        axes.axvline(0.5, color=GREY, linewidth=0.8, linestyle=":")
        axes.set_title(f"against {plain(against, 20)}" if against else "against all known")
        axes.set_xlabel("AUROC")
        axes.grid(axis="x")
        axes.spines["left"].set_visible(False)
        axes.tick_params(axis="y", length=0)
    names = {"line-step": "line step (no model)"}
    panels[0].set_yticks(range(len(scores)), [names.get(s, s.replace("-", " ")) for s in scores])
    panels[0].set_ylim(len(scores) - 0.4, -0.6)
    handles = [
        Line2D([], [], color=styles[n].colour, marker=styles[n].marker, linestyle="")
        for n in experiments
    ]
    figure.body.legend(
        handles, [plain(n, 40) for n in experiments], loc="outside lower center",
        ncols=min(4, len(experiments)),
    )  # fmt: skip
    kind = "simulated " if simulated else ""
    figure.body.suptitle(
        f"Flagging {kind}scans of a kind never trained on: {plain(', '.join(withheld), 60)}"
    )
    return figure
