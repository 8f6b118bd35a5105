"""Stopping bad scans early: what a rule would have saved, and what it would have spoiled.

A rule stops a scan once the probability of the bad classes has reached a threshold in so many
answers in a row. It is judged as the operator feels it: the lines of bad scans that it saves,
against the good scans that it stops. The threshold for a wanted rate of wrong stops is chosen on
the held-out scans of all other folds and tried on those of one fold, so that no answer about a scan
has a say in the rule that the scan is judged by. (Models of the other folds were trained on it.)

`lasting` is what a threshold is compared with, here over whole tables of answers and in a `Watch`
over those of a scan that is still running: one rule, wherever it is applied.

Shape suffixes: N scans, T answers, H thresholds, B resamples, K groups, S seeds.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from scanbench.predictions import class_columns, is_windowed, windows_so_far

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

#: Thresholds that are tried lie at so many quantiles of the answers.
THRESHOLDS = 400

#: Columns of `trade_off` and of `limits_table`.
TRADE_OFF = ("patience", "threshold", "wrong_stops", "saved", "lines_spent")
LIMITS = ("limit", "figure", "value", "low", "high")

#: What a rule did: shares of bad scans' lines saved and of good scans stopped, mean lines scanned
#: of a bad scan, and the share of all scans' lines that were saved on bad ones.
FIGURES = ("saved", "wrong_stops", "lines_spent", "time_saved")


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What rules may be chosen from.

    Parameters
    ----------
    limits
        Largest shares of good scans that may be stopped.
    patience
        Numbers of answers in a row.
    first_line
        No rule stops a scan before so many lines.
    """

    limits: Sequence[float]
    patience: Sequence[int]
    first_line: int = 1


@dataclass(frozen=True, kw_only=True)
class Rule:
    """When a scan is stopped.

    Parameters
    ----------
    threshold
        At this probability of the bad classes or more; above 1: never.
    patience
        In so many answers in a row.
    first_line
        Not before so many lines.
    """

    threshold: float
    patience: int
    first_line: int = 1


def lasting(bad_NT: Floats, seen_NT: Ints, patience: int, first_line: int) -> Floats:
    """Return what a rule's threshold is compared with at each answer, [N, T].

    That is the smallest probability of the last `patience` answers; −1, which reaches nothing,
    where there are fewer, or before `first_line`.

    Parameters
    ----------
    bad_NT
        Probability of the bad classes at answers in a row; NaN past a scan's last.
    seen_NT
        Lines seen at each; 0 past the last.
    patience, first_line
        As in `Rule`.
    """
    lasting_NT = bad_NT
    for _ in range(patience - 1):
        before_NT = np.concatenate([np.full((len(bad_NT), 1), -1.0), lasting_NT[:, :-1]], axis=1)
        lasting_NT = np.minimum(before_NT, bad_NT)
    return np.where(seen_NT >= first_line, lasting_NT, -1.0)


class Watch:
    """A rule on the answers of one scan, as they come.

    Parameters
    ----------
    rule
        When to stop.
    """

    def __init__(self, rule: Rule) -> None:
        self.rule = rule
        self.bad: deque[float] = deque(maxlen=rule.patience)

    def stops(self, bad: float, seen: int) -> bool:
        """Tell whether the rule stops the scan at one more answer, given after `seen` lines."""
        self.bad.append(bad)
        bad_1T = np.array([self.bad])
        seen_1T = np.full(bad_1T.shape, seen)
        reached_1T = lasting(bad_1T, seen_1T, self.rule.patience, self.rule.first_line)
        return bool(reached_1T[0, -1] >= self.rule.threshold)


