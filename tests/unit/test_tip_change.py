"""Scores of a tip change, and alarms counted by hand."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from small_study import CLASSES, LINES, PIXELS, make, spec

from scanbench import change, plotting
from scanbench.change import drifts
from scanbench.convert import convert
from scanbench.errors import UserError
from scanbench.files import sha256_of
from scanbench.runs import load_run
from scanbench.tipstate import tip_change
from scanbench.tipstate.tip_change import Counts, Watched, alarms
from scanbench.tipstate.tip_change_stage import tip_change_scores, tip_changes
from scanbench.training import train


def test_the_drift_is_the_distance_to_the_moving_average_of_the_answers_before():
    p_TC = np.array([[1.0, 0.0], [0.5, 0.5], [0.0, 1.0]])
    # Averages before: (1, 0), then (1, 0) + 0.2 · (−0.5, 0.5) = (0.9, 0.1).
    np.testing.assert_allclose(drifts(p_TC, 0.2), [0, 0.5, 0.9])


def test_standardised_by_its_own_past_white_noise_is_standard_normal():
    noise = np.random.default_rng(0).normal(5, 3, size=(400, 60, 2))
    z_NLK = tip_change.self_standardised(noise)
    assert np.isnan(z_NLK[:, :2]).all()
    for line in (2, 5, 30):
        assert stats.kstest(z_NLK[:, line].ravel(), "norm").pvalue > 0.01


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 99), st.floats(-1e3, 1e3), st.floats(0.01, 100), st.integers(3, 19))
def test_it_knows_neither_offset_nor_scale_nor_the_lines_to_come(seed, offset, scale, lines):
    s_NLK = np.random.default_rng(seed).normal(size=(2, 20, 3))
    z_NLK = tip_change.self_standardised(s_NLK)
    np.testing.assert_allclose(
        tip_change.self_standardised(offset + scale * s_NLK), z_NLK, rtol=1e-4, atol=1e-4
    )
    np.testing.assert_array_equal(tip_change.self_standardised(s_NLK[:, :lines]), z_NLK[:, :lines])


def test_a_statistic_that_does_not_vary_raises_nothing_until_it_does():
    s_NLK = np.zeros((1, 10, 1))
    s_NLK[0, 7:] = 1
    z_L = tip_change.self_standardised(s_NLK)[0, :, 0]
    assert (z_L[2:7] == 0).all()
    assert z_L[7] == change.LARGEST_Z


def test_cusum_adds_what_is_beyond_the_allowance_to_either_side():
    z_NLK = np.array([[[np.nan], [1.0], [2.0], [-1.0], [-3.0], [-3.0]]])
    # Up: 0.5, 2, 0.5, 0, 0. Down: 0, 0, 0.5, 3, 5.5.
    found = tip_change.cusum(z_NLK, 0.5)
    np.testing.assert_allclose(found, [[np.nan, 0.5, 2.0, 0.5, 3.0, 5.5]])


def test_attention_that_moves_from_one_line_to_another_has_shifted_by_one():
    attention_NYHLL = torch.zeros(1, 1, 2, 3, 3)
    attention_NYHLL[0, 0, :, 0, 0] = 1
    attention_NYHLL[0, 0, :, 1, 0] = 1  # stays
    attention_NYHLL[0, 0, 0, 2, 0] = 1  # the first head stays, the second moves
    attention_NYHLL[0, 0, 1, 2, 2] = 1
    np.testing.assert_allclose(tip_change.attention_shift(attention_NYHLL), [[np.nan, 0, 0.5]])


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 99), st.floats(1e-12, 1e6), st.integers(4, 29))
def test_steps_are_the_same_in_every_unit_and_know_no_line_to_come(seed, unit, lines):
    x_NLP = np.random.default_rng(seed).normal(size=(2, 30, 16)).astype(np.float32)
    score_NL = tip_change.step_scores(x_NLP)
    assert np.isnan(score_NL[:, :3]).all()
    np.testing.assert_allclose(
        tip_change.step_scores(x_NLP.astype(np.float64) * unit), score_NL, rtol=1e-4, atol=1e-4
    )
    np.testing.assert_array_equal(tip_change.step_scores(x_NLP[:, :lines]), score_NL[:, :lines])


def test_a_line_that_came_twice_or_has_no_number_is_no_step_and_counts_for_none_after_it():
    x_LP = np.random.default_rng(1).normal(size=(30, 16))
    expected_L = tip_change.step_scores(x_LP[None])[0]
    twice_LP = np.insert(x_LP, 12, x_LP[11], axis=0)
    score_L = tip_change.step_scores(twice_LP[None])[0]
    assert np.isnan(score_L[12])
    np.testing.assert_allclose(np.delete(score_L, 12), expected_L)
    x_LP[20, 3] = np.nan
    score_L = tip_change.step_scores(x_LP[None])[0]
    assert np.isnan(score_L[20:22]).all()
    assert np.isfinite(score_L[22:]).all()


def test_steps_alike_are_standard_normal_and_a_large_one_stands_out():
    x_NLP = np.random.default_rng(2).normal(size=(500, 40, 64))
    x_NLP[:, 30:] += np.repeat([0, 3], 250)[:, None, None]
    score_NL = tip_change.step_scores(x_NLP)
    # Neighbouring steps share a line, which thins the tails a little.
    assert score_NL[:250, 20:].std() == pytest.approx(1, abs=0.1)
    assert score_NL[250:, 30].min() > np.nanmax(score_NL[:250, 20:])


@pytest.mark.parametrize("detector", ["step chart", "cusum", "window", "pelt"])
def test_a_clear_change_is_where_the_score_rises(detector):
    rng = np.random.default_rng(3)
    s_LK = rng.normal(size=(60, 4))
    s_LK[35:] += 6
    if detector == "step chart":
        assert np.nanargmax(tip_change.step_scores(s_LK[None])[0, 10:]) + 10 == 35
    elif detector == "cusum":
        score_L = tip_change.cusum(tip_change.self_standardised(s_LK[None]), 0.5)[0]
        assert np.flatnonzero(score_L[10:] > 10)[0] + 10 in (35, 36)
    elif detector == "window":
        assert np.nanargmax(tip_change.window_scores(s_LK, 20)) == 35
    else:
        score_L = tip_change.pelt_scores(s_LK, [20.0, 100.0])
        assert np.flatnonzero(score_L == 100).tolist() == [35]


def test_scans_too_short_for_an_offline_detector_have_no_score_of_it():
    s_LK = np.zeros((5, 2))
    assert np.isnan(tip_change.window_scores(s_LK, 20)).all()
    assert (tip_change.pelt_scores(s_LK, [20.0]) == 0).all()


nan = np.nan


def test_an_alarm_is_a_score_that_reaches_the_threshold_from_below():
    score_NL = np.array([[nan, 1, 2, 2, 1, nan, 3], [2, nan, 2, 0, 2, nan, nan]])
    found = alarms(score_NL, 2)
    assert np.flatnonzero(found[0]).tolist() == [2, 6]
    assert np.flatnonzero(found[1]).tolist() == [0, 4]


def watched(*scans, change):
    return Watched(score_NL=np.array(scans, np.float64), change_N=np.array(change))


def test_alarms_are_counted_as_by_hand():
    none = [0.0] * 12
    early, near, late = list(none), list(none), list(none)
    early[1], near[6], late[11] = 1, 1, 1
    both = list(none)
    both[1] = both[7] = 1
    scans = watched(early, near, late, both, none, early, change=[5, 5, 5, 5, 5, -1])
    figures = Counts.of(scans, 0.5, tolerance=2).figures(np.ones((1, 6)))
    # At risk: lines 0 to 2 of the five scans with a change, and 12 of that without.
    assert figures["false_alarms"][0] == pytest.approx(1000 * 3 / (5 * 3 + 12))
    assert figures["precision"][0] == pytest.approx(2 / 6)
    assert figures["recall"][0] == pytest.approx(2 / 5)
    assert figures["found"][0] == pytest.approx(3 / 5)
    assert figures["delay"][0] == pytest.approx((1 + 6 + 2) / 3)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 5), min_size=8, max_size=8), min_size=1, max_size=6),
    st.sampled_from([0.0, 60.0, 200.0]),
)
def test_the_threshold_keeps_the_rate_and_so_does_every_higher_one(scores, rate):
    scans = watched(*scores, change=[-1] * len(scores))
    threshold = tip_change.threshold_for(scans, rate, 1)
    for higher in (t for t in (0, 1, 2, 3, 4, 5, 6) if t >= threshold):
        counts = Counts.of(scans, higher, 1)
        assert 1000 * counts.false_N.sum() <= rate * counts.risk_N.sum()


def test_without_a_score_no_threshold_is_reached():
    assert tip_change.threshold_for(watched([nan, nan], change=[-1]), 1.0, 3) == np.inf
    assert tip_change.largest(np.array([[nan, 1.0], [nan, nan]])).tolist() == [1.0, -np.inf]


SETTINGS = {
    "bad": ["defect"], "smoothing": 0.2, "allowance": 0.5, "window": 4, "first_line": 4, "lags": 3,
    "bands": 2, "max_shift": 1, "false_alarms": [20.0], "tolerance": 3, "bootstrap": 40,
    "confidence": 0.9, "seed": 0, "folds": [0], "seeds": [0], "experiments": ["causal"],
    "simulated": True, "column": None, "label_threshold": None, "data": "Simulated data: waves",
}  # fmt: skip


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A store of which some scans have a known change, a run, and its scores."""
    folder = tmp_path_factory.mktemp("study")
    (folder / "scans").mkdir()
    store, split = make(folder / "data")
    manifest = pd.read_csv(folder / "data/scans/manifest.csv")
    changed = manifest["lines"] == LINES
    manifest["change_line"] = np.where(changed & (manifest.index % 2 == 0), 9, np.nan)
    rng = np.random.default_rng(0)
    manifest["score_Tip Change"] = rng.integers(0, 2, len(manifest)).astype(float)
    manifest.to_csv(folder / "data/scans/manifest.csv", index=False)
    store.unlink()
    convert({"study": "tipstate", "lines": LINES, "pixels": PIXELS}, folder / "data/scans", store)
    document = json.loads(split.read_text())
    split.write_text(json.dumps({**document, "store_sha256": sha256_of(store)}))
    run = folder / "run"
    train(spec("causal", training={"epochs": 1, "answers": "all"}), store, split, run)
    scores = folder / "fold0-seed0.parquet"
    tip_change_scores(SETTINGS, store, split, run, scores)
    return folder, store, split, scores


