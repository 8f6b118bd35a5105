"""The ceiling that noise in labels sets: what readers reach on labels of volunteers.

From scans that several volunteers named (`namings`): how well one volunteer tells another's label,
what a reader would reach who knew each scan's distribution of opinions, and a bound for any reader.

Shape suffixes: N scans, C classes, O outcomes (the classes, and "several or none"), Q sets of
classes, U units (groups), B weightings of units, T trials, M draws of a distribution, W ways of
naming, V volunteers.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.optimize import linprog
from tqdm import tqdm

from scanbench import metrics
from scanbench.comparison import percentiles
from scanbench.metrics import Floats, Ints
from scanbench.tipstate.namings import Namings, completions, masks

#: Responses up to which the volunteers of a scan are told apart; more are rare, and have many ways.
MOST_RESPONSES = 3

#: Draws of a scan's distribution of namings, for the reader who knows it; and in each refit, of
#: which there are so many, for its interval.
DRAWS, REFIT_DRAWS, REFITS = 20, 2, 50

#: Distributions whose labels are enumerated at once.
CHUNK = 2_000

#: Levels of a score that a ranking tells apart.
LEVELS = 400

#: Steps of the grid of distributions in `noise_bound`.
STEPS = 10

#: Resamples behind the interval of `noise_bound`, each of which solves linear programs.
BOUND_RESAMPLES = 50


@dataclass(frozen=True, kw_only=True)
class Trials:
    """Labels of one volunteer, and what a reader said of them.

    A label is the class of a volunteer who named exactly one: with one volunteer, only such a scan
    has a unique label and is tested.

    Attributes
    ----------
    unit_T
        Unit of the scan.
    label_T
        The volunteer's class.
    choice_TC
        Chance that the reader chooses each class; may sum to less than 1, if the reader had none.
    score_TC
        The reader's score of each class.
    weight_T
        Of the trial; the trials of a scan sum to at most 1.
    """

    unit_T: Ints
    label_T: Ints
    choice_TC: Floats
    score_TC: Floats
    weight_T: Floats


def score_trials(trials: Trials, weight_BU: Floats) -> dict[tuple[str, int | None], Floats]:
    """Return accuracy, balanced accuracy and AUROC of a reader: (metric, class or None) → [B].

    The AUROC counts all pairs of trials; scores are taken to `LEVELS` levels.
    """
    classes = trials.choice_TC.shape[1]
    found: dict[tuple[str, int | None], Floats] = {}
    own_TC = np.eye(classes)[trials.label_T] * trials.weight_T[:, None]
    right_T = trials.choice_TC[np.arange(len(trials.label_T)), trials.label_T]
    right_BC = metrics.weighted_sums(own_TC * right_T[:, None], trials.unit_T, weight_BU)
    total_BC = metrics.weighted_sums(own_TC, trials.unit_T, weight_BU)
    recall_BC = metrics.ratio(right_BC, total_BC)
    found["accuracy", None] = metrics.ratio(right_BC.sum(axis=1), total_BC.sum(axis=1))
    found["balanced_accuracy", None] = recall_BC.mean(axis=1)
    level_TC = np.round(trials.score_TC * LEVELS).astype(np.int64)
    units = weight_BU.shape[1]
    for c in range(classes):
        by_2UL = np.zeros((2, units, LEVELS + 1))
        place = (
            (trials.label_T == c).astype(np.intp),
            trials.unit_T,
            level_TC[:, c].clip(0, LEVELS),
        )
        np.add.at(by_2UL, place, trials.weight_T)
        negative_BL, positive_BL = weight_BU @ by_2UL
        below_BL = np.cumsum(negative_BL, axis=1) - negative_BL / 2
        pairs_B = positive_BL.sum(axis=1) * negative_BL.sum(axis=1)
        found["recall", c] = recall_BC[:, c]
        found["auroc", c] = metrics.ratio((positive_BL * below_BL).sum(axis=1), pairs_B)
    found["auroc", None] = np.mean([found["auroc", c] for c in range(classes)], axis=0)
    return found


@dataclass(frozen=True, kw_only=True)
class Ways:
    """Scans of several volunteers, each with the ways in which these can have named classes.

    Attributes
    ----------
    unit_N
        Unit of each scan.
    named_N
        For each scan: weights of its ways [W], and whether each volunteer named each class
        [W, volunteers, C].
    """

    unit_N: Ints
    named_N: Sequence[tuple[Floats, NDArray[np.bool_]]]

    @classmethod
    def of(cls, own: Namings, prior: Floats, units: Sequence[str]) -> Ways:
        """Fill in who named what for scans of two to `MOST_RESPONSES` volunteers."""
        several = own[(own.responses_N >= 2) & (own.responses_N <= MOST_RESPONSES)]
        mask_C = masks(own.class_K)

        @cache
        def of(count_K: tuple[int, ...], responses: int) -> tuple[Floats, NDArray[np.bool_]]:
            ways, weight = completions(count_K, responses, prior)
            return weight, np.array([[[bool(s & m) for m in mask_C] for s in w] for w in ways])

        place = {name: i for i, name in enumerate(units)}
        return cls(
            unit_N=np.array([place[name] for name in several.group_N], dtype=np.int64),
            named_N=[
                of(tuple(row.tolist()), int(count))
                for row, count in zip(several.count_NK, several.responses_N, strict=True)
            ],
        )


def outcomes(named: NDArray[np.bool_]) -> Ints:
    """Return the class of those who named exactly one [..., C] → [...]; C for the others."""
    classes = named.shape[-1]
    return np.where(named.sum(axis=-1) == 1, named.argmax(axis=-1), classes)


def other_volunteers(ways: Ways, *, responses: int) -> Trials:
    """Return how well the mean of the other volunteers tells one volunteer's label.

    Scans of `responses` volunteers only: of two, the reader is a second volunteer. A volunteer who
    named several classes gives each an equal share; of classes with equal means one is chosen by
    chance.
    """
    rows: list[tuple[int, int, Floats, float]] = []
    for unit, (weight_W, named_WVC) in zip(ways.unit_N, ways.named_N, strict=True):
        if named_WVC.shape[1] != responses:
            continue
        sizes = named_WVC.sum(axis=2, keepdims=True)
        share_WVC = named_WVC / np.maximum(1, sizes)
        outcome_WV = outcomes(named_WVC)
        for w, v in zip(*np.nonzero(outcome_WV < named_WVC.shape[2]), strict=True):
            others_C = np.delete(share_WVC[w], v, axis=0).mean(axis=0)
            rows.append((int(unit), int(outcome_WV[w, v]), others_C, weight_W[w] / responses))
    unit, label, score, weight = zip(*rows, strict=True)
    score_TC = np.array(score)
    best_TC = (score_TC == score_TC.max(axis=1, keepdims=True)) & (score_TC > 0)
    return Trials(
        unit_T=np.array(unit),
        label_T=np.array(label),
        choice_TC=best_TC / np.maximum(1, best_TC.sum(axis=1, keepdims=True)),
        score_TC=score_TC,
        weight_T=np.array(weight),
    )


def joint_outcomes(ways: Ways) -> Floats:
    """Return, per scan, how likely two of its volunteers have each pair of outcomes: [N, O, O]."""
    classes = ways.named_N[0][1].shape[2]
    return _joint([(w, outcomes(named)) for w, named in ways.named_N], classes + 1)


def _joint(answers: Sequence[tuple[Floats, Ints]], kinds: int) -> Floats:
    """Count pairs of answers: for each scan the weights of its ways [W], and answers [W, V]."""
    joint_NAA = np.zeros((len(answers), kinds, kinds))
    for joint_AA, (weight_W, answer_WV) in zip(joint_NAA, answers, strict=True):
        pairs = list(itertools.permutations(range(answer_WV.shape[1]), 2))
        for a, b in pairs:
            np.add.at(joint_AA, (answer_WV[:, a], answer_WV[:, b]), weight_W / len(pairs))
    return joint_NAA


def set_numbers(named: NDArray[np.bool_]) -> Ints:
    """Return the number of each set of classes, bit c for class c: [..., C] → [...]."""
    return np.asarray(named @ (1 << np.arange(named.shape[-1])))


def joint_sets(ways: Ways) -> Floats:
    """Return, per scan, how likely two of its volunteers named each pair of sets: [N, Q, Q]."""
    classes = ways.named_N[0][1].shape[2]
    return _joint([(w, set_numbers(named)) for w, named in ways.named_N], 1 << classes)


def concentration(joint_QQ: Floats) -> tuple[float, Floats]:
    """Return α and m [Q] of Dirichlet(α m), scans' distributions of sets, by moments.

    m is the mean; α gives two volunteers of a scan their chance of naming the same set,
    Σ m (1 + α m) / (1 + α).
    """
    mean_Q = joint_QQ.sum(axis=1) / joint_QQ.sum()
    agree = float(np.trace(joint_QQ) / joint_QQ.sum())
    chance = float((mean_Q**2).sum())
    return max(1e-3, (1 - agree) / max(1e-9, agree - chance)), mean_Q


def unanimous(ways: Ways, alpha: float, mean_Q: Floats) -> tuple[float, float]:
    """Return how often three volunteers of a scan name one set, as seen and by Dirichlet(α m).

    That distribution was fitted to pairs only, so the two numbers check it.
    """
    seen = [
        float(weight_W @ (np.ptp(set_numbers(named_WVC), axis=1) == 0))
        for weight_W, named_WVC in ways.named_N
        if named_WVC.shape[1] == 3
    ]
    ahead = mean_Q * (1 + alpha * mean_Q) * (2 + alpha * mean_Q)
    return float(np.mean(seen)) if seen else math.nan, float(
        ahead.sum() / ((1 + alpha) * (2 + alpha))
    )


def label_chances(theta_MQ: Floats, responses: int, classes: int) -> Floats:
    """Return the chance of each label if so many volunteers answer by θ: [M, C].

    The label is the class that most of them named, if it is one class only and at least half named
    it; what is missing to 1 is the chance of no label.
    """
    sets = np.array(list(itertools.product(range(1 << classes), repeat=responses)))
    votes_XC = ((sets[:, :, None] >> np.arange(classes)) & 1).sum(axis=1)
    best_X = votes_XC.max(axis=1)
    unique_X = ((votes_XC == best_X[:, None]).sum(axis=1) == 1) & (2 * best_X >= responses)
    label_XC = (votes_XC == best_X[:, None]) & unique_X[:, None]
    parts = []
    for part_MQ in np.array_split(theta_MQ, -(-len(theta_MQ) // CHUNK)):
        chance_MX = np.ones((len(part_MQ), 1))
        for _ in range(responses):
            chance_MX = (chance_MX[:, :, None] * part_MQ[:, None, :]).reshape(len(part_MQ), -1)
        parts.append(chance_MX @ label_XC)
    return np.concatenate(parts)


def perfect_reader(
    ways: Ways,
    alpha: float,
    mean_Q: Floats,
    scans_R: Mapping[int, int],
    rng: np.random.Generator,
    draws: int = DRAWS,
) -> Trials:
    """Return how well a reader who knows each scan's distribution of namings tells its label.

    Each scan's distribution is drawn from its posterior, Dirichlet(α m + votes): what its own
    volunteers named, shrunk towards the mean of all scans. Its label is that of new volunteers. The
    reader chooses the class that is best for balanced accuracy.

    Parameters
    ----------
    ways
        Scans of several volunteers.
    alpha, mean_Q
        From `concentration`.
    scans_R
        Number of volunteers behind a label → scans that have such a label.
    rng, draws
        Of the distributions of each scan.
    """
    classes = ways.named_N[0][1].shape[2]
    # Scans of equal counts have the same ways and are drawn together.
    alike: dict[int, list[int]] = {}
    for n, (weight_W, _) in enumerate(ways.named_N):
        alike.setdefault(id(weight_W), []).append(n)
    units, votes = [], []
    for own in alike.values():
        weight_W, named_WVC = ways.named_N[own[0]]
        votes_WQ = np.eye(len(mean_Q))[set_numbers(named_WVC)].sum(axis=1)
        drawn = rng.choice(len(weight_W), size=len(own) * draws, p=weight_W)
        units.append(np.repeat(ways.unit_N[own], draws))
        votes.append(votes_WQ[drawn])
    unit_M = np.concatenate(units)
    # Gamma draws of tiny shape may all be 0; the floor is far below any level of a score.
    theta_MQ = rng.gamma(alpha * mean_Q + np.concatenate(votes)) + 1e-12
    theta_MQ /= theta_MQ.sum(axis=1, keepdims=True)
    chance_RMC = [label_chances(theta_MQ, responses, classes) for responses in scans_R]
    # As many labels of each number of volunteers as there are.
    part_RMC = [
        chance_MC * (scans / chance_MC.sum())
        for chance_MC, scans in zip(chance_RMC, scans_R.values(), strict=True)
    ]
    share_C = np.sum(part_RMC, axis=(0, 1))
    trials = []
    for chance_MC, part_MC in zip(chance_RMC, part_RMC, strict=True):
        best_M = (chance_MC / share_C).argmax(axis=1)
        score_MC = chance_MC / np.maximum(1e-12, chance_MC.sum(axis=1, keepdims=True))
        # Each draw stands for all labels that it may give, by their chance.
        trials.append(
            Trials(
                unit_T=np.repeat(unit_M, classes),
                label_T=np.tile(np.arange(classes), len(unit_M)),
                choice_TC=np.repeat(np.eye(classes)[best_M], classes, axis=0),
                score_TC=np.repeat(score_MC, classes, axis=0),
                weight_T=part_MC.ravel(),
            )
        )
    names = ("unit_T", "label_T", "choice_TC", "score_TC", "weight_T")
    return Trials(**{n: np.concatenate([getattr(t, n) for t in trials]) for n in names})


def noise_bound(joint_OO: Floats, steps: int = STEPS, *, balanced: bool = True) -> float:
    """Estimate the most that any reader whatever can reach on labels of one volunteer.

    A reader who knew a scan's distribution θ of outcomes would be right with the greatest weighted
    θ_c, w_c = 1 / (C P(c)) for balanced accuracy. How θ is spread over scans is not known, but two
    volunteers of one scan answer by one θ, so E[θ_a θ_b] is what pairs of volunteers show. The
    bound is the greatest mean of max_c w_c θ_c over all spreads with these moments: a linear
    program over a grid of θ. No form of that spread is assumed, only that volunteers of a scan
    answer alike and independently given the scan. What comes out is an estimate of the bound and no
    bound itself: what pairs show is a finite sample, in part filled in (`completions`), and θ is
    looked for on a grid only.

    Parameters
    ----------
    joint_OO
        How often two volunteers of a scan have each pair of outcomes; the last is no label.
    steps
        Of the grid along each axis.
    balanced
        Balanced accuracy, or accuracy.

    Returns
    -------
    float
        NaN if the grid has no spread with these moments.
    """
    joint_OO = (joint_OO + joint_OO.T) / (2 * joint_OO.sum())
    theta_GO = _simplex(len(joint_OO), steps)
    classes = len(joint_OO) - 1
    share_C = joint_OO.sum(axis=1)[:classes]
    weight_C = 1 / (classes * share_C) if balanced else np.full(classes, 1 / share_C.sum())
    gain_G = (theta_GO[:, :classes] * weight_C).max(axis=1)
    a, b = np.triu_indices(len(joint_OO))
    # The grid cannot meet every moment exactly; what is missing is paid for dearly.
    moments = (theta_GO[:, a] * theta_GO[:, b]).T
    rows = len(a)
    dear = 100.0
    done = linprog(
        np.concatenate([-gain_G, np.full(2 * rows, dear)]),
        A_eq=np.hstack([moments, np.eye(rows), -np.eye(rows)]),
        b_eq=joint_OO[a, b],
        method="highs",
    )
    if done.x is None or done.x[len(gain_G) :].sum() > 1e-3:
        return math.nan
    return float(min(1.0, gain_G @ done.x[: len(gain_G)]))


@cache
def _simplex(outcomes_: int, steps: int) -> Floats:
    """Return the points of a simplex whose coordinates are multiples of 1/steps: [G, O]."""
    bars = np.array(list(itertools.combinations(range(steps + outcomes_ - 1), outcomes_ - 1)))
    ends = np.full((len(bars), 1), steps + outcomes_ - 1)
    return np.asarray(np.diff(np.hstack([np.full((len(bars), 1), -1), bars, ends]), axis=1) - 1) / (
        steps
    )


def ceilings(
    own: Namings, ways: Ways, weight_BU: Floats, confidence: float, seed: int
) -> pd.DataFrame:
    """Return what readers reach on labels as noisy as these: rows of `ceiling.csv`.

    Parameters
    ----------
    own
        All scans with responses.
    ways
        Those of several volunteers.
    weight_BU
        Resamples of the units; their first row counts each once.
    confidence
        Of the intervals.
    seed
        Of the draws.
    """
    rows: list[dict[str, Any]] = []

    def add(
        reader: str, labels: str, scans: int, found: Mapping[tuple[str, int | None], Floats]
    ) -> None:
        for (metric, c), value_B in found.items():
            low, high = percentiles(value_B[1:], confidence)
            rows.append(
                {
                    "reader": reader, "labels": labels, "metric": metric, "class": c,
                    "value": float(value_B[0]), "low": low, "high": high, "scans": scans,
                }
            )  # fmt: skip

    count_N = np.array([named_WVC.shape[1] for _, named_WVC in ways.named_N])
    for reader, responses in (("second volunteer", 2), ("mean of two others", 3)):
        if (count_N == responses).any():
            trials = other_volunteers(ways, responses=responses)
            scans = int((count_N == responses).sum())
            add(reader, "one volunteer", scans, score_trials(trials, weight_BU))

    labelled = np.minimum(own.responses_N[own.label_N >= 0], MOST_RESPONSES)
    scans_R = {int(r): int((labelled == r).sum()) for r in np.unique(labelled)}
    joint_UQQ = _by_unit(joint_sets(ways), ways.unit_N, weight_BU.shape[1])
    rng = np.random.default_rng([seed, 2])

    def perfect(weight_U: Floats, mix: Mapping[int, int], draws: int) -> Any:
        alpha, mean_Q = concentration(np.tensordot(weight_U, joint_UQQ, axes=1))
        trials = perfect_reader(ways, alpha, mean_Q, mix, rng, draws)
        return score_trials(trials, weight_U[None])

    several = len(count_N)
    for labels, mix in (("one volunteer", {1: scans_R.get(1, 1)}), ("as tested", scans_R)):
        parts = [perfect(weight_BU[0], mix, DRAWS)]
        resamples = weight_BU[1 : 1 + REFITS]
        for weight_U in tqdm(resamples, desc=f"perfect reader, {labels}", unit="refit"):
            parts.append(perfect(weight_U, mix, REFIT_DRAWS))
        joined = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
        add("knows each scan (Dirichlet)", labels, several, joined)

    joint_UOO = _by_unit(joint_outcomes(ways), ways.unit_N, weight_BU.shape[1])
    for metric in ("accuracy", "balanced_accuracy"):
        bound_B = [
            noise_bound(np.tensordot(weight_U, joint_UOO, axes=1), balanced=metric != "accuracy")
            for weight_U in tqdm(weight_BU[: 1 + BOUND_RESAMPLES], desc=f"bound, {metric}")
        ]
        add(
            "any reader (estimated bound)",
            "one volunteer",
            several,
            {(metric, None): np.array(bound_B)},
        )
    alpha, mean_Q = concentration(joint_UQQ.sum(axis=0))
    seen, expected = unanimous(ways, alpha, mean_Q)
    for reader, value in (("seen", seen), ("Dirichlet, from pairs", expected)):
        add(
            reader,
            "three volunteers",
            int((count_N == 3).sum()),
            {("unanimous", None): np.array([value])},
        )
    return pd.DataFrame(rows)


def _by_unit(value_NX: Floats, unit_N: Ints, units: int) -> Floats:
    return metrics.weighted_sums(value_NX, unit_N, np.eye(units))
