"""Where in a scan did the tip change? Scores of every line, and what alarms from them are worth.

All functions are pure. A score of line l of an online detector rests on the lines up to it; the
offline references (`window_scores`, `pelt_scores`) look at the whole scan. Line numbers count from
0, as `change_line` of the store does.

Shape suffixes: N scans, L lines, K line statistics, B weightings, G groups; in attention Y layers,
H heads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import ruptures
import torch
from numpy.typing import NDArray
from torch import Tensor

from scanbench.change import TINY, Heights, SelfStarting, Steps
from scanbench.tipstate.models.features import line_statistics, step_statistics

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

#: Lines that must lie on either side of an offline change.
FEWEST = 3
#: Thresholds that are tried lie at so many quantiles of the scores.
THRESHOLDS = 400


# ---------------------------------------------------------------------------------------------
# Scores


def statistics_of(x_NLP: NDArray[np.float32], *, lags: int, bands: int, max_shift: int) -> Floats:
    """Return statistics of each line, and of its step from the one before, [N, L, K].

    They are those of the model `features`. The first line, which has no step, has that of the
    second.
    """
    x_NLP_tensor = torch.from_numpy(x_NLP)
    step_NLK = step_statistics(x_NLP_tensor, max_shift)
    step_NLK = torch.cat([step_NLK[:, :1], step_NLK], dim=1)
    own_NLK = line_statistics(x_NLP_tensor, lags, bands)
    return torch.cat([own_NLK, step_NLK], dim=2).numpy().astype(np.float64)


def self_standardised(s_NLK: Floats) -> Floats:
    """Return each statistic as a standard normal number, by the scan's own earlier lines alone.

    See `change.SelfStarting`. NaN at the first two lines.
    """
    chart = SelfStarting()
    return np.stack([chart.push(s_NLK[:, line]) for line in range(s_NLK.shape[1])], axis=1)


def step_scores(x_NLP: Heights) -> Floats:
    """Return how unusual the step to each line is among the scan's earlier ones, [N, L].

    See `change.Steps`, which the monitor has too, of the lines as they are measured. NaN at the
    first three lines, and at those that repeat the one before, as a lost one does in the store.
    """
    chart = Steps()
    score_NL = np.full(x_NLP.shape[:2], np.nan)
    for line in range(1, x_NLP.shape[1]):
        score_NL[:, line] = chart.push(x_NLP[:, line - 1], x_NLP[:, line])
    return score_NL


def cusum(z_NLK: Floats, allowance: float) -> Floats:
    """Return the largest two-sided cumulative sum of any statistic at each line, [N, L].

    S⁺ = max(0, S⁺ + z − k) and S⁻ = max(0, S⁻ − z − k), with the allowance k (Page, Biometrika 41,
    100 (1954)). NaN where z is.
    """
    up_NK = np.zeros((len(z_NLK), z_NLK.shape[2]))
    down_NK = np.zeros_like(up_NK)
    score_NL = np.full(z_NLK.shape[:2], np.nan)
    for line in range(z_NLK.shape[1]):
        z_NK = z_NLK[:, line]
        if np.isnan(z_NK).all():
            continue
        up_NK = np.maximum(0, up_NK + z_NK - allowance)
        down_NK = np.maximum(0, down_NK - z_NK - allowance)
        score_NL[:, line] = np.maximum(up_NK, down_NK).max(axis=1)
    return score_NL


def attention_shift(attention_NYHLL: Tensor) -> Floats:
    """Return how far the newest token's attention moved from that of the token before, [N, L].

    The total-variation distance ½ Σ |a − a′| between the distributions over lines, mean over layers
    and heads. NaN at the first line, which has none before it.

    Parameters
    ----------
    attention_NYHLL
        How much each line reads from each, as a causal model's `attention` gives it.
    """
    moved_NYHL = 0.5 * attention_NYHLL.diff(dim=-2).abs().sum(-1)
    score_NL = moved_NYHL.mean(dim=(1, 2)).numpy().astype(np.float64)
    return np.concatenate([np.full((len(score_NL), 1), np.nan), score_NL], axis=1)


def _standardised(s_LK: Floats) -> Floats:
    """Return a whole scan's statistics with mean 0 and deviation 1; offline."""
    deviation_K = s_LK.std(axis=0)
    return (s_LK - s_LK.mean(axis=0)) / np.where(deviation_K > TINY, deviation_K, 1.0)


def window_scores(s_LK: Floats, width: int) -> Floats:
    """Return how unlike the lines before and after each line are, [L]; offline.

    The gain in squared error of two windows of half the width against one (`ruptures.Window`,
    Truong, Oudre & Vayatis, Signal Process. 167, 107299 (2020), section 5.2.1). NaN where a window
    does not fit.
    """
    score_L = np.full(len(s_LK), np.nan)
    if len(s_LK) > width:
        found = ruptures.Window(width=width, model="l2", jump=1).fit(_standardised(s_LK))
        score_L[np.asarray(found.inds)] = found.score
    return score_L


def pelt_scores(s_LK: Floats, penalties: Sequence[float]) -> Floats:
    """Return the largest penalty at which PELT puts a change at each line, [L]; offline.

    0 where it puts none. Cost: squared error (Killick, Fearnhead & Eckley, J. Am. Stat. Assoc. 107,
    1590 (2012); `ruptures.KernelCPD` with the linear kernel, which is the same in C).
    """
    score_L = np.zeros(len(s_LK))
    if len(s_LK) < 2 * FEWEST:
        return score_L
    search = ruptures.KernelCPD(kernel="linear", min_size=FEWEST).fit(_standardised(s_LK))
    for penalty in sorted(penalties):
        score_L[np.asarray(search.predict(pen=penalty)[:-1], np.int64)] = penalty
    return score_L


