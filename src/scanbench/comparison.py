"""Intervals and paired tests that respect groups.

Windows of one scan, and scans of one session, resemble each other, so they are not so many
independent trials. The group is the unit here: intervals resample groups (and seeds), and the test
swaps two models' answers group by group. Every experiment meets the same resamples and swaps.

Shape suffixes: S seeds, N rows, C classes, K units (groups), B resamples or swaps.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from scanbench import metrics
from scanbench.metrics import Floats, Ints

# Metrics that the test can compare: those whose macro figure is a function of the answers' order or
# of the predicted classes.
TESTABLE = ("auroc", "balanced_accuracy", "accuracy", "f1")

# Below this number of groups a report says how little can be claimed.
FEW_GROUPS = 10

# Swap × unit weights held at a time (32 MB in float64).
CHUNK = 4_000_000


# ---------------------------------------------------------------------------------------------
# Intervals


@dataclass(frozen=True, kw_only=True)
class Resamples:
    """B bootstrap samples of groups and, independently, of seeds.

    Parameters
    ----------
    unit_BK
        How often each group was drawn.
    seed_BS
        How often each seed was drawn.
    """

    unit_BK: Floats
    seed_BS: Floats


def draw_resamples(
    label_N: Ints,
    unit_N: Ints,
    fold_N: Ints,
    *,
    units: int,
    classes: int,
    seeds: int,
    count: int,
    seed: int,
) -> Resamples:
    """Draw groups and seeds with replacement, each as many as there are.

    A sample of groups in which no fold holds some class beside another has no AUROC; it is drawn
    again, so the interval is conditional on every class being there.

    Parameters
    ----------
    label_N, unit_N, fold_N
        Class, unit and fold of each row; every class stands beside another in some fold.
    units, classes, seeds
        K, C and S.
    count
        Number of resamples, B.
    seed
        Of the random numbers.
    """

    def lacks(unit_BK: Floats) -> NDArray[np.bool_]:
        pairs_CB = [
            metrics.pair_counts(label_N == c, unit_N, fold_N, unit_BK) for c in range(classes)
        ]
        return np.any(np.equal(pairs_CB, 0), axis=0)

    assert not lacks(np.ones((1, units))), "every class must stand beside another in some fold"
    return draw_groups(units=units, seeds=seeds, count=count, seed=seed, refused=lacks)


def draw_groups(
    *,
    units: int,
    seeds: int,
    count: int,
    seed: int,
    refused: Callable[[Floats], NDArray[np.bool_]] | None = None,
) -> Resamples:
    """Draw groups and seeds with replacement, each as many as there are.

    Parameters
    ----------
    units, seeds
        K and S.
    count
        Number of resamples, B.
    seed
        Of the random numbers.
    refused
        Tells of weights of the units [B, K] which samples are drawn again; None: none.
    """
    rng = np.random.default_rng([seed, 0])
    unit_BK = np.zeros((count, units))
    redraw_B = np.ones(count, dtype=bool)
    while redraw_B.any():
        unit_BK[redraw_B] = rng.multinomial(units, np.full(units, 1 / units), redraw_B.sum())
        redraw_B = refused(unit_BK) if refused is not None else np.zeros(count, dtype=bool)
    seed_BS = rng.multinomial(seeds, np.full(seeds, 1 / seeds), count).astype(np.float64)
    return Resamples(unit_BK=unit_BK, seed_BS=seed_BS)


def interval(value_SB: Floats, resamples: Resamples, confidence: float) -> tuple[float, float]:
    """Percentile interval of the mean over seeds, from resampling groups and seeds together.

    Parameters
    ----------
    value_SB
        The metric, or the difference of two experiments' metrics, of each seed for each resample of
        the groups.
    resamples
        The resamples that `value_SB` was computed for.
    confidence
        E.g. 0.95.

    Returns
    -------
    (float, float)
        NaN for a single group, from which nothing can be told of other groups.
    """
    if resamples.unit_BK.shape[1] < 2:
        return float("nan"), float("nan")
    seed_BS = resamples.seed_BS
    mean_B = (value_SB.T * seed_BS).sum(axis=1) / seed_BS.shape[1]
    low, high = np.quantile(mean_B, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def percentiles(value_B: Floats, confidence: float) -> tuple[float, float]:
    """Percentile interval of what resamples give [B]; those without a value are left out."""
    value_B = value_B[np.isfinite(value_B)]
    if len(value_B) < 2:
        return math.nan, math.nan
    low, high = np.quantile(value_B, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


# ---------------------------------------------------------------------------------------------
# Paired test


@dataclass(frozen=True, kw_only=True)
class Swaps:
    """Which groups' answers are swapped between two models, in each of B relabellings.

    Parameters
    ----------
    swap_BK
        True where the group's answers are swapped.
    exact
        Whether these are all distinct relabellings rather than a random sample.
    """

    swap_BK: NDArray[np.bool_]
    exact: bool


def draw_swaps(units: int, count: int, seed: int) -> Swaps:
    """Enumerate all swaps of K groups if there are at most `count`, else draw `count` of them.

    Swapping every group only turns the difference's sign, so 2^(K−1) swaps that leave the first
    group alone stand for all 2^K in a two-sided test.
    """
    if units - 1 <= np.log2(count):
        number = np.arange(2 ** (units - 1))[:, None]
        swap_BK = (number >> np.arange(units)[None, ::-1]) & 1 == 1
        return Swaps(swap_BK=swap_BK, exact=True)
    rng = np.random.default_rng([seed, 1])
    return Swaps(swap_BK=rng.random((count, units)) < 0.5, exact=False)


def swap_test(
    p_a_SNC: Floats,
    p_b_SNC: Floats,
    label_N: Ints,
    unit_N: Ints,
    fold_N: Ints,
    swaps: Swaps,
    metric: str,
) -> tuple[float, float]:
    """Test whether two models differ, by swapping their answers group by group.

    Under the null hypothesis the two models' answers on a group could as well have been each
    other's. All rows of a group, in all seeds, are swapped together. For the AUROC each model's
    scores are first replaced by their ranks within the fold, class by class and seed by seed: this
    leaves each model's AUROC as it is and makes scores of different scales exchangeable. For the
    other metrics the predicted classes are swapped. (Paired permutation of classifiers' AUROCs:
    Venkatraman & Begg, Biometrika 83, 835 (1996); p value of a sample of permutations: Phipson &
    Smyth, Stat. Appl. Genet. Mol. Biol. 9, 39 (2010).)

    Parameters
    ----------
    p_a_SNC, p_b_SNC
        Probabilities of both models on the same rows and seeds.
    label_N, unit_N, fold_N
        Class, unit and fold of each row.
    swaps
        Drawn by `draw_swaps`, the same for all pairs.
    metric
        One of `TESTABLE`.

    Returns
    -------
    difference
        Mean over seeds of metric(a) − metric(b).
    p
        Two-sided. Exact: the share of swaps with a difference at least as large. Sampled:
        (1 + count) / (1 + swaps).
    """
    assert metric in TESTABLE, metric
    assert p_a_SNC.shape == p_b_SNC.shape, "a paired test needs the same rows and seeds"

    def swapped(swap_BK: NDArray[np.bool_]) -> Floats:
        if metric == "auroc":
            return _swapped_auroc(p_a_SNC, p_b_SNC, label_N, unit_N, fold_N, swap_BK)
        return _swapped_confusion(p_a_SNC, p_b_SNC, label_N, unit_N, swap_BK, metric)

    units = swaps.swap_BK.shape[1]
    rows = np.vstack([np.zeros((1, units), dtype=bool), swaps.swap_BK])
    step = max(1, CHUNK // (4 * units))
    difference_B = np.concatenate(
        [swapped(rows[start : start + step]) for start in range(0, len(rows), step)]
    )
    observed, null_B = difference_B[0], difference_B[1:]
    # Equal differences may come out a rounding error apart.
    extreme = int((np.abs(null_B) >= abs(observed) - 1e-12).sum())
    p = extreme / len(null_B) if swaps.exact else (1 + extreme) / (1 + len(null_B))
    return float(observed), float(p)


def _swapped_auroc(
    p_a_SNC: Floats,
    p_b_SNC: Floats,
    label_N: Ints,
    unit_N: Ints,
    fold_N: Ints,
    swap_BK: NDArray[np.bool_],
) -> Floats:
    """Difference of the macro AUROCs after each swap: [B].

    Both models' rows are laid end to end, with units of their own; a swap then is a choice of which
    of a group's two units counts for the first model.
    """
    seeds, _, classes = p_a_SNC.shape
    swap = swap_BK.astype(np.float64)
    first, second = np.hstack([1 - swap, swap]), np.hstack([swap, 1 - swap])
    unit_M = np.concatenate([unit_N, unit_N + swap_BK.shape[1]])
    label_M, fold_M = np.concatenate([label_N, label_N]), np.concatenate([fold_N, fold_N])
    total_B = np.zeros(2 * len(swap_BK))
    for p_a_NC, p_b_NC in zip(p_a_SNC, p_b_SNC, strict=True):
        rank_MC = np.concatenate([_ranks(p_a_NC, fold_N), _ranks(p_b_NC, fold_N)])
        for c in range(classes):
            total_B += metrics.auroc(
                rank_MC[:, c], label_M == c, unit_M, fold_M, np.concatenate([first, second])
            )
    mean_B = total_B / (seeds * classes)
    return mean_B[: len(swap)] - mean_B[len(swap) :]


def _ranks(p_NC: Floats, fold_N: Ints) -> Floats:
    """Rank each class's probabilities among the rows of a fold."""
    rank_NC = np.empty_like(p_NC)
    for fold in np.unique(fold_N):
        rank_NC[fold_N == fold] = rankdata(p_NC[fold_N == fold], axis=0)
    return rank_NC


