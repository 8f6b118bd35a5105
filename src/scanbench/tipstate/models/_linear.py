"""The linear classifier of the models that are fitted at once, or begin with such a fit.

Shape suffixes: N samples, F features, C classes.
"""

from __future__ import annotations

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor

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
