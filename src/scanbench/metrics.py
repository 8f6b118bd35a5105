"""Point metrics, as functions of how often each unit (group of scans) counts.

A bootstrap resamples groups and a permutation test swaps them, so every metric here is evaluated
for many weightings of the same rows at once. Each rests on a statistic computed once per unit:

* confusion counts and calibration sums add over units, so a weighting is one matrix product;
* the AUROC is a ratio of counts of (positive, negative) pairs in the right order, which add over
  *pairs* of units (Hanley & McNeil, Radiology 143, 29 (1982)), so a weighting is a quadratic form.

Pairs are counted within a fold only. A training part that is rich in a class leaves a test part
poor in it, so a model that merely knows how common classes were would rank the folds' scans in
reverse, if scores of different folds met (Parker, Günter & Bedo, BMC Bioinf. 8, 326 (2007); Forman
& Scholz, SIGKDD Explor. 12, 49 (2010)).

Weights are whole numbers, so these sums are exact in float64, whatever their order.

Shape suffixes: N rows, M rows of a fold, C classes, K units, F folds, B weightings, S seeds, Q bins
of confidence.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import pandas as pd
from numpy.typing import NDArray

Floats: TypeAlias = NDArray[np.float64]
Ints: TypeAlias = NDArray[np.int64]
Table: TypeAlias = dict[tuple[str, int | None], Floats]

METRICS = (
    "auroc",
    "balanced_accuracy",
    "balanced_accuracy_fitted",
    "accuracy",
    "f1",
    "ece",
)

#: A probability of 0 in float32 may stand for anything below this.
LEAST = 1e-12

# Weightings × rows held at a time where the AUROC is summed over sorted rows (16 MB in float64).
CHUNK = 2_000_000


def log_probability(p: Floats) -> Floats:
    """Return the natural logarithm of probabilities, finite where they are 0."""
    return np.log(np.maximum(p, LEAST))


# ---------------------------------------------------------------------------------------------
# AUROC


def auroc(
    score_N: Floats, positive_N: NDArray[np.bool_], unit_N: Ints, fold_N: Ints, weight_BK: Floats
) -> Floats:
    """Area under the ROC curve of one class against the rest, for many weightings of the units.

    The share of (positive, negative) pairs of one fold in which the positive row scores higher,
    over all folds together; ties count one half. So a fold weighs as much as it has pairs. With one
    fold it equals `sklearn.metrics.roc_auc_score` with `sample_weight=weight_BK[b, unit_N]`.

    Parameters
    ----------
    score_N
        Higher means more likely positive.
    positive_N
        Which rows are of the class.
    unit_N
        Unit of each row, 0 … K − 1.
    fold_N
        Fold of each row: rows of one fold were scored by one trained model.
    weight_BK
        How often each unit counts; whole numbers ≥ 0.

    Returns
    -------
    ndarray
        [B], in [0, 1]; NaN where a weighting leaves no fold with a positive and a negative row.
    """
    concordant_B = np.zeros(len(weight_BK))
    for fold in np.unique(fold_N):
        rows = fold_N == fold
        units = len(np.unique(unit_N[rows]))
        # A quadratic form costs K² multiply-adds of BLAS, sorted rows N gathers, 50 × slower.
        concordant = _concordant_by_unit if units**2 < 50 * rows.sum() else _concordant_by_row
        concordant_B += concordant(score_N[rows], positive_N[rows], unit_N[rows], weight_BK)
    return ratio(concordant_B, pair_counts(positive_N, unit_N, fold_N, weight_BK))


def pair_counts(
    positive_N: NDArray[np.bool_], unit_N: Ints, fold_N: Ints, weight_BK: Floats
) -> Floats:
    """Count the (positive, negative) pairs of rows of one fold, over all folds: [B].

    Parameters are those of `auroc`, which has no value where this is 0.
    """
    folds, fold_N = np.unique(fold_N, return_inverse=True)
    rows_2KF = np.zeros((2, weight_BK.shape[1], len(folds)))
    np.add.at(rows_2KF, (positive_N.astype(np.intp), unit_N, fold_N), 1)
    negatives_BF, positives_BF = weight_BK @ rows_2KF
    return np.asarray((negatives_BF * positives_BF).sum(axis=1))


def _bounds(score_N: Floats, positive_N: NDArray[np.bool_]) -> tuple[Ints, Ints, Ints]:
    """Order of the negatives, and per positive how many are below and how many not above it."""
    order = np.argsort(score_N[~positive_N], kind="stable")
    negatives = score_N[~positive_N][order]
    positives = score_N[positive_N]
    return (
        order,
        np.searchsorted(negatives, positives, side="left"),
        np.searchsorted(negatives, positives, side="right"),
    )


def _concordant_by_unit(
    score_N: Floats, positive_N: NDArray[np.bool_], unit_N: Ints, weight_BK: Floats
) -> Floats:
    own, unit_N = np.unique(unit_N, return_inverse=True)
    weight_BK, units = weight_BK[:, own], len(own)
    order, below, upto = _bounds(score_N, positive_N)
    seen_MK = np.zeros((len(order) + 1, units))  # negatives of each unit among the M lowest
    seen_MK[np.arange(1, len(order) + 1), unit_N[~positive_N][order]] = 1
    np.cumsum(seen_MK, axis=0, out=seen_MK)
    wins_PK = (seen_MK[below] + seen_MK[upto]) / 2
    member_KP = np.arange(units)[:, None] == unit_N[positive_N]
    wins_KK = member_KP.astype(np.float64) @ wins_PK
    return np.asarray(((weight_BK @ wins_KK) * weight_BK).sum(axis=1))


def _concordant_by_row(
    score_N: Floats, positive_N: NDArray[np.bool_], unit_N: Ints, weight_BK: Floats
) -> Floats:
    order, below, upto = _bounds(score_N, positive_N)
    negative_M, positive_P = unit_N[~positive_N][order], unit_N[positive_N]
    total_B = np.empty(len(weight_BK))
    step = max(1, CHUNK // max(1, len(score_N)))
    for start in range(0, len(weight_BK), step):
        part_BK = weight_BK[start : start + step]
        seen_BM = np.zeros((len(part_BK), len(order) + 1))
        np.cumsum(part_BK[:, negative_M], axis=1, out=seen_BM[:, 1:])
        wins_BP = (seen_BM[:, below] + seen_BM[:, upto]) / 2
        total_B[start : start + step] = np.einsum("bp,bp->b", part_BK[:, positive_P], wins_BP)
    return total_B


def roc_points(
    score_N: Floats, positive_N: NDArray[np.bool_], fold_N: Ints, points: int = 200
) -> tuple[Floats, Floats]:
    """Return (fpr, tpr) of a ROC curve for plotting, from (0, 0) to (1, 1).

    With several folds, the curve is the mean of the folds' curves at each false-positive rate
    (vertical averaging; Fawcett, Pattern Recognit. Lett. 27, 861 (2006), section 8.1), weighted by
    their (positive, negative) pairs: the area under it is that of `auroc`. A fold without pairs has
    no curve. If the curve has more than `points` corners, those nearest to evenly spaced places
    along it are kept; every point returned is a point of the exact curve.

    Parameters
    ----------
    score_N, positive_N, fold_N
        As in `auroc`; some fold has a positive and a negative row.
    points
        Corners kept at most.
    """
    curves, pairs = [], []
    for fold in np.unique(fold_N):
        positive_M = positive_N[fold_N == fold]
        if positive_M.any() and not positive_M.all():
            curves.append(_roc_corners(score_N[fold_N == fold], positive_M))
            pairs.append(positive_M.sum() * (~positive_M).sum())
    fpr = np.unique(np.concatenate([fpr for fpr, _ in curves]))
    ends_F2R = [_vertical_ends(curve, fpr) for curve in curves]
    ends_2R = np.average(ends_F2R, axis=0, weights=np.array(pairs) / max(pairs))
    # Where the curve does not rise both ends are one point.
    fpr, tpr = np.repeat(fpr, 2), ends_2R.T.ravel()
    moves = np.append(True, (np.diff(fpr) > 0) | (np.diff(tpr) > 0))
    fpr, tpr = fpr[moves], tpr[moves]
    if len(fpr) > points:
        along = fpr + tpr  # rises from 0 to 2 along the curve, never falls
        nearest = np.searchsorted(along, np.linspace(0, 2, points - 1), side="left")
        kept = np.unique(np.append(nearest, len(fpr) - 1))
        fpr, tpr = fpr[kept], tpr[kept]
    return fpr, tpr


def _roc_corners(score_M: Floats, positive_M: NDArray[np.bool_]) -> tuple[Floats, Floats]:
    """Return (fpr, tpr) of one fold's curve, without points on a straight run between corners."""
    order = np.argsort(-score_M, kind="stable")
    last_M = np.append(np.diff(score_M[order]) != 0, True)  # last row of each block of ties
    true_R = np.concatenate([[0], np.cumsum(positive_M[order])[last_M]]).astype(np.float64)
    false_R = np.concatenate([[0], np.cumsum(~positive_M[order])[last_M]]).astype(np.float64)
    turn_R = (
        np.diff(true_R)[:-1] * np.diff(false_R)[1:] != np.diff(true_R)[1:] * np.diff(false_R)[:-1]
    )
    keep = np.concatenate([[True], turn_R, [True]])
    return false_R[keep] / false_R[-1], true_R[keep] / true_R[-1]


