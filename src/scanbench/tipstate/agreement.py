"""Models against people on the same footing, and the ceiling that noise in labels sets.

A score sheet tells of each column what share of a scan's volunteers named it. So it tells how many
named a column, but not who: what a volunteer named is known where there was one, or where all
agreed. Two columns of one class, each named once, came from one volunteer or from two, so the
number that named the class has a lower and an upper bound (`Namings`); who named what together is
filled in from scans with one response (`completions`).

Shape suffixes: N scans, K columns of the sheet, C classes, O outcomes (the classes, and "several or
none"), S seeds, U units (groups), B weightings of units, T trials.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.optimize import linprog
from tqdm import tqdm

from scanbench import metrics
from scanbench.comparison import Resamples, draw_groups
from scanbench.errors import UserError
from scanbench.files import replacing_folder, write_json
from scanbench.metrics import Floats, Ints
from scanbench.parquet import read_parquet
from scanbench.predictions import (
    HeldOut,
    Reading,
    check_same_rows,
    check_table,
    read_experiment,
    scan_reading,
)

__all__ = [
    "Namings",
    "agreement",
    "agreement_of_people",
    "ceilings",
    "completions",
    "errors_of",
    "namings",
    "noise_bound",
    "thresholds",
]

#: File with a run's predictions of scans without label, beside `predictions.parquet`.
UNLABELLED = "unlabelled.parquet"

SPEC_KEYS = frozenset(
    {
        "bootstrap", "comparison", "confidence", "dataset", "experiments", "folds", "merge", "seed",
        "seeds", "split",
    }
)  # fmt: skip

#: How two columns of a class, each named by one of two volunteers, are read.
READINGS = ("fewest", "most", "likely")

#: Responses up to which the volunteers of a scan are told apart; more are rare, and have many ways.
MOST_RESPONSES = 3

#: Ways of naming that no scan with one response shows have this many scans, for `completions`.
UNSEEN = 0.5

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


# ---------------------------------------------------------------------------------------------
# What the sheet tells


@dataclass(frozen=True, kw_only=True)
class Namings:
    """How many volunteers named each class of each scan, as far as the sheet tells.

    Attributes
    ----------
    scan_id_N, group_N
        Which scans.
    responses_N
        Volunteers that answered.
    count_NK
        Volunteers that named each column of the sheet.
    class_K
        Class of each column.
    label_N
        Merged label; −1: none.
    """

    scan_id_N: NDArray[np.object_]
    group_N: NDArray[np.object_]
    responses_N: Ints
    count_NK: Ints
    class_K: tuple[int, ...]
    label_N: Ints

    @property
    def fewest_NC(self) -> Ints:
        """Least number of volunteers that named each class: those of its most named column."""
        return np.stack([own_NI.max(axis=1) for own_NI in self._of_classes()], axis=1)

    @property
    def most_NC(self) -> Ints:
        """Largest number that may have named each class: no volunteer named two of its columns."""
        sums_NC = np.stack([own_NI.sum(axis=1) for own_NI in self._of_classes()], axis=1)
        return np.minimum(sums_NC, self.responses_N[:, None])

    def __getitem__(self, rows: NDArray[Any]) -> Namings:
        """Return some of the scans."""
        names = ("scan_id_N", "group_N", "responses_N", "count_NK", "label_N")
        return Namings(class_K=self.class_K, **{name: getattr(self, name)[rows] for name in names})

    def __len__(self) -> int:
        """Return the number of scans."""
        return len(self.scan_id_N)

    def _of_classes(self) -> list[Ints]:
        class_K = np.array(self.class_K)
        return [self.count_NK[:, class_K == c] for c in range(class_K.max() + 1)]


def namings(
    manifest: pd.DataFrame, merge: Mapping[str, Sequence[str]], classes: Sequence[str]
) -> Namings:
    """Return the counts behind the mean scores of a manifest.

    Parameters
    ----------
    manifest
        `manifest.csv` of a data set with a score sheet (`Mean_Score`).
    merge
        Class → columns of the sheet.
    classes
        Class names; a label is an index into them.

    Raises
    ------
    UserError
        If the manifest has no scores or responses, or a score is no share of its responses.
    """
    columns = [column for name in classes for column in merge.get(name, ())]
    for column in ("responses", *(f"score_{name}" for name in columns)):
        if column not in manifest:
            raise UserError(
                f"manifest: column {column!r} is missing: agreement needs a data set with a score "
                "sheet"
            )
    rows = manifest[manifest["responses"].fillna(0) >= 1]
    if rows.empty or not columns:
        raise UserError("manifest: no scan has a response: agreement needs a score sheet")
    responses_N = rows["responses"].to_numpy(np.int64)
    exact_NK = (
        rows[[f"score_{name}" for name in columns]].to_numpy(np.float64) * responses_N[:, None]
    )
    count_NK = np.round(exact_NK)
    if (odd_N := (np.abs(exact_NK - count_NK) > 0.01).any(axis=1)).any():
        raise UserError(
            f"manifest: scores of {rows['scan_id'].to_numpy()[odd_N][0]} are no shares of its "
            "responses: agreement needs `labels.sheet: Mean_Score`"
        )
    used = rows["excluded"].fillna("") == ""
    place = {name: i for i, name in enumerate(classes)}
    return Namings(
        scan_id_N=rows["scan_id"].to_numpy(object),
        group_N=rows["group"].to_numpy(object),
        responses_N=responses_N,
        count_NK=count_NK.astype(np.int64),
        class_K=tuple(place[name] for name in classes for _ in merge.get(name, ())),
        label_N=np.asarray(rows["label"].where(used).map(place).fillna(-1), dtype=np.int64),
    )


def prior_of_namings(own: Namings) -> Floats:
    """Return how likely a volunteer is to name each set of columns: [2^K], from single responses.

    Bit k of a set's number stands for column k.
    """
    bits_K = 1 << np.arange(own.count_NK.shape[1])
    single = own.count_NK[own.responses_N == 1] @ bits_K
    seen = np.bincount(single, minlength=int(bits_K.sum()) + 1) + UNSEEN
    return np.asarray(seen / seen.sum())


def completions(
    count_K: Sequence[int], responses: int, prior: Floats
) -> tuple[list[tuple[int, ...]], Floats]:
    """Return every way in which volunteers can have named columns so often, and how likely it is.

    Volunteers are exchangeable, and given the counts they are taken to have named sets of columns
    independently, each as likely as among single responses.

    Parameters
    ----------
    count_K
        Volunteers that named each column.
    responses
        Volunteers.
    prior
        From `prior_of_namings`.

    Returns
    -------
    ways : list
        For each way the set (bits) of each volunteer.
    weight : ndarray
        Of each way; sums to 1.
    """
    choices = [list(itertools.combinations(range(responses), int(count))) for count in count_K]
    found: dict[tuple[int, ...], float] = {}
    for way in itertools.product(*choices):
        sets = [0] * responses
        for k, who in enumerate(way):
            for volunteer in who:
                sets[volunteer] |= 1 << k
        # Every order of the same sets comes up, so adding them up counts each as often as it is.
        key = tuple(sorted(sets))
        found[key] = found.get(key, 0.0) + math.prod(float(prior[s]) for s in sets)
    weight = np.array(list(found.values()))
    return list(found), weight / weight.sum()


# ---------------------------------------------------------------------------------------------
# People with people


def named_by(own: Namings, reading: str, likely_NC: Floats | None = None) -> tuple[Floats, Floats]:
    """Return how often one, and both, of two volunteers named a class: [N, C] each.

    The first is the number of volunteers that named it (0–2), the second the number of volunteers
    that named it and whose fellow did so (0 or 2); where unknown, by the reading.

    Parameters
    ----------
    own
        Scans with two responses.
    reading
        `fewest`: one volunteer named both of two columns that were named once each; `most`: each
        named one; `likely`: the mean of the two.
    likely_NC
        For `likely`: the chance that both volunteers named the class (`chance_of_both`).
    """
    fewest_NC, most_NC = own.fewest_NC.astype(np.float64), own.most_NC.astype(np.float64)
    if reading == "likely":
        assert likely_NC is not None
        unknown_NC = fewest_NC != most_NC
        both_NC = np.where(unknown_NC, likely_NC, fewest_NC == 2)
        return np.where(unknown_NC, 1 + likely_NC, fewest_NC), 2 * both_NC
    count_NC = fewest_NC if reading == "fewest" else most_NC
    return count_NC, 2.0 * (count_NC == 2)


def chance_of_both(own: Namings, prior: Floats) -> Floats:
    """Return how likely it is that both of two volunteers named each class: [N, C]."""
    mask_C = _masks(own.class_K)

    @cache
    def of(count_K: tuple[int, ...]) -> list[float]:
        ways, weight = completions(count_K, 2, prior)
        return [
            float(sum(w for way, w in zip(ways, weight, strict=True) if all(s & m for s in way)))
            for m in mask_C
        ]

    return np.array([of(tuple(row.tolist())) for row in own.count_NK]).reshape(len(own), -1)


def _masks(class_K: Sequence[int]) -> list[int]:
    """Return the bits of the columns of each class."""
    return [sum(1 << k for k, of in enumerate(class_K) if of == c) for c in range(max(class_K) + 1)]


def agreement_of_people(
    named_NC: Floats, both_NC: Floats, unit_N: Ints, weight_BU: Floats
) -> Floats:
    """Return P(the second volunteer names a class | the first does): [B, C].

    Both volunteers take the part of the first, so it is symmetric: twice the scans that both named
    over the namings (the positive agreement of Cicchetti & Feinstein, J. Clin. Epidemiol. 43, 551
    (1990)).
    """
    sums_B2C = _sums(np.stack([both_NC, named_NC], axis=1), unit_N, weight_BU)
    return _ratio(sums_B2C[:, 0], sums_B2C[:, 1])


def _sums(value_NX: Floats, unit_N: Ints, weight_BU: Floats) -> Floats:
    """Sum values over scans, each counted as often as its unit: [B, …]."""
    by_unit = np.zeros((weight_BU.shape[1], *value_NX.shape[1:]))
    np.add.at(by_unit, unit_N, value_NX)
    return np.tensordot(weight_BU, by_unit, axes=1)


def _ratio(part: Floats, whole: Floats) -> Floats:
    return np.divide(part, whole, out=np.full(np.shape(part), np.nan), where=np.asarray(whole) > 0)


# ---------------------------------------------------------------------------------------------
# Models with people


def thresholds(p_M: Floats, share_B: Floats, weight_BM: Floats) -> Floats:
    """Return the probability from which a model names a class as often as volunteers do: [B].

    Parameters
    ----------
    p_M
        Probability of the class for the scans that the threshold is found on.
    share_B
        Share of volunteers' responses that name the class.
    weight_BM
        How often each scan counts.
    """
    order = np.argsort(-p_M, kind="stable")
    named_BM = np.cumsum(weight_BM[:, order], axis=1)
    wanted_B = share_B * named_BM[:, -1]
    # Of the two thresholds about the wanted number of scans, the nearer one.
    first_B = (named_BM < wanted_B[:, None]).sum(axis=1).clip(max=len(p_M) - 1)
    rows = np.arange(len(first_B))
    over_B = named_BM[rows, first_B] - wanted_B
    before_B = np.where(first_B > 0, named_BM[rows, first_B - 1], 0)
    back_B = (wanted_B - before_B < over_B) & (first_B > 0)
    return np.asarray(p_M[order][first_B - back_B])


def named_by_model(
    p_NC: Floats, named_NC: Floats, fold_N: Ints, unit_N: Ints, weight_BU: Floats
) -> Iterator[tuple[NDArray[np.intp], Floats]]:
    """Yield the rows of each fold and whether its model names each class: [B, M, C].

    The threshold of a fold's model makes the models of the *other* folds name the class, on their
    own held-out scans, at the rate of the volunteers on those scans. So no answer that is tested
    plays a part in its own threshold, though the other folds' models were trained on this fold's
    scans. Where there is one fold only, the threshold is found on the tested scans themselves.
    """
    folds = np.unique(fold_N)
    for fold in folds:
        mine = np.flatnonzero(fold_N == fold)
        others = np.flatnonzero(fold_N != fold) if len(folds) > 1 else mine
        weight_BM = weight_BU[:, unit_N[others]]
        scans_B1 = weight_BM.sum(axis=1, keepdims=True)
        named_BC = weight_BM @ named_NC[others]
        share_BC = _ratio(named_BC, np.broadcast_to(2 * scans_B1, named_BC.shape))
        named = np.stack(
            [
                p_NC[mine, c] >= thresholds(p_NC[others, c], share_BC[:, c], weight_BM)[:, None]
                for c in range(p_NC.shape[1])
            ],
            axis=2,
        )
        yield mine, named.astype(np.float64)


def agreement_of_model(
    p_NC: Floats, named_NC: Floats, fold_N: Ints, unit_N: Ints, weight_BU: Floats
) -> dict[str, Floats]:
    """Return how a model agrees with volunteers, for many weightings of the units: [B, C] each.

    Returns
    -------
    dict
        `agreement`: P(the model names a class | a volunteer does); `rate`: share of scans for which
        it names the class; `positive`: positive agreement, 2 P(both) / (P(model) + P(volunteer)),
        which a model that names a class more often than people cannot raise by doing so. For two
        people, who name at one rate, the two agreements are one number.
    """
    batches = weight_BU.shape[0]
    found = np.zeros((3, batches, p_NC.shape[1]))
    scans_B = np.zeros(batches)
    for mine, named_BMC in named_by_model(p_NC, named_NC, fold_N, unit_N, weight_BU):
        weight_BM = weight_BU[:, unit_N[mine]]
        found[0] += np.einsum("bm,bmc,mc->bc", weight_BM, named_BMC, named_NC[mine])
        found[1] += weight_BM @ named_NC[mine]
        found[2] += np.einsum("bm,bmc->bc", weight_BM, named_BMC)
        scans_B += weight_BM.sum(axis=1)
    hit_BC, people_BC, model_BC = found
    return {
        "agreement": _ratio(hit_BC, people_BC),
        "rate": model_BC / scans_B[:, None],
        "positive": _ratio(2 * hit_BC, 2 * model_BC + people_BC),
    }


# ---------------------------------------------------------------------------------------------
# The ceiling


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
    right_BC = _sums(own_TC * right_T[:, None], trials.unit_T, weight_BU)
    total_BC = _sums(own_TC, trials.unit_T, weight_BU)
    recall_BC = _ratio(right_BC, total_BC)
    found["accuracy", None] = _ratio(right_BC.sum(axis=1), total_BC.sum(axis=1))
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
        found["auroc", c] = _ratio((positive_BL * below_BL).sum(axis=1), pairs_B)
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
        mask_C = _masks(own.class_K)

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
            low, high = _quantiles(value_B[1:], confidence)
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


def _places(of: NDArray[np.object_], wanted: NDArray[np.object_]) -> Ints:
    """Return where each wanted scan stands; −1 where it does not."""
    place = {name: i for i, name in enumerate(of)}
    return np.array([place.get(name, -1) for name in wanted], dtype=np.int64)


def _by_unit(value_NX: Floats, unit_N: Ints, units: int) -> Floats:
    return _sums(value_NX, unit_N, np.eye(units))


def _quantiles(value_B: Floats, confidence: float) -> tuple[float, float]:
    """Percentile interval; resamples without a value are left out."""
    value_B = value_B[np.isfinite(value_B)]
    if len(value_B) < 2:
        return math.nan, math.nan
    low, high = np.quantile(value_B, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


# ---------------------------------------------------------------------------------------------
# Where errors lie


def errors_of(
    reading: Reading, own: Namings, classes: Sequence[str], resamples: Resamples, confidence: float
) -> pd.DataFrame:
    """Return how often a model is wrong, by what is known of the scans: rows of `errors.csv`.

    `by`: `all`; `responses` (1, 2, 3+); `agreement` (of scans with several responses: did all
    volunteers name the same classes); `pair` (label → predicted; the rate is the share of the
    label's scans); `group`. Errors are means over seeds.
    """
    at = _places(own.scan_id_N, reading.scan_id_N)
    assert (at >= 0).all(), "every labelled scan has responses"
    scans = own[at]
    _, unit_N = metrics.units_of(reading.group_N)
    predicted_SN = reading.p_SNC.argmax(axis=2)
    wrong_SN = (predicted_SN != reading.label_N).astype(np.float64)
    count = np.minimum(scans.responses_N, MOST_RESPONSES)
    agree_N = ((scans.fewest_NC == 0) | (scans.fewest_NC == scans.responses_N[:, None])).all(axis=1)
    several_N = scans.responses_N > 1
    everything = np.ones(len(scans), dtype=bool)
    masks: list[tuple[str, str, NDArray[np.bool_], Floats]] = [("all", "", everything, wrong_SN)]
    for r in np.unique(count):
        name = f"{r}+" if r == MOST_RESPONSES else str(r)
        masks.append(("responses", name, count == r, wrong_SN))
    masks.append(("agreement", "all alike", several_N & agree_N, wrong_SN))
    masks.append(("agreement", "not alike", several_N & ~agree_N, wrong_SN))
    for a, b in itertools.permutations(range(len(classes)), 2):
        pair = f"{classes[a]} → {classes[b]}"
        masks.append(("pair", pair, reading.label_N == a, (predicted_SN == b).astype(np.float64)))
    for group in sorted(set(reading.group_N)):
        masks.append(("group", str(group), reading.group_N == group, wrong_SN))
    rows = []
    for by, value, mask_N, hit_SN in masks:
        if not mask_N.any():
            continue
        low = high = math.nan
        if by != "group":
            sums_BX = _sums(np.vstack([hit_SN * mask_N, mask_N]).T, unit_N, resamples.unit_BK)
            rate_SB = _ratio(sums_BX[:, :-1].T, np.tile(sums_BX[:, -1], (len(hit_SN), 1)))
            low, high = _interval(rate_SB, resamples.seed_BS, confidence)
        errors = float(hit_SN[:, mask_N].sum(axis=1).mean())
        rows.append(
            {
                "by": by, "value": value, "scans": int(mask_N.sum()), "errors": errors,
                "rate": errors / mask_N.sum(), "low": low, "high": high,
            }
        )  # fmt: skip
    return pd.DataFrame(rows)


def _interval(value_SB: Floats, seed_BS: Floats, confidence: float) -> tuple[float, float]:
    """Interval of the mean over seeds, resampled with the groups."""
    return _quantiles((value_SB * seed_BS.T).sum(axis=0) / seed_BS.shape[1], confidence)


# ---------------------------------------------------------------------------------------------
# The stage


def agreement(
    spec: Mapping[str, Any],
    predictions: Mapping[str, Sequence[str | Path]],
    store: str | Path,
    split: str | Path,
    scans: str | Path,
    out: str | Path,
) -> None:
    """Compare the models of a comparison with people, and write the tables of `docs/formats.md`.

    Parameters
    ----------
    spec
        `merge`, `bootstrap`, `confidence`, `seed`; names of the comparison may stand beside them.
    predictions
        Experiment → its run folders, each with `predictions.parquet` and `unlabelled.parquet`.
    store, split
        What was predicted on.
    scans
        Scans folder, with the scores of people in its manifest.
    out
        Folder that is replaced as a whole. The same inputs give the same bytes.

    Raises
    ------
    UserError
        If a key of the spec or a table is wrong or missing, or the data set has no score sheet.
    """
    if odd := sorted(set(spec) - SPEC_KEYS) or sorted(
        {"merge", "bootstrap", "confidence", "seed"} - set(spec)
    ):
        raise UserError(f"agreement: key {odd[0]!r} is unknown or missing: mend the config")
    held_out = HeldOut.load(store, split)
    classes = held_out.classes
    try:
        manifest = pd.read_csv(Path(scans) / "manifest.csv", dtype={"scan_id": str, "group": str})
    except FileNotFoundError:
        raise UserError(f"{scans}: has no manifest.csv; ingest again") from None
    everyone = namings(manifest, spec["merge"], classes)
    prior = prior_of_namings(everyone)
    confidence, seed = float(spec["confidence"]), int(spec["seed"])

    tested: dict[str, Reading] = {}
    complete: dict[str, Reading] = {}
    for name, runs in tqdm(predictions.items(), desc="read predictions", unit="experiment"):
        table = read_experiment(name, runs, classes, held_out)
        more = _read_unlabelled(name, runs, classes, held_out)
        tested[name] = scan_reading(table, classes)
        complete[name] = scan_reading(pd.concat([table, more], ignore_index=True), classes)
    check_same_rows(complete)
    shared = next(iter(complete.values()))

    units = sorted(set(everyone.group_N))
    resamples = draw_groups(
        units=len(units), seeds=len(shared.seeds), count=spec["bootstrap"], seed=seed
    )
    weight_BU = np.vstack([np.ones(len(units)), resamples.unit_BK])
    place = {name: i for i, name in enumerate(units)}

    two = everyone[everyone.responses_N == 2]
    at = _places(shared.scan_id_N, two.scan_id_N)
    known = two[at >= 0]
    people = pd.concat(
        [
            _people(scope, chosen, prior, classes, place, weight_BU, confidence)
            for scope, chosen in (("all", two), ("predicted", known))
        ],
        ignore_index=True,
    )
    pairs = pd.concat(
        [
            _against(name, complete[name], known, prior, classes, place, weight_BU, resamples,
                     confidence)
            for name in tqdm(complete, desc="against people", unit="experiment")
        ],
        ignore_index=True,
    )  # fmt: skip
    ceiling = ceilings(everyone, Ways.of(everyone, prior, units), weight_BU, confidence, seed)
    models = pd.concat(
        [_by_responses(name, tested[name], everyone, place, resamples, confidence)
         for name in tested],
        ignore_index=True,
    )  # fmt: skip
    ceiling = pd.concat([ceiling, models], ignore_index=True)
    ceiling["class"] = [None if pd.isna(c) else classes[int(c)] for c in ceiling["class"]]
    errors = []
    for name, reading in tested.items():
        own_units, _ = metrics.units_of(reading.group_N)
        kept = [place[group] for group in own_units]
        part = Resamples(unit_BK=resamples.unit_BK[:, kept], seed_BS=resamples.seed_BS)
        frame = errors_of(reading, everyone, classes, part, confidence)
        frame.insert(0, "experiment", name)
        errors.append(frame)
    tables = {
        "people": people, "agreement": pairs, "ceiling": ceiling, "errors": pd.concat(errors),
    }  # fmt: skip
    summary = {
        "schema_version": 1,
        "settings": dict(spec),
        "experiments": list(complete),
        "seeds": list(shared.seeds),
        "groups": len(set(known.group_N)),
        "responses": {
            str(r): int((everyone.responses_N == r).sum()) for r in np.unique(everyone.responses_N)
        },
        "scans": {
            "two_responses": len(two),
            "predicted": len(known),
            "predicted_without_label": int((known.label_N < 0).sum()),
            "some_disagreement": int((known.fewest_NC == 1).any(axis=1).sum()),
        },
    }
    with replacing_folder(out, marker="agreement.json") as folder:
        for name, frame in tables.items():
            frame.to_csv(
                folder / f"{name}.csv", index=False, float_format="%.6g", lineterminator="\n"
            )
        write_json(folder / "agreement.json", summary)


def _read_unlabelled(
    name: str, runs: Sequence[str | Path], classes: Sequence[str], held_out: HeldOut
) -> pd.DataFrame:
    """Read the predictions of scans without label, which must be of groups that a fold tests."""
    frames = []
    for run in map(Path, runs):
        path = run / UNLABELLED
        where = f"experiment {name!r}: {path}"
        frame = read_parquet(path, "run predict --unlabelled", where=where)
        if frame.empty:
            continue
        check_table(frame, classes, where)
        unknown_R = ~frame["scan_id"].isin(held_out.scans.index).to_numpy()
        if unknown_R.any():
            raise UserError(
                f"{where}: scan {frame['scan_id'].to_numpy()[unknown_R][0]!r} is not in the store: "
                "predict again"
            )
        truth = held_out.scans.loc[frame["scan_id"]]
        if not ((frame["label"] == -1).to_numpy() & (truth["label"] == -1).to_numpy()).all():
            raise UserError(f"{where}: holds a scan with a label: predict again")
        # What leaks is decided by the store's groups; the table's own could say anything.
        group_R = truth["group"].to_numpy()
        odd_R = frame["group"].to_numpy() != group_R
        if odd_R.any():
            raise UserError(
                f"{where}: scan {frame['scan_id'].to_numpy()[odd_R][0]!r} is of group "
                f"{frame['group'].to_numpy()[odd_R][0]!r}, in the store of {group_R[odd_R][0]!r}: "
                "predict again"
            )
        for fold in map(int, frame["fold"].unique()):
            if not 0 <= fold < len(held_out.folds):
                raise UserError(
                    f"{where}: fold {fold} is not in {held_out.name}, which has "
                    f"{len(held_out.folds)}: predict again"
                )
            parts = held_out.folds[fold]
            used = held_out.scans.loc[sorted(parts["train"] | parts["validation"]), "group"]
            mine = group_R[frame["fold"].to_numpy() == fold]
            if stray := sorted(set(mine) & set(used)):
                raise UserError(
                    f"{where}: group {stray[0]!r} is in training or validation of fold {fold}: "
                    "predictions of it would be leakage; predict again with this split"
                )
        frames.append(frame)
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()


def _people(
    scope: str,
    own: Namings,
    prior: Floats,
    classes: Sequence[str],
    place: Mapping[str, int],
    weight_BU: Floats,
    confidence: float,
) -> pd.DataFrame:
    unit_N = np.array([place[group] for group in own.group_N], dtype=np.int64)
    likely_NC = chance_of_both(own, prior)
    rows = []
    for reading in READINGS:
        named_NC, both_NC = named_by(own, reading, likely_NC)
        found_BC = agreement_of_people(named_NC, both_NC, unit_N, weight_BU)
        for c, value_B in _with_mean(found_BC):
            own_c = slice(None) if c is None else [c]
            low, high = _quantiles(value_B[1:], confidence)
            rows.append(
                {
                    "scope": scope, "reading": reading,
                    "class": None if c is None else classes[c],
                    "probability": float(value_B[0]), "low": low, "high": high,
                    "rate": float(named_NC[:, own_c].mean() / 2),
                    "scans": len(own), "groups": len(set(own.group_N)),
                    "both": float(both_NC[:, own_c].sum() / 2),
                    "one": float((named_NC - both_NC)[:, own_c].sum()),
                    "unknown": int((own.fewest_NC != own.most_NC)[:, own_c].sum()),
                }
            )  # fmt: skip
    return pd.DataFrame(rows)


def _with_mean(value_XC: Floats) -> list[tuple[int | None, Floats]]:
    """Give each class's values, and last their mean over classes."""
    by_class: list[tuple[int | None, Floats]] = [
        (c, value_XC[..., c]) for c in range(value_XC.shape[-1])
    ]
    return [*by_class, (None, value_XC.mean(axis=-1))]


def _against(
    name: str,
    reading: Reading,
    two: Namings,
    prior: Floats,
    classes: Sequence[str],
    place: Mapping[str, int],
    weight_BU: Floats,
    resamples: Resamples,
    confidence: float,
) -> pd.DataFrame:
    """Compare one experiment with second volunteers, on the same scans: rows of `agreement.csv`."""
    at = _places(reading.scan_id_N, two.scan_id_N)
    fold_N, p_SNC = reading.fold_N[at], reading.p_SNC[:, at]
    unit_N = np.array([place[group] for group in two.group_N], dtype=np.int64)
    likely_NC = chance_of_both(two, prior)
    rows = []
    for how in READINGS:
        named_NC, both_NC = named_by(two, how, likely_NC)
        people_BC = agreement_of_people(named_NC, both_NC, unit_N, weight_BU)
        models = [agreement_of_model(p_NC, named_NC, fold_N, unit_N, weight_BU) for p_NC in p_SNC]
        model_SBC = {key: np.stack([m[key] for m in models]) for key in models[0]}
        rate_C = named_NC.mean(axis=0) / 2
        of_people = dict(_with_mean(people_BC))
        of_model = {key: dict(_with_mean(value)) for key, value in model_SBC.items()}
        for c, people_B in of_people.items():
            row: dict[str, Any] = {
                "experiment": name, "reading": how, "class": None if c is None else classes[c],
                "people": float(people_B[0]),
            }  # fmt: skip
            row["people_low"], row["people_high"] = _quantiles(people_B[1:], confidence)
            for key, prefix in (("agreement", ""), ("positive", "positive_")):
                value_SB = of_model[key][c]
                column = prefix + "model" if prefix else "model"
                row[column] = float(value_SB[:, 0].mean())
                for suffix, series_SB, point in (
                    ("model", value_SB, None),
                    ("difference", value_SB - people_B, row[column] - row["people"]),
                ):
                    if point is not None:
                        row[prefix + suffix] = point
                    row[f"{prefix}{suffix}_low"], row[f"{prefix}{suffix}_high"] = _interval(
                        series_SB[:, 1:], resamples.seed_BS, confidence
                    )
            row["people_rate"] = float(rate_C.mean() if c is None else rate_C[c])
            row["model_rate"] = float(of_model["rate"][c][:, 0].mean())
            row |= {
                "seeds": len(p_SNC), "groups": len(set(two.group_N)), "scans": len(two),
                "unlabelled": int((two.label_N < 0).sum()),
            }  # fmt: skip
            rows.append(row)
    return pd.DataFrame(rows)


def _by_responses(
    name: str,
    reading: Reading,
    own: Namings,
    place: Mapping[str, int],
    resamples: Resamples,
    confidence: float,
) -> pd.DataFrame:
    """Score an experiment on labels of one, two and more volunteers: rows of `ceiling.csv`."""
    at = _places(own.scan_id_N, reading.scan_id_N)
    count_N = np.minimum(own.responses_N[at], MOST_RESPONSES)
    unit_N = np.array([place[group] for group in reading.group_N], dtype=np.int64)
    weight_BU = np.vstack([np.ones(len(place)), resamples.unit_BK])
    labels = {None: "as tested", 1: "one volunteer", 2: "two volunteers", 3: "three or more"}
    rows = []
    for responses in labels:
        kept = np.ones(len(count_N), dtype=bool) if responses is None else count_N == responses
        if len(np.unique(reading.label_N[kept])) < reading.p_SNC.shape[2]:
            continue
        found = metrics.metric_values(
            reading.p_SNC[:, kept], reading.label_N[kept], unit_N[kept], reading.fold_N[kept],
            weight_BU, 1,
        )  # fmt: skip
        for (metric, c), value_SB in found.items():
            if metric not in ("accuracy", "balanced_accuracy", "auroc", "recall"):
                continue
            low, high = _interval(value_SB[:, 1:], resamples.seed_BS, confidence)
            rows.append(
                {
                    "reader": name, "labels": labels[responses],
                    "metric": metric, "class": c, "value": float(value_SB[:, 0].mean()),
                    "low": low, "high": high, "scans": int(kept.sum()),
                }
            )  # fmt: skip
    return pd.DataFrame(rows)