@dataclass(frozen=True, kw_only=True)
class Courses:
    """How the probability of the bad classes went while each scan ran; one seed.

    Attributes
    ----------
    bad_NT
        Probability of the bad classes at each answer; NaN past a scan's last.
    seen_NT
        Lines seen at each answer; 0 past the last.
    lines_N
        Lines of each scan.
    is_bad_N
        Whether the label is one of the bad classes.
    group_N, fold_N
        Session and fold of each scan.
    """

    bad_NT: Floats
    seen_NT: Ints
    lines_N: Ints
    is_bad_N: NDArray[np.bool_]
    group_N: NDArray[np.str_]
    fold_N: Ints

    def __getitem__(self, scans: NDArray[np.bool_]) -> Courses:
        """Return some of the scans."""
        return Courses(**{name: getattr(self, name)[scans] for name in self.__dataclass_fields__})

    @classmethod
    def joined(cls, parts: Sequence[Courses]) -> Courses:
        """Return the scans of all parts in one, such as those of several seeds."""
        answers = max(part.bad_NT.shape[1] for part in parts)

        def padded(name: str, empty: float) -> NDArray[Any]:
            own = [getattr(part, name) for part in parts]
            wide = [((0, 0), (0, answers - a.shape[1])) for a in own]
            return np.concatenate(
                [np.pad(a, w, constant_values=empty) for a, w in zip(own, wide, strict=True)]
            )

        flat = ("lines_N", "is_bad_N", "group_N", "fold_N")
        return cls(
            bad_NT=padded("bad_NT", np.nan),
            seen_NT=padded("seen_NT", 0),
            **{name: np.concatenate([getattr(part, name) for part in parts]) for name in flat},
        )


def probability_of(p_RC: NDArray[Any]) -> Floats:
    """Return the probability of several classes together, [R]; their sum, rounded, may pass 1."""
    return np.minimum(p_RC.astype(np.float64).sum(-1), 1.0)


def courses(
    table: pd.DataFrame, classes: Sequence[str], bad: Sequence[str], n_lines: pd.Series
) -> Courses:
    """Return the courses of the scans of a table of predictions of one seed.

    Parameters
    ----------
    table
        Rows of `predictions.parquet` (docs/formats.md) of one seed.
    classes
        Class names.
    bad
        Those for which a scan should be stopped.
    n_lines
        Lines of each scan, by `scan_id`.
    """
    columns = class_columns([name for name in classes if name in bad])
    rows = table.drop(columns=class_columns(classes))
    rows["bad"] = probability_of(table[columns].to_numpy())
    if is_windowed(table):
        rows = windows_so_far(rows[rows["final"]], ["bad"])
    else:
        rows = rows.sort_values(["scan_id", "lines_seen"], kind="stable")
    answer_R = rows.groupby("scan_id", sort=False).cumcount().to_numpy()
    scans = rows.drop_duplicates("scan_id")
    scan_R = np.repeat(np.arange(len(scans)), rows.groupby("scan_id", sort=False).size())
    shape = len(scans), int(answer_R.max()) + 1
    bad_NT, seen_NT = np.full(shape, np.nan), np.zeros(shape, np.int64)
    bad_NT[scan_R, answer_R] = rows["bad"]
    seen_NT[scan_R, answer_R] = rows["lines_seen"]
    wanted = [classes.index(name) for name in bad]
    return Courses(
        bad_NT=bad_NT,
        seen_NT=seen_NT,
        lines_N=n_lines.loc[scans["scan_id"]].to_numpy(np.int64),
        is_bad_N=scans["label"].isin(wanted).to_numpy(),
        group_N=scans["group"].to_numpy(np.str_),
        fold_N=scans["fold"].to_numpy(np.int64),
    )


def stops(course: Courses, threshold_H: Floats, patience: int, first_line: int = 1) -> Ints:
    """Return the lines that were scanned of each scan under each threshold, [N, H].

    A scan that is never stopped is scanned to its end.

    Parameters
    ----------
    course
        Courses of N scans.
    threshold_H, patience, first_line
        As in `Rule`.
    """
    lasting_NT = lasting(course.bad_NT, course.seen_NT, patience, first_line)
    reached_NT = np.maximum.accumulate(lasting_NT, axis=1)
    # It rises, so the first answer that reaches a threshold is found by bisection.
    first_NH = np.stack([np.searchsorted(reached_T, threshold_H) for reached_T in reached_NT])
    answers = course.bad_NT.shape[1]
    at_NH = np.take_along_axis(course.seen_NT, first_NH.clip(max=answers - 1), axis=1)
    return np.where(first_NH < answers, at_NH, course.lines_N[:, None])


