from itertools import product

import numpy as np
import pytest
from false_alarms import CLASSES, excludes_zero, sessions, significant
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom, rankdata
from sklearn.metrics import balanced_accuracy_score, roc_auc_score

from scanbench import comparison, metrics


def rejections(
    count: int,
    metric: str,
    *,
    by_scan: bool = False,
    advantage: float = 0.0,
    groups: int = 20,
    folds: int = 1,
) -> int:
    """How many of `count` simulated comparisons come out significant at 5 %."""
    rng = np.random.default_rng(7)
    return sum(
        significant(
            sessions(rng, advantage=advantage, groups=groups, folds=folds),
            metric,
            number,
            by_scan=by_scan,
        )
        for number in range(count)
    )


def acceptable(hits: int, count: int) -> bool:
    """Whether `hits` lie in the central 99.8 % of what a test at 5 % gives."""
    return bool(binom.ppf(0.001, count, 0.05) <= hits <= binom.ppf(0.999, count, 0.05))


@pytest.mark.parametrize("groups", [8, 20])
@pytest.mark.parametrize("metric", ["auroc", "balanced_accuracy"])
def test_equal_models_come_out_different_in_five_percent_of_comparisons(metric, groups):
    assert acceptable(rejections(400, metric, groups=groups), 400)


def test_a_model_that_leans_otherwise_in_each_fold_does_not_come_out_different_for_that():
    assert acceptable(rejections(300, "auroc", folds=5), 300)


def test_auroc_differences_ignore_how_scores_shift_between_folds():
    a, b, label, unit, fold = sessions(np.random.default_rng(8), folds=5)
    swaps = comparison.draw_swaps(20, 199, seed=0)
    shifted = b + 2.0 * fold[:, None]
    assert comparison.swap_test(a, b, label, unit, fold, swaps, "auroc") == comparison.swap_test(
        a, shifted, label, unit, fold, swaps, "auroc"
    )


def test_swapping_scan_by_scan_would_not_keep_the_level():
    hits = rejections(400, "balanced_accuracy", by_scan=True)
    assert hits > binom.ppf(0.999, 400, 0.05)


@pytest.mark.parametrize("metric", ["auroc", "balanced_accuracy"])
def test_a_better_model_is_found(metric):
    assert rejections(60, metric, advantage=1.2) > 50


def test_intervals_cover_the_true_difference_of_equal_models():
    rng = np.random.default_rng(11)
    missed = sum(excludes_zero(sessions(rng), "auroc", number) for number in range(150))
    # A percentile interval from 20 groups covers a little less than it says.
    assert missed <= binom.ppf(0.999, 150, 0.08)


@pytest.mark.parametrize("metric", comparison.TESTABLE)
def test_a_model_compared_with_itself_has_no_difference_and_p_one(metric):
    a, _, label, unit, fold = sessions(np.random.default_rng(0), groups=5)
    swaps = comparison.draw_swaps(5, 100, seed=0)
    assert comparison.swap_test(a, a, label, unit, fold, swaps, metric) == (0.0, 1.0)


@pytest.mark.parametrize("metric", comparison.TESTABLE)
@pytest.mark.parametrize("groups", [6, 20])
def test_exchanging_the_models_turns_the_sign_only(metric, groups):
    a, b, label, unit, fold = sessions(np.random.default_rng(1), groups=groups)
    swaps = comparison.draw_swaps(groups, 99, seed=0)
    there = comparison.swap_test(a, b, label, unit, fold, swaps, metric)
    back = comparison.swap_test(b, a, label, unit, fold, swaps, metric)
    assert back[0] == pytest.approx(-there[0], abs=1e-12)
    assert back[1] == there[1]


def test_auroc_differences_ignore_the_scale_of_scores():
    a, b, label, unit, fold = sessions(np.random.default_rng(2))
    swaps = comparison.draw_swaps(20, 199, seed=0)
    steeper = b**3  # the same order, another scale
    assert comparison.swap_test(a, b, label, unit, fold, swaps, "auroc") == comparison.swap_test(
        a, steeper, label, unit, fold, swaps, "auroc"
    )


@pytest.mark.parametrize("metric", ["auroc", "balanced_accuracy"])
def test_exact_p_equals_a_full_enumeration_by_hand(metric):
    groups = 4
    a, b, label, unit, fold = sessions(np.random.default_rng(3), groups=groups, advantage=0.7)

    def score(p: np.ndarray) -> float:
        if metric == "balanced_accuracy":
            return np.mean([balanced_accuracy_score(label, own.argmax(axis=1)) for own in p])
        return np.mean([roc_auc_score(label == c, own[:, c]) for own in p for c in range(CLASSES)])

    first, second = (a, b)
    if metric == "auroc":
        first, second = rankdata(a, axis=1), rankdata(b, axis=1)
    null = []
    for swap in product([False, True], repeat=groups):
        swapped = np.array(swap)[unit][None, :, None]
        null.append(
            score(np.where(swapped, second, first)) - score(np.where(swapped, first, second))
        )
    observed = score(a) - score(b)
    expected = np.mean(np.abs(null) >= abs(observed) - 1e-12)

    swaps = comparison.draw_swaps(groups, 1000, seed=0)
    assert swaps.exact
    difference, p = comparison.swap_test(a, b, label, unit, fold, swaps, metric)
    assert difference == pytest.approx(observed, abs=1e-12)
    assert p == expected


