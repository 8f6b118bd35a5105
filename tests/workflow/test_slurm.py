"""The study on a real SLURM of one node, as a user types it, under faults.

SCANBENCH_LONG=1 adds what takes minutes: SLURM counts time limits in minutes.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd
import pytest
import yaml
from conftest import TINY, Project, copy_project, merge
from slurm_cluster import Cluster, cluster, why_not
from test_faults import hashes

pytestmark = pytest.mark.workflow

long = pytest.mark.skipif(
    not os.environ.get("SCANBENCH_LONG"), reason="takes minutes: set SCANBENCH_LONG=1"
)
PROFILE = "profiles/slurm/config.yaml"
RUNS = "results/runs/simulated/sessions"


@pytest.fixture(scope="module")
def slurm(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Cluster]:
    """Give a cluster, without accounting unless a test asks for it."""
    accounting = getattr(request, "param", "") == "accounting"
    if reason := why_not(accounting=accounting):
        pytest.skip(reason)
    with cluster(tmp_path_factory.mktemp("slurm"), accounting=accounting) as running:
        yield running


def continued(folder: Path, finished: Project, **own: dict) -> Project:
    """Give a copy of the project in which the tiny study has run."""
    project = study(folder, **own)
    finished.run("cp", "-a", "results", ".snakemake", str(folder))
    return project


def study(folder: Path, *, config: dict | None = None, profile: dict | None = None) -> Project:
    """Give a copy of the project whose own files say what a user would write into them."""
    project = copy_project(folder)
    own = folder / "config.yaml"
    tiny = yaml.safe_load(TINY.read_text(encoding="utf-8"))
    whole = merge(merge(yaml.safe_load(own.read_text(encoding="utf-8")), tiny), config or {})
    own.write_text(yaml.safe_dump(whole, sort_keys=False), encoding="utf-8")
    # A user waits 40 s for each answer of the queue, a test does not.
    often = {"slurm-scanbench-init-seconds-before-status-checks": 2, "latency-wait": 10}
    edit_profile(project, {**often, **(profile or {})})
    return project


def edit_profile(project: Project, change: dict) -> None:
    """Change values of the profile, as a site does."""
    path = project.folder / PROFILE
    own = yaml.safe_load(path.read_text(encoding="utf-8"))
    path.write_text(yaml.safe_dump(merge(own, change), sort_keys=False), encoding="utf-8")


class Run:
    """`snakemake --profile slurm`, typed in a project."""

    def __init__(self, project: Project, cluster: Cluster, *arguments: str) -> None:
        self.cluster = cluster
        self.before = {job["id"] for job in cluster.jobs()}
        self.output = project.folder / "output.txt"
        with self.output.open("w") as out:
            self.process = subprocess.Popen(
                ["snakemake", "--profile", "slurm", *arguments],
                cwd=project.folder,
                env=project.environment,
                stdout=out,
                stderr=out,
            )

    @property
    def said(self) -> str:
        return self.output.read_text(encoding="utf-8")

    @property
    def jobs(self) -> list[dict[str, str]]:
        """The jobs that this run has submitted so far."""
        return [job for job in self.cluster.jobs() if job["id"] not in self.before]

    def of(self, rule: str) -> list[dict[str, str]]:
        """List the submitted jobs of a rule or group."""
        return [job for job in self.jobs if job["rule"] == rule]

    def wait_until(self, what: Callable[[], object]) -> None:
        """Wait until something is so."""
        while not what():
            assert self.process.poll() is None, self.said[-6000:]
            time.sleep(0.3)

    def started(self, rule: str, times: int = 1) -> str:
        """Wait until a rule's job of that number runs, and return its id."""

        def runs() -> bool:
            jobs = self.of(rule)
            return len(jobs) == times and jobs[-1]["state"] == "RUNNING"

        self.wait_until(runs)
        return self.of(rule)[-1]["id"]

    def finish(self, *, succeeds: bool = True) -> None:
        """Wait for the end."""
        status = self.process.wait()
        assert (status == 0) == succeeds, self.said[-6000:]


@pytest.fixture
def typed(slurm: Cluster) -> Iterator[Callable[..., Run]]:
    """Give a function that types the command in a project; what runs at the end is stopped."""
    runs: list[Run] = []

    def type_it(project: Project, *arguments: str) -> Run:
        runs.append(Run(project, slurm, *arguments))
        return runs[-1]

    yield type_it
    for run in runs:
        run.process.kill()
        run.process.wait()


