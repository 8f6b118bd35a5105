"""Kills and full disks: a rerun ends as if nothing had happened."""

from __future__ import annotations

import hashlib
import os
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import Project

pytestmark = pytest.mark.workflow


def hashes(project: Project) -> dict[str, str]:
    """Hash every result that is promised to be the same bytes in every run."""
    return {
        str(path.relative_to(project.folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for pattern in ("store.h5", "weights.safetensors", "predictions.parquet", "metrics.csv")
        for path in sorted(project.folder.glob(f"results/**/{pattern}"))
    }


def parts(project: Project) -> list[Path]:
    return list(project.folder.glob("results/**/.*.part"))


def test_a_killed_run_ends_with_the_bytes_of_an_undisturbed_one(
    project: Project, finished: Project
) -> None:
    environment = {
        **os.environ,
        "PYTHONPATH": str(project.folder / "src"),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    project.snakemake("--dry-run")  # writes the overlay
    command = ["snakemake", "--configfile", "config.yaml", "overlay.yaml", "--cores", "2"]
    command += ["--rerun-incomplete", "--nolock"]
    draw = random.Random(1)
    for _ in range(3):
        run = subprocess.Popen(
            command,
            cwd=project.folder,
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        time.sleep(draw.uniform(8, 25))
        os.killpg(run.pid, signal.SIGKILL)
        run.wait()
    project.snakemake("--cores", "2", "--rerun-incomplete", "--nolock")
    assert hashes(project) == hashes(finished)


def test_a_full_disk_is_one_clear_line_and_leaves_nothing_half_written(finished: Project) -> None:
    scans = finished.folder / "results/data/simulated/scans"
    store = finished.folder / "full.h5"
    spec = '{"study": "tipstate", "lines": 32, "pixels": 32}'

    def limit() -> None:
        # A file may grow to 16 KB, then writing fails as on a full disk.
        resource.setrlimit(resource.RLIMIT_FSIZE, (16_384, 16_384))

    done = subprocess.run(
        [sys.executable, "-m", "scanbench.cli", "convert", "--spec", spec, str(scans), str(store)],
        capture_output=True,
        text=True,
        preexec_fn=limit,
    )
    assert done.returncode == 2
    assert "scanbench: error:" in done.stderr
    assert "Traceback" not in done.stderr
    assert not store.exists()
    assert not list(finished.folder.glob(".full.h5*"))
