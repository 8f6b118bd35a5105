"""The rule that an evaluation chose is the rule that a monitor keeps."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from streaming_example import CLASSES, LINES, heights, items, make_run

from scanbench import policy, stopping
from scanbench.errors import UserError
from scanbench.files import write_json
from scanbench.prediction import predict_arrays
from scanbench.predictions import class_columns
from scanbench.stopping import Choice, Rule
from scanbench.store import line_statistics
from scanbench.streaming import Monitor, MonitorOptions
from scanbench.tipstate.stream import monitor_options

BAD = ["rows", "defect"]


def normalised(x_NLP):
    n_lines = [x_NLP.shape[1]] * len(x_NLP)
    statistics = line_statistics(x_NLP, n_lines)
    mean, std = statistics["line_mean"], statistics["line_std"]
    return (x_NLP - mean[..., None]) / std[..., None]


def table_of(run, x_NLP, seed=0):
    """Return the table of predictions about scans, half of which are bad."""
    answers = predict_arrays(run, normalised(x_NLP), [x_NLP.shape[1]] * len(x_NLP))
    frame = pd.DataFrame(
        {
            "scan_id": [f"scan{k:02}" for k in answers.scan],
            "group": [f"group{k // 4}" for k in answers.scan],
            "label": np.where(answers.scan % 2, 2, 0),
            "fold": answers.scan // 8 % 2,
            "seed": seed,
            "first_line": answers.first_line,
            "lines_seen": answers.lines_seen,
            "final": answers.final,
        }
    )
    return frame.assign(**dict(zip(class_columns(CLASSES), answers.probability.T, strict=True)))


def stop_line(run, x_LP, options):
    """Return the lines after which a monitor first advises to stop; all where it never does."""
    for event in Monitor(run, options).events(items(x_LP)):
        if event["event"] == "line" and event["advice"] != "go on":
            return event["answer_lines"]
    return len(x_LP)


@pytest.mark.parametrize("model", ["causal", "lrcn", "causal-windows"])
def test_a_monitor_stops_each_scan_where_the_evaluation_says_it_would_have(tmp_path, model):
    changes = {"window": {"lines": 8, "stride": 2}} if model == "causal-windows" else {}
    run = make_run(tmp_path, model.split("-")[0], **changes)
    x_NLP = np.stack([heights(seed=seed) for seed in range(16)])
    table = table_of(run, x_NLP)
    n_lines = pd.Series(LINES, index=sorted(table["scan_id"].unique()))
    courses = stopping.courses(table, CLASSES, BAD, n_lines)
    answered = np.unique(courses.bad_NT[np.isfinite(courses.bad_NT)])
    # Halfway between neighbours far enough apart: rounding has no say there.
    gaps = np.flatnonzero(np.diff(answered) > 1e-5)
    some = gaps[np.linspace(0, len(gaps) - 1, 3).astype(int)]
    stopped = []
    for threshold in (answered[some] + answered[some + 1]) / 2:
        for patience, first_line in ((1, 1), (2, 12)):
            rule = Rule(threshold=float(threshold), patience=patience, first_line=first_line)
            scanned_N = stopping.scanned(courses, rule)
            options = MonitorOptions(
                stop=("rows",), recondition=("defect",), threshold=rule.threshold,
                patience=patience, first_line=first_line,
            )  # fmt: skip
            lines_N = [stop_line(run, x_LP, options) for x_LP in x_NLP[::5]]
            assert lines_N == scanned_N[::5].tolist()
            stopped += (scanned_N[::5] < LINES).tolist()
    assert any(stopped)
    assert not all(stopped)


@pytest.fixture
def study(tmp_path):
    """A run with its predictions, and the policy of an evaluation in two folds."""
    run = make_run(tmp_path / "run", "causal")
    x_NLP = np.stack([heights(seed=seed) for seed in range(16)])
    table = table_of(run, x_NLP)
    table.to_parquet(tmp_path / "run/predictions.parquet")
    n_lines = pd.Series(LINES, index=sorted(table["scan_id"].unique()))
    courses = stopping.courses(table, CLASSES, BAD, n_lines)
    choice = Choice(limits=[0.5, 1.0], patience=[1, 2], first_line=3)
    tried = stopping.cross_fitted(courses, choice)
    figures = stopping.limits_table(
        [courses], [tried], choice.limits, resamples=20, confidence=0.9, seed=0
    )
    document = policy.policy_document(
        classes=BAD,
        first_line=choice.first_line,
        store_sha256=run.meta["store_sha256"],
        split_sha256=run.meta["split_sha256"],
        weights={"causal": [run.meta["weights_sha256"]]},
        policies=policy.policies("causal", {0: tried}, figures),
        names={"comparison": "main"},
    )
    write_json(tmp_path / "policy.json", document)
    return tmp_path, run, tried


def test_a_run_takes_the_rule_that_was_chosen_without_the_scans_it_was_tried_on(study):
    folder, run, tried = study
    for limit, rule in zip((0.5, 1.0), tried.rules[0], strict=True):
        options = monitor_options(run, folder / "run", {}, f"{folder / 'policy.json'}:{limit}")
        assert options.rule == rule
        assert options.stop == tuple(BAD)
    # Without a limit, the smallest; the classes may be divided.
    spec = {"recondition": ["rows"], "smoothing": 0.5}
    options = monitor_options(run, folder / "run", spec, str(folder / "policy.json"))
    assert options.rule == tried.rules[0][0]
    assert (options.stop, options.recondition) == (("defect",), ("rows",))
    other = replace(run, meta={**run.meta, "fold": 1})
    options = monitor_options(other, folder / "run", {}, f"{folder / 'policy.json'}:0.5")
    assert options.rule == tried.rules[1][0]


def test_figures_that_do_not_exist_are_null(study):
    folder, _, _ = study
    document = json.loads((folder / "policy.json").read_text())
    for own in document["policies"]:
        assert set(own["expected"]) == set(stopping.FIGURES)
        for value in own["expected"].values():
            assert all(v is None or np.isfinite(v) for v in value.values())


def test_probabilities_that_add_up_to_more_than_one_reach_no_threshold_above_it():
    p_RC = np.array([[0.6, 0.4 + 1e-7], [0.2, 0.3]], np.float32)
    assert stopping.probability_of(p_RC).tolist() == pytest.approx([1.0, 0.5])
    assert stopping.probability_of(p_RC).max() <= 1.0


def test_a_limit_that_no_rule_keeps_stops_nothing_and_says_so(study):
    folder, run, _ = study
    document = json.loads((folder / "policy.json").read_text())
    document["policies"][0]["rules"][0]["threshold"] = None
    write_json(folder / "policy.json", document)
    with pytest.raises(UserError, match="take a larger limit"):
        monitor_options(run, folder / "run", {}, str(folder / "policy.json"))


MISTAKES = {
    "another limit": (lambda d: d, {}, ":0.2", "no such limit; there are 0.5, 1"),
    "another run": (
        lambda d: {**d, "policies": [{**p, "experiment": "lrcn"} for p in d["policies"]]},
        {}, "", "no policy for 'causal'; known: lrcn",
    ),
    "another data set": (lambda d: {**d, "store_sha256": "1" * 64}, {}, "", "another data set"),
    "retrained since": (lambda d: {**d, "weights": {}}, {}, "", "other weights"),
    "no rule for the fold": (
        lambda d: {**d, "policies": [{**p, "rules": []} for p in d["policies"]]},
        {}, "", "no rule for fold 0, seed 0",
    ),
    "no policy": (lambda d: {"schema_version": 1}, {}, "", "is no policy of schema_version 2"),
    "a key gone": (lambda d: {k: v for k, v in d.items() if k != "classes"}, {}, "", "'classes'"),
    "a rule of one's own": (lambda d: d, {"threshold": 0.5}, "", "threshold: is the policy's"),
    "other classes": (lambda d: d, {"stop": ["atoms"]}, "", "'atoms'.*rows, defect"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_told_in_one_line(study, mistake):
    folder, run, _ = study
    change, spec, tail, message = MISTAKES[mistake]
    path = folder / "policy.json"
    write_json(path, change(json.loads(path.read_text())))
    with pytest.raises(UserError, match=message) as caught:
        monitor_options(run, folder / "run", spec, f"{path}{tail}")
    assert "\n" not in str(caught.value)


def test_a_path_may_hold_a_colon(tmp_path):
    assert policy.split_limit("a/policy.json") == (Path("a/policy.json"), None)
    assert policy.split_limit("a/policy.json:0.05") == (Path("a/policy.json"), 0.05)
    assert policy.split_limit("a:b/policy.json") == (Path("a:b/policy.json"), None)
    (tmp_path / "policy.json").touch()
    with pytest.raises(UserError, match=r"policy\.json: '5%' is no limit; give a share"):
        policy.split_limit(f"{tmp_path}/policy.json:5%")
    (tmp_path / "policy.json:5%").touch()
    assert policy.split_limit(f"{tmp_path}/policy.json:5%")[1] is None
