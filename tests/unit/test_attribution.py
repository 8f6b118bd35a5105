"""Attributions by line and their tests, exact on models small enough to know the answer."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from scanbench.errors import UserError
from scanbench.runs import Run
from scanbench.tipstate.attention import line_attention, rollout, running_attention
from scanbench.tipstate.attribution import (
    ScanAnswer,
    area,
    fillings,
    gradient_attributions,
    line_steps,
    log_odds,
    perturbation_curves,
)
from scanbench.tipstate.models import build
from scanbench.tipstate.models._transformer import Attention

LINES, PIXELS, C = 8, 6, 3
SMALL = {"d_model": 16, "layers": 3, "heads": 2, "ffn": 24, "dropout": 0.0}


class Linear(nn.Module):
    """Two classes; the first one's logit is a weighted sum of the heights."""

    def __init__(self, weight_LP: Tensor) -> None:
        super().__init__()
        self.weight_LP = nn.Parameter(weight_LP)

    def answer_lines(self) -> list[int]:
        return [len(self.weight_LP)]

    def forward(self, x_BLP: Tensor, n_lines_B: Tensor) -> Tensor:
        logit_B = (x_BLP * self.weight_LP).sum((1, 2))
        return torch.stack([logit_B, torch.zeros_like(logit_B)], dim=1)[:, None]


def answer_of(model: nn.Module, lines: int = LINES, stride: int | None = None) -> ScanAnswer:
    window = None if stride is None else {"lines": lines, "stride": stride}
    return ScanAnswer(Run(model=model, meta={"model": "test", "lines": lines, "window": window}))


def transformer(name: str, **options: Any) -> nn.Module:
    torch.manual_seed(0)
    return build(name, SMALL | options, LINES, PIXELS, C).eval()


def scans(count: int, lines: int = LINES) -> Tensor:
    return torch.randn(count, lines, PIXELS, generator=torch.Generator().manual_seed(1))


# ------------------------------------------------------------------------------------- attention


@given(layers=st.integers(1, 5), tokens=st.integers(2, 9))
def test_rollout_of_even_attention_is_the_known_average(layers: int, tokens: int) -> None:
    weight = torch.full((1, layers, tokens, tokens), 1 / tokens, dtype=torch.float64)
    identity = torch.eye(tokens, dtype=torch.float64)
    kept = 0.5**layers
    torch.testing.assert_close(rollout(weight)[0], (1 - kept) / tokens + kept * identity)


def test_rollout_of_one_causal_layer_is_half_its_attention_and_never_looks_ahead() -> None:
    weight = torch.tril(torch.rand(1, 3, 5, 5))
    weight = weight / weight.sum(-1, keepdim=True)
    torch.testing.assert_close(rollout(weight[:, :1])[0], (weight[0, 0] + torch.eye(5)) / 2)
    drawn = rollout(weight)[0]
    assert (drawn.triu(1) == 0).all()
    torch.testing.assert_close(drawn.sum(-1), torch.ones(5))


def test_the_first_layer_is_the_innermost() -> None:
    """What layer 2 reads from token 1 came from token 0, if layer 1 moved it there."""
    first = torch.tensor([[1.0, 0, 0], [1.0, 0, 0], [0, 0, 1.0]])
    second = torch.tensor([[1.0, 0, 0], [0, 1.0, 0], [0, 1.0, 0]])
    drawn = rollout(torch.stack([first, second])[None])[0]
    torch.testing.assert_close(drawn[2], torch.tensor([0.25, 0.25, 0.5]))


@pytest.mark.parametrize("mask", ["none", "causal", "some"])
def test_the_weights_are_those_that_the_fast_attention_uses(mask: str) -> None:
    torch.manual_seed(0)
    attention, x_BTD = Attention(16, 4), torch.randn(2, 5, 16)
    given_mask = torch.tensor([[1, 1, 0, 1, 0]], dtype=torch.bool) if mask == "some" else None
    weight_BHTS = attention.weights(x_BTD, given_mask, mask == "causal")
    value_BHSK = attention.project(x_BTD)[2]
    read = attention.output((weight_BHTS @ value_BHSK).transpose(1, 2).flatten(-2))
    torch.testing.assert_close(read, attention(x_BTD, given_mask, mask == "causal"))


@pytest.mark.parametrize("name", ["vit", "vit-prefix", "causal"])
def test_a_model_shares_out_its_attention_over_measured_lines_only(name: str) -> None:
    model, n_lines_B = transformer(name), torch.tensor([LINES, 5])
    found = line_attention(model, scans(2), n_lines_B)  # type: ignore[arg-type]
    in_front = name != "causal"
    for method, weight_BL in found.items():
        assert weight_BL.shape == (2, LINES)
        assert (weight_BL[1, 5:] == 0).all(), method
        total_B = weight_BL.sum(1)
        # What is missing stands at the class token.
        assert ((total_B < 1) if in_front else torch.isclose(total_B, torch.ones(2))).all()


