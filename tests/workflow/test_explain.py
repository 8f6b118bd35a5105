"""Explanations and anomaly comparisons, run by the real Snakefile at the smallest size."""

from __future__ import annotations

import pandas as pd
import pytest
from conftest import Job, Project, merge

pytestmark = pytest.mark.workflow

CONFIG = {
    "targets": ["tip-changes", "withheld-defect"],
    # One experiment of the tiny study, which is trained already, is explained.
    "explanations": {
        "tip-changes": {
            "experiments": ["causal-full"], "scans": 4, "steps": 4, "points": 2,
            "random_orders": 2, "examples": 1,
        }
    },
    "anomalies": {
        "withheld-defect": {
            "dataset": "simulated", "experiments": ["features-no-defect"], "seeds": [0],
        }
    },
}  # fmt: skip
EXPLAIN = {("explain", "explanation=tip-changes")}
ATTRIBUTE = {("attribute", "explanation=tip-changes, experiment=causal-full, fold=0, seed=0")}
ANOMALY = {("anomaly", "anomaly=withheld-defect")}
RUN = "dataset=simulated, split=sessions, experiment=features-no-defect, fold=0, seed=0"
WITHHELD = {(rule, RUN) for rule in ("train", "anomaly_scores")}


def test_they_run_and_one_value_reruns_what_depends_on_it(finished: Project) -> None:
    def planned(change: dict) -> set[Job]:
        return finished.planned(config=merge(CONFIG, change))

    assert planned({}) == EXPLAIN | ATTRIBUTE | ANOMALY | WITHHELD
    finished.snakemake("--cores", "2", config=CONFIG)
    results = finished.folder / "results"
    faithfulness = pd.read_csv(results / "explanations/tip-changes/faithfulness.csv")
    assert {"attention", "integrated-gradients", "random"} <= set(faithfulness["method"])
    assert (results / "explanations/tip-changes/scans/causal-full.svg").is_file()
    found = pd.read_csv(results / "anomalies/withheld-defect/anomaly.csv")
    assert set(found["score"]) == {"max-softmax", "energy", "mahalanobis", "line-step"}

    assert planned({}) == set()
    finished.run("scanbench", "verify", "results")  # fails on anything without record
    explanation = {"tolerance": (5, EXPLAIN), "points": (4, EXPLAIN | ATTRIBUTE)}
    for key, (value, expected) in explanation.items():
        assert planned({"explanations": {"tip-changes": {key: value}}}) == expected
    assert planned({"evaluation": {"confidence": 0.9}}) == EXPLAIN | ANOMALY
    withhold = {"experiments": {"features-no-defect": {"withhold": ["rows"]}}}
    assert planned(withhold) == ANOMALY | WITHHELD
    title = {"anomalies": {"withheld-defect": {"title": "x"}}}
    assert planned(title) == set()


def test_a_run_of_withheld_classes_stands_in_no_comparison(project: Project) -> None:
    change = {"comparisons": {"simulated": {"experiments": ["majority", "vit-no-defect"]}}}
    done = project.snakemake("--dry-run", config=change, check=False)
    assert done.returncode != 0
    assert "'vit-no-defect' withholds classes" in done.stdout + done.stderr
