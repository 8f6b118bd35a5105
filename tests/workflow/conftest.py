"""The real Snakefile, run at a tiny size in a copy of the project."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from browsing import chromium

ROOT = Path(__file__).resolve().parents[2]
TINY = Path(__file__).with_name("tiny.yaml")
PROJECT = ("Snakefile", "config.yaml", "config", "envs", "profiles", "src", "workflow")

Job = tuple[str, str]


def merge(base: Mapping[str, Any], change: Mapping[str, Any]) -> dict[str, Any]:
    """Merge as Snakemake merges overlays: dicts deeply, everything else replaced."""
    merged = dict(base)
    for key, value in change.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = merge(merged[key], value) if both else value
    return merged


@dataclass(frozen=True)
class Project:
    """A copy of the project in which tests may run, edit and break things."""

    folder: Path

    @property
    def environment(self) -> dict[str, str]:
        """The variables with which commands use the sources of the copy."""
        return {
            **os.environ,
            "PYTHONPATH": str(self.folder / "src"),
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "OMP_NUM_THREADS": "1",
        }

    def snakemake(
        self, *arguments: str, config: dict | None = None, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """Run Snakemake with the tiny configuration, changed by `config`."""
        overlay = self.overlay(config or {})
        return self.run(
            *("snakemake", "--configfile", "config.yaml", overlay, *arguments), check=check
        )

    def overlay(self, config: Mapping[str, Any], study: Path = TINY) -> str:
        """Write the tiny configuration, or another, changed by `config`; return its name."""
        path = self.folder / "overlay.yaml"
        whole = yaml.safe_load(study.read_text(encoding="utf-8"))
        path.write_text(yaml.safe_dump(merge(whole, config)), encoding="utf-8")
        return path.name

    def run(self, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a command of the environment in the copy, with the copy's sources."""
        done = subprocess.run(
            command, cwd=self.folder, env=self.environment, capture_output=True, text=True
        )
        if check and done.returncode:
            pytest.fail(f"{' '.join(command)}\n{done.stdout[-4000:]}\n{done.stderr[-8000:]}")
        return done

    def planned(self, *arguments: str, config: dict | None = None) -> set[Job]:
        """Return (rule, wildcards) of every job that a dry run plans, without `all`."""
        done = self.snakemake("--dry-run", *arguments, config=config)
        return jobs((done.stdout + done.stderr).splitlines())


def jobs(lines: Sequence[str]) -> set[Job]:
    """Read the jobs from what a dry run prints."""
    found: set[Job] = set()
    rule = ""
    for line in lines:
        if header := re.match(r"(?:local)?rule (\w+):$", line):
            rule = header[1]
            found.add((rule, ""))
        elif rule and (wildcards := re.match(r"    wildcards: (.*)$", line)):
            found.discard((rule, ""))
            found.add((rule, wildcards[1]))
        elif not line.strip():
            rule = ""
    return found - {("all", "")}


def copy_project(folder: Path) -> Project:
    """Copy what the pipeline needs into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in PROJECT:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(
                source,
                folder / name,
                ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"),
                dirs_exist_ok=True,
            )
        else:
            shutil.copy2(source, folder / name)
    os.symlink("profiles/slurm", folder / "slurm")
    return Project(folder)


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """Give a copy in which nothing has run."""
    return copy_project(tmp_path / "project")


@pytest.fixture(scope="session")
def undisturbed_run(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Project:
    """Give the tiny study as it ran, once for all workers of pytest; no test changes it."""
    own = tmp_path_factory.getbasetemp()
    shared = own if worker_id == "master" else own.parent
    run = shared / "tiny-run"
    with (shared / "tiny-run.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not run.exists():
            project = copy_project(shared / "tiny-run.part")
            project.snakemake("--cores", "2")
            project.folder.rename(run)
    return Project(run)


@pytest.fixture(scope="session")
def finished(undisturbed_run: Project, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """Give a copy in which the tiny study has run; tests may add to it, and restore the rest."""
    # Snakemake sees no change: times are copied, and its records name paths inside the project.
    own = tmp_path_factory.getbasetemp() / "finished"
    return Project(Path(shutil.copytree(undisturbed_run.folder, own, symlinks=True)))


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Give a headless Chromium of the system."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    path = chromium()
    if path is None:
        pytest.skip("no chromium found: install one or set SCANBENCH_CHROMIUM")
    arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
    with (
        sync_api.sync_playwright() as play,
        play.chromium.launch(executable_path=path, args=arguments) as opened,
    ):
        yield opened
