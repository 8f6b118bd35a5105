"""Thresholds between classes are fitted on other folds, and undo what shifted the answers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import softmax
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score

from scanbench import metrics
from scanbench.thresholds import cross_fitted_classes, fit_thresholds

CLASSES = 3


def answers(
    seed: int, rows: int = 600, classes: int = CLASSES
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Give probabilities that are right where classes are equally frequent, labels and folds."""
    rng = np.random.default_rng(seed)
    label_N = rng.choice(classes, rows, p=np.arange(1, classes + 1) / sum(range(classes + 1)))
    logit_NC = 2.0 * np.eye(classes)[label_N] + rng.normal(0, np.sqrt(2.0), (rows, classes))
    return softmax(logit_NC, axis=1), label_N, np.arange(rows) % 4


def shifted(p_NC: np.ndarray, scale: float, offset_C: np.ndarray) -> np.ndarray:
    return softmax(scale * np.log(p_NC) + offset_C, axis=1)


@pytest.mark.parametrize("seed", range(5))
def test_two_classes_are_a_logistic_regression(seed: int) -> None:
    p_NC, label_N, _ = answers(seed, classes=2)
    log_odds_N1 = np.log(p_NC[:, [1]] / p_NC[:, [0]])
    regression = LogisticRegression(C=np.inf, class_weight="balanced", tol=1e-10)
    regression.fit(log_odds_N1, label_N)
    scale, offset_C = fit_thresholds(p_NC, label_N)
    assert scale == pytest.approx(regression.coef_.item(), abs=1e-3)
    assert offset_C[1] - offset_C[0] == pytest.approx(regression.intercept_.item(), abs=1e-3)


@pytest.mark.parametrize("seed", range(5))
def test_what_is_fitted_is_the_most_likely(seed: int) -> None:
    """There, the shares of the fitted probabilities are those of the labels, class by class."""
    p_NC, label_N, _ = answers(seed)
    q_NC = shifted(p_NC, *fit_thresholds(p_NC, label_N))
    weight_N = 1 / np.bincount(label_N)[label_N]
    true_NC = np.eye(CLASSES)[label_N]
    assert weight_N @ q_NC == pytest.approx(weight_N @ true_NC, abs=1e-3)
    told, known = (weight_N @ (of_NC * np.log(p_NC)).sum(axis=1) for of_NC in (q_NC, true_NC))
    assert told == pytest.approx(known, abs=1e-3)


@given(
    seed=st.integers(0, 20),
    scale=st.floats(0.5, 2),
    offset=st.lists(st.floats(-2, 2), min_size=CLASSES, max_size=CLASSES),
)
def test_classes_do_not_depend_on_scale_and_offsets(
    seed: int, scale: float, offset: list[float]
) -> None:
    p_NC, label_N, fold_N = answers(seed)
    p_SNC = np.stack([p_NC, shifted(p_NC, scale, np.array(offset))])
    before_N, after_N = cross_fitted_classes(p_SNC, label_N, fold_N)
    assert np.mean(before_N != after_N) < 0.01  # both fits end a little before the optimum


def test_a_rare_class_that_was_predicted_too_seldom_is_found() -> None:
    p_NC, label_N, fold_N = answers(1)
    seldom_SNC = shifted(p_NC, 1, np.array([-3.0, 0, 0]))[None]
    mended_N = cross_fitted_classes(seldom_SNC, label_N, fold_N)[0]
    plain, mended, possible = (
        balanced_accuracy_score(label_N, own_N)
        for own_N in (seldom_SNC[0].argmax(axis=1), mended_N, p_NC.argmax(axis=1))
    )
    assert plain < possible - 0.1
    assert mended > possible - 0.02


def test_labels_of_a_fold_have_no_part_in_its_fit() -> None:
    p_NC, label_N, fold_N = answers(2)
    own_N = fold_N == 1
    other_N = np.where(own_N, (label_N + 1) % CLASSES, label_N)
    before_N, after_N = (
        cross_fitted_classes(p_NC[None], known_N, fold_N)[0] for known_N in (label_N, other_N)
    )
    assert (before_N[own_N] == after_N[own_N]).all()
    assert (before_N[~own_N] != after_N[~own_N]).any()


def test_each_seed_has_its_own_thresholds() -> None:
    p_NC, label_N, fold_N = answers(3)
    p_SNC = np.stack([p_NC, shifted(p_NC, 1, np.array([-1.0, 0, 1]))])
    together_SN = cross_fitted_classes(p_SNC, label_N, fold_N)
    for own_NC, own_N in zip(p_SNC, together_SN, strict=True):
        assert (cross_fitted_classes(own_NC[None], label_N, fold_N)[0] == own_N).all()


def test_answers_that_are_sure_or_constant_have_finite_thresholds() -> None:
    label_N = np.arange(40) % CLASSES
    for p_NC in (np.eye(CLASSES)[label_N], np.full((40, CLASSES), 1 / CLASSES)):
        assert np.isfinite(np.append(*fit_thresholds(p_NC, label_N))).all()
    sure_SNC = np.eye(CLASSES)[label_N][None]
    assert (cross_fitted_classes(sure_SNC, label_N, np.arange(40) % 4) == label_N).all()


@pytest.mark.parametrize("folds", [1, 2])
def test_there_is_no_figure_where_other_folds_lack_a_class(folds: int) -> None:
    p_NC, label_N, _ = answers(4)
    fold_N = np.zeros_like(label_N) if folds == 1 else (label_N == 0).astype(np.int64)
    assert cross_fitted_classes(p_NC[None], label_N, fold_N) is None


def test_the_metric_is_the_balanced_accuracy_of_these_classes_under_every_weighting() -> None:
    p_NC, label_N, fold_N = answers(5)
    unit_N = np.arange(len(label_N)) % 7
    fitted_SN = cross_fitted_classes(p_NC[None], label_N, fold_N)
    weight_BK = np.random.default_rng(0).integers(0, 3, (5, 7)).astype(float)
    values = [p_NC[None], label_N, unit_N, fold_N, weight_BK, 10]
    table = metrics.metric_values(*values, fitted_SN=fitted_SN)
    for b, weight_K in enumerate(weight_BK):
        rows = np.repeat(np.arange(len(label_N)), weight_K[unit_N].astype(int))
        expected = balanced_accuracy_score(label_N[rows], fitted_SN[0, rows])
        assert table["balanced_accuracy_fitted", None][0, b] == pytest.approx(expected)
    assert ("balanced_accuracy_fitted", None) not in metrics.metric_values(*values)
