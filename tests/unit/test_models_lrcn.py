"""Laws of `lrcn`, above all that computing shared lines once changes nothing."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from scanbench.tipstate.models import lrcn

LINES, PIXELS, CLASSES = 128, 16, 4
SMALL = {"channels": (4, 6, 8), "hidden": 12, "dropout": 0.0}


def small(lines=LINES, **options):
    torch.manual_seed(0)
    return lrcn.Model(lrcn.Options(**SMALL | options), lines=lines, pixels=PIXELS, classes=CLASSES)


def scans(count, lines=LINES, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, lines, PIXELS, generator=generator), torch.full((count,), lines)


def features_and_gradients(way, model, x_BLP):
    """Return window features, and the gradients of a loss that weighs every one differently."""
    x_BLP = x_BLP.clone().requires_grad_()
    model.zero_grad()
    feature_BTF = way(model.cnn, x_BLP, model.options)
    weight_BTF = torch.randn(feature_BTF.shape, generator=torch.Generator().manual_seed(1))
    (feature_BTF * weight_BTF.to(feature_BTF)).sum().backward()
    return feature_BTF, [x_BLP.grad, *(parameter.grad for parameter in model.cnn.parameters())]


@pytest.mark.parametrize("stride", [2, 4, 6, 8])
@pytest.mark.parametrize("window", [10, 20, 30, 40, 128])
def test_shared_lines_give_the_features_and_gradients_of_windows_cut_out(window, stride):
    model = small(window=window, stride=stride).double()
    x_BLP = scans(2)[0].double()
    plain, plain_gradients = features_and_gradients(lrcn.window_features_plain, model, x_BLP)
    assert plain.shape == (2, len(model.answer_lines()), 2 * 8)
    assert model.options.shares_lines == (stride < window)
    shared, shared_gradients = features_and_gradients(lrcn.window_features_shared, model, x_BLP)
    torch.testing.assert_close(shared, plain, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(shared_gradients, plain_gradients, rtol=1e-9, atol=1e-10)


@settings(max_examples=40, deadline=None)
@given(
    window=st.integers(22, 48),  # enough lines for every pooling below
    stride=st.integers(1, 12),
    extra=st.integers(0, 20),
    slow_pooling=st.sampled_from(
        [(1, 1, 1), (1, 2, 1), (2, 1, 1), (2, 2, 1), (1, 3, 1), (2, 2, 2)]
    ),
)
def test_the_faster_way_is_taken_only_where_it_is_exact(window, stride, extra, slow_pooling):
    model = small(window + extra, window=window, stride=stride, slow_pooling=slow_pooling)
    x_BLP, _ = scans(1, window + extra)
    plain = lrcn.window_features_plain(model.cnn, x_BLP, model.options)
    torch.testing.assert_close(model.window_features(x_BLP), plain, rtol=1e-4, atol=1e-5)


def test_the_plain_way_cuts_out_the_lines_of_each_window():
    model = small(window=20, stride=3)
    x_BLP, _ = scans(2)
    feature_BTF = lrcn.window_features_plain(model.cnn, x_BLP, model.options)
    for answer, end in enumerate(model.answer_lines()):
        feature_NFRQ = model.cnn(x_BLP[:, None, end - 20 : end])
        mean_NFQ = feature_NFRQ.mean(2)
        expected = torch.cat([mean_NFQ.mean(-1), mean_NFQ.amax(-1)], dim=1)
        torch.testing.assert_close(feature_BTF[:, answer], expected)


@pytest.mark.parametrize("stride", [1, 3, 5, 20, 40])
def test_strides_off_the_grid_or_without_overlap_take_the_plain_way(stride):
    assert not lrcn.Options(window=20, stride=stride).shares_lines


def test_it_answers_after_each_window():
    assert small(window=20, stride=4).answer_lines() == list(range(20, 129, 4))
    assert small(window=128).answer_lines() == [128]
    model = small(window=30, stride=8)
    assert model(*scans(2)).shape == (2, len(model.answer_lines()), CLASSES)


@pytest.mark.parametrize(("window", "rows"), [(10, 1), (20, 6), (30, 11), (40, 16), (128, 60)])
def test_rows_of_a_window_by_hand(window, rows):
    # Two convolutions take 2 lines each, the pooling halves, the third convolution takes 2 rows.
    assert rows == (window - 4) // 2 - 2
    model = small(window=window)
    assert model.options.window_rows == rows == model.cnn(torch.zeros(1, 1, window, 16)).shape[2]


@settings(max_examples=25, deadline=None)
@given(changed=st.integers(0, LINES - 1), stride=st.sampled_from([3, 4]))
def test_an_answer_depends_on_the_lines_so_far_and_on_no_later_one(changed, stride):
    model = small(stride=stride).eval()
    x_BLP, n_lines_B = scans(1)
    other_BLP = x_BLP.clone()
    other_BLP[:, changed] += 5.0
    with torch.no_grad():
        difference_T = (model(x_BLP, n_lines_B) - model(other_BLP, n_lines_B)).abs().amax((0, 2))
    seen_T = torch.tensor(model.answer_lines())
    first_T = seen_T - model.options.window  # first line of the window, counted from 0
    assert (difference_T[seen_T <= changed] < 1e-6).all()
    assert (difference_T[(first_T <= changed) & (changed < seen_T)] > 1e-6).all()


def test_a_partial_scan_gets_the_answers_of_the_whole_scan_at_the_same_lines():
    model = small().eval()
    x_BLP, n_lines_B = scans(3)
    n_partial_B = torch.tensor([20, 57, 127])
    partial_BLP = x_BLP.clone()
    for scan, n_lines in enumerate(n_partial_B):
        partial_BLP[scan, n_lines:] = 0.0
    with torch.no_grad():
        whole, partial = model(x_BLP, n_lines_B), model(partial_BLP, n_partial_B)
    valid_BT = torch.tensor(model.answer_lines()) <= n_partial_B[:, None]
    assert valid_BT.any(1).all()
    torch.testing.assert_close(partial[valid_BT], whole[valid_BT], rtol=1e-5, atol=1e-6)


def test_parameters_are_those_counted_by_hand():
    model = lrcn.Model(lrcn.Options(), lines=LINES, pixels=128, classes=CLASSES)
    convolutions = sum(9 * a * b + b for a, b in [(1, 32), (32, 64), (64, 128)])
    norms = 2 * (32 + 64 + 128)
    lstm = 4 * (256 * 256 + 256 * 256 + 2 * 256)
    head = 256 * CLASSES + CLASSES
    expected = convolutions + norms + lstm + head
    assert sum(value.numel() for value in model.parameters()) == expected == 620_484


@pytest.mark.parametrize("stride", [3, 4])
def test_the_gradient_reaches_every_parameter(stride):
    model = small(stride=stride)
    model(*scans(4)).square().sum().backward()
    unreached = [name for name, value in model.named_parameters() if not value.grad.any()]
    assert not unreached


def test_sixteen_scans_can_be_learned_by_heart():
    model = small(lines=24, window=12)
    x_BLP, n_lines_B = scans(16, lines=24)
    label_B = torch.arange(16) % CLASSES
    optimiser = torch.optim.AdamW(model.parameters(), lr=2e-2)
    for _ in range(150):
        logits_BTC = model(x_BLP, n_lines_B)
        label_BT = label_B[:, None].expand(logits_BTC.shape[:2])
        loss = F.cross_entropy(logits_BTC.flatten(0, 1), label_BT.flatten())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    model.eval()
    assert (model(x_BLP, n_lines_B)[:, -1].argmax(-1) == label_B).all()


def test_logits_stay_float32_and_close_under_autocast():
    model = small().eval()
    x_BLP, n_lines_B = scans(1)
    expected = model(x_BLP, n_lines_B)
    with torch.autocast("cpu", torch.bfloat16):
        actual = model(x_BLP, n_lines_B)
    assert actual.dtype == torch.float32
    torch.testing.assert_close(actual, expected, rtol=0.1, atol=0.1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window": 0}, "window: 0 "),
        ({"window": 9}, "window: 9 lines leave no row"),
        ({"stride": 0}, "stride: 0 "),
        ({"hidden": 0}, "hidden: 0 "),
        ({"channels": ()}, "channels: 0 "),
        ({"channels": (8, 16)}, "slow_pooling: 3 factors for 2 channels"),
        ({"slow_pooling": (0, 1, 1)}, "slow_pooling: 0 "),
        ({"dropout": -0.1}, "dropout: -0.1 "),
    ],
)
def test_options_that_no_model_can_have_are_refused_in_one_line(options, message):
    with pytest.raises(ValueError, match=message) as error:
        lrcn.Options(**options)
    assert "\n" not in str(error.value)


def test_a_window_longer_than_the_scan_is_refused():
    with pytest.raises(ValueError, match="window: 20 lines do not fit a scan of 16 lines"):
        small(lines=16)


def test_more_poolings_than_a_line_has_pixels_for_are_refused():
    with pytest.raises(ValueError, match="channels: 3 poolings leave nothing of 7 pixels"):
        lrcn.Model(lrcn.Options(), lines=LINES, pixels=7, classes=CLASSES)