def _vertical_ends(curve: tuple[Floats, Floats], at_R: Floats) -> Floats:
    """Return the lowest and the highest tpr of a curve at each fpr: [2, R]."""
    fpr, tpr = curve
    upto = np.searchsorted(fpr, at_R, side="left")  # first corner not before the place
    since = np.searchsorted(fpr, at_R, side="right") - 1  # last corner not behind it
    between = np.interp(at_R, fpr, tpr)
    return np.stack([np.where(fpr[end] == at_R, tpr[end], between) for end in (upto, since)])


# ---------------------------------------------------------------------------------------------
# Metrics of the predicted class


def confusion_by_unit(
    label_N: Ints, predicted_N: Ints, unit_N: Ints, units: int, classes: int
) -> Floats:
    """Count rows by unit, true class and predicted class: [K, C, C]."""
    cell = (unit_N * classes + label_N) * classes + predicted_N
    counts = np.bincount(cell, minlength=units * classes * classes)
    return counts.reshape(units, classes, classes).astype(np.float64)


def ratio(part: Floats, whole: Floats) -> Floats:
    """Divide; NaN where there is nothing to divide by."""
    return part / np.where(whole > 0, whole, np.nan)


def accuracy(confusion_CC: Floats) -> Floats:
    """Return the share of rows on the diagonal of [..., C, C] (rows: true, columns: predicted)."""
    return ratio(np.trace(confusion_CC, axis1=-2, axis2=-1), confusion_CC.sum(axis=(-2, -1)))


