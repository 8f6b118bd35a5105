"""The linear classifier of the models that are fitted at once, or begin with such a fit.

Shape suffixes: N samples, F features, C classes.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy.optimize import minimize
from sklearn.linear_model import LogisticRegression
from torch import Tensor
from torch.nn import functional as F

#: Intercept of a class without a sample: it is as good as impossible.
IMPOSSIBLE = -30.0


def fit_linear(
    z_NF: Tensor,
    labels_N: np.ndarray,
    class_weights_C: np.ndarray,
    *,
    inverse_regularisation: float,
    max_iter: int,
) -> tuple[Tensor, Tensor]:
    """Fit a logistic regression; return its coefficients [C, F] and intercepts [C].

    Parameters
    ----------
    z_NF
        Standardised features.
    labels_N
        Class of each sample, of at least two classes.
    class_weights_C
        Weight of each class; as many as there are classes.
    inverse_regularisation, max_iter
        scikit-learn's `C` and `max_iter`.
    """
    regression = LogisticRegression(
        C=inverse_regularisation,
        class_weight=dict(enumerate(class_weights_C.tolist())),
        max_iter=max_iter,
    ).fit(z_NF.numpy(), labels_N)
    coefficient = torch.from_numpy(regression.coef_).float()
    intercept = torch.from_numpy(regression.intercept_).float()
    if len(regression.classes_) == 2:  # one row, for the second class against the first
        coefficient = torch.cat([-coefficient, coefficient]) / 2
        intercept = torch.cat([-intercept, intercept]) / 2
    present = torch.from_numpy(regression.classes_)
    coefficient_CF = torch.zeros(len(class_weights_C), z_NF.shape[1])
    intercept_C = torch.full((len(class_weights_C),), IMPOSSIBLE)
    coefficient_CF[present], intercept_C[present] = coefficient, intercept
    return coefficient_CF, intercept_C


def refit_linear(
    z_NF: Tensor,
    labels_N: np.ndarray,
    class_weights_C: np.ndarray,
    start: tuple[Tensor, Tensor],
    *,
    inverse_regularisation: float,
    max_iter: int,
) -> tuple[Tensor, Tensor]:
    """Fit a logistic regression whose coefficients are drawn to those of another, not to zero.

    What few samples do not tell stays as it was: the classifier of another surface, or of a
    simulation, adapts (the maximum a posteriori adaptation of C. Chelba and A. Acero, "Adaptation
    of Maximum Entropy Capitalizer", EMNLP 2004). scikit-learn draws to zero alone; started from
    zero, this is the same fit.

    Parameters
    ----------
    z_NF, labels_N, class_weights_C, inverse_regularisation, max_iter
        As in `fit_linear`.
    start
        Coefficients [C, F] to be drawn to, and intercepts [C] to begin with, which nothing draws;
        that of a class without a sample stays.

    Returns
    -------
    coefficient_CF, intercept_C
    """
    z, label = z_NF.double(), torch.from_numpy(labels_N).long()
    weights = torch.from_numpy(class_weights_C).double()
    start_CK = torch.cat([start[0], start[1][:, None]], dim=1).double()
    absent_C = torch.bincount(label, minlength=len(weights)) == 0

    def objective(flat: np.ndarray) -> tuple[float, np.ndarray]:
        w_CK = torch.from_numpy(flat).view_as(start_CK).requires_grad_()
        logits_NC = F.linear(z, w_CK[:, :-1], w_CK[:, -1])
        losses = F.cross_entropy(logits_NC, label, weights, reduction="sum")
        away = (w_CK - start_CK)[:, :-1].square().sum()
        total = inverse_regularisation * losses + away / 2
        (gradient_CK,) = torch.autograd.grad(total, w_CK)
        gradient_CK[absent_C, -1] = 0.0
        return total.item(), gradient_CK.numpy().ravel()

    found = minimize(
        objective,
        start_CK.numpy().ravel(),
        jac=True,
        method="L-BFGS-B",
        options={"maxiter": max_iter},
    )
    w_CK = torch.from_numpy(found.x).view_as(start_CK).float()
    return w_CK[:, :-1], w_CK[:, -1]
