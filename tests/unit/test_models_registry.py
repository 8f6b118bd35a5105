"""The contract that every model in the folder keeps, and the registry that finds them."""

from __future__ import annotations

import dataclasses
import importlib
import re
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from small_study import CLASSES, LINES, PIXELS, heights, spec
from torch import Tensor, nn

from scanbench.errors import UserError
from scanbench.runs import AnswerTimes, operations
from scanbench.tipstate import catalogue
from scanbench.tipstate.models import build, names, resolved_options

C = len(CLASSES)
N_LINES = torch.tensor([LINES, 13, 11, LINES])


def samples() -> Tensor:
    """Return scans [B, L, P], partial as `N_LINES` says."""
    rng = np.random.default_rng(1)
    x_BLP = torch.from_numpy(np.stack([heights(k % C, LINES, rng) for k in range(len(N_LINES))]))
    return x_BLP * (torch.arange(LINES) < N_LINES[:, None])[..., None]


def small(name: str) -> nn.Module:
    """Return a small model of this name in evaluation mode; what can be fitted is fitted."""
    torch.manual_seed(0)
    model = build(name, spec(name)["options"], LINES, PIXELS, C)
    if hasattr(model, "fit"):
        label = np.array([0, 1, 2, 0])
        model.fit(samples().numpy(), N_LINES.numpy(), label, np.ones(C), 0)
    return model.eval()


def answers(model: nn.Module, x_BLP: Tensor, n_lines_B: Tensor) -> tuple[Tensor, Tensor]:
    """Return logits [B, T, C] and which are valid [B, T]."""
    with torch.no_grad():
        return model(x_BLP, n_lines_B), AnswerTimes.of(model, LINES).valid(n_lines_B)


every_model = pytest.mark.parametrize("name", names())
progressive = [name for name in names() if not AnswerTimes.of(small(name), LINES).at_end]


def test_all_models_of_the_study_are_found() -> None:
    assert set(names()) >= {"majority", "features", "cnn-scan", "vit-prefix", "vit"}
    assert set(names()) >= {"lrcn", "causal"}
    assert set(progressive) >= {"lrcn", "causal"}


@every_model
def test_a_model_answers_with_finite_float32_logits_after_rising_numbers_of_lines(
    name: str,
) -> None:
    model = small(name)
    lines = model.answer_lines()
    assert lines == sorted(set(lines))
    assert 1 <= lines[0] <= lines[-1] <= LINES
    logits, _ = answers(model, samples(), N_LINES)
    assert logits.shape == (len(N_LINES), len(lines), C)
    assert logits.dtype == torch.float32
    assert logits.isfinite().all()


def test_a_model_whose_only_window_is_the_whole_scan_gives_no_answer_about_less() -> None:
    options = spec("lrcn")["options"] | {"window": LINES}
    times = AnswerTimes.of(build("lrcn", options, LINES, PIXELS, C), LINES)
    assert (list(times.lines), times.fewest) == ([LINES], LINES)
    assert times.valid(N_LINES)[:, 0].tolist() == (N_LINES == LINES).tolist()
    whole = AnswerTimes.of(small("vit"), LINES)
    assert (list(whole.lines), whole.fewest) == ([LINES], 1)
    assert whole.valid(N_LINES).all()


def test_a_running_model_that_does_not_say_so_is_found_out() -> None:
    model = small("causal")
    model.answers_at_end = True  # type: ignore[assignment]
    with pytest.raises(AssertionError, match="must say `answers_at_end = False`"):
        AnswerTimes.of(model, LINES)


