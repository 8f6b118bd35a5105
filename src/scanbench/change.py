"""How much a model's answer has changed while a scan runs: the tip-change score of the monitor.

Shape suffixes: T answers, C classes.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


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