# ---------------------------------------------------------------------------------------------
# Alarms


#: Line of change of a scan of which nobody knows whether the tip changed; −1 is "it did not".
UNKNOWN = -2


@dataclass(frozen=True, kw_only=True)
class Watched:
    """Scans with the scores of one detector.

    Attributes
    ----------
    score_NL
        NaN where there is none.
    change_N
        Line of the known change; −1: there is none; `UNKNOWN`: the scan takes no part.
    """

    score_NL: Floats
    change_N: Ints

    def __getitem__(self, scans: Bools) -> Watched:
        """Return some of the scans."""
        return Watched(score_NL=self.score_NL[scans], change_N=self.change_N[scans])


def alarms(score_NL: Floats, threshold: float) -> Bools:
    """Tell at which lines a score reaches a threshold that it was below before, [N, L].

    Lines without a score keep the state of the line before.
    """
    has_NL = np.isfinite(score_NL)
    last_NL = np.maximum.accumulate(np.where(has_NL, np.arange(score_NL.shape[1]), 0), axis=1)
    held_NL = np.take_along_axis(score_NL, last_NL, axis=1)
    above_NL = np.nan_to_num(held_NL, nan=-np.inf) >= threshold
    before_NL = np.pad(above_NL[:, :-1], ((0, 0), (1, 0)))
    return above_NL & ~before_NL


@dataclass(frozen=True, kw_only=True)
class Counts:
    """What alarms did to scans, as sums that can be resampled by group; [N] each.

    Attributes
    ----------
    false_N, risk_N
        Alarms more than the tolerance before a change, or in a scan without; and the lines with a
        score on which there could have been one.
    change_N, found_N, delay_N
        1 for a scan with a change; 1 if an alarm came later than the tolerance before it; lines
        from the change to the first such alarm.
    hit_N, missed_alarm_N
        1 if an alarm is within the tolerance of the change; alarms that are not, wherever.
    """

    false_N: Floats
    risk_N: Floats
    change_N: Floats
    found_N: Floats
    delay_N: Floats
    hit_N: Floats
    missed_alarm_N: Floats

    @classmethod
    def of(cls, watched: Watched, threshold: float, tolerance: int) -> Counts:
        """Count the alarms at a threshold."""
        known_N1 = watched.change_N[:, None] != UNKNOWN
        alarm_NL = alarms(watched.score_NL, threshold) & known_N1
        line_L = np.arange(alarm_NL.shape[1])
        changed_N = watched.change_N >= 0
        change_N1 = np.where(changed_N, watched.change_N, line_L[-1] + 1 + tolerance)[:, None]
        early_NL = known_N1 & (line_L < change_N1 - tolerance)
        near_NL = np.abs(line_L - change_N1) <= tolerance
        late_NL = alarm_NL & ~early_NL
        found_N = late_NL.any(axis=1) & changed_N
        delay_N = np.where(found_N, late_NL.argmax(axis=1) - change_N1[:, 0], 0)
        return cls(
            false_N=(alarm_NL & early_NL).sum(axis=1).astype(np.float64),
            risk_N=(np.isfinite(watched.score_NL) & early_NL).sum(axis=1).astype(np.float64),
            change_N=changed_N.astype(np.float64),
            found_N=found_N.astype(np.float64),
            delay_N=delay_N.astype(np.float64),
            hit_N=np.asarray((alarm_NL & near_NL).any(axis=1), np.float64),
            missed_alarm_N=(alarm_NL & ~near_NL).sum(axis=1).astype(np.float64),
        )

    @classmethod
    def joined(cls, parts: Sequence[Counts]) -> Counts:
        """Return the scans of all parts in one."""
        names = cls.__dataclass_fields__
        return cls(**{name: np.concatenate([getattr(p, name) for p in parts]) for name in names})

    def figures(self, weight_BN: Floats) -> dict[str, Floats]:
        """Return each of `FIGURES` for each weighting of the scans, [B]; NaN where not defined."""
        sums = {name: weight_BN @ getattr(self, name) for name in self.__dataclass_fields__}
        with np.errstate(invalid="ignore", divide="ignore"):
            return {
                "false_alarms": 1000 * sums["false_N"] / sums["risk_N"],
                "precision": sums["hit_N"] / (sums["hit_N"] + sums["missed_alarm_N"]),
                "recall": sums["hit_N"] / sums["change_N"],
                "found": sums["found_N"] / sums["change_N"],
                "delay": sums["delay_N"] / sums["found_N"],
            }


#: False alarms per 1,000 lines; precision and recall within the tolerance; share of changes that an
#: alarm followed before the scan's end, and the mean lines from change to alarm of these.
FIGURES = ("false_alarms", "precision", "recall", "found", "delay")


def threshold_for(watched: Watched, rate: float, tolerance: int) -> float:
    """Return the lowest threshold that keeps false alarms within a rate, at it and all above.

    Parameters
    ----------
    watched
        Scans to choose on.
    rate
        False alarms per 1,000 lines.
    tolerance
        As in `Counts`.

    Returns
    -------
    float
        Infinite where no score keeps the rate.
    """
    known = watched.score_NL[np.isfinite(watched.score_NL)]
    chosen = np.inf
    if not len(known):
        return chosen
    for threshold in np.unique(np.quantile(known, np.linspace(0, 1, THRESHOLDS)))[::-1]:
        counts = Counts.of(watched, float(threshold), tolerance)
        if 1000 * counts.false_N.sum() > rate * counts.risk_N.sum():
            break
        chosen = float(threshold)
    return chosen


def largest(score_NL: Floats) -> Floats:
    """Return the largest score of each scan, [N]; −∞ where there is none."""
    return np.nan_to_num(score_NL, nan=-np.inf).max(axis=1)
