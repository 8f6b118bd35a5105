"""Kills and full disks: a rerun ends as if nothing had happened."""

from __future__ import annotations

import hashlib
import os
import random
import resource
import shutil
import signal
import subprocess
import time

import pandas as pd
import pytest
import yaml
from conftest import ROOT, TINY, Project, merge

from scanbench import plan
from scanbench.config import resolve

pytestmark = pytest.mark.workflow

RUN = "runs/simulated/sessions/lrcn-w20/fold0-seed0"
#: Each rule's log, in the order in which they run. The log appears when the job begins.
LOGS = {
    "simulate": "simulate/simulated",
    "ingest": "ingest/simulated",
    "convert": "convert/simulated",
    "split": "split/simulated/sessions",
    "train": f"{RUN}/train",
    "predict": f"{RUN}/predict",
    "evaluate": "evaluate/simulated",
    "render": "render/simulated",
}


def hashes(project: Project) -> dict[str, str]:
    """Hash every result that is promised to be the same bytes in every run."""
    names = ("store.h5", "sessions.json", "weights.safetensors", "predictions.parquet", "*.csv")
    timed = ("history.csv", "main.csv", "costs.csv")
    return {
        str(path.relative_to(project.folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for pattern in (*names, "*.svg")
        for path in sorted(project.folder.glob(f"results/**/{pattern}"))
        if path.name not in timed and not any(part.endswith(".part") for part in path.parts)
    }


def kill_inside(project: Project, rule: str, delay: float, *arguments: str) -> bool:
    """Run the study up to `rule` and kill everything `delay` seconds after it began.

    SIGKILL leaves no process the time to tidy up. Returns whether there was still one to kill.
    """
    log = project.folder / "results/logs" / f"{LOGS[rule]}.log"
    log.unlink(missing_ok=True)
    run = subprocess.Popen(
        [
            *("snakemake", "--configfile", "config.yaml", "overlay.yaml", "--until", rule),
            *("--cores", "2", "--rerun-incomplete", "--nolock", *arguments),
        ],
        cwd=project.folder,
        env=project.environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    while not log.exists() and run.poll() is None:
        time.sleep(0.02)
    try:
        run.wait(delay)
    except subprocess.TimeoutExpired:
        os.killpg(run.pid, signal.SIGKILL)
        run.wait()
        return True
    return False


def test_a_run_killed_inside_every_rule_ends_with_the_bytes_of_an_undisturbed_one(
    project: Project, finished: Project
) -> None:
    project.snakemake("--dry-run")  # writes the overlay
    draw = random.Random(1)
    for rule, log in LOGS.items():
        took = pd.read_csv(finished.folder / f"results/benchmarks/{log}.tsv", sep="\t")["s"][0]
        delay = draw.uniform(0.1, 0.7) * took
        killed = kill_inside(project, rule, delay)
        for _ in range(8):
            if killed:
                break
            delay /= 3  # the machine was busier when the undisturbed run was timed
            killed = kill_inside(project, rule, delay, "--forcerun", rule)
        assert killed, f"{rule} could not be killed while it ran"
    project.snakemake("--cores", "2", "--rerun-incomplete", "--nolock")
    assert hashes(project) == hashes(finished)
    assert project.planned() == set()


DATASET, COMPARISON = "results/data/simulated", "results/comparisons/simulated"
STORE, SPLIT = f"{DATASET}/store.h5", f"{DATASET}/splits/sessions.json"
#: The paths that each stage is given, without its output, which goes to a folder `full`.
STAGES = {
    "simulate": ([], "source"),
    "ingest": ([f"{DATASET}/source"], "scans"),
    "convert": ([f"{DATASET}/scans"], "store.h5"),
    "split": ([STORE], "split.json"),
    "train": ([STORE, SPLIT], "weights.safetensors"),
    "predict": ([STORE, SPLIT, f"results/{RUN}/weights.safetensors"], "predictions.parquet"),
    "evaluate": ([STORE, SPLIT], "scores"),
    "render": ([f"{COMPARISON}/scores", f"{DATASET}/scans", STORE, SPLIT], "rendered"),
}


def spec_of(project: Project, stage: str) -> list[str]:
    """Return the `--spec` with which the workflow runs a stage."""
    schema = yaml.safe_load((ROOT / "workflow/schemas/config.schema.yaml").read_text("utf-8"))
    base, tiny = (yaml.safe_load(p.read_text("utf-8")) for p in (ROOT / "config.yaml", TINY))
    config = resolve(merge(base, tiny), schema)
    run = {"experiment": "lrcn-w20", "fold": 0, "seed": 0}
    specs = {
        "simulate": lambda: plan.simulate_spec(config, "simulated"),
        "ingest": lambda: plan.ingest_spec(config, "simulated"),
        "convert": lambda: plan.convert_spec(config, "simulated"),
        "split": lambda: plan.split_spec(config, "sessions"),
        "train": lambda: plan.train_spec(config, run),
        "evaluate": lambda: plan.evaluate_spec(config, "simulated"),
        "render": lambda: plan.render_spec(config, "simulated"),
    }
    return ["--spec", specs[stage]()] if stage in specs else []


@pytest.mark.parametrize("stage", STAGES)
def test_a_full_disk_is_one_clear_line_and_leaves_nothing_half_written(
    finished: Project, stage: str
) -> None:
    def limit() -> None:
        # A file may grow to 1 KB, then writing fails as on a full disk.
        resource.setrlimit(resource.RLIMIT_FSIZE, (1024, 1024))

    inputs, output = STAGES[stage]
    full = finished.folder / "full"
    full.mkdir()
    command = ["scanbench", stage, *spec_of(finished, stage), *inputs, f"full/{output}"]
    try:
        done = subprocess.run(
            command,
            cwd=finished.folder,
            # The limit would also truncate Python's own caches of its modules.
            env={**finished.environment, "PYTHONDONTWRITEBYTECODE": "1"},
            capture_output=True,
            text=True,
            preexec_fn=limit,
        )
        assert done.returncode == 2, done.stderr[-4000:]
        assert "Traceback" not in done.stderr
        errors = [line for line in done.stderr.splitlines() if "scanbench: error: " in line]
        assert len(errors) == 1
        assert not (full / output).exists() or not list((full / output).rglob("*.json"))
        assert [path for path in full.rglob("*") if ".part" in path.name] == []
    finally:
        shutil.rmtree(full)
