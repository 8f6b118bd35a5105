"""A run that starts from one on other data follows it, and nothing else does."""

from __future__ import annotations

from typing import Any

import pytest
from conftest import Job, Project, merge

from scanbench.tracing import trace
from scanbench.verification import verify

pytestmark = pytest.mark.workflow

CONFIG: dict[str, Any] = {
    "targets": ["beside"],
    "datasets": {
        "elsewhere": {
            "title": "other simulated scans",
            "source": "simulate",
            "simulate": {
                "scans": 48, "sessions": 12, "pixels": [32], "width_nm": [3.5, 4.0],
                "pixel_nm": 0.2, "seed": 3,
            },
            "ingest": {"min_lines": 12},
            "store": {"lines": 32, "pixels": 32},
        }
    },
    "experiments": {
        "features-started": {
            "base": "features",
            "start": {"experiment": "features", "dataset": "elsewhere"},
            "training": {"epochs": 0},
        }
    },
    "comparisons": {
        "beside": {
            "title": "Learned here and elsewhere",
            "dataset": "simulated",
            "split": "sessions",
            "seeds": [0],
            "experiments": ["features", "features-started"],
        }
    },
}  # fmt: skip
RUN = "dataset={}, split=sessions, experiment={}, fold=0, seed=0"
AFTER = {("evaluate", "comparison=beside"), ("render", "comparison=beside")}


def runs(experiment: str) -> set[Job]:
    return {(rule, RUN.format("simulated", experiment)) for rule in ("train", "predict")}


@pytest.fixture(scope="module")
def started(finished: Project) -> Project:
    """Give the tiny study with a comparison beside it that no other test asks for."""
    finished.snakemake("--cores", "2", config=CONFIG)
    return finished


def test_other_scans_rerun_the_start_and_what_rests_on_it(started: Project) -> None:
    assert started.planned(config=CONFIG) == set()
    other = merge(CONFIG, {"datasets": {"elsewhere": {"simulate": {"seed": 4}}}})
    elsewhere = {(rule, "dataset=elsewhere") for rule in ("simulate", "ingest", "convert")}
    elsewhere |= {("split", "dataset=elsewhere, split=sessions")}
    start = {("train", RUN.format("elsewhere", "features"))}
    assert started.planned(config=other) == elsewhere | start | runs("features-started") | AFTER


def test_a_start_is_traced_to_the_raw_files_of_both_data_sets(started: Project) -> None:
    results = started.folder / "results"
    chain = trace(
        results / "runs/simulated/sessions/features-started/fold0-seed0/predictions.parquet"
    )
    assert list(chain.steps) == ["predict", "train", "split", "convert", "ingest", "simulate"]
    assert [len(jobs) for jobs in chain.steps.values()] == [1, 2, 2, 2, 2, 2]
    assert {name.split("/")[1] for name in chain.raw} == {"simulated", "elsewhere"}
    assert verify(results).faults == []


def test_a_share_of_labels_added_trains_that_run_alone(started: Project) -> None:
    few = {"base": "features", "training": {"fraction": 0.5}}
    names = [*CONFIG["comparisons"]["beside"]["experiments"], "features-few"]
    added = {
        "experiments": {"features-few": few},
        "comparisons": {"beside": {"experiments": names}},
    }
    assert started.planned(config=merge(CONFIG, added)) == runs("features-few") | AFTER


def test_a_start_on_another_fold_of_what_is_tested_is_one_clear_line(started: Project) -> None:
    leaky = {"start": {"experiment": "features", "dataset": "simulated", "split": "random"}}
    change = merge(CONFIG, {"experiments": {"features-started": leaky}})
    done = started.snakemake("--dry-run", config=change, check=False)
    assert done.returncode != 0
    said = done.stdout + done.stderr
    assert "may have seen what split 'sessions', fold 0 tests" in said
    assert "Traceback" not in said