def _swapped_confusion(
    p_a_SNC: Floats,
    p_b_SNC: Floats,
    label_N: Ints,
    unit_N: Ints,
    swap_BK: NDArray[np.bool_],
    metric: str,
) -> Floats:
    """Difference of a metric of the predicted class after each swap: [B]."""
    classes, units = p_a_SNC.shape[2], swap_BK.shape[1]
    swap = swap_BK.astype(np.float64)
    total_B = np.zeros(len(swap))
    for p_a_NC, p_b_NC in zip(p_a_SNC, p_b_SNC, strict=True):
        a, b = (
            metrics.confusion_by_unit(label_N, p_NC.argmax(axis=1), unit_N, units, classes)
            for p_NC in (p_a_NC, p_b_NC)
        )
        first = np.tensordot(1 - swap, a, axes=1) + np.tensordot(swap, b, axes=1)
        second = np.tensordot(swap, a, axes=1) + np.tensordot(1 - swap, b, axes=1)
        total_B += _of_confusion(first, metric) - _of_confusion(second, metric)
    return total_B / len(p_a_SNC)


def _of_confusion(confusion_BCC: Floats, metric: str) -> Floats:
    match metric:
        case "balanced_accuracy":
            return metrics.recall(confusion_BCC).mean(axis=-1)
        case "f1":
            return metrics.f1(confusion_BCC).mean(axis=-1)
        case _:
            return metrics.accuracy(confusion_BCC)