def recall(confusion_CC: Floats) -> Floats:
    """Return the share of each true class that was found: [..., C]; NaN if it has no rows."""
    return ratio(np.diagonal(confusion_CC, axis1=-2, axis2=-1), confusion_CC.sum(axis=-1))


def f1(confusion_CC: Floats) -> Floats:
    """Return F1 = 2 TP / (2 TP + FP + FN) of each class: [..., C]; NaN if it never occurs."""
    hit = np.diagonal(confusion_CC, axis1=-2, axis2=-1)
    return ratio(2 * hit, confusion_CC.sum(axis=-1) + confusion_CC.sum(axis=-2))


# ---------------------------------------------------------------------------------------------
# Calibration


def calibration_by_unit(p_NC: Floats, label_N: Ints, unit_N: Ints, units: int, bins: int) -> Floats:
    """Sum rows, confidences and hits by unit and equal-width bin of confidence: [K, Q, 3].

    The confidence is the probability of the predicted class. A bin holds its upper edge and not its
    lower one, as in Guo et al., ICML 2017 (arXiv 1706.04599).
    """
    confidence_N = p_NC.max(axis=1)
    bin_N = np.clip(np.ceil(confidence_N * bins).astype(np.int64) - 1, 0, bins - 1)
    cell = unit_N * bins + bin_N
    hit_N = (p_NC.argmax(axis=1) == label_N).astype(np.float64)
    sums = [
        np.bincount(cell, weights=value_N, minlength=units * bins)
        for value_N in (np.ones_like(hit_N), confidence_N, hit_N)
    ]
    return np.stack(sums, axis=-1).reshape(units, bins, 3).astype(np.float64)


def ece(calibration_Q3: Floats) -> Floats:
    """Return the expected calibration error of [..., Q, 3]: Σ_q n_q/n |accuracy_q − confidence_q|.

    Guo et al., ICML 2017 (arXiv 1706.04599), eq. 3.
    """
    count, confidence, hits = np.moveaxis(calibration_Q3, -1, 0)
    return ratio(np.abs(hits - confidence).sum(axis=-1), count.sum(axis=-1))


# ---------------------------------------------------------------------------------------------
# All metrics of one reading


def units_of(group_N: NDArray[np.object_]) -> tuple[list[str], Ints]:
    """Return the sorted names of the groups and each row's index into them."""
    names, unit_N = np.unique(group_N.astype(str), return_inverse=True)
    return [str(name) for name in names], unit_N.astype(np.int64)


def weighted_sums(value_NX: Floats, unit_N: Ints, weight_BU: Floats) -> Floats:
    """Sum values over scans, each counted as often as its unit: [B, …]."""
    by_unit = np.zeros((weight_BU.shape[1], *value_NX.shape[1:]))
    np.add.at(by_unit, unit_N, value_NX)
    return np.tensordot(weight_BU, by_unit, axes=1)


