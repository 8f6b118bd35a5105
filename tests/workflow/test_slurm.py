"""The study on a real SLURM of one node, as a user types it, under faults.

SCANBENCH_LONG=1 adds what takes minutes: SLURM counts time limits in minutes.
"""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

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
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Give a cluster without accounting."""
    if reason := why_not():
        pytest.skip(reason)
    with cluster(tmp_path_factory.mktemp("slurm")) as running:
        yield running


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
        """List the submitted jobs of a rule."""
        about = re.compile(rf"rule_{rule}(_wildcards_.*)?$")
        return [job for job in self.jobs if about.match(job["about"])]

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


def test_the_study_ends_with_the_bytes_of_a_local_run_whatever_befalls_its_jobs(
    slurm: Cluster, tmp_path: Path, finished: Project
) -> None:
    # At the first attempt `convert` gets less memory than even Snakemake takes, then enough.
    little = {"set-resources": {"convert": {"mem_mb": "120 * attempt ** 4"}}}
    project = study(tmp_path / "project", profile=little)
    run = Run(project, slurm)

    slurm.command("scancel", run.started("simulate"))

    node = slurm.command("sinfo", "--noheader", "--format=%n").strip()
    run.started("simulate", times=2)
    slurm.command("scontrol", "update", f"NodeName={node}", "State=DRAIN", "Reason=test")
    run.wait_until(lambda: run.of("ingest"))
    assert run.of("ingest")[0]["state"] == "PENDING"
    slurm.command("scontrol", "update", f"NodeName={node}", "State=RESUME")

    job = run.started("ingest")
    slurm.command("scontrol", "requeue", job)
    run.wait_until(lambda: run.of("ingest")[0]["state"] == "PENDING")
    # SLURM would wait two minutes before it starts a requeued job.
    slurm.command("scontrol", "update", f"JobId={job}", "StartTime=now")

    run.wait_until(lambda: run.of("train"))
    first = run.of("train")[0]["id"]
    assert "gres:gpu:1" in slurm.command("scontrol", "show", "job", first)
    run.finish()

    attempts = {"simulate": 2, "ingest": 1, "convert": 2, "split": 1, "train": 4, "predict": 4}
    assert Counter(job["about"].split("_")[1] for job in run.jobs) == {
        **attempts,
        "evaluate": 1,
        "render": 1,
    }
    for job in run.jobs:
        on_gpu = job["about"].split("_")[1] in ("train", "predict")
        assert job["partition"] == ("gpu" if on_gpu else "cpu")
    assert [job["memory"] for job in run.of("convert")] == ["120M", "1920M"]
    assert hashes(project) == hashes(finished)
    assert "Nothing to be done" in project.run("snakemake", "--profile", "slurm", "-n").stderr
    # SLURM's own logs of what failed are kept, beside those of the rules.
    logs = project.folder / "results/logs/slurm"
    assert {path.parent.parent.name for path in logs.rglob("*.log")} >= {"rule_convert"}


def test_a_mistake_is_not_run_again_and_ends_the_run_with_what_to_mend(
    slurm: Cluster, tmp_path: Path
) -> None:
    own = {"source": "files", "path": "nowhere", "title": "own", "attribution": "own"}
    mine = {"title": "own", "dataset": "own", "split": "sessions", "experiments": ["majority"]}
    project = study(
        tmp_path / "project",
        config={"datasets": {"own": own}, "comparisons": {"own": mine}, "targets": ["own"]},
    )
    run = Run(project, slurm)
    run.finish(succeeds=False)
    assert len(run.jobs) == 1
    last = run.said.split("What failed:\n")[1].splitlines()
    assert last[0] == (
        "ingest: own: nowhere: no such data folder or file; log: results/logs/ingest/own.log"
    )
    assert "Traceback" not in run.said


def test_short_trainings_share_a_job(slurm: Cluster, tmp_path: Path, finished: Project) -> None:
    project = study(tmp_path / "project", profile={"__variables__": {"runs_per_job": 2}})
    finished.run("cp", "-a", "results", ".snakemake", str(project.folder))
    wanted = []
    for name in ("majority", "features"):
        folder = f"{RUNS}/{name}/fold0-seed0"
        project.run("rm", "-r", folder)
        wanted.append(f"{folder}/weights.safetensors")
    run = Run(project, slurm, *wanted)
    run.finish()
    assert [job["about"] for job in run.jobs] == ["group_trainings_train"]
    about = slurm.command("scontrol", "show", "job", run.jobs[0]["id"])
    # One after the other: the time of both, one GPU and the memory of one.
    assert "TimeLimit=08:00:00" in about
    assert "gres:gpu:1" in about
    assert run.jobs[0]["memory"] == "16000M"
    for path in wanted:
        assert (project.folder / path).read_bytes() == (finished.folder / path).read_bytes()