@every_model
def test_what_stands_past_the_measured_lines_does_not_change_a_valid_answer(name: str) -> None:
    model, x_BLP = small(name), samples()
    unmeasured_BL = torch.arange(LINES) >= N_LINES[:, None]
    other = x_BLP + unmeasured_BL[..., None] * torch.randn(x_BLP.shape)
    ours, valid = answers(model, x_BLP, N_LINES)
    theirs, _ = answers(model, other, N_LINES)
    torch.testing.assert_close(ours[valid], theirs[valid], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", progressive)
def test_later_lines_do_not_change_an_earlier_answer(name: str) -> None:
    model, x_BLP = small(name), samples()
    whole = torch.full_like(N_LINES, LINES)
    before, _ = answers(model, x_BLP, whole)
    for t, lines in enumerate(model.answer_lines()):
        changed = x_BLP.clone()
        changed[:, lines:] = 3.0
        after, _ = answers(model, changed, whole)
        torch.testing.assert_close(before[:, : t + 1], after[:, : t + 1], rtol=1e-5, atol=1e-6)
        if lines < LINES:
            # The test can fail: what comes later is seen later.
            assert not torch.allclose(before[:, -1], after[:, -1], atol=1e-6)


@pytest.mark.parametrize("name", progressive)
def test_a_partial_scan_is_answered_as_the_whole_one_at_the_same_line(name: str) -> None:
    model = small(name)
    x_BLP = torch.from_numpy(heights(1, LINES, np.random.default_rng(2)))[None]
    whole, _ = answers(model, x_BLP, torch.tensor([LINES]))
    for lines in range(model.answer_lines()[0], LINES):
        part_BLP = x_BLP.clone()
        part_BLP[:, lines:] = 0
        part, valid = answers(model, part_BLP, torch.tensor([lines]))
        assert valid.any()
        torch.testing.assert_close(part[valid], whole[valid], rtol=1e-5, atol=1e-6)


@every_model
def test_scans_of_a_batch_do_not_see_each_other(name: str) -> None:
    model, x_BLP = small(name), samples()
    together, valid = answers(model, x_BLP, N_LINES)
    alone = torch.cat(
        [answers(model, x[None], n[None])[0] for x, n in zip(x_BLP, N_LINES, strict=True)]
    )
    torch.testing.assert_close(together[valid], alone[valid], rtol=1e-5, atol=1e-5)


@every_model
def test_every_parameter_is_there_from_the_start_and_gets_a_gradient(name: str) -> None:
    model = small(name).train()
    count = len(list(model.parameters()))
    logits = model(samples(), N_LINES)
    assert len(list(model.parameters())) == count
    if hasattr(model, "fit"):  # no optimiser, and no gradient
        return
    assert count > 0
    valid = AnswerTimes.of(model, LINES).valid(N_LINES)
    (logits[valid] * torch.randn(int(valid.sum()), logits.shape[-1])).sum().backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.abs().max() > 0, key


@every_model
def test_only_the_head_depends_on_the_number_of_classes(name: str) -> None:
    # A model with a part that is fitted has no head to exchange; `start` refuses a new one.
    if any(hasattr(module, "fit") for module in small(name).modules()):
        return
    options = spec(name)["options"] | ({"outputs": 0} if name == "vit-prefix" else {})
    few, more = (
        {
            key: value.shape
            for key, value in build(name, options, LINES, PIXELS, n).state_dict().items()
        }
        for n in (C, C + 1)
    )
    differing = {key for key in few if few[key] != more[key]}
    assert set(few) == set(more)
    assert differing == {key for key in few if key.startswith("head.")} != set()


@every_model
def test_weights_survive_safetensors_bit_by_bit(name: str) -> None:
    model = small(name)
    raw = safetensors.torch.save({k: v.contiguous() for k, v in model.state_dict().items()})
    torch.manual_seed(99)
    again = build(name, spec(name)["options"], LINES, PIXELS, C).eval()
    again.load_state_dict(safetensors.torch.load(raw))
    assert torch.equal(answers(model, samples(), N_LINES)[0], answers(again, samples(), N_LINES)[0])


@every_model
def test_options_told_without_torch_are_those_of_the_dataclass(name: str) -> None:
    module = importlib.import_module(f"scanbench.tipstate.models.{catalogue.source(name).stem}")
    assert catalogue.option_fields(name) == {
        field.name: (field.type, field.default) for field in dataclasses.fields(module.Options)
    }
    for field in dataclasses.fields(module.Options):
        assert re.search(rf"\b{field.name}\b", module.Options.__doc__), f"{field.name} unexplained"


@every_model
def test_options_from_json_are_those_that_were_given(name: str) -> None:
    def as_json(value: Any) -> Any:
        return list(value) if isinstance(value, tuple) else value

    options = {k: as_json(v) for k, v in resolved_options(name, spec(name)["options"]).items()}
    ours, theirs = small(name), build(name, options, LINES, PIXELS, C)
    assert {k: v.shape for k, v in ours.state_dict().items()} == {
        k: v.shape for k, v in theirs.state_dict().items()
    }


def test_planning_does_not_import_torch() -> None:
    code = """
import sys
from scanbench.tipstate import catalogue, models
for name in models.names():
    catalogue.option_fields(name)
assert not {"torch", "lightning", "sklearn"} & set(sys.modules), sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("cnn_scan", {}, "model: no model 'cnn_scan'; did you mean 'cnn-scan'?"),
        ("cnn-scan", {"droput": 0.1}, "options.droput: .* did you mean 'dropout'?"),
        ("majority", {"depth": 1}, "options.depth: .* has no options"),
        ("cnn-scan", {"dropout": 2.0}, "options.dropout: 2.0 is not possible"),
        ("cnn-scan", {"widths": []}, r"options.widths: .* \(model cnn-scan\)"),
    ],
)
def test_a_mistake_is_told_in_one_line(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        build(name, options, LINES, PIXELS, C)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("lines", [4, 8, 12])
def test_cnn_scan_judges_a_partial_scan_as_a_network_of_its_size_would(lines: int) -> None:
    options = {"widths": [4, 8]}
    torch.manual_seed(0)
    large = build("cnn-scan", options, LINES, PIXELS, C).eval()
    small = build("cnn-scan", options, lines, PIXELS, C).eval()
    small.load_state_dict(large.state_dict())
    x_BLP = samples()[:1]
    x_BLP[:, lines:] = 0
    n_lines = torch.tensor([lines])
    with torch.no_grad():
        torch.testing.assert_close(large(x_BLP, n_lines), small(x_BLP[:, :lines], n_lines))


def test_operations_are_those_of_a_count_by_hand() -> None:
    # Per convolution: two operations for each weight at each place that it is used.
    model = build("cnn-scan", {"widths": [8]}, LINES, PIXELS, C)
    with torch.no_grad():
        x_BLP = torch.zeros(1, LINES, PIXELS)
        by_hand = 0
        for module in model.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):

                def count(module: nn.Module, _: object, y: Tensor) -> None:
                    nonlocal by_hand
                    places = y[0, 0].numel() if y.ndim == 4 else 1
                    by_hand += 2 * module.weight.numel() * places  # type: ignore[operator, union-attr]

                module.register_forward_hook(count)
        model.eval()(x_BLP, torch.tensor([LINES]))
    assert by_hand > 0
    found = operations(build("cnn-scan", {"widths": [8]}, LINES, PIXELS, C), LINES, PIXELS)
    assert found == by_hand


def test_operations_of_an_lstm_are_counted_and_the_model_is_left_as_it_was() -> None:
    model = build("lrcn", spec("lrcn")["options"], LINES, PIXELS, C).train()
    hidden, inputs = model.lstm.hidden_size, model.lstm.input_size
    steps = len(model.answer_lines())
    assert operations(model, LINES, PIXELS) > 2 * steps * 4 * hidden * (hidden + inputs)
    assert model.training
