"""How much simulated scans are like real ones: drawn side by side, and measured.

Labels only sort the scans into rows. The measures ask what each statistic would be between two
halves of the real sessions, too: no simulation needs to be closer than that. Real images have no
scale, so heights are standardised (mean 0 and deviation 1 over the measured lines of a scan), and
frequencies are cycles a line or a scan.

Shape suffixes: N scans, L lines, P pixels, K frequencies, Q quantiles, F features.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.ticker import NullFormatter
from numpy.typing import NDArray
from scipy.stats import wasserstein_distance
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from tqdm import tqdm

from scanbench import plotting, provenance, text
from scanbench.errors import UserError
from scanbench.files import replacing_folder, write_json
from scanbench.plotting import BLUE, DOUBLE, MM, VERMILLION, Sheet
from scanbench.store import Store
from scanbench.tables import ResultTable, write
from scanbench.tipstate.figures import Picture, scans_by_class
from scanbench.tipstate.models._efficientnet import EfficientNet

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]

QUANTILES = 128
"""Heights that stand for a scan in histograms, so that each scan counts alike."""
FOLDS = 5
"""Parts of the groups in turn held out of the discriminator."""
INVERSE_REGULARISATION = 1e-3
"""Of the discriminator, as of `efficientnet-linear`."""
CHUNK = 64
"""Scans whose features are computed at once."""
ALL = "all"
"""Name of the row over all classes."""
MEASURES = ("height_distance", "fast_distance_db", "slow_distance_db", "discriminator_auroc")


@dataclass(frozen=True)
class Scans:
    """Standardised scans of one store.

    Parameters
    ----------
    x_NLP
        Heights, 0 past the measured lines.
    n_lines_N, label_N, group_N
        Measured lines, class and session of each.
    feature_NF
        What ImageNet taught a network to see of each.
    """

    x_NLP: Floats
    n_lines_N: Ints
    label_N: Ints
    group_N: NDArray[np.str_]
    feature_NF: Floats

    def __len__(self) -> int:
        """Return the number of scans."""
        return len(self.x_NLP)

    def where(self, chosen_N: NDArray[Any]) -> Scans:
        """Return some of the scans."""
        return Scans(
            self.x_NLP[chosen_N],
            self.n_lines_N[chosen_N],
            self.label_N[chosen_N],
            self.group_N[chosen_N],
            self.feature_NF[chosen_N],
        )


def sample(store: Store, most: int, seed: int) -> Scans:
    """Draw labelled scans of a store at random.

    Parameters
    ----------
    store
        Where they are.
    most
        So many, or all if there are fewer.
    seed
        Of the drawing.

    Raises
    ------
    UserError
        If no scan has a label.
    """
    labelled = np.flatnonzero((store.label >= 0) & (store.n_lines > 0))
    if labelled.size == 0:
        raise UserError(f"{store.path}: no scan has a label; realism sorts scans by class")
    drawn = np.sort(np.random.default_rng(seed).permutation(labelled)[:most])
    x_NLP = store.read(drawn, "scan")
    return Scans(
        x_NLP,
        store.n_lines[drawn].astype(np.int64),
        store.label[drawn].astype(np.int64),
        store.group[drawn],
        _features(x_NLP),
    )


def _features(x_NLP: Floats) -> Floats:
    network = EfficientNet().eval()
    network.load_imagenet()
    starts = range(0, len(x_NLP), CHUNK)
    with torch.inference_mode():
        parts = [
            network(torch.from_numpy(x_NLP[k : k + CHUNK])).numpy()
            for k in tqdm(starts, desc="features", unit="batch", mininterval=0.5)
        ]
    return np.concatenate(parts)


def quantiles(scans: Scans) -> Floats:
    """Return quantiles of the heights of each scan [N, Q], measured lines only."""
    levels_Q = (np.arange(QUANTILES) + 0.5) / QUANTILES
    measured = zip(scans.x_NLP, scans.n_lines_N, strict=True)
    rows = [np.quantile(x_LP[:n], levels_Q) for x_LP, n in measured]
    return np.array(rows, np.float32).reshape(-1, QUANTILES)


def fast_spectra(scans: Scans) -> Floats:
    """Return the power spectrum of each scan's lines, mean over its measured lines [N, K].

    K is 1 to P / 2 cycles a line; with a Hann window, scaled so that the sum over K is about the
    variance about the lines' means.
    """
    power_NLK = _power(scans.x_NLP)
    measured_NL = np.arange(scans.x_NLP.shape[1]) < scans.n_lines_N[:, None]
    total_NK = np.einsum("nlk,nl->nk", power_NLK, measured_NL.astype(np.float32))
    spectra_NK: Floats = total_NK / scans.n_lines_N[:, None].astype(np.float32)
    return spectra_NK


def slow_spectra(scans: Scans) -> Floats:
    """Return the same along the slow axis, 1 to L / 2 cycles a scan, of the whole scans only."""
    whole = scans.x_NLP[scans.n_lines_N == scans.x_NLP.shape[1]]
    spectra_NK: Floats = _power(whole.transpose(0, 2, 1)).mean(axis=1)
    return spectra_NK


def _power(x_NLP: Floats) -> Floats:
    window_P = np.hanning(x_NLP.shape[2]).astype(np.float32)
    scale = 2 / (x_NLP.shape[2] * float(np.square(window_P).sum()))
    power: Floats = scale * np.abs(np.fft.rfft(x_NLP * window_P, axis=2)[..., 1:]) ** 2
    return power.astype(np.float32)


def log_spectral_distance(a_NK: Floats, b_NK: Floats) -> float:
    """Return the rms difference of two mean spectra in dB; NaN if one is of no scan.

    A. H. Gray and J. D. Markel, IEEE Trans. Acoust. Speech Signal Process. 24, 380 (1976).
    """
    if not len(a_NK) or not len(b_NK):
        return float("nan")
    tiny = np.finfo(np.float32).tiny
    decibel_K = 10 * (np.log10(a_NK.mean(0) + tiny) - np.log10(b_NK.mean(0) + tiny))
    return float(np.sqrt(np.mean(decibel_K**2)))


def discriminate(a: Scans, b: Scans) -> list[tuple[Ints, Floats]]:
    """Let a linear classifier tell scans of two kinds apart, in sessions that it was not fitted to.

    D. Lopez-Paz and M. Oquab, "Revisiting Classifier Two-Sample Tests", ICLR 2017, arXiv
    1610.06545.

    Parameters
    ----------
    a, b
        The scans of either kind.

    Returns
    -------
    list
        Of each fold, the positions held out (of a, then of b) and their scores.
    """
    x_NF = np.concatenate([a.feature_NF, b.feature_NF])
    kind_N = np.repeat([0, 1], [len(a), len(b)])
    group_N = np.array([f"a {g}" for g in a.group_N] + [f"b {g}" for g in b.group_N])
    classifier = make_pipeline(
        StandardScaler(),
        LogisticRegression(C=INVERSE_REGULARISATION, class_weight="balanced", max_iter=300),
    )
    found = []
    for train, held in GroupKFold(min(FOLDS, len(set(group_N)))).split(x_NF, kind_N, group_N):
        if len(set(kind_N[train])) == 2:
            score = classifier.fit(x_NF[train], kind_N[train]).decision_function(x_NF[held])
            found.append((held, score))
    return found


def _auroc(folds: Sequence[Any], kind_N: Ints, chosen_N: NDArray[np.bool_]) -> float:
    """Return the mean AUROC over the folds that hold out both kinds of the chosen scans."""
    values = []
    for held, score in folds:
        mine = chosen_N[held]
        if len(set(kind_N[held][mine])) == 2:
            values.append(float(roc_auc_score(kind_N[held][mine], score[mine])))
    return float(np.mean(values)) if values else float("nan")


def distances(a: Scans, b: Scans, classes: Sequence[str], of: str) -> pd.DataFrame:
    """Measure how far two kinds of scans are apart, class by class and over all.

    Parameters
    ----------
    a, b
        The scans; each of both kinds counts alike.
    classes
        Their class names.
    of
        What is compared, for the column of this name.

    Returns
    -------
    pandas.DataFrame
        `of,class,scans_a,scans_b` and `MEASURES`: Wasserstein distance of the standardised heights,
        log-spectral distances along the fast and the slow axis (dB), and the AUROC at which a
        classifier tells the two apart (0.5: it cannot).
    """
    folds = discriminate(a, b)
    kind_N = np.repeat([0, 1], [len(a), len(b)])
    label_N = np.concatenate([a.label_N, b.label_N])
    rows = []
    for k, name in [(-1, ALL), *enumerate(classes)]:
        both = [side.where((side.label_N == k) | (k < 0)) for side in (a, b)]
        heights = [quantiles(side).ravel() for side in both]
        some = all(len(side) for side in both)
        rows.append(
            {
                "of": of,
                "class": name,
                "scans_a": len(both[0]),
                "scans_b": len(both[1]),
                "height_distance": wasserstein_distance(*heights) if some else float("nan"),
                "fast_distance_db": log_spectral_distance(*map(fast_spectra, both)),
                "slow_distance_db": log_spectral_distance(*map(slow_spectra, both)),
                "discriminator_auroc": _auroc(folds, kind_N, (label_N == k) | (k < 0)),
            }
        )
    return pd.DataFrame(rows)


def halves(scans: Scans, seed: int) -> tuple[Scans, Scans]:
    """Divide scans in two by whole sessions, the largest dealt out in turn."""
    names, counts = np.unique(scans.group_N, return_counts=True)
    order = np.random.default_rng(seed).permutation(len(names))
    order = order[np.argsort(-counts[order], kind="stable")]
    first_N = np.isin(scans.group_N, names[order[0::2]])
    return scans.where(first_N), scans.where(~first_N)


def realism(spec: Mapping[str, Any], real: Path, simulated: Path, out: Path) -> None:
    """Write figures, table and provenance of real and simulated scans side by side.

    Parameters
    ----------
    spec
        What `scanbench.plan.realism_spec` gives.
    real, simulated
        Two stores of the same classes and size.
    out
        Folder for `scans.*`, `spectra.*` (figures), `realism.{csv,md,tex}` and `provenance.json`.

    Raises
    ------
    UserError
        If the stores do not fit each other, or one has no labelled scan.
    """
    started = time.time()
    with Store(real) as one, Store(simulated) as other:
        for what in ("classes", "lines", "pixels"):
            if getattr(one, what) != getattr(other, what):
                raise UserError(
                    f"{simulated}: {what} {getattr(other, what)}, but {real} has "
                    f"{getattr(one, what)}; give both data sets the same"
                )
        classes = one.classes
        mine, made = (sample(store, spec["scans"], spec["seed"]) for store in (one, other))
    rows = distances(mine, made, classes, "real and simulated")
    if len(set(mine.group_N)) > 1:
        first, second = halves(mine, spec["seed"])
        apart = distances(first, second, classes, "two halves of the real sessions")
        rows = pd.concat([rows, apart], ignore_index=True)
    figures = {
        "scans": _pictures(mine, made, classes),
        "spectra": drawing(mine, made, classes),
    }
    with replacing_folder(out, marker="provenance.json") as folder:
        write(table(rows, spec), folder)
        source = ". ".join(filter(None, (spec["real"]["title"], spec["real"]["attribution"])))
        note = f"{spec['simulated']['title']} beside real scans. Real: {source}"
        for name, figure in figures.items():
            figure.note(note)
            plotting.save(figure, folder, name)
        write_json(
            folder / "provenance.json",
            provenance.record(
                spec,
                inputs={"real": real, "simulated": simulated},
                started=started,
                seed=spec["seed"],
            ),
        )


def table(rows: pd.DataFrame, spec: Mapping[str, Any]) -> ResultTable:
    """Return the distances as a table."""
    shown = pd.DataFrame(
        {
            "Compared": rows["of"],
            "Class": rows["class"],
            "Scans": [f"{a} / {b}" for a, b in zip(rows["scans_a"], rows["scans_b"], strict=True)],
            "Heights": [text.number(v) for v in rows["height_distance"]],
            "Fast axis (dB)": [text.number(v, 1) for v in rows["fast_distance_db"]],
            "Slow axis (dB)": [text.number(v, 1) for v in rows["slow_distance_db"]],
            "Told apart (AUROC)": [text.number(v) for v in rows["discriminator_auroc"]],
        }
    )
    return ResultTable(
        name="realism",
        title=f"{spec['title']}: Wasserstein distance of standardised heights, log-spectral "
        "distances of line spectra, and the AUROC at which a linear classifier of ImageNet's "
        "features tells the two apart in sessions that it has not seen (0.5: it cannot).",
        raw=rows,
        shown=shown.astype(str),
    )


def _pictures(real: Scans, simulated: Scans, classes: Sequence[str], columns: int = 6) -> Sheet:
    pictures = {}
    for k, name in enumerate(classes):
        for side, scans in (("real", real), ("simulated", simulated)):
            # Whole scans, spread over the sample and so over the sessions.
            whole = np.flatnonzero((scans.label_N == k) & (scans.n_lines_N == scans.x_NLP.shape[1]))
            chosen = whole[np.linspace(0, len(whole) - 1, min(columns, len(whole))).astype(int)]
            pictures[f"{name} {side}"] = [
                Picture(x_LP=scans.x_NLP[i], title="", aspect=1.0) for i in chosen
            ]
    return scans_by_class(pictures, list(pictures), columns)


@plotting.styled
def drawing(real: Scans, simulated: Scans, classes: Sequence[str]) -> Sheet:
    """Draw mean line spectra along both axes and height histograms, a row for each class."""
    figure = Sheet(DOUBLE, (12 + 38 * len(classes)) * MM)
    panels = figure.body.subplots(len(classes), 3, squeeze=False, sharex="col")
    bins = np.linspace(-4, 4, 65)
    handles: list[Any] = []
    for k, name in enumerate(classes):
        for side, colour, style in ((real, BLUE, "-"), (simulated, VERMILLION, (0, (4, 1.5)))):
            mine = side.where(side.label_N == k)
            if not len(mine):
                continue
            for axes, spectra_NK in zip(
                panels[k], (fast_spectra(mine), slow_spectra(mine)), strict=False
            ):
                if len(spectra_NK):
                    cycles_K = np.arange(1, spectra_NK.shape[1] + 1)
                    mean_K = spectra_NK.mean(axis=0)
                    [line] = axes.loglog(cycles_K, mean_K, color=colour, linestyle=style)
                    if k == 0 and axes is panels[0, 0]:
                        handles.append(line)
            density, _ = np.histogram(quantiles(mine), bins, density=True)
            panels[k, 2].stairs(density, bins, color=colour, linestyle=style)
        for axes in panels[k, :2]:  # powers of ten would need mathematical text
            for axis in (axes.xaxis, axes.yaxis):
                axis.set_major_formatter("{x:g}")
                axis.set_minor_formatter(NullFormatter())
        panels[k, 0].set_ylabel(f"{text.plain(name)}\npower (variance)")
        panels[k, 2].set_ylabel("share per deviation")
    for axes, label in zip(
        panels[-1],
        ("cycles a line (fast axis)", "cycles a scan (slow axis)", "standardised height"),
        strict=True,
    ):
        axes.set_xlabel(label)
    figure.body.legend(handles, ["real", "simulated"], loc="outside upper center", ncols=2)
    return figure