@pytest.mark.parametrize("window", [0, 3])
def test_causal_attention_does_not_depend_on_a_later_line(window: int) -> None:
    model, x_BLP = transformer("causal", attention_window=window), scans(1)
    n_lines_B = torch.tensor([LINES])
    before = model.attention(x_BLP, n_lines_B)  # type: ignore[operator]
    later = x_BLP.clone()
    later[:, 5:] += 1
    after = model.attention(later, n_lines_B)  # type: ignore[operator]
    assert (before.triu(1) == 0).all()
    torch.testing.assert_close(before[..., :5, :], after[..., :5, :])
    assert not torch.allclose(before[..., 5:, :], after[..., 5:, :])
    if window:
        assert (before.tril(-window) == 0).all()


@pytest.mark.parametrize("name", ["vit", "causal"])
def test_attention_of_a_running_scan_is_that_of_a_scan_of_so_many_lines(name: str) -> None:
    model, x_BLP = transformer(name), scans(1)
    meta = {
        "model": name,
        "lines": LINES,
        "pixels": PIXELS,
        "window": None,
        "normalisation": "line",
    }
    told = running_attention(Run(model=model, meta=meta))
    assert told is not None
    for seen in (1, 5, LINES):
        cut_BLP = x_BLP.clone()
        cut_BLP[:, seen:] = 0
        expected = line_attention(model, cut_BLP, torch.tensor([seen]))["rollout"]  # type: ignore[arg-type]
        assert told(x_BLP[0, :seen].numpy()) == pytest.approx(expected[0, :seen].tolist(), abs=1e-4)


@pytest.mark.parametrize(
    "odd", [{"window": {"lines": 4, "stride": 1}}, {"normalisation": "scan"}, {"model": "linear"}]
)
def test_a_run_that_has_no_attention_over_the_lines_of_a_running_scan_tells_none(
    odd: dict[str, Any],
) -> None:
    model = Linear(torch.ones(LINES, PIXELS)) if "model" in odd else transformer("causal")
    meta = {"lines": LINES, "pixels": PIXELS, "window": None, "normalisation": "line", **odd}
    assert running_attention(Run(model=model, meta=meta)) is None


def test_attention_takes_no_part_in_the_answer() -> None:
    model, x_BLP = transformer("vit"), scans(2)
    n_lines_B = torch.full((2,), LINES)
    before = model(x_BLP, n_lines_B)
    model.attention(x_BLP, n_lines_B)  # type: ignore[operator]
    assert torch.equal(before, model(x_BLP, n_lines_B))


# ------------------------------------------------------------------------------------ the answer


@given(
    logits=st.lists(st.floats(-20, 20), min_size=2, max_size=5),
    shift=st.floats(-50, 50),
)
def test_log_odds_are_those_of_the_probability_and_know_no_shift(
    logits: list[float], shift: float
) -> None:
    z_BC = torch.tensor([logits], dtype=torch.float64)
    class_B = torch.tensor([0])
    p = z_BC.softmax(1)[0, 0]
    rest = z_BC.softmax(1)[0, 1:].sum()
    found = log_odds((z_BC + shift).log_softmax(1), class_B)[0]
    assert float(found) == pytest.approx(float((p / rest).log()), abs=1e-9)


def test_a_model_of_windows_answers_with_the_mean_of_their_probabilities() -> None:
    torch.manual_seed(0)
    model = build("causal", SMALL, 4, PIXELS, C).eval()
    answer, x_BLP = answer_of(model, lines=4, stride=2), scans(2)
    windows = [x_BLP[:, first : first + 4] for first in (0, 2, 4)]
    p_TBC = torch.stack([model(w, torch.tensor([4, 4]))[:, -1].softmax(1) for w in windows])
    torch.testing.assert_close(answer(x_BLP).exp(), p_TBC.mean(0))
    # Each window of a causal model shares out one; together they cover all lines.
    attention_BL = answer.line_attention(x_BLP)["attention"]
    torch.testing.assert_close(attention_BL.sum(1), torch.ones(2))
    assert (attention_BL > 0).all()


def test_a_model_without_attention_has_none_and_a_fitted_one_is_not_explained() -> None:
    assert answer_of(Linear(torch.ones(LINES, PIXELS))).line_attention(scans(1)) == {}
    with pytest.raises(UserError, match="'majority' is not trained by gradient descent"):
        ScanAnswer(
            Run(
                model=build("majority", {}, LINES, PIXELS, C),
                meta={"model": "majority", "lines": LINES, "window": None},
            )
        )


