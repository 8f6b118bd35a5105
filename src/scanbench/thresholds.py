"""Predicted classes by thresholds that are fitted to the answers of other folds.

The most probable class is the best one to predict only where probabilities are right. A network may
predict a rare class too seldom even when its loss was weighted by class, and then its balanced
accuracy tells of its thresholds as well as of what it sees. Shape suffixes: N answers, C classes,
S seeds.
"""

from __future__ import annotations

import numpy as np
from scipy.optimize import minimize
from scipy.special import log_softmax

from scanbench.metrics import Floats, Ints, log_probability

#: Scale (or one over it) and offsets stay below this: nothing else bounds those of answers that are
#: all right.
LARGEST = 30.0


def fit_thresholds(p_NC: Floats, label_N: Ints) -> tuple[float, Floats]:
    """Fit the scale t and the offsets b_C with which `t · log p + b` tells best what is true.

    Bias-corrected temperature scaling (Alexandari, Kundaje & Shrikumar, ICML 2020, arXiv
    1901.06852), with equal weight on each class. The loss is convex, and the fit begins at t = 1,
    b = 0: one that ends early is no less likely than the answers as they are.

    Parameters
    ----------
    p_NC
        Finite probabilities.
    label_N
        True classes, 0 … C − 1; each occurs.

    Returns
    -------
    scale : float
        From 1/30 to 30.
    offset_C : ndarray
        From −30 to 30.
    """
    log_p_NC = log_probability(p_NC)
    rows_N = np.arange(len(label_N))
    count_C = np.bincount(label_N, minlength=p_NC.shape[1])
    weight_N = 1 / (len(count_C) * count_C[label_N])

    def loss(number: Floats) -> tuple[float, Floats]:
        scale, offset_C = number[0], number[1:]
        log_q_NC = log_softmax(scale * log_p_NC + offset_C, axis=1)
        off_NC = np.exp(log_q_NC)
        off_NC[rows_N, label_N] -= 1
        off_NC *= weight_N[:, None]
        gradient = np.append((off_NC * log_p_NC).sum(), off_NC.sum(axis=0))
        return -float(weight_N @ log_q_NC[rows_N, label_N]), gradient

    start = np.eye(1, 1 + len(count_C))[0]
    bounds = [(1 / LARGEST, LARGEST), *[(-LARGEST, LARGEST)] * len(count_C)]
    found = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds)
    return float(found.x[0]), found.x[1:]


def cross_fitted_classes(p_SNC: Floats, label_N: Ints, fold_N: Ints) -> Ints | None:
    """Predict each answer's class by thresholds fitted to the answers of the other folds.

    No label of the fold has a part in the fit. The answers that are fitted to are those of models
    that were trained on it, as in stacking, so a small optimism is possible.

    Parameters
    ----------
    p_SNC
        Probabilities, for each of S seeds; each seed has its own fits.
    label_N, fold_N
        True class and fold of each answer.

    Returns
    -------
    ndarray or None
        [S, N]. None where the other folds of one lack a class: there is one fold only, or the class
        stands in one only.
    """
    classes = p_SNC.shape[2]
    others = [(fold, fold_N != fold) for fold in np.unique(fold_N)]
    if any(len(np.unique(label_N[other_N])) < classes for _, other_N in others):
        return None
    predicted_SN = np.empty(p_SNC.shape[:2], np.int64)
    for p_NC, predicted_N in zip(p_SNC, predicted_SN, strict=True):
        for fold, other_N in others:
            scale, offset_C = fit_thresholds(p_NC[other_N], label_N[other_N])
            own_N = fold_N == fold
            predicted_N[own_N] = (scale * log_probability(p_NC[own_N]) + offset_C).argmax(axis=1)
    return predicted_SN
