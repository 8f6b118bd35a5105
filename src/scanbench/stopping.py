"""Stopping bad scans early: what a rule would have saved, and what it would have spoiled.

A rule stops a scan once the probability of the bad classes has reached a threshold in so many
answers in a row. It is judged as the operator feels it: the lines of bad scans that it saves,
against the good scans that it stops. The threshold for a wanted rate of wrong stops is chosen on
the held-out scans of all other folds and tried on those of one fold, so that no answer about a scan
has a say in the rule that the scan is judged by. (Models of the other folds were trained on it.)

Shape suffixes: N scans, T answers, H thresholds, B resamples, K groups, S seeds.
"""

from __future__ import annotations

from collections.abc import Sequence
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
    rows["bad"] = table[columns].astype(np.float64).sum(axis=1)
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


def stops(course: Courses, threshold_H: Floats, patience: int) -> Ints:
    """Return the lines that were scanned of each scan under each threshold, [N, H].

    A scan that is never stopped is scanned to its end.

    Parameters
    ----------
    course
        Courses of N scans.
    threshold_H
        Stop at this probability of the bad classes or more.
    patience
        In so many answers in a row.
    """
    lasting_NT = course.bad_NT
    for _ in range(patience - 1):
        # The smallest of the last answers; a scan's first ones are too few.
        before_NT = np.concatenate(
            [np.full((len(lasting_NT), 1), -1.0), lasting_NT[:, :-1]], axis=1
        )
        lasting_NT = np.minimum(before_NT, course.bad_NT)
    reached_NT = np.fmax.accumulate(lasting_NT, axis=1)
    # It rises, so the first answer that reaches a threshold is found by bisection.
    first_NH = np.stack([np.searchsorted(reached_T, threshold_H) for reached_T in reached_NT])
    answers = course.bad_NT.shape[1]
    at_NH = np.take_along_axis(course.seen_NT, first_NH.clip(max=answers - 1), axis=1)
    return np.where(first_NH < answers, at_NH, course.lines_N[:, None])


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a rule did to scans, as sums that can be resampled by group; [N] each.

    Attributes
    ----------
    saved_N
        Lines of a bad scan that were not scanned; 0 of a good one.
    bad_lines_N
        Lines of a bad scan; 0 of a good one.
    wrong_N
        1 for a good scan that was stopped.
    good_N
        1 for a good scan.
    """

    saved_N: Floats
    bad_lines_N: Floats
    wrong_N: Floats
    good_N: Floats

    @classmethod
    def of(cls, course: Courses, scanned_N: Ints) -> Outcome:
        """Judge the lines that were scanned of each scan."""
        good_N = ~course.is_bad_N
        early_N = scanned_N < course.lines_N
        return cls(
            saved_N=np.where(course.is_bad_N, course.lines_N - scanned_N, 0).astype(np.float64),
            bad_lines_N=np.where(course.is_bad_N, course.lines_N, 0).astype(np.float64),
            wrong_N=(good_N & early_N).astype(np.float64),
            good_N=good_N.astype(np.float64),
        )

    def rates(self, weight_BN: Floats) -> tuple[Floats, Floats]:
        """Return the share of bad scans' lines saved and the rate of wrong stops, [B] each."""
        saved_B = (weight_BN @ self.saved_N) / (weight_BN @ self.bad_lines_N)
        wrong_B = (weight_BN @ self.wrong_N) / (weight_BN @ self.good_N)
        return saved_B, wrong_B


def thresholds(course: Courses) -> Floats:
    """Return the thresholds to try: quantiles of the answers, rising, and one never reached."""
    answered = course.bad_NT[np.isfinite(course.bad_NT)]
    inner = np.unique(np.quantile(answered, np.linspace(0, 1, THRESHOLDS)))
    return np.append(inner, np.nextafter(1.0, 2.0) if inner[-1] <= 1 else inner[-1] + 1)


def trade_off(course: Courses, patience: int) -> pd.DataFrame:
    """Return, for each threshold, what a rule saves and spoils on these scans.

    Returns
    -------
    pandas.DataFrame
        `patience,threshold,wrong_stops,saved,lines_spent`: the share of good scans stopped, of bad
        scans' lines saved, and the mean lines scanned of a bad scan.
    """
    threshold_H = thresholds(course)
    scanned_NH = stops(course, threshold_H, patience)
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