def test_chunks_of_swaps_give_the_same_p(monkeypatch):
    a, b, label, unit, fold = sessions(np.random.default_rng(4))
    swaps = comparison.draw_swaps(20, 199, seed=0)
    whole = comparison.swap_test(a, b, label, unit, fold, swaps, "auroc")
    monkeypatch.setattr(comparison, "CHUNK", 4 * 20 * 7)
    assert comparison.swap_test(a, b, label, unit, fold, swaps, "auroc") == whole


def test_few_groups_are_enumerated_once_each_up_to_sign_and_many_are_sampled():
    few = comparison.draw_swaps(5, 16, seed=0)
    assert few.exact
    assert len({tuple(row) for row in few.swap_BK}) == 16
    assert not few.swap_BK[:, 0].any()
    many = comparison.draw_swaps(6, 16, seed=0)
    assert not many.exact
    assert many.swap_BK.shape == (16, 6)


@pytest.mark.parametrize("groups", [2, 3, 5, 12])
def test_the_clearest_difference_gets_the_smallest_p_that_is_announced(groups):
    label = np.tile([0, 1], groups * 3)
    unit = np.repeat(np.arange(groups), 6)
    good = np.eye(2)[label][None]
    bad = 1 - good
    swaps = comparison.draw_swaps(groups, 500, seed=0)
    _, p = comparison.swap_test(good, bad, label, unit, np.zeros_like(unit), swaps, "accuracy")
    assert p == pytest.approx(comparison.smallest_p(groups, 500), rel=1e-12)


def test_every_resample_holds_every_class_and_as_many_groups_as_there_are():
    label = np.array([0, 0, 1, 0, 0, 1, 2])  # class 2 stands in the last group only
    unit = np.array([0, 0, 1, 1, 2, 2, 3])
    resamples = comparison.draw_resamples(
        label, unit, np.zeros(7, np.int64), units=4, classes=3, seeds=3, count=500, seed=0
    )
    assert (resamples.unit_BK[:, 3] > 0).all()
    assert (resamples.unit_BK.sum(axis=1) == 4).all()
    assert (resamples.seed_BS.sum(axis=1) == 3).all()
    assert resamples.unit_BK[:, 0].min() == 0


def test_every_resample_holds_every_class_beside_another_in_some_fold():
    label = np.array([0, 1, 0, 0, 1, 0, 2, 1])  # units 1 and 2 hold one class each, in folds apart
    unit = np.array([0, 0, 1, 1, 2, 3, 3, 3])
    fold = np.array([0, 0, 0, 0, 1, 1, 1, 1])
    resamples = comparison.draw_resamples(
        label, unit, fold, units=4, classes=3, seeds=1, count=500, seed=0
    )
    values = metrics.metric_values(
        np.full((1, 8, 3), 1 / 3), label, unit, fold, resamples.unit_BK, 10
    )
    assert (values["auroc", None] == 0.5).all()


def test_seeds_that_differ_widen_the_interval():
    rng = np.random.default_rng(5)
    a, _, label, unit, fold = sessions(rng, seeds=4)
    resamples = comparison.draw_resamples(
        label, unit, fold, units=20, classes=CLASSES, seeds=4, count=1000, seed=0
    )
    values = metrics.metric_values(a, label, unit, fold, resamples.unit_BK, 10)["auroc", None]
    same = np.broadcast_to(values.mean(axis=0), values.shape)
    apart = same + np.array([[-0.1], [0.1], [0.1], [-0.1]])

    def width(value_SB: np.ndarray) -> float:
        low, high = comparison.interval(value_SB, resamples, 0.95)
        return high - low

    assert width(apart) > 1.3 * width(same)


def test_one_group_has_no_interval():
    resamples = comparison.Resamples(unit_BK=np.ones((9, 1)), seed_BS=np.ones((9, 1)))
    assert np.isnan(comparison.interval(np.ones((1, 9)), resamples, 0.95)).all()


def test_holm_by_hand():
    assert comparison.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert comparison.holm([0.5, 0.9]) == [1.0, 1.0]
    assert comparison.holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_lies_between_the_raw_and_the_bonferroni_value_and_keeps_the_order(p):
    adjusted = comparison.holm(p)
    for raw, value in zip(p, adjusted, strict=True):
        assert raw <= value <= min(1, raw * len(p))
    assert (np.diff(np.array(adjusted)[np.argsort(p, kind="stable")]) >= 0).all()


ENOUGH = {
    "groups": 20,
    "seeds": 5,
    "pairs": 3,
    "permutations": 4999,
    "confidence": 0.95,
    "class_groups": {"atoms": 20},
}


def test_nothing_is_cautioned_where_there_is_enough():
    assert comparison.claims(**ENOUGH) == ""


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"groups": 6}, ["only 6 test groups", "2/2^6 = 0.0312"]),
        ({"groups": 1}, ["only 1 test group:", "no interval"]),
        ({"groups": 5, "pairs": 10}, ["below 0.625 (10 pairs × 0.0625)", "more groups"]),
        ({"permutations": 49, "pairs": 10}, ["below 0.2", "more permutations"]),
        ({"seeds": 1}, ["one seed per experiment"]),
        ({"class_groups": {"atoms": 20, "rows": 1}}, ["'rows' stands in 1 test group(s)"]),
    ],
)
def test_cautions_name_the_numbers(change, words):
    text = comparison.claims(**{**ENOUGH, **change})
    for word in words:
        assert word in text