def test_scores_are_of_the_held_out_scans_and_of_measured_lines(study):
    _, _, split, scores = study
    frame = pd.read_parquet(scores)
    fold = json.loads(split.read_text())["folds"][0]
    for part in ("test", "validation"):
        assert set(frame.loc[frame["part"] == part, "scan_id"]) == set(fold[part])
    assert not set(frame["scan_id"]) & set(fold["train"])
    assert frame["bad"].between(0, 1).all()
    assert frame.loc[frame["line"] > 0, ["drift", "attention"]].notna().all(axis=None)
    assert scores.with_suffix(".json").exists()


def test_all_detectors_are_judged_on_lines_and_on_labels(study, monkeypatch):
    monkeypatch.setattr(plotting.save, "__defaults__", (("svg",),))  # the quick one
    folder, store, split, scores = study
    told = {**SETTINGS, "column": "Tip Change", "label_threshold": 0.5}
    for out in ("out", "again"):
        tip_changes(told, {("causal", 0, 0): scores}, folder / "data/scans", store, split,
                    folder / out)  # fmt: skip
    detection = pd.read_csv(folder / "out/detection.csv")
    scans = pd.read_csv(folder / "out/scans.csv")
    assert set(detection["detector"]) == set(scans["detector"])
    assert set(detection.loc[~detection["online"], "detector"]) == {
        "window (offline)", "pelt (offline)"
    }  # fmt: skip
    assert len(scans) == 7
    assert scans["value"].between(0, 1).all()
    whole = detection.dropna()
    assert (whole["low"] <= whole["high"]).all()
    for name in ("detection.csv", "scans.csv", "tip-change.svg", "detection.md"):
        assert (folder / "out" / name).read_bytes() == (folder / "again" / name).read_bytes()
    assert "(simulated scans)" in (folder / "out/detection.tex").read_text()


def test_what_cannot_be_judged_is_told_in_one_line(study, tmp_path):
    folder, store, split, scores = study
    runs, scans = {("causal", 0, 0): scores}, folder / "data/scans"
    told = {**SETTINGS, "column": "Tip", "label_threshold": 0.5}
    with pytest.raises(UserError, match="no score of 'Tip'"):
        tip_changes(told, runs, scans, store, split, tmp_path)
    with pytest.raises(UserError, match="no such file; run tip-change-scores"):
        tip_changes(SETTINGS, {("causal", 0, 0): tmp_path / "none"}, scans, store, split, tmp_path)


def test_a_model_that_answers_about_whole_scans_only_is_refused(study, tmp_path):
    _, store, split, _ = study
    train(spec("cnn-scan", training={"epochs": 1}), store, split, tmp_path)
    assert load_run(tmp_path).classes == list(CLASSES)
    with pytest.raises(UserError, match="does not answer line by line"):
        tip_change_scores(SETTINGS, store, split, tmp_path, tmp_path / "scores.parquet")