def holm(p: Sequence[float]) -> list[float]:
    """Adjust p values for their number (Holm, Scand. J. Stat. 6, 65 (1979)), in the order given.

    The chance that any true null hypothesis is rejected stays below the level, whatever the
    dependence between the tests.
    """
    order = np.argsort(p, kind="stable")
    factor = np.arange(len(p), 0, -1)
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum(1, np.maximum.accumulate(np.asarray(p)[order] * factor))
    return [float(value) for value in adjusted]


# ---------------------------------------------------------------------------------------------
# What may be claimed


def smallest_p(groups: int, permutations: int) -> float:
    """Return the smallest p value that swapping `groups` groups can give."""
    return max(2.0 / 2.0**groups, 1 / (1 + permutations))


def claims(
    *,
    groups: int,
    seeds: int,
    pairs: int,
    permutations: int,
    confidence: float,
    class_groups: Mapping[str, int],
) -> str:
    """Say in words how little can be claimed; empty if there is nothing to warn of.

    Parameters
    ----------
    groups
        Test groups.
    seeds
        Seeds of each experiment.
    pairs
        Pairs of experiments compared.
    permutations
        Swaps drawn at most.
    confidence
        Of the intervals, e.g. 0.95.
    class_groups
        Class → number of test groups that hold a scan of it.
    """
    level = 1 - confidence
    least = smallest_p(groups, permutations)
    notes = []
    if groups == 1:
        notes.append(
            "There is only 1 test group: nothing can be said of other groups, so no interval is "
            "given and no difference can be significant."
        )
    elif groups < FEW_GROUPS:
        notes.append(
            f"There are only {groups} test groups: intervals from so few are too narrow, and the "
            f"smallest p value that swapping {groups} groups can give is 2/2^{groups} = "
            f"{2.0 / 2.0**groups:.3g}. Read the results group by group, as a description of these "
            "groups and not as a ranking of models."
        )
    if groups > 1 and pairs > 0 and pairs * least > level:
        times = "" if pairs == 1 else f" ({pairs} pairs × {least:.3g})"
        mend = (
            "more groups, or fewer experiments"
            if 2.0 / 2.0**groups >= 1 / (1 + permutations)
            else "more permutations, or fewer experiments"
        )
        notes.append(
            f"No pair can reach an adjusted p value below {min(1.0, pairs * least):.3g}{times}: "
            f"for a test at level {level:.3g}, take {mend}."
        )
    for name, count in class_groups.items():
        if count < min(3, groups):
            notes.append(
                f"Class {name!r} stands in {count} test group(s) only: its figures tell of those."
            )
    if seeds == 1:
        notes.append(
            "There is one seed per experiment: intervals come from resampling groups only and "
            "leave out how much a model changes when it is trained again."
        )
    return " ".join(notes)
