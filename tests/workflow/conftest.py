"""The real Snakefile, run at a tiny size in a copy of the project."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
TINY = Path(__file__).with_name("tiny.yaml")
PROJECT = ("Snakefile", "config.yaml", "config", "envs", "profiles", "src", "workflow")

Job = tuple[str, str]


def merge(base: dict, change: dict) -> dict:
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

    def snakemake(
        self, *arguments: str, config: dict | None = None, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """Run Snakemake with the tiny configuration, changed by `config`."""
        overlay = self.folder / "overlay.yaml"
        tiny = yaml.safe_load(TINY.read_text(encoding="utf-8"))
        overlay.write_text(yaml.safe_dump(merge(tiny, config or {})), encoding="utf-8")
        return self.run(
            *("snakemake", "--configfile", "config.yaml", "overlay.yaml", *arguments), check=check
        )

    def run(self, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a command of the environment in the copy, with the copy's sources."""
        environment = {
            **os.environ,
            "PYTHONPATH": str(self.folder / "src"),
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "OMP_NUM_THREADS": "1",
        }
        done = subprocess.run(
            command, cwd=self.folder, env=environment, capture_output=True, text=True
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
def finished(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """Give a copy in which the tiny study has run; tests that change it restore it."""
    project = copy_project(tmp_path_factory.mktemp("finished") / "project")
    project.snakemake("--cores", "2")
    return project
