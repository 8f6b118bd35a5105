"""Stopping rules: what is saved and spoiled, by hand and by law."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scanbench import stopping
from scanbench.stopping import Choice, Courses, Rule, Watch

CLASSES = ["good", "bad"]


def course(
    bad_NT: list[list[float]], is_bad: list[bool], lines: int = 4, fold: list[int] | None = None
) -> Courses:
    bad = np.array(bad_NT, np.float64)
    seen = np.where(np.isfinite(bad), np.arange(1, bad.shape[1] + 1), 0)
    return Courses(
        bad_NT=bad,
        seen_NT=seen,
        lines_N=np.full(len(bad), lines),
        is_bad_N=np.array(is_bad),
        group_N=np.array([f"g{k}" for k in range(len(bad))]),
        fold_N=np.zeros(len(bad), np.int64) if fold is None else np.array(fold),
    )


def limits_table(
    courses: list[Courses], limits: list[float], patience: list[int], *, resamples: int
) -> pd.DataFrame:
    tried = [stopping.cross_fitted(c, Choice(limits=limits, patience=patience)) for c in courses]
    return stopping.limits_table(
        courses, tried, limits, resamples=resamples, confidence=0.95, seed=0
    )


def test_a_scan_stops_at_the_first_answer_that_reaches_the_threshold() -> None:
    scans = course([[0.1, 0.6, 0.2, 0.9], [0.1, 0.2, 0.3, 0.4], [0.9, np.nan, np.nan, np.nan]],
                   [True, False, True])  # fmt: skip
    scanned = stopping.stops(scans, np.array([0.5, 0.05, 0.95]), patience=1)
    assert scanned.tolist() == [[2, 1, 4], [4, 1, 4], [1, 1, 4]]


def test_patience_wants_the_threshold_reached_in_a_row() -> None:
    scans = course([[0.6, 0.2, 0.6, 0.7], [0.6, 0.7, 0.1, 0.1], [0.9, np.nan, np.nan, np.nan]],
                   [True, True, True])  # fmt: skip
    assert stopping.stops(scans, np.array([0.5]), patience=2)[:, 0].tolist() == [4, 2, 4]
    assert stopping.stops(scans, np.array([0.5]), patience=3)[:, 0].tolist() == [4, 4, 4]


answers = st.lists(st.lists(st.floats(0, 1), min_size=4, max_size=4), min_size=4, max_size=12)


@settings(max_examples=60, deadline=None)
@given(answers)
def test_a_higher_threshold_or_more_patience_never_stops_sooner(bad: list[list[float]]) -> None:
    scans = course(bad, [k % 2 == 0 for k in range(len(bad))])
    threshold = np.linspace(0, 1.1, 12)
    one, two = (stopping.stops(scans, threshold, m) for m in (1, 2))
    assert (np.diff(one, axis=1) >= 0).all()
    assert (two >= one).all()
    table = stopping.trade_off(scans, 1)
    assert (table["wrong_stops"].diff().dropna() <= 0).all()
    assert (table["saved"].diff().dropna() <= 1e-12).all()
    assert table["wrong_stops"].iloc[-1] == table["saved"].iloc[-1] == 0  # never reached


@settings(max_examples=100, deadline=None)
@given(answers, st.floats(0.05, 1), st.integers(1, 4), st.integers(1, 5))
def test_a_rule_stops_a_running_scan_where_it_stops_the_recorded_one(
    bad: list[list[float]], threshold: float, patience: int, first_line: int
) -> None:
    rule = Rule(threshold=threshold, patience=patience, first_line=first_line)
    scans = course(bad, [k % 2 == 0 for k in range(len(bad))])
    for bad_T, lines in zip(bad, stopping.scanned(scans, rule), strict=True):
        watch = Watch(rule)
        said = [watch.stops(p, seen) for seen, p in enumerate(bad_T, start=1)]
        assert (said.index(True) + 1 if any(said) else len(bad_T)) == lines


def test_no_rule_stops_before_its_first_line_but_answers_before_it_count() -> None:
    scans = course([[0.9, 0.9, 0.9, 0.1], [0.9, 0.1, 0.1, 0.1]], [True, True])
    assert stopping.scanned(scans, Rule(threshold=0.5, patience=3, first_line=3)).tolist() == [3, 4]
    assert stopping.scanned(scans, Rule(threshold=0.5, patience=1, first_line=2)).tolist() == [2, 4]


def test_with_one_fold_the_rule_to_go_on_with_is_chosen_on_all_its_scans() -> None:
    rng = np.random.default_rng(1)
    scans = course(rng.uniform(size=(40, 4)).tolist(), [k % 4 < 2 for k in range(40)])
    choice = Choice(limits=[0.1, 0.5], patience=[1, 2])
    tried = stopping.cross_fitted(scans, choice)
    assert tried.rules == {0: stopping.rules_for(scans, choice)}


@settings(max_examples=60, deadline=None)
@given(answers, st.sampled_from([0.0, 0.1, 0.5]))
def test_the_chosen_rule_keeps_the_limit_and_no_allowed_rule_saves_more(
    bad: list[list[float]], limit: float
) -> None:
    scans = course(bad, [k % 2 == 0 for k in range(len(bad))])
    (rule,) = stopping.rules_for(scans, Choice(limits=[limit], patience=[1, 2]))
    outcome = stopping.Outcome.of(scans, stopping.scanned(scans, rule))
    figures = outcome.figures(np.ones((1, len(bad))))
    saved, wrong = figures["saved"], figures["wrong_stops"]
    assert wrong[0] <= limit
    for m in (1, 2):
        table = stopping.trade_off(scans, m)
        assert table.loc[table["wrong_stops"] <= limit, "saved"].max() <= saved[0] + 1e-12


def test_no_scan_has_a_say_in_the_rule_that_it_is_judged_by() -> None:
    rng = np.random.default_rng(0)
    bad = rng.uniform(size=(40, 4)).tolist()
    is_bad = [k % 2 == 0 for k in range(40)]
    fold = [k // 20 for k in range(40)]
    choice = Choice(limits=[0.1], patience=[1])
    before = stopping.cross_fitted(course(bad, is_bad, fold=fold), choice)
    # Other labels of fold 0 change the rule for fold 1, never that for fold 0 itself.
    flipped = [not b if f == 0 else b for b, f in zip(is_bad, fold, strict=True)]
    after = stopping.cross_fitted(course(bad, flipped, fold=fold), choice)
    early = [t.outcomes[0].saved_N + t.outcomes[0].wrong_N > 0 for t in (before, after)]
    assert before.rules[0] == after.rules[0]
    assert before.rules[1] != after.rules[1]
    assert (early[0][:20] == early[1][:20]).all()
    assert (early[0][20:] != early[1][20:]).any()


def test_a_perfect_monitor_saves_all_but_the_first_answer_and_stops_nothing_good() -> None:
    is_bad = [k % 2 == 0 for k in range(40)]
    perfect = course([[float(b)] * 4 for b in is_bad], is_bad, fold=[k % 4 for k in range(40)])
    table = limits_table([perfect, perfect], [0.01], [1], resamples=50).set_index("figure")
    assert table.loc["saved", ["value", "low", "high"]].tolist() == pytest.approx([0.75] * 3)
    assert table.loc["wrong_stops", ["value", "low", "high"]].tolist() == [0, 0, 0]
    assert table.loc["lines_spent", ["value", "low", "high"]].tolist() == [1, 1, 1]
    # Half of the scans are bad, and three of their four lines are saved.
    assert table.loc["time_saved", "value"] == pytest.approx(3 / 8)


@pytest.mark.parametrize(
    ("is_bad", "groups"), [([True, False], ["g", "g"]), ([True, False], ["g", "h"])]
)
def test_where_no_rule_can_be_chosen_the_figures_do_not_exist(
    is_bad: list[bool], groups: list[str]
) -> None:
    few = replace(course([[0.2] * 4, [0.1] * 4], is_bad), group_N=np.array(groups))
    table = limits_table([few], [0.1], [1], resamples=20)
    assert table[["value", "low", "high"]].isna().all(axis=None)


def predictions(windows: bool) -> pd.DataFrame:
    rows = []
    for scan, (label, n) in {"a": (0, 4), "b": (1, 2)}.items():
        for k in range(n):
            p = 0.1 * (k + 1) + 0.5 * label
            rows.append({
                "scan_id": scan, "group": "s", "label": label, "fold": 0, "seed": 0,
                "first_line": k if windows else 0, "lines_seen": k + 1,
                "final": windows or k == n - 1, "p_good": 1 - p, "p_bad": p,
            })  # fmt: skip
    return pd.DataFrame(rows)


def test_courses_hold_the_answers_in_the_order_of_lines() -> None:
    table = predictions(windows=False).sample(frac=1, random_state=1)
    found = stopping.courses(table, CLASSES, ["bad"], pd.Series({"a": 4, "b": 2}))
    assert np.allclose(found.bad_NT[0], [0.1, 0.2, 0.3, 0.4])
    assert np.allclose(found.bad_NT[1, :2], [0.6, 0.7])
    assert np.isnan(found.bad_NT[1, 2:]).all()
    assert found.seen_NT.tolist() == [[1, 2, 3, 4], [1, 2, 0, 0]]
    assert found.lines_N.tolist() == [4, 2]
    assert found.is_bad_N.tolist() == [False, True]


def test_windows_answer_with_the_mean_of_those_so_far() -> None:
    found = stopping.courses(predictions(windows=True), CLASSES, ["bad"],
                             pd.Series({"a": 4, "b": 2}))  # fmt: skip
    assert np.allclose(found.bad_NT[0], [0.1, 0.15, 0.2, 0.25])