def rules_for(
    course: Courses, limits: Sequence[float], patience: Sequence[int]
) -> list[tuple[float, int]] | None:
    """Return, for each limit, the threshold and patience that save most on these scans within it.

    Of rules that save alike, the one with fewer wrong stops, then the higher threshold. Without
    both good and bad scans there is nothing to choose by: None.

    Parameters
    ----------
    course
        Scans to choose on.
    limits
        Largest shares of good scans that may be stopped.
    patience
        Values to choose from.
    """
    if not course.is_bad_N.any() or course.is_bad_N.all():
        return None
    tried = pd.concat([trade_off(course, m) for m in patience], ignore_index=True).sort_values(
        ["saved", "wrong_stops", "threshold"], ascending=[False, True, False], kind="stable"
    )
    best = [tried[tried["wrong_stops"] <= limit].iloc[0] for limit in limits]
    return [(float(rule["threshold"]), int(rule["patience"])) for rule in best]


def cross_fitted(
    course: Courses, limits: Sequence[float], patience: Sequence[int]
) -> list[Outcome] | None:
    """Judge each fold's scans by the rules that were chosen on the scans of all others.

    With a single fold, half of its groups choose for the other half. None where some fold's rules
    cannot be chosen.
    """
    part_N = course.fold_N
    if len(np.unique(part_N)) == 1:
        _, group_N = np.unique(course.group_N, return_inverse=True)
        part_N = group_N % 2
    scanned_GN = np.tile(course.lines_N, (len(limits), 1))
    for part in np.unique(part_N):
        rules = rules_for(course[part_N != part], limits, patience)
        if rules is None:
            return None
        mine = part_N == part
        for g, (threshold, wait) in enumerate(rules):
            scanned_GN[g, mine] = stops(course[mine], np.array([threshold]), wait)[:, 0]
    return [Outcome.of(course, scanned_N) for scanned_N in scanned_GN]


def limits_table(
    course_S: Sequence[Courses],
    limits: Sequence[float],
    patience: Sequence[int],
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
    limits
        Wanted shares of good scans stopped.
    patience
        Values to choose from.
    resamples, confidence, seed
        Of the bootstrap of groups and seeds behind the intervals.

    Returns
    -------
    pandas.DataFrame
        `limit,figure,value,low,high`, with figures `saved` and `wrong_stops`; means over seeds.
    """
    rng = np.random.default_rng(seed)
    group, unit_N = np.unique(course_S[0].group_N, return_inverse=True)
    assert all((c.group_N == course_S[0].group_N).all() for c in course_S), "scans differ by seed"
    drawn_BK = rng.multinomial(len(group), np.full(len(group), 1 / len(group)), resamples)
    weight_BN = np.vstack([np.ones(len(unit_N)), drawn_BK[:, unit_N]])
    drawn_BS = rng.multinomial(len(course_S), np.full(len(course_S), 1 / len(course_S)), resamples)
    share_BS = np.vstack([np.ones(len(course_S)), drawn_BS]) / len(course_S)
    rows = []
    chosen_S = [cross_fitted(course, limits, patience) for course in course_S]
    with np.errstate(invalid="ignore"):  # a resample without a bad scan has no share saved
        for g, limit in enumerate(limits):
            both_SB = [
                (np.full(len(weight_BN), np.nan),) * 2
                if chosen is None
                else chosen[g].rates(weight_BN)
                for chosen in chosen_S
            ]
            for k, figure in enumerate(("saved", "wrong_stops")):
                value_B = (np.stack([pair[k] for pair in both_SB], axis=1) * share_BS).sum(1)
                drawn_B = value_B[1:][np.isfinite(value_B[1:])]
                tails = (1 - confidence) / 2, (1 + confidence) / 2
                several = len(group) > 1 and len(drawn_B)
                low, high = np.quantile(drawn_B, tails) if several else (np.nan, np.nan)
                rows.append((limit, figure, value_B[0], low, high))
    return pd.DataFrame(rows, columns=list(LIMITS))
