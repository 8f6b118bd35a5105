"""Thresholds between classes are found on other folds, and undo what shifted the answers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import balanced_accuracy_score

from scanbench import metrics
from scanbench.thresholds import fitted, named

CLASSES = 3


def answers(seed: int, rows: int = 600) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Give calibrated probabilities under equal shares of classes, labels and folds."""
    rng = np.random.default_rng(seed)
    label_N = rng.choice(CLASSES, rows, p=[0.1, 0.3, 0.6])
    logit_NC = 2.0 * np.eye(CLASSES)[label_N] + rng.normal(0, np.sqrt(2.0), (rows, CLASSES))
    p_NC = np.exp(logit_NC)
    return p_NC / p_NC.sum(axis=1, keepdims=True), label_N, np.arange(rows) % 4


def shifted(p_NC: np.ndarray, scale: float, offset_C: np.ndarray) -> np.ndarray:
    q_NC = p_NC**scale * np.exp(offset_C)
    return q_NC / q_NC.sum(axis=1, keepdims=True)


def test_what_is_calibrated_stays_as_it_is() -> None:
    p_NC, label_N, _ = answers(0, 60_000)
    scale, offset_C = fitted(p_NC, label_N)
    assert scale == pytest.approx(1, abs=0.05)
    assert offset_C - offset_C.mean() == pytest.approx([0, 0, 0], abs=0.05)


@given(
    seed=st.integers(0, 20),
    scale=st.floats(0.5, 2),
    offset=st.lists(st.floats(-2, 2), min_size=CLASSES, max_size=CLASSES),
)
def test_names_do_not_depend_on_scale_and_offsets(
    seed: int, scale: float, offset: list[float]
) -> None:
    p_NC, label_N, fold_N = answers(seed)
    before_N = named(p_NC, label_N, fold_N)
    after_N = named(shifted(p_NC, scale, np.array(offset)), label_N, fold_N)
    assert np.mean(before_N != after_N) < 0.01


def test_a_rare_class_that_was_named_too_seldom_is_found() -> None:
    p_NC, label_N, fold_N = answers(1)
    seldom_NC = shifted(p_NC, 1, np.array([-3.0, 0, 0]))
    plain, mended = (
        balanced_accuracy_score(label_N, own_N)
        for own_N in (seldom_NC.argmax(axis=1), named(seldom_NC, label_N, fold_N))
    )
    assert mended > plain + 0.1


def test_labels_of_a_fold_have_no_part_in_its_names() -> None:
    p_NC, label_N, fold_N = answers(2)
    other_N = np.where(fold_N == 1, (label_N + 1) % CLASSES, label_N)
    own = fold_N == 1
    before_N, after_N = (named(p_NC, known_N, fold_N) for known_N in (label_N, other_N))
    assert (before_N[own] == after_N[own]).all()
    assert (before_N[~own] != after_N[~own]).any()


def test_answers_that_are_sure_or_constant_or_lack_a_class_give_finite_names() -> None:
    label_N = np.arange(40) % CLASSES
    sure_NC = np.eye(CLASSES)[label_N]
    assert (named(sure_NC, label_N, label_N) == label_N).all()
    scale, offset_C = fitted(np.full((40, CLASSES), 1 / CLASSES), label_N)
    assert np.isfinite([scale, *offset_C]).all()
    scale, offset_C = fitted(sure_NC[label_N != 2], label_N[label_N != 2])
    assert np.isfinite([scale, *offset_C]).all()
    assert offset_C[2] == 0


def test_the_metric_is_the_balanced_accuracy_of_these_names_and_needs_two_folds() -> None:
    p_NC, label_N, fold_N = answers(3)
    unit_N, once = np.zeros_like(label_N), np.ones((1, 1))
    table = metrics.metric_values(p_NC[None], label_N, unit_N, fold_N, once, 10)
    expected = balanced_accuracy_score(label_N, named(p_NC, label_N, fold_N))
    assert table["balanced_accuracy_fitted", None][0, 0] == pytest.approx(expected)
    one = metrics.metric_values(p_NC[None], label_N, unit_N, unit_N, once, 10)
    assert ("balanced_accuracy_fitted", None) not in one
