"""A model fed line by line says what it says about the whole scan, at every line."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scanbench.tipstate.models import causal, efficientnet_causal, lrcn

CLOSE = {"rtol": 0, "atol": 1e-4}
PIXELS, CLASSES = 16, 4


def random_scan(lines, seed):
    return torch.randn(lines, PIXELS, generator=torch.Generator().manual_seed(seed))


def streamed(model, x_LP, state=None):
    """Return the answers by lines seen, and the state after the last line."""
    state = model.initial_state() if state is None else state
    answers = {}
    with torch.inference_mode():
        for line_P in x_LP:
            logits_C, answered, state = model.step(line_P, state)
            if answered:
                answers[int(state["seen"])] = logits_C
    return answers, state


def batch(model, x_LP):
    """Return the valid answers about a scan, partial or whole, by lines seen."""
    n_lines = len(x_LP)
    padded_LP = torch.zeros(model.lines, PIXELS)
    padded_LP[:n_lines] = x_LP
    with torch.inference_mode():
        logits_TC = model(padded_LP[None], torch.tensor([n_lines]))[0]
    answers = zip(model.answer_lines(), logits_TC, strict=True)
    return {seen: logits_C for seen, logits_C in answers if seen <= n_lines}


def assert_same(streamed_answers, batch_answers):
    assert streamed_answers.keys() == batch_answers.keys()
    for seen, logits_C in batch_answers.items():
        torch.testing.assert_close(streamed_answers[seen], logits_C, **CLOSE)


@st.composite
def causal_models(draw):
    lines = draw(st.integers(1, 40))
    options = causal.Options(
        d_model=draw(st.sampled_from([4, 12])),
        heads=draw(st.sampled_from([1, 2])),
        layers=draw(st.integers(1, 3)),
        ffn=8,
        pooling=draw(st.sampled_from(["avg", "max"])),
        attention_window=draw(st.sampled_from([0, 1, 2, 7, 50])),
    )
    torch.manual_seed(draw(st.integers(0, 9)))
    return causal.Model(options, lines=lines, pixels=PIXELS, classes=CLASSES).eval()


@st.composite
def lrcn_models(draw):
    # Windows long enough to leave a row to each of the poolings; strides on and off their grid.
    options = lrcn.Options(
        window=draw(st.integers(22, 30)),
        stride=draw(st.integers(1, 9)),
        channels=(3, 4, 5),
        slow_pooling=draw(
            st.sampled_from([(1, 1, 1), (1, 2, 1), (2, 1, 1), (2, 2, 1), (1, 3, 1), (2, 2, 2)])
        ),
        hidden=6,
    )
    lines = options.window + draw(st.integers(0, 20))
    torch.manual_seed(draw(st.integers(0, 9)))
    return lrcn.Model(options, lines=lines, pixels=PIXELS, classes=CLASSES).eval()


@st.composite
def efficientnet_causal_models(draw):
    options = efficientnet_causal.Options(pretrained=False, blocks=draw(st.integers(1, 8)))
    lines = draw(st.integers(16, 40))  # what eight blocks need
    torch.manual_seed(draw(st.integers(0, 9)))
    model = efficientnet_causal.Model(options, lines=lines, pixels=PIXELS, classes=CLASSES).eval()
    for tensor in (model.centre_D, model.mean_F, model.gain_L.data, model.head.shift_LC.data):
        tensor.normal_()
    return model


streamed_models = st.one_of(causal_models(), lrcn_models(), efficientnet_causal_models())


@settings(max_examples=60, deadline=None)
@given(model=streamed_models, data=st.data())
def test_streaming_gives_the_batch_answers_of_every_prefix_however_it_is_cut(model, data):
    seen = data.draw(st.integers(1, model.lines), "lines")
    x_LP = random_scan(seen, data.draw(st.integers(0, 99), "scan"))
    cut = data.draw(st.integers(0, seen), "cut")
    before, state = streamed(model, x_LP[:cut])
    after, _ = streamed(model, x_LP[cut:], state)
    assert_same(before | after, batch(model, x_LP))


@settings(max_examples=10, deadline=None)
@given(model=streamed_models)
def test_a_step_leaves_the_state_it_was_given_as_it_was(model):
    x_LP = random_scan(model.lines, 0)
    _, state = streamed(model, x_LP[: model.lines // 2])
    kept = {name: tensor.clone() for name, tensor in state.items()}
    first, _ = streamed(model, x_LP[model.lines // 2 :], state)
    again, _ = streamed(model, x_LP[model.lines // 2 :], kept)
    assert_same(first, again)


@pytest.mark.parametrize(
    "model",
    [
        causal.Model(causal.Options(), lines=128, pixels=PIXELS, classes=CLASSES),
        causal.Model(
            causal.Options(attention_window=20), lines=128, pixels=PIXELS, classes=CLASSES
        ),
        causal.Model(causal.Options(layers=2), lines=20, pixels=PIXELS, classes=CLASSES),
        efficientnet_causal.Model(
            efficientnet_causal.Options(blocks=8), lines=128, pixels=PIXELS, classes=CLASSES
        ),
        lrcn.Model(lrcn.Options(), lines=128, pixels=PIXELS, classes=CLASSES),
        lrcn.Model(lrcn.Options(slow_pooling=(2, 2, 1)), lines=128, pixels=PIXELS, classes=CLASSES),
    ],
)
def test_models_of_the_real_size_stay_within_the_tolerance(model):
    model.eval()
    x_LP = random_scan(model.lines, 1)
    answers, _ = streamed(model, x_LP)
    assert len(answers) == len(model.answer_lines())
    assert_same(answers, batch(model, x_LP))


def test_the_state_has_one_size_from_the_first_line_on_bounded_by_the_attention_window():
    for window, kept in [(0, 39), (10, 9), (100, 39)]:
        options = causal.Options(d_model=8, heads=2, layers=3, ffn=8, attention_window=window)
        model = causal.Model(options, lines=40, pixels=PIXELS, classes=CLASSES).eval()
        shapes = {name: tensor.shape for name, tensor in model.initial_state().items()}
        assert shapes["keys"] == shapes["values"] == (3, 2, kept, 4)
        _, state = streamed(model, random_scan(40, 2))
        assert {name: tensor.shape for name, tensor in state.items()} == shapes


def test_the_lrcn_keeps_the_rows_that_its_convolutions_need_and_no_lines():
    model = lrcn.Model(lrcn.Options(), lines=128, pixels=128, classes=CLASSES).eval()
    shapes = {name: tuple(tensor.shape) for name, tensor in model.initial_state().items()}
    assert shapes == {
        "seen": (1,),
        "convolved_0": (1, 2, 128),
        "pooled_0": (32, 0, 64),
        "convolved_1": (32, 2, 64),
        "pooled_1": (64, 1, 32),
        "convolved_2": (64, 2, 32),
        "pooled_2": (128, 0, 16),
        "window": (128, 6, 16),
        "hidden": (1, 256),
        "cell": (1, 256),
    }


def test_a_causal_stage_makes_of_the_lines_so_far_what_it_makes_of_the_whole_scan():
    """And the last line of every 16 tells in all stages: no line waits for a later one."""
    torch.manual_seed(0)
    options = efficientnet_causal.Options(pretrained=False, blocks=8)
    model = efficientnet_causal.Model(options, lines=48, pixels=PIXELS, classes=CLASSES).eval()
    x_LP = random_scan(48, 3)
    changed_LP = x_LP.clone()
    changed_LP[31] += 1
    with torch.no_grad():
        maps = zip(*(model.encoder.maps(x[None]) for x in (x_LP, changed_LP)), strict=True)
        for period, (before, after) in zip(model.periods, maps, strict=True):
            assert before.shape[2] == 48 // period
            differs_R = (before != after).any(3).any(1)[0]
            assert differs_R.nonzero()[0, 0] == 32 // period - 1


def test_texture_is_mean_and_deviation_of_all_rows_known_so_far():
    torch.manual_seed(0)
    options = efficientnet_causal.Options(pretrained=False, blocks=3)
    model = efficientnet_causal.Model(options, lines=20, pixels=PIXELS, classes=CLASSES).eval()
    x_BLP = random_scan(20, 4)[None]
    with torch.no_grad():
        mean_D, square_D = model._moments(x_BLP)[0, 17]
        first, second = model.encoder.maps(x_BLP)
    # After 18 lines 9 rows of the first stage are known, and 4 of the second.
    channels = [first[0, :, :9].flatten(1), second[0, :, :4].flatten(1)]
    for found_D, of in ((mean_D, torch.mean), (square_D, lambda x, d: x.square().mean(d))):
        torch.testing.assert_close(found_D, torch.cat([of(part, 1) for part in channels]))
