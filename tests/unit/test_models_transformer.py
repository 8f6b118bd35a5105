"""Laws of `vit-prefix`, `vit` and `causal`, and of the blocks that they share."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from scanbench.tipstate.models import causal, vit, vit_prefix
from scanbench.tipstate.models._transformer import Attention, Block

LINES, PIXELS, CLASSES = 12, 16, 4
TINY = {"d_model": 16, "layers": 2, "heads": 2, "ffn": 24, "dropout": 0.0}
MODULES = [vit_prefix, vit, causal]


def tiny(module, **options):
    torch.manual_seed(0)
    return module.Model(
        module.Options(**TINY | options), lines=LINES, pixels=PIXELS, classes=CLASSES
    )


def scans(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, LINES, PIXELS, generator=generator), torch.full((count,), LINES)


def parameters(model):
    return sum(parameter.numel() for parameter in model.parameters())


def block_parameters(d, ffn):
    query_key_value_output = 4 * (d * d + d)
    return query_key_value_output + (d * ffn + ffn) + (ffn * d + d) + 2 * (2 * d)


def vit_parameters(d, layers, ffn, outputs, lines, pixels):
    embedding, class_token, positions = pixels * d + d, d, (lines + 1) * d
    norm, head = 2 * d, d * outputs + outputs
    blocks = layers * block_parameters(d, ffn)
    return embedding + class_token + positions + blocks + norm + head


def causal_parameters(d, layers, ffn, lines, channels=(32, 64, 128), widths=(7, 3, 3)):
    tokenizer = sum(
        before * after * width + after
        for before, after, width in zip((1, *channels), channels, widths, strict=False)
    )
    dense, norm, head = channels[-1] * d + d, 2 * d, d * CLASSES + CLASSES
    return tokenizer + dense + layers * block_parameters(d, ffn) + norm + head


def test_parameters_are_those_of_the_published_sizes():
    shape = {"lines": 128, "pixels": 128, "classes": CLASSES}
    original = vit_prefix.Model(vit_prefix.Options(outputs=6), **shape)
    assert parameters(original) == vit_parameters(256, 4, 1024, 6, 128, 128) == 3_227_398
    fixed = vit.Model(vit.Options(), **shape)
    assert parameters(fixed) == vit_parameters(256, 6, 1024, 4, 128, 128) == 4_806_404
    streaming = causal.Model(causal.Options(), **shape)
    assert parameters(streaming) == causal_parameters(256, 6, 1024, 128) == 4_804_292


def test_a_deeper_tokenizer_with_wide_kernels_has_the_parameters_it_should():
    model = tiny(causal, tokenizer_depth=5, first_kernel=5, kernel=7)
    channels, widths = (32, 64, 128, 128, 128), (5, 7, 7, 7, 7)
    assert parameters(model) == causal_parameters(16, 2, 24, LINES, channels, widths)


def test_a_block_is_the_transformer_layer_of_torch():
    torch.manual_seed(0)
    ours = Block(16, 4, 24, dropout=0.1).eval()
    theirs = nn.TransformerEncoderLayer(
        16, 4, 24, dropout=0.1, activation="gelu", batch_first=True, norm_first=True
    ).eval()
    names = {
        "attention_norm": "norm1",
        "attention.query_key_value.": "self_attn.in_proj_",
        "attention.output": "self_attn.out_proj",
        "ffn_norm": "norm2",
        "ffn.0": "linear1",
        "ffn.3": "linear2",
    }
    state = ours.state_dict()
    for our_name, their_name in names.items():
        state = {name.replace(our_name, their_name): value for name, value in state.items()}
    theirs.load_state_dict(state)
    x_BTD = torch.randn(3, 7, 16)
    padding_BT = torch.arange(7) >= torch.tensor([[7], [4], [1]])
    expected = theirs(x_BTD, src_key_padding_mask=padding_BT)
    actual = ours(x_BTD, ~padding_BT[:, None, None, :])
    torch.testing.assert_close(actual[~padding_BT], expected[~padding_BT])


def test_attention_over_cached_keys_and_values_equals_attention_over_the_whole():
    torch.manual_seed(0)
    attention = Attention(16, 4)
    x_BTD = torch.randn(2, 9, 16)
    whole = attention(x_BTD, causal=True)
    _, key, value = attention.project(x_BTD[:, :8])
    query, new_key, new_value = attention.project(x_BTD[:, 8:])
    streamed = attention.attend(
        query, torch.cat([key, new_key], dim=2), torch.cat([value, new_value], dim=2)
    )
    torch.testing.assert_close(streamed, whole[:, 8:])


@pytest.mark.parametrize("module", MODULES)
def test_what_stands_past_the_measured_lines_changes_no_valid_answer(module):
    model = tiny(module).eval()
    x_BLP, _ = scans(LINES)
    n_lines_B = torch.arange(1, LINES + 1)
    unmeasured_BL = torch.arange(LINES) >= n_lines_B[:, None]
    with torch.no_grad():
        clean = model(x_BLP.masked_fill(unmeasured_BL[..., None], 0.0), n_lines_B)
        garbage = model(torch.where(unmeasured_BL[..., None], 100.0, x_BLP), n_lines_B)
    seen = torch.tensor(model.answer_lines())
    valid_BT = seen <= n_lines_B[:, None] if len(seen) > 1 else torch.ones(LINES, 1, dtype=bool)
    torch.testing.assert_close(garbage[valid_BT], clean[valid_BT])


@pytest.mark.parametrize("module", [vit_prefix, vit])
def test_a_whole_scan_answer_depends_on_every_measured_line(module):
    model = tiny(module).eval()
    x_BLP, n_lines_B = scans(2)
    x_BLP.requires_grad_()
    model(x_BLP, n_lines_B)[:, 0, 0].sum().backward()
    assert (x_BLP.grad.abs().sum(-1) > 0).all()


@settings(max_examples=25, deadline=None)
@given(changed=st.integers(0, LINES - 1), window=st.integers(0, 5), layers=st.integers(1, 3))
def test_a_causal_answer_depends_on_exactly_the_lines_in_its_reach(changed, window, layers):
    model = tiny(causal, attention_window=window, layers=layers).eval()
    reach = layers * (window - 1) + 1 if window else LINES
    x_BLP, n_lines_B = scans(1)
    other_BLP = x_BLP.clone()
    other_BLP[:, changed] += 3.0 * torch.randn(PIXELS, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        difference_T = (model(x_BLP, n_lines_B) - model(other_BLP, n_lines_B)).abs().amax((0, 2))
    line_T = torch.arange(LINES)
    reached_T = (line_T >= changed) & (line_T < changed + reach)
    assert (difference_T[reached_T] > 1e-6).all()
    assert (difference_T[~reached_T] < 1e-6).all()


def test_causal_answers_after_every_line():
    model = tiny(causal)
    assert model.answer_lines() == list(range(1, LINES + 1))
    assert model(*scans(3)).shape == (3, LINES, CLASSES)


def test_positions_are_sines_and_cosines_of_falling_frequency():
    table = causal.sinusoidal_positions(50, 8)
    for line, column in [(0, 0), (3, 1), (17, 4), (49, 7)]:
        angle = line / 10_000 ** ((column - column % 2) / 8)
        expected = math.cos(angle) if column % 2 else math.sin(angle)
        assert table[line, column].item() == pytest.approx(expected, abs=1e-5)


def test_a_tokenizer_sees_one_line_only():
    tokenizer = causal.Tokenizer(causal.Options(pooling="max"))
    x_BLP, _ = scans(2)
    one_by_one = torch.stack([tokenizer(x_BLP[:, [line]])[:, 0] for line in range(LINES)], dim=1)
    torch.testing.assert_close(tokenizer(x_BLP), one_by_one)


@pytest.mark.parametrize("module", MODULES)
def test_the_gradient_reaches_every_parameter(module):
    model = tiny(module)
    model(*scans(8)).square().sum().backward()
    unreached = [name for name, value in model.named_parameters() if not value.grad.any()]
    assert not unreached


@pytest.mark.parametrize(
    ("module", "options"),
    [(vit_prefix, {"outputs": 6}), (vit, {}), (causal, {}), (causal, {"pooling": "max"})],
)
def test_sixteen_scans_can_be_learned_by_heart(module, options):
    model = tiny(module, **options)
    x_BLP, n_lines_B = scans(16)
    label_B = torch.arange(16) % CLASSES
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(80):
        loss = F.cross_entropy(model(x_BLP, n_lines_B)[:, -1], label_B)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    model.eval()
    assert (model(x_BLP, n_lines_B)[:, -1].argmax(-1) == label_B).all()


def test_extra_outputs_stand_in_the_loss_and_are_cut_off_when_evaluating():
    model = tiny(vit_prefix, outputs=6)
    x_BLP, n_lines_B = scans(5)
    with torch.no_grad():
        all_outputs = model.train()(x_BLP, n_lines_B)
        classes_only = model.eval()(x_BLP, n_lines_B)
    assert all_outputs.shape == (5, 1, 6)
    # p(class) among the classes is p(class) among all outputs, given that it is one of the classes.
    p_class = all_outputs.softmax(-1)[..., :CLASSES]
    torch.testing.assert_close(classes_only.softmax(-1), p_class / p_class.sum(-1, keepdim=True))


@pytest.mark.parametrize("module", MODULES)
def test_logits_stay_float32_and_close_under_autocast(module):
    model = tiny(module).eval()
    x_BLP, n_lines_B = scans(2)
    expected = model(x_BLP, n_lines_B)
    with torch.autocast("cpu", torch.bfloat16):
        actual = model(x_BLP, n_lines_B)
    assert actual.dtype == torch.float32
    torch.testing.assert_close(actual, expected, rtol=0.1, atol=0.1)


@pytest.mark.parametrize(
    ("module", "options", "message"),
    [
        (vit, {"d_model": 20, "heads": 8}, "d_model: 20 is not divisible by heads: 8"),
        (vit_prefix, {"layers": 0}, "layers: 0 "),
        (vit_prefix, {"outputs": -1}, "outputs: -1 "),
        (causal, {"dropout": 1.0}, "dropout: 1.0 "),
        (causal, {"heads": 1, "d_model": 15}, "d_model: 15 is odd"),
        (causal, {"tokenizer_depth": 0}, "tokenizer_depth: 0 "),
        (causal, {"kernel": 4}, "kernel: 4 "),
        (causal, {"first_kernel": -1}, "first_kernel: -1 "),
        (causal, {"pooling": "mean"}, "pooling: 'mean' "),
        (causal, {"attention_window": -1}, "attention_window: -1 "),
    ],
)
def test_options_that_no_model_can_have_are_refused_in_one_line(module, options, message):
    with pytest.raises(ValueError, match=message) as error:
        module.Options(**options)
    assert "\n" not in str(error.value)


def test_fewer_outputs_than_classes_are_refused():
    with pytest.raises(ValueError, match="outputs: 3 are fewer than the 4 classes"):
        tiny(vit_prefix, outputs=3)
