"""The hybrid: statistics first, the transformer from the changeover on, whole or line by line."""

import numpy as np
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_study import CLASSES, LINES, PIXELS, heights

from scanbench.errors import UserError
from scanbench.export import onnx_step
from scanbench.tipstate.models import build, features
from scanbench.training import fitted_numbers

SMALL = {"d_model": 16, "layers": 2, "heads": 2, "ffn": 16}
C = len(CLASSES)


def study(count=30, seed=0):
    rng = np.random.default_rng(seed)
    label_N = np.arange(count) % C
    x_NLP = np.stack([heights(int(label), LINES, rng) for label in label_N])
    n_lines_N = np.where(np.arange(count) % 7 == 3, 4, LINES)
    x_NLP[np.arange(LINES) >= n_lines_N[:, None]] = 0
    return x_NLP, n_lines_N, label_N


def hybrid(changeover=6, **options):
    torch.manual_seed(0)
    model = build("hybrid", {**SMALL, "changeover": changeover, **options}, LINES, PIXELS, C)
    model.initialise(*study(), np.ones(C), 0)
    return model.eval()


def test_before_the_changeover_it_says_what_line_statistics_say_and_then_the_transformer():
    model = hybrid()
    x_NLP, n_lines_N, label_N = study()
    x_BLP, whole_B = torch.from_numpy(x_NLP[:3]), torch.full((3,), LINES)
    with torch.no_grad():
        answer_BLC = model(x_BLP, whole_B)
        late_BLC = model.late(x_BLP, whole_B)
    assert torch.equal(answer_BLC[:, 5:], late_BLC[:, 5:])
    for count in range(1, 6):
        alone = features.Model(features.Options(), lines=count, pixels=PIXELS, classes=C)
        known_N = np.minimum(n_lines_N, count)
        alone.fit(x_NLP[:, :count].copy(), known_N, label_N, np.ones(C), 0)
        expected_BC = alone(x_BLP[:, :count], torch.full((3,), count))[:, 0]
        torch.testing.assert_close(answer_BLC[:, count - 1], expected_BC)


@settings(max_examples=10, deadline=None)
@given(
    changeover=st.integers(2, LINES),
    attention_window=st.sampled_from([0, 1, 5]),
    seen=st.integers(1, LINES),
    seed=st.integers(0, 99),
)
def test_streaming_gives_the_batch_answers_of_every_prefix(
    changeover, attention_window, seen, seed
):
    model = hybrid(changeover, attention_window=attention_window)
    x_LP = torch.zeros(LINES, PIXELS)
    x_LP[:seen] = torch.randn(seen, PIXELS, generator=torch.Generator().manual_seed(seed))
    state = model.initial_state()
    with torch.inference_mode():
        batch_LC = model(x_LP[None], torch.tensor([seen]))[0]
        for line in range(seen):
            logits_C, answered, state = model.step(x_LP[line], state)
            assert answered
            torch.testing.assert_close(logits_C, batch_LC[line], rtol=0, atol=1e-4)


def test_its_step_is_exported_and_says_the_same():
    model = hybrid(3)
    session = onnxruntime.InferenceSession(onnx_step(model, PIXELS).SerializeToString())
    x_LP = study()[0][0]
    with torch.inference_mode():
        batch_LC = model(torch.from_numpy(x_LP)[None], torch.tensor([LINES]))[0].numpy()
    state = {name: tensor.numpy() for name, tensor in model.initial_state().items()}
    for line_P, expected_C in zip(x_LP, batch_LC, strict=True):
        logits_C, _, *after = session.run(None, {"line": line_P, **state})
        state = dict(zip(state, after, strict=True))
        np.testing.assert_allclose(logits_C, expected_C, atol=1e-4)


def test_line_statistics_are_learned_once_and_counted_but_not_trained():
    model = hybrid(3)
    trained = sum(p.numel() for p in model.parameters())
    assert trained == sum(p.numel() for p in model.late.parameters())
    own = sum(b.numel() for early in model.early for b in early.buffers())
    assert fitted_numbers(model) == trained + own
    before = [b.clone() for b in model.early.buffers()]
    model.train()(torch.from_numpy(study()[0][:4]), torch.full((4,), LINES)).sum().backward()
    assert all(torch.equal(a, b) for a, b in zip(before, model.early.buffers(), strict=True))


def test_a_line_without_heights_moves_no_answer_out_of_bounds():
    # Normalised lines all have the same roughness but for rounding; a blank one has none.
    x_NLP, n_lines_N, label_N = study()
    z_NLP = (x_NLP - x_NLP.mean(2, keepdims=True)) / np.maximum(x_NLP.std(2, keepdims=True), 1e-6)
    model = build("hybrid", {**SMALL, "changeover": 5}, LINES, PIXELS, C).eval()
    model.initialise(z_NLP.astype(np.float32), n_lines_N, label_N, np.ones(C), 0)
    blank = torch.from_numpy(z_NLP[:1].astype(np.float32))
    blank[:, 2] = 0
    with torch.no_grad():
        assert model(blank, torch.tensor([LINES])).abs().max() < 1e3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"changeover": 1}, "options.changeover: 1 is not possible"),
        ({"changeover": LINES + 1}, "options.changeover: .* is past the last of 16 lines"),
        ({"lags": 0}, "options.lags: 0 is not possible"),
        ({"d_model": 15}, "options.d_model"),
        ({"windw": 1}, "hybrid has no such option"),
    ],
)
def test_a_mistake_is_told_in_one_line(options, message):
    with pytest.raises(UserError, match=message):
        build("hybrid", {**SMALL, **options}, LINES, PIXELS, C)