# ------------------------------------------------------------------------------------- gradients


def test_attributions_of_a_linear_model_are_its_terms() -> None:
    weight_LP, x_BLP = scans(2)[0], scans(3)
    found, gap_B = gradient_attributions(
        answer_of(Linear(weight_LP)), x_BLP, torch.tensor([0, 1, 0]), steps=4
    )
    sign_B11 = torch.tensor([1.0, -1.0, 1.0])[:, None, None]
    torch.testing.assert_close(found["input-x-gradient"], sign_B11 * weight_LP * x_BLP)
    torch.testing.assert_close(found["integrated-gradients"], sign_B11 * weight_LP * x_BLP)
    torch.testing.assert_close(found["saliency"], weight_LP.abs().expand(3, -1, -1))
    torch.testing.assert_close(gap_B.float(), torch.zeros(3), atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", ["vit", "causal", "cnn-scan", "lrcn"])
def test_integrated_gradients_add_up_to_the_change_of_the_log_odds(name: str) -> None:
    options = {
        "cnn-scan": {"widths": [8, 8]},
        "lrcn": {"window": 6, "stride": 1, "channels": [4, 8], "slow_pooling": [1, 1]},
    }
    torch.manual_seed(0)
    model = build(name, options.get(name, SMALL), LINES, PIXELS, C)
    answer, x_BLP, class_B = answer_of(model), scans(2), torch.tensor([0, 2])
    found, gap_B = gradient_attributions(answer, x_BLP, class_B, steps=64)
    zero = log_odds(answer(torch.zeros_like(x_BLP)), class_B)
    change_B = log_odds(answer(x_BLP), class_B) - zero
    total_B = found["integrated-gradients"].sum((1, 2))
    torch.testing.assert_close(total_B - change_B, gap_B.float(), atol=1e-4, rtol=0)
    torch.testing.assert_close(total_B, change_B, atol=0.02, rtol=0.05)
    assert model.training is False
    assert all(p.grad is None for p in model.parameters())


def test_line_steps_are_the_root_mean_square_of_what_changed() -> None:
    x_BLP = torch.zeros(1, 4, 2)
    x_BLP[0, 2:] = torch.tensor([3.0, -3.0])
    assert line_steps(x_BLP).tolist() == [[0, 0, 3, 0]]


# ------------------------------------------------------------------------ deletion and insertion


def test_deleting_the_decisive_line_of_a_linear_model_ends_its_certainty() -> None:
    weight_LP = torch.zeros(LINES, PIXELS)
    weight_LP[5] = 1.0
    x_LP = torch.ones(LINES, PIXELS)
    order_ML = np.stack([[5, 0, 1, 2, 3, 4, 6, 7], [0, 1, 2, 3, 4, 6, 7, 5]])
    deletion, insertion = perturbation_curves(
        answer_of(Linear(weight_LP)), x_LP, torch.zeros(1, PIXELS), 0, order_ML, points=LINES
    )
    sure = 1 / (1 + math.exp(-PIXELS))
    np.testing.assert_allclose(deletion[0], [sure] + [0.5] * LINES, rtol=1e-6)
    np.testing.assert_allclose(deletion[1], [sure] * LINES + [0.5], rtol=1e-6)
    np.testing.assert_allclose(insertion[0], [0.5] + [sure] * LINES, rtol=1e-6)
    np.testing.assert_allclose(area(insertion[:1]), [sure - (sure - 0.5) / (2 * LINES)], rtol=1e-6)


@given(order=st.permutations(range(LINES)), points=st.sampled_from([1, 2, 4, 8]))
def test_inserting_is_deleting_backwards(order: list[int], points: int) -> None:
    answer, x_LP = answer_of(transformer("vit")), scans(1)[0]
    order_ML = np.array([order, order[::-1]])
    deletion, insertion = perturbation_curves(
        answer, x_LP, fillings(x_LP[None], "mean-line")[0], 1, order_ML, points
    )
    np.testing.assert_allclose(insertion[0], deletion[1][::-1], rtol=1e-5)


def test_a_deleted_line_becomes_zero_or_the_mean_line() -> None:
    x_BLP = scans(2)
    assert not fillings(x_BLP, "zero").any()
    torch.testing.assert_close(fillings(x_BLP, "mean-line")[:, 0], x_BLP.mean(1))


def test_the_area_of_a_straight_line_is_its_middle() -> None:
    np.testing.assert_allclose(area(np.array([[1.0, 0.5, 0.0], [0.2, 0.2, 0.2]])), [0.5, 0.2])