def test_the_study_ends_with_the_bytes_of_a_local_run_whatever_befalls_its_jobs(
    slurm: Cluster, typed: Callable[..., Run], tmp_path: Path, undisturbed_run: Project
) -> None:
    # At the first attempt `convert` gets less memory than even Snakemake takes, then enough.
    own = {
        "set-resources": {"convert": {"mem_mb": "120 * attempt ** 4"}},
        "__variables__": {"runs_per_job": 2},
    }
    project = study(tmp_path / "project", profile=own)
    run = typed(project)

    slurm.command("scancel", run.started("rule_simulate"))

    node = slurm.command("sinfo", "--noheader", "--format=%n").strip()
    run.started("rule_simulate", times=2)
    slurm.command("scontrol", "update", f"NodeName={node}", "State=DRAIN", "Reason=test")
    run.wait_until(lambda: run.of("rule_ingest"))
    assert run.of("rule_ingest")[0]["state"] == "PENDING"
    slurm.command("scontrol", "update", f"NodeName={node}", "State=RESUME")

    job = run.started("rule_ingest")
    slurm.command("scontrol", "requeue", job)
    run.wait_until(lambda: run.of("rule_ingest")[0]["state"] == "PENDING")
    # SLURM would wait two minutes; within a second it refuses the credential of a requeued job.
    slurm.command("scontrol", "update", f"JobId={job}", "StartTime=now+3")

    run.finish()

    once = dict.fromkeys(("rule_ingest", "rule_split", "rule_evaluate", "rule_render"), 1)
    twice = ("rule_simulate", "rule_convert", "rule_trainings_train", "rule_predictions_predict")
    counts = Counter(job["rule"] for job in run.jobs)
    assert counts == {**once, **dict.fromkeys(twice, 2)}
    for job in run.jobs:
        on_gpu = job["rule"].endswith(("_train", "_predict"))
        assert job["partition"] == ("gpu" if on_gpu else "cpu")
    assert [job["memory"] for job in run.of("rule_convert")] == ["120M", "1920M"]
    # Two trainings, one after the other, ask for the time of both, and the GPU and memory of one.
    shared = run.of("rule_trainings_train")[0]
    about = slurm.command("scontrol", "show", "job", shared["id"])
    assert "TimeLimit=08:00:00" in about
    assert "gres:gpu:1" in about
    assert shared["memory"] == "16000M"

    assert hashes(project.folder) == hashes(undisturbed_run.folder)
    again = project.run("snakemake", "--profile", "slurm", "--dry-run")
    assert "Nothing to be done" in again.stdout + again.stderr
    # SLURM's own logs of what failed are kept, beside those of the rules.
    logs = project.folder / "results/logs/slurm"
    assert {path.parent.parent.name for path in logs.rglob("*.log")} >= {"rule_convert"}


def test_a_mistake_is_not_run_again_and_ends_the_run_with_what_to_mend(
    slurm: Cluster, typed: Callable[..., Run], tmp_path: Path
) -> None:
    own = {"source": "files", "path": "nowhere", "title": "own", "attribution": "own"}
    tiny = yaml.safe_load(TINY.read_text(encoding="utf-8"))["comparisons"]["simulated"]
    mine = {**tiny, "title": "own", "dataset": "own", "split": "sessions"}
    project = study(
        tmp_path / "project",
        config={"datasets": {"own": own}, "comparisons": {"own": mine}, "targets": ["own"]},
    )
    run = typed(project)
    run.finish(succeeds=False)
    assert len(run.jobs) == 1
    last = run.said.split("What failed:\n")[1].splitlines()
    assert last[0] == (
        "ingest: own: nowhere: no such data folder or file; log: results/logs/ingest/own.log"
    )
    assert "Traceback" not in run.said


@long
def test_a_job_out_of_time_goes_on_where_it_was(
    slurm: Cluster, typed: Callable[..., Run], tmp_path: Path, finished: Project
) -> None:
    longer = {"epochs": 600, "early_stopping_patience": None}
    epochs = {"experiments": {"lrcn-w20": {"training": longer}}}
    little = {"set-resources": {"train": {"runtime": "attempt ** 3"}}}  # 1, 8, 27 minutes
    project = continued(tmp_path / "project", finished, config=epochs, profile=little)
    weights = f"{RUNS}/lrcn-w20/fold0-seed0/weights.safetensors"
    run = typed(project, weights)
    run.finish()
    states = [job["state"] for job in run.of("rule_train")]
    assert states == ["TIMEOUT"] * (len(states) - 1) + ["COMPLETED"]
    assert len(states) > 1
    # Each epoch once; that the bytes are those of an undisturbed training is a test of its own.
    history = pd.read_csv((project.folder / weights).with_name("history.csv"))
    assert history["epoch"].tolist() == list(range(1, 601))


@long
def test_slurm_runs_again_what_ended_with_its_node(
    slurm: Cluster, typed: Callable[..., Run], tmp_path: Path
) -> None:
    run = typed(study(tmp_path / "project"), "results/data/simulated/source")
    job = run.started("rule_simulate")
    node = slurm.command("sinfo", "--noheader", "--format=%n").strip()
    # The node comes back by itself.
    slurm.command("scontrol", "update", f"NodeName={node}", "State=DOWN", "Reason=test")
    run.wait_until(lambda: run.jobs[0]["state"] == "PENDING")
    slurm.command("scontrol", "update", f"JobId={job}", "StartTime=now+3")
    run.finish()
    assert [(job["rule"], job["state"]) for job in run.jobs] == [("rule_simulate", "COMPLETED")]


@long
@pytest.mark.parametrize("slurm", ["accounting"], indirect=True)
@pytest.mark.parametrize("command", ["squeue", "sacct"])
def test_a_cluster_with_accounting(
    slurm: Cluster, typed: Callable[..., Run], tmp_path: Path, command: str
) -> None:
    project = study(tmp_path / "project", profile={"slurm-scanbench-status-command": command})
    run = typed(project, "results/data/simulated/scans")
    # By `sacct` the executor does not see that somebody cancelled a job.
    cancelled = command == "squeue"
    if cancelled:
        slurm.command("scancel", run.started("rule_simulate"))
    run.finish()
    done = slurm.command("sacct", "-X", "--noheader", "--parsable2", "--format=JobID,State")
    states = dict(line.split("|") for line in done.splitlines())
    expected = ["CANCELLED by 0"] * cancelled + ["COMPLETED"] * 2
    assert [states[job["id"]] for job in run.jobs] == expected
