import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from prediction_data import softmax
from sklearn.metrics import (
    accuracy_score,
    balanced_accuracy_score,
    confusion_matrix,
    f1_score,
    roc_auc_score,
    roc_curve,
)
from torchmetrics.functional.classification import multiclass_calibration_error

from scanbench import metrics

ROWS, UNITS, CLASSES, SEEDS, FOLDS = 60, 7, 3, 2, 4
ONE_FOLD = np.zeros(ROWS, dtype=np.int64)

# Few distinct scores, so that ties are the rule.
tied_scores = arrays(np.float64, ROWS, elements=st.sampled_from([0.0, 0.1, 0.25, 0.7, 1.0]))
two_classes = arrays(np.bool_, ROWS).filter(lambda row: row.any() and not row.all())
units = arrays(np.int64, ROWS, elements=st.integers(0, UNITS - 1))
folds = arrays(np.int64, ROWS, elements=st.integers(0, FOLDS - 1))
weightings = arrays(np.float64, (3, UNITS), elements=st.integers(0, 4).map(float))


def example(seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Probabilities [S, N, C], labels [N] and units [N] of a model that knows a little."""
    rng = np.random.default_rng(seed)
    label = rng.integers(0, CLASSES, ROWS)
    logits = rng.normal(size=(SEEDS, ROWS, CLASSES)) + 1.5 * np.eye(CLASSES)[label]
    return softmax(logits), label, rng.integers(0, UNITS, ROWS)


@settings(deadline=None, max_examples=60)
@given(tied_scores, two_classes, units, weightings)
def test_auroc_equals_scikit_learns_with_sample_weights(score, positive, unit, weight):
    ours = metrics.auroc(score, positive, unit, ONE_FOLD, weight)
    for value, row in zip(ours, weight, strict=True):
        sample_weight = row[unit]
        if sample_weight[positive].sum() == 0 or sample_weight[~positive].sum() == 0:
            assert np.isnan(value)
        else:
            assert value == pytest.approx(
                roc_auc_score(positive, score, sample_weight=sample_weight), abs=1e-12
            )


@settings(deadline=None, max_examples=60)
@given(two_classes, units, folds, weightings)
def test_a_score_that_is_constant_in_each_fold_has_auroc_one_half(positive, unit, fold, weight):
    prior = np.array([positive[fold != f].mean() for f in range(FOLDS)])  # of the training part
    ours = metrics.auroc(prior[fold], positive, unit, fold, weight)
    for value, row in zip(ours, weight, strict=True):
        held = [
            positive[(fold == f) & (row[unit] > 0)] for f in range(FOLDS)
        ]  # the rows that this weighting leaves in each fold
        if any(own.any() and not own.all() for own in held):
            assert value == 0.5
        else:
            assert np.isnan(value)


@settings(deadline=None, max_examples=60)
@given(tied_scores, two_classes, units, folds, weightings)
def test_auroc_is_the_folds_aurocs_weighted_by_their_pairs(score, positive, unit, fold, weight):
    ours = metrics.auroc(score, positive, unit, fold, weight)
    for value, row in zip(ours, weight, strict=True):
        concordant, pairs = 0.0, 0.0
        for f in range(FOLDS):
            rows = fold == f
            count = row[unit][rows]
            own_pairs = count[positive[rows]].sum() * count[~positive[rows]].sum()
            if own_pairs > 0:
                concordant += own_pairs * roc_auc_score(
                    positive[rows], score[rows], sample_weight=count
                )
                pairs += own_pairs
        if pairs == 0:
            assert np.isnan(value)
        else:
            assert value == pytest.approx(concordant / pairs, abs=1e-12)


@settings(deadline=None, max_examples=60)
@given(tied_scores, two_classes, units, folds, weightings)
def test_shifting_a_folds_scores_changes_no_auroc(score, positive, unit, fold, weight):
    ours, shifted = (
        metrics.auroc(own, positive, unit, fold, weight) for own in (score, score + fold)
    )
    assert np.array_equal(ours, shifted, equal_nan=True)


@settings(deadline=None, max_examples=60)
@given(tied_scores, two_classes, units, weightings)
def test_both_ways_to_the_auroc_count_the_same_pairs(score, positive, unit, weight):
    by_unit = metrics._concordant_by_unit(score, positive, unit, weight)
    by_row = metrics._concordant_by_row(score, positive, unit, weight)
    assert (by_unit == by_row).all()


def test_sorted_rows_give_the_same_in_chunks(monkeypatch):
    p, label, _ = example()
    own_unit = np.arange(ROWS)
    weight = np.random.default_rng(1).integers(0, 3, (50, ROWS)).astype(float)
    whole = metrics._concordant_by_row(p[0, :, 0], label == 0, own_unit, weight)
    monkeypatch.setattr(metrics, "CHUNK", 7 * ROWS)
    assert (metrics._concordant_by_row(p[0, :, 0], label == 0, own_unit, weight) == whole).all()


@settings(deadline=None, max_examples=40)
@given(tied_scores, two_classes, units, folds, weightings)
def test_auroc_of_a_score_and_its_opposite_sum_to_one(score, positive, unit, fold, weight):
    there, back = (metrics.auroc(own, positive, unit, fold, weight) for own in (score, -score))
    total = there + back
    assert np.allclose(total[~np.isnan(total)], 1, rtol=0, atol=1e-12)


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.UndefinedMetricWarning")
@pytest.mark.parametrize("seed", range(5))
def test_all_metrics_equal_the_references_on_resampled_rows(seed):
    p, label, unit = example(seed)
    weight = np.random.default_rng(seed).multinomial(UNITS, np.full(UNITS, 1 / UNITS), 20)
    table = metrics.metric_values(p, label, unit, ONE_FOLD, weight.astype(float), 10)
    for b, row in enumerate(weight):
        rows = np.repeat(np.arange(ROWS), row[unit])  # a resample, written out
        true = label[rows]
        if len(set(true)) < CLASSES:
            assert np.isnan(table["auroc", None][0, b])
            continue
        for s in range(SEEDS):
            score, predicted = p[s, rows], p[s, rows].argmax(axis=1)
            f1s = f1_score(true, predicted, average=None, labels=range(CLASSES))
            expected = {
                ("auroc", None): roc_auc_score(true, score, multi_class="ovr"),
                ("auroc", 1): roc_auc_score(true == 1, score[:, 1]),
                ("accuracy", None): accuracy_score(true, predicted),
                ("balanced_accuracy", None): balanced_accuracy_score(true, predicted),
                ("f1", None): f1s.mean(),
                ("f1", 2): f1s[2],
                ("ece", None): multiclass_calibration_error(
                    torch.tensor(score), torch.tensor(true), CLASSES, n_bins=10
                ).item(),
            }
            for key, value in expected.items():
                assert table[key][s, b] == pytest.approx(value, abs=1e-6), key


def test_confusion_rows_are_true_and_columns_predicted():
    label, predicted = np.array([0, 0, 1, 2, 2]), np.array([0, 1, 1, 0, 2])
    ours = metrics.confusion_by_unit(label, predicted, np.array([0, 0, 1, 1, 1]), 2, 3)
    assert (ours.sum(axis=0) == confusion_matrix(label, predicted)).all()
    assert ours[0].sum() == 2


def test_a_class_without_rows_leaves_only_its_own_figures_empty():
    p, label, unit = example()
    keep = label != 2
    table = metrics.metric_values(
        p[:, keep], label[keep], unit[keep], ONE_FOLD[keep], np.ones((1, UNITS)), 10
    )
    assert np.isnan(table["auroc", 2]).all()
    assert np.isnan(table["balanced_accuracy", None]).all()
    assert np.isfinite(table["auroc", 0]).all()
    assert np.isfinite(table["accuracy", None]).all()


def test_a_constant_classifier_has_auroc_one_half():
    label = np.arange(40) % 4
    p = np.broadcast_to([0.1, 0.2, 0.3, 0.4], (1, 40, 4))
    table = metrics.metric_values(p, label, label, np.zeros(40, np.int64), np.ones((1, 4)), 10)
    assert table["auroc", None] == 0.5
    assert table["balanced_accuracy", None] == 0.25


def test_perfect_calibration_has_no_error_and_confidence_beyond_accuracy_has_that_much():
    p = np.tile([0.75, 0.25], (8, 1))
    unit = np.zeros(8, dtype=np.int64)
    right = np.array([0, 0, 0, 1] * 2)
    assert metrics.ece(metrics.calibration_by_unit(p, right, unit, 1, 10)) == pytest.approx([0])
    wrong = np.ones(8, dtype=np.int64)
    assert metrics.ece(metrics.calibration_by_unit(p, wrong, unit, 1, 10)) == pytest.approx([0.75])


def test_reliability_bins_hold_every_answer_of_every_seed_once():
    p, label, _ = example()
    bins = metrics.reliability(p, label, 10)
    assert bins["count"].sum() == SEEDS * ROWS
    filled = bins[bins["count"] > 0]
    assert (filled["confidence"] > filled["bin_low"]).all()
    assert (filled["confidence"] <= filled["bin_high"]).all()
    gap = (bins["accuracy"] - bins["confidence"]).abs() * bins["count"]
    pooled = multiclass_calibration_error(
        torch.tensor(p.reshape(-1, CLASSES)), torch.tensor(np.tile(label, SEEDS)), CLASSES, 10
    )
    assert gap.sum() / (SEEDS * ROWS) == pytest.approx(pooled.item(), abs=1e-6)


def test_certainty_falls_into_the_last_bin():
    bins = metrics.reliability(np.array([[[1.0, 0.0]]]), np.array([0]), 10)
    assert bins["count"].tolist() == [0] * 9 + [1]


@settings(deadline=None, max_examples=60)
@given(tied_scores, two_classes)
def test_roc_points_are_the_exact_curve_with_its_corners(score, positive):
    fpr, tpr = metrics.roc_points(score, positive, ONE_FOLD)
    exact_fpr, exact_tpr, _ = roc_curve(positive, score, drop_intermediate=True)
    assert np.trapezoid(tpr, fpr) == pytest.approx(roc_auc_score(positive, score), abs=1e-12)
    assert (fpr[0], tpr[0], fpr[-1], tpr[-1]) == (0, 0, 1, 1)
    assert set(zip(fpr, tpr, strict=True)) <= set(zip(exact_fpr, exact_tpr, strict=True))


@settings(deadline=None, max_examples=60)
@given(tied_scores, two_classes, folds)
def test_the_area_under_the_roc_points_of_several_folds_is_their_auroc(score, positive, fold):
    one_unit = np.zeros(ROWS, np.int64)
    area = metrics.auroc(score, positive, one_unit, fold, np.ones((1, 1)))[0]
    assume(np.isfinite(area))
    fpr, tpr = metrics.roc_points(score, positive, fold)
    assert np.trapezoid(tpr, fpr) == pytest.approx(area, abs=1e-12)
    assert (fpr[0], tpr[0], fpr[-1]) == (0, 0, 1)
    assert tpr[-1] == pytest.approx(1, abs=1e-15)
    assert (np.diff(fpr) >= 0).all()
    assert (np.diff(tpr) > -1e-15).all()


def test_a_long_roc_curve_is_thinned_to_points_of_the_exact_one():
    rng = np.random.default_rng(0)
    positive = rng.random(5000) < 0.1
    score = rng.normal(size=5000) + positive
    fpr, tpr = metrics.roc_points(score, positive, np.zeros(5000, np.int64), points=100)
    exact_fpr, exact_tpr, _ = roc_curve(positive, score, drop_intermediate=False)
    assert len(fpr) <= 100
    assert set(zip(fpr, tpr, strict=True)) <= set(zip(exact_fpr, exact_tpr, strict=True))
    assert (fpr[0], tpr[0], fpr[-1], tpr[-1]) == (0, 0, 1, 1)
    assert np.trapezoid(tpr, fpr) == pytest.approx(roc_auc_score(positive, score), abs=0.003)
