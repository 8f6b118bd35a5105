"""The linear classifier: fitted, and fitted again drawn to what it was."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from scanbench.tipstate.models._linear import fit_linear, refit_linear

C = 3
CLASS_WEIGHTS = np.array([0.5, 1.0, 2.0])
HOW = {"inverse_regularisation": 0.05, "max_iter": 1000}


@pytest.fixture
def samples() -> tuple[Tensor, np.ndarray]:
    draw = np.random.default_rng(0)
    label = draw.integers(0, C, 120)
    return torch.from_numpy(draw.normal(size=(120, 5)) + label[:, None]).float(), label


def test_drawn_to_zero_it_is_the_fit_of_scikit_learn(samples: tuple[Tensor, np.ndarray]) -> None:
    zero = torch.zeros(C, 5), torch.zeros(C)
    coefficient, intercept = refit_linear(*samples, CLASS_WEIGHTS, zero, **HOW)
    expected, constant = fit_linear(*samples, CLASS_WEIGHTS, **HOW)
    torch.testing.assert_close(coefficient, expected, rtol=0, atol=2e-3)
    # One number added to all intercepts changes no answer.
    torch.testing.assert_close(
        intercept - intercept.mean(), constant - constant.mean(), rtol=0, atol=2e-3
    )


def test_without_weight_the_samples_leave_the_coefficients_as_they_were(
    samples: tuple[Tensor, np.ndarray],
) -> None:
    start = torch.randn(C, 5, generator=torch.Generator().manual_seed(1)), torch.ones(C)
    how = {"inverse_regularisation": 1e-9, "max_iter": 1000}
    coefficient, _ = refit_linear(*samples, CLASS_WEIGHTS, start, **how)
    torch.testing.assert_close(coefficient, start[0], rtol=0, atol=1e-5)


def test_of_a_class_without_a_sample_nothing_is_learned(
    samples: tuple[Tensor, np.ndarray],
) -> None:
    z, label = samples[0][samples[1] > 0], samples[1][samples[1] > 0]
    start = torch.randn(C, 5, generator=torch.Generator().manual_seed(1)), torch.ones(C)
    _, intercept = refit_linear(z, label, CLASS_WEIGHTS, start, **HOW)
    assert intercept[0] == 1
    assert (intercept[1:] != 1).all()


def test_at_the_minimum_no_direction_is_downhill(samples: tuple[Tensor, np.ndarray]) -> None:
    z, label = samples
    start = torch.randn(C, 5, generator=torch.Generator().manual_seed(1)), torch.ones(C)
    found = refit_linear(z, label, CLASS_WEIGHTS, start, **HOW)
    w, b = (t.double().requires_grad_() for t in found)
    loss = F.cross_entropy(
        F.linear(z.double(), w, b),
        torch.from_numpy(label),
        torch.from_numpy(CLASS_WEIGHTS),
        reduction="sum",
    )
    total = HOW["inverse_regularisation"] * loss + (w - start[0]).square().sum() / 2
    for gradient in torch.autograd.grad(total, (w, b)):
        torch.testing.assert_close(gradient, torch.zeros_like(gradient), rtol=0, atol=5e-3)
