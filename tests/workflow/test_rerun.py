"""Changing one thing in a study that has run reruns what depends on it, and nothing else.

Every key of the configuration is changed in `test_rerun_matrix`, in a study of every kind.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import Job, Project
from planner import Planner

pytestmark = pytest.mark.workflow

EXPERIMENTS = ("majority", "features", "lrcn-w20", "causal-full")
RUN = "dataset=simulated, split=sessions, experiment={}, fold=0, seed={}"
DATA = {(rule, "dataset=simulated") for rule in ("simulate", "ingest", "convert")}
SPLIT = {("split", "dataset=simulated, split=sessions")}
SCORES = {("evaluate", "comparison=simulated")}
RENDER = {("render", "comparison=simulated")}


def runs(*experiments: str, seed: int = 0) -> set[Job]:
    return {(rule, RUN.format(name, seed)) for rule in ("train", "predict") for name in experiments}


SEARCHED = "dataset=simulated, split=sessions, experiment=lrcn-w20, fold=0"
SEARCH = {("trial", f"{SEARCHED}, trial=0"), ("choose", SEARCHED)}
EVERYTHING_AFTER_SPLIT = runs(*EXPERIMENTS) | SCORES | RENDER

CHANGES = {
    "simulated scans": (
        {"datasets": {"simulated": {"simulate": {"seed": 1}}}},
        DATA | SPLIT | EVERYTHING_AFTER_SPLIT,
    ),
    "ingest option": (
        {"datasets": {"simulated": {"ingest": {"min_lines": 13}}}},
        {job for job in DATA if job[0] != "simulate"} | SPLIT | EVERYTHING_AFTER_SPLIT,
    ),
    "store size": (
        {"datasets": {"simulated": {"store": {"pixels": 24}}}},
        {job for job in DATA if job[0] == "convert"} | SPLIT | EVERYTHING_AFTER_SPLIT,
    ),
    "split seed": ({"splits": {"sessions": {"seed": 5}}}, SPLIT | EVERYTHING_AFTER_SPLIT),
    "training of all": ({"training": {"weight_decay": 0.1}}, EVERYTHING_AFTER_SPLIT),
    "training of one": (
        {"experiments": {"lrcn-w20": {"training": {"learning_rate": 5.0e-4}}}},
        runs("lrcn-w20") | SCORES | RENDER,
    ),
    "option of one model": (
        {"experiments": {"causal-full": {"options": {"ffn": 48}}}},
        runs("causal-full") | SCORES | RENDER,
    ),
    "two values swapped": (
        {"experiments": {"lrcn-w20": {"options": {"window": 16, "hidden": 12}}}},
        runs("lrcn-w20") | SCORES | RENDER,
    ),
    "evaluation": ({"evaluation": {"bootstrap": 101}}, SCORES | RENDER),
    "title": ({"comparisons": {"simulated": {"title": "Another"}}}, RENDER),
    "seed added": (
        {"comparisons": {"simulated": {"seeds": [0, 1]}}},
        runs(*EXPERIMENTS, seed=1) | SCORES | RENDER,
    ),
    "model added": (
        {"comparisons": {"simulated": {"experiments": [*EXPERIMENTS, "cnn-scan"]}}},
        runs("cnn-scan") | SCORES | RENDER,
    ),
    "experiment removed": (
        {"comparisons": {"simulated": {"experiments": ["majority", "features"]}}},
        SCORES | RENDER,
    ),
    "search": (
        {
            "tuning": {"trials": 1},
            "experiments": {
                "majority": {"search": {}},
                "features": {"search": {}},
                "causal-full": {"search": {}},
                "lrcn-w20": {"search": {"training.learning_rate": [1.0e-3, 1.0e-4]}},
            },
        },
        SEARCH | runs("lrcn-w20") | SCORES | RENDER,
    ),
    "search that nobody asked for": (
        {"experiments": {"lrcn-w20": {"search": {"options.hidden": [8, 16]}}}},
        set(),
    ),
    # Its members are there already: their tables are put together, nothing is trained.
    "ensemble": (
        {
            "ensembles": {"both": ["lrcn-w20", "causal-full"]},
            "comparisons": {"simulated": {"experiments": [*EXPERIMENTS, "both"]}},
        },
        {("combine", RUN.format("both", 0))} | SCORES | RENDER,
    ),
    # The teacher is trained first, on the same fold and seed; nobody asks for its predictions.
    "teacher": (
        {"experiments": {"causal-full": {"teacher": {"experiment": "cnn-scan"}}}},
        {("train", RUN.format("cnn-scan", 0))} | runs("causal-full") | SCORES | RENDER,
    ),
    "teacher that is there": (
        {"experiments": {"causal-full": {"teacher": {"experiment": "lrcn-w20"}}}},
        runs("causal-full") | SCORES | RENDER,
    ),
    "deployment": (
        {
            "deployments": {
                "d": {"comparison": "simulated", "experiment": "causal-full", "forms": ["int8"]}
            }
        },
        {
            (rule, RUN.format("causal-full", 0) + ", form=int8")
            for rule in ("export", "predict_exported")
        }
        | {("deployment", "name=d")},
    ),
    "another data set": ({"datasets": {"h-si100": {"path": "/elsewhere"}}}, set()),
    "number written as whole": ({"training": {"gradient_clip": 1}}, set()),
}


Plans = Callable[[dict[str, Any]], set[Job]]


@pytest.fixture(scope="module")
def plans(finished: Project) -> Iterator[Plans]:
    """Give a function that plans the finished study with a change, in a second."""
    planner = Planner(finished.folder, finished.environment)
    yield lambda change: set(planner.plan(finished.overlay(change)).reruns)
    planner.close()


def test_nothing_reruns_when_nothing_changed(finished: Project) -> None:
    assert finished.planned() == set()


def test_what_a_user_types_plans_the_same(finished: Project, plans: Plans) -> None:
    config, expected = CHANGES["evaluation"]
    assert finished.planned(config=config) == plans(config) == expected


@pytest.mark.parametrize("change", CHANGES)
def test_one_value_reruns_what_depends_on_it(plans: Plans, change: str) -> None:
    config, expected = CHANGES[change]
    assert plans(config) == expected


SOURCES = {
    "tipstate/models/lrcn.py": runs("lrcn-w20") | SCORES | RENDER,
    "tipstate/models/vit.py": set(),
    "comparison.py": SCORES | RENDER,
    "tipstate/simulate.py": DATA | SPLIT | EVERYTHING_AFTER_SPLIT,
    "training.py": EVERYTHING_AFTER_SPLIT,
}


@pytest.mark.parametrize("source", SOURCES)
def test_edited_source_reruns_the_jobs_whose_code_it_is(
    finished: Project, plans: Plans, source: str
) -> None:
    path = finished.folder / "src/scanbench" / source
    text, stat = path.read_bytes(), path.stat()
    try:
        path.write_bytes(text + b"\n# edited\n")
        assert plans({}) == SOURCES[source]
    finally:
        path.write_bytes(text)
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert plans({}) == set()


def test_touched_sources_rerun_nothing(finished: Project, plans: Plans) -> None:
    for path in Path(finished.folder, "src").rglob("*.py"):
        path.touch()
    assert plans({}) == set()
