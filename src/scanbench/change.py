"""How much a model's answer, or the scan itself, has changed while it runs: scores of a tip change.

Shape suffixes: T answers, C classes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import special

Floats = NDArray[np.float64]
Heights = NDArray[np.floating[Any]]

#: Standardised values are cut off here: with few values before, or values that did not vary, larger
#: ones tell of those alone.
LARGEST_Z = 8.0
#: A deviation below this means values that do not vary.
TINY = 1e-9


class Drift:
    """The distance of each answer from the moving average of those before it.

    The total-variation distance ½ Σ |p − p̄|; p̄ is the exponentially weighted moving average
    (Roberts, Technometrics 1, 239 (1959)). The first answer has none before it: 0.

    Parameters
    ----------
    smoothing
        Weight of the newest answer in the average, above 0 and up to 1.
    """

    def __init__(self, smoothing: float) -> None:
        self.smoothing = smoothing
        self.average_C: Floats | None = None

    def push(self, p_C: Floats) -> float:
        """Return the score of one more answer."""
        if self.average_C is None:
            self.average_C = p_C
        score = 0.5 * float(np.abs(p_C - self.average_C).sum())
        self.average_C = self.average_C + self.smoothing * (p_C - self.average_C)
        return score


def drifts(p_TC: Floats, smoothing: float) -> Floats:
    """Return the score of every answer of a scan, [T]."""
    drift = Drift(smoothing)
    return np.array([drift.push(p_C) for p_C in p_TC])


class SelfStarting:
    """Each value of a series as a standard normal number, by the values before it alone.

    The Q statistic of Quesenberry, J. Qual. Technol. 23, 213 (1991); also Hawkins, The Statistician
    36, 299 (1987): with mean x̄ and deviation s of the n values before, (x − x̄) / (s √(1 + 1/n)) has
    Student's t distribution with n − 1 degrees of freedom if values are independent and normal; its
    quantile is carried over to the normal distribution. Many series go on side by side; constant
    work for each value.
    """

    def __init__(self) -> None:
        self.count = self.mean = np.zeros(())
        self.squares = np.zeros(())  # of the distances from the mean, summed

    def push(self, x: Floats) -> Floats:
        """Return the next value of each series, standardised; NaN where it is NaN or the first two.

        A NaN leaves its series as it was.
        """
        there, n = np.isfinite(x), self.count
        x = np.where(there, x, np.nan)
        with np.errstate(divide="ignore", invalid="ignore"):
            deviation = np.sqrt(self.squares / (n - 1))
            t = (x - self.mean) / (np.maximum(deviation, TINY) * np.sqrt(1 + 1 / n))
            # The lower tail keeps its digits where the distribution function is all but 1.
            size = np.minimum(-special.ndtri(special.stdtr(n - 1, -np.abs(t))), LARGEST_Z)
        z = np.where(there & (n >= 2), np.sign(t) * size, np.nan) + 0.0  # no −0
        # Welford, Technometrics 4, 419 (1962).
        off = np.where(there, x - self.mean, 0.0)
        self.count = n + there
        self.mean = self.mean + off / np.maximum(self.count, 1)
        self.squares = self.squares + off * np.where(there, x - self.mean, 0.0)
        return z


class Steps:
    """How unusual each step from one line of a scan to the next is among the steps before it.

    The Q statistic (`SelfStarting`) of the logarithm of the step's root-mean-square height: the
    same in whatever unit. Neighbouring steps share a line, so they are not independent, and no rate
    of false alarms follows from the normal distribution. Many scans go on side by side.
    """

    def __init__(self) -> None:
        self.chart = SelfStarting()

    def push(self, before: Heights, line: Heights) -> Floats:
        """Return the score of the step between two lines.

        Parameters
        ----------
        before, line
            Heights [..., P]; `before` is the last line that was measured.

        Returns
        -------
        numpy.ndarray
            In standard deviations, [...]; NaN at a scan's first two steps, and where a line is not
            finite or the one before it over again.
        """
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            size = np.sqrt(np.square(line.astype(np.float64) - before).mean(axis=-1))
            return self.chart.push(np.where(size > 0, np.log(size), np.nan))