def scanned(course: Courses, rule: Rule) -> Ints:
    """Return the lines that were scanned of each scan under a rule, [N]."""
    return stops(course, np.array([rule.threshold]), rule.patience, rule.first_line)[:, 0]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a rule did to scans, as sums that can be resampled by group; [N] each.

    Attributes
    ----------
    saved_N
        Lines of a bad scan that were not scanned; 0 of a good one.
    bad_lines_N
        Lines of a bad scan; 0 of a good one.
    lines_N
        Lines of a scan.
    wrong_N
        1 for a good scan that was stopped.
    bad_N, good_N
        1 for a bad and for a good scan.
    """

    saved_N: Floats
    bad_lines_N: Floats
    lines_N: Floats
    wrong_N: Floats
    bad_N: Floats
    good_N: Floats

    @classmethod
    def of(cls, course: Courses, scanned_N: Ints) -> Outcome:
        """Judge the lines that were scanned of each scan."""
        bad_N, good_N = course.is_bad_N.astype(np.float64), (~course.is_bad_N).astype(np.float64)
        return cls(
            saved_N=bad_N * (course.lines_N - scanned_N),
            bad_lines_N=bad_N * course.lines_N,
            lines_N=course.lines_N.astype(np.float64),
            wrong_N=good_N * (scanned_N < course.lines_N),
            bad_N=bad_N,
            good_N=good_N,
        )

    def figures(self, weight_BN: Floats) -> dict[str, Floats]:
        """Return each of `FIGURES` for each weighting of the scans, [B]; NaN where not defined."""
        sums = {name: weight_BN @ getattr(self, name) for name in self.__dataclass_fields__}
        spent_B = sums["bad_lines_N"] - sums["saved_N"]
        with np.errstate(invalid="ignore"):  # a resample without a bad scan has no share saved
            return {
                "saved": sums["saved_N"] / sums["bad_lines_N"],
                "wrong_stops": sums["wrong_N"] / sums["good_N"],
                "lines_spent": spent_B / sums["bad_N"],
                "time_saved": sums["saved_N"] / sums["lines_N"],
            }


def thresholds(course: Courses) -> Floats:
    """Return the thresholds to try: quantiles of the answers, rising, and one never reached."""
    answered = course.bad_NT[np.isfinite(course.bad_NT)]
    inner = np.unique(np.quantile(answered, np.linspace(0, 1, THRESHOLDS)))
    return np.append(inner, np.nextafter(1.0, 2.0))


def trade_off(course: Courses, patience: int, first_line: int = 1) -> pd.DataFrame:
    """Return, for each threshold, what a rule saves and spoils on these scans.

    Returns
    -------
    pandas.DataFrame
        `patience,threshold,wrong_stops,saved,lines_spent`: the share of good scans stopped, of bad
        scans' lines saved, and the mean lines scanned of a bad scan.
    """
    threshold_H = thresholds(course)
    scanned_NH = stops(course, threshold_H, patience, first_line)
    good, bad = ~course.is_bad_N, course.is_bad_N
    early_NH = scanned_NH < course.lines_N[:, None]
    saved_H = (course.lines_N[bad, None] - scanned_NH[bad]).sum(0) / course.lines_N[bad].sum()
    return pd.DataFrame(
        {
            "patience": patience,
            "threshold": threshold_H,
            "wrong_stops": early_NH[good].mean(0),
            "saved": saved_H,
            "lines_spent": scanned_NH[bad].mean(0),
        }
    )


def rules_for(course: Courses, choice: Choice) -> list[Rule] | None:
    """Return, for each limit, the rule that saves most on these scans within it.

    Of rules that save alike, the one with fewer wrong stops, then the higher threshold. Without
    both good and bad scans there is nothing to choose by: None.

    Parameters
    ----------
    course
        Scans to choose on.
    choice
        Limits, and what to choose from.
    """
    if not course.is_bad_N.any() or course.is_bad_N.all():
        return None
    tried = pd.concat(
        [trade_off(course, m, choice.first_line) for m in choice.patience], ignore_index=True
    ).sort_values(
        ["saved", "wrong_stops", "threshold"], ascending=[False, True, False], kind="stable"
    )
    best = [tried[tried["wrong_stops"] <= limit].iloc[0] for limit in choice.limits]
    return [
        Rule(
            threshold=float(row["threshold"]),
            patience=int(row["patience"]),
            first_line=choice.first_line,
        )
        for row in best
    ]


@dataclass(frozen=True, kw_only=True)
class Tried:
    """Rules that were chosen on other scans than they were tried on; one seed.

    Attributes
    ----------
    outcomes
        What came of it, for each limit.
    rules
        Fold → for each limit, the rule for scans that the fold's model never saw.
    """

    outcomes: list[Outcome]
    rules: Mapping[int, list[Rule]]


def cross_fitted(course: Courses, choice: Choice) -> Tried | None:
    """Judge each fold's scans by the rules that were chosen on the scans of all others.

    With a single fold, half of its groups choose for the other half, and the rules to go on with
    are chosen on all of them. None where some fold's rules cannot be chosen.
    """
    folds = np.unique(course.fold_N)
    part_N = course.fold_N
    if len(folds) == 1:
        _, group_N = np.unique(course.group_N, return_inverse=True)
        part_N = group_N % 2
    scanned_GN = np.tile(course.lines_N, (len(choice.limits), 1))
    chosen: dict[int, list[Rule]] = {}
    for part in np.unique(part_N):
        rules = rules_for(course[part_N != part], choice)
        if rules is None:
            return None
        chosen[int(part)] = rules
        mine = part_N == part
        for g, rule in enumerate(rules):
            scanned_GN[g, mine] = scanned(course[mine], rule)
    if len(folds) == 1:
        on_all = rules_for(course, choice)
        assert on_all is not None, "each half had good and bad scans"
        chosen = {int(folds[0]): on_all}
    return Tried(outcomes=[Outcome.of(course, n_N) for n_N in scanned_GN], rules=chosen)


def limits_table(
    course_S: Sequence[Courses],
    tried_S: Sequence[Tried | None],
    limits: Sequence[float],
    *,
    resamples: int,
    confidence: float,
    seed: int,
) -> pd.DataFrame:
    """Return what is saved at wanted rates of wrong stops, and the rates that came of it.

    Parameters
    ----------
    course_S
        The same scans in the same order under each seed of training.
    tried_S
        `cross_fitted` of each.
    limits
        Wanted shares of good scans stopped.
    resamples, confidence, seed
        Of the bootstrap of groups and seeds behind the intervals.

    Returns
    -------
    pandas.DataFrame
        `limit,figure,value,low,high`, with the figures of `FIGURES`; means over seeds.
    """
    rng = np.random.default_rng(seed)
    group, unit_N = np.unique(course_S[0].group_N, return_inverse=True)
    assert all((c.group_N == course_S[0].group_N).all() for c in course_S), "scans differ by seed"
    drawn_BK = rng.multinomial(len(group), np.full(len(group), 1 / len(group)), resamples)
    weight_BN = np.vstack([np.ones(len(unit_N)), drawn_BK[:, unit_N]])
    drawn_BS = rng.multinomial(len(course_S), np.full(len(course_S), 1 / len(course_S)), resamples)
    share_BS = np.vstack([np.ones(len(course_S)), drawn_BS]) / len(course_S)
    tails = (1 - confidence) / 2, (1 + confidence) / 2
    none = dict.fromkeys(FIGURES, np.full(len(weight_BN), np.nan))
    rows = []
    for g, limit in enumerate(limits):
        figures_S = [
            none if tried is None else tried.outcomes[g].figures(weight_BN) for tried in tried_S
        ]
        for name in FIGURES:
            value_B = (np.stack([own[name] for own in figures_S], axis=1) * share_BS).sum(1)
            drawn_B = value_B[1:][np.isfinite(value_B[1:])]
            several = len(group) > 1 and len(drawn_B)
            low, high = np.quantile(drawn_B, tails) if several else (np.nan, np.nan)
            rows.append((limit, name, value_B[0], low, high))
    return pd.DataFrame(rows, columns=list(LIMITS))