def mean_values(value_SN: Floats, unit_N: Ints, weight_BK: Floats) -> Floats:
    """Return the mean over rows for each seed and each weighting of the units, [S, B].

    Parameters
    ----------
    value_SN
        One value per seed and row.
    unit_N
        Unit (group) of each row, 0 … K − 1.
    weight_BK
        How often each unit counts.

    Returns
    -------
    ndarray
        NaN where a weighting leaves no row.
    """
    member_NK = (unit_N[:, None] == np.arange(weight_BK.shape[1])).astype(np.float64)
    return ratio(value_SN @ member_NK @ weight_BK.T, member_NK.sum(axis=0) @ weight_BK.T)


def metric_values(
    p_SNC: Floats,
    label_N: Ints,
    unit_N: Ints,
    fold_N: Ints,
    weight_BK: Floats,
    bins: int,
    *,
    fitted_SN: Ints | None = None,
) -> Table:
    """Evaluate every metric for each seed and each weighting of the units.

    Parameters
    ----------
    p_SNC
        Probabilities, for each of S seeds.
    label_N
        True classes, 0 … C − 1.
    unit_N
        Unit (group) of each row, 0 … K − 1.
    fold_N
        Fold of each row; the AUROC ranks rows within a fold.
    weight_BK
        How often each unit counts.
    bins
        Bins of confidence for the calibration error.
    fitted_SN
        Classes that are predicted by other thresholds than the largest probability, for
        `balanced_accuracy_fitted`; None: without this figure.

    Returns
    -------
    dict
        (metric, class index or None for the macro figure) → [S, B]. `recall` is among them for each
        class; balanced accuracy is its mean. Macro figures are plain means over all classes, NaN
        where a weighting leaves one of them without a value.
    """
    (seeds, _, classes), units = p_SNC.shape, weight_BK.shape[1]
    shape = (seeds, len(weight_BK))
    table: Table = {("auroc", c): np.empty(shape) for c in range(classes)}
    confusion = np.empty((*shape, classes, classes))
    calibration = np.empty((*shape, bins, 3))
    for s, p_NC in enumerate(p_SNC):
        for c in range(classes):
            table["auroc", c][s] = auroc(p_NC[:, c], label_N == c, unit_N, fold_N, weight_BK)
        by_unit = confusion_by_unit(label_N, p_NC.argmax(axis=1), unit_N, units, classes)
        confusion[s] = np.tensordot(weight_BK, by_unit, axes=1)
        bin_sums = calibration_by_unit(p_NC, label_N, unit_N, units, bins)
        calibration[s] = np.tensordot(weight_BK, bin_sums, axes=1)
    recalls, f1s = recall(confusion), f1(confusion)
    for c in range(classes):
        table["recall", c] = recalls[..., c]
        table["f1", c] = f1s[..., c]
    table["auroc", None] = np.mean([table["auroc", c] for c in range(classes)], axis=0)
    table["balanced_accuracy", None] = recalls.mean(axis=-1)
    if fitted_SN is not None:
        by_seed = [
            confusion_by_unit(label_N, predicted_N, unit_N, units, classes)
            for predicted_N in fitted_SN
        ]
        counts = np.stack([np.tensordot(weight_BK, own, axes=1) for own in by_seed])
        table["balanced_accuracy_fitted", None] = recall(counts).mean(axis=-1)
    table["accuracy", None] = accuracy(confusion)
    table["f1", None] = f1s.mean(axis=-1)
    table["ece", None] = ece(calibration)
    return table


def reliability(p_SNC: Floats, label_N: Ints, bins: int) -> pd.DataFrame:
    """Return the reliability diagram, pooled over seeds.

    Returns
    -------
    pandas.DataFrame
        One row per bin: `bin_low`, `bin_high`, mean `confidence`, `accuracy` (both NaN in an empty
        bin), `count`.
    """
    p_NC = p_SNC.reshape(-1, p_SNC.shape[-1])
    label = np.tile(label_N, len(p_SNC))
    sums_Q3 = calibration_by_unit(p_NC, label, np.zeros_like(label), 1, bins)[0]
    edges = np.linspace(0, 1, bins + 1)
    return pd.DataFrame(
        {
            "bin_low": edges[:-1],
            "bin_high": edges[1:],
            "confidence": ratio(sums_Q3[:, 1], sums_Q3[:, 0]),
            "accuracy": ratio(sums_Q3[:, 2], sums_Q3[:, 0]),
            "count": sums_Q3[:, 0].astype(np.int64),
        }
    )
