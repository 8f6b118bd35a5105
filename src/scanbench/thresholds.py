"""Which class an answer names when thresholds between classes are fitted on other folds.

The most probable class is the best one to name only where probabilities are right. A network names
a rare class too seldom even when it was trained with class weights, and then its balanced accuracy
says more about its thresholds than about what it sees. Shape suffixes: N answers, C classes.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import log_softmax

Floats: TypeAlias = NDArray[np.float64]
Ints: TypeAlias = NDArray[np.int64]

#: A probability of 0 in float32 may stand for anything below this.
LEAST = 1e-12
#: Scale and offsets stay within this: answers that confuse no class set no limit to them.
LARGEST = 30.0


def fitted(p_NC: Floats, label_N: Ints) -> tuple[float, Floats]:
    """Return the scale t and the offsets b_C with which `t · log p + b` says best what is true.

    Bias-corrected temperature scaling (Alexandari, Kundaje & Shrikumar, ICML 2020, arXiv
    1901.06852): the largest likelihood, here with as much weight on each class that occurs.

    Parameters
    ----------
    p_NC
        Probabilities of answers.
    label_N
        What is true, 0 … C − 1. The offset of a class that does not occur is 0.
    """
    logit_NC = np.log(np.maximum(p_NC, LEAST))
    count_C = np.bincount(label_N, minlength=p_NC.shape[1])
    weight_N = 1 / (np.count_nonzero(count_C) * count_C[label_N])
    true_NC = np.eye(len(count_C))[label_N]

    def loss(number: Floats) -> tuple[float, Floats]:
        scale, offset_C = np.exp(number[0]), number[1:]
        log_q_NC = log_softmax(scale * logit_NC + offset_C, axis=1)
        off_NC = weight_N[:, None] * (np.exp(log_q_NC) - true_NC)
        by_scale = scale * (off_NC * logit_NC).sum()
        by_offset_C = np.where(count_C > 0, off_NC.sum(axis=0), 0.0)
        value = -(weight_N * log_q_NC[true_NC.astype(bool)]).sum()
        return float(value), np.append(by_scale, by_offset_C)

    bounds = [(-np.log(LARGEST), np.log(LARGEST)), *[(-LARGEST, LARGEST)] * len(count_C)]
    found = minimize(loss, np.zeros(1 + len(count_C)), jac=True, method="L-BFGS-B", bounds=bounds)
    return float(np.exp(found.x[0])), found.x[1:]


def named(p_NC: Floats, label_N: Ints, fold_N: Ints) -> Ints:
    """Return the class that each answer names by thresholds fitted on the other folds, [N].

    So no label decides about a scan of its own group, where folds hold whole groups out.

    Parameters
    ----------
    p_NC, label_N
        As in `fitted`.
    fold_N
        Fold of each answer; there are at least two.
    """
    named_N = np.empty(len(p_NC), np.int64)
    for fold in np.unique(fold_N):
        own = fold_N == fold
        scale, offset_C = fitted(p_NC[~own], label_N[~own])
        logit_NC = np.log(np.maximum(p_NC[own], LEAST))
        named_N[own] = (scale * logit_NC + offset_C).argmax(axis=1)
    return named_N
