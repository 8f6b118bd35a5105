"""One set of pins: every environment is made from the lock, and the lock from what is asked for."""

from __future__ import annotations

import importlib.metadata
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
LOCK = (ROOT / "requirements.lock").read_text(encoding="utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def pins() -> dict[str, str]:
    """Read the version of every package of the lock."""
    found = re.findall(r"^([A-Za-z0-9_.-]+)(?:\[[^]]*\])?==([^\s;\\]+)", LOCK, re.MULTILINE)
    return {canonicalize_name(name): version for name, version in found}


def asked() -> list[str]:
    """List what requirements.in and pyproject.toml ask for."""
    lines = (ROOT / "requirements.in").read_text(encoding="utf-8").splitlines()
    optional = [text for group in PROJECT["optional-dependencies"].values() for text in group]
    return [*filter(None, lines), *PROJECT["dependencies"], *optional]


@pytest.mark.parametrize("text", sorted(set(asked())))
def test_the_lock_holds_what_is_asked_for(text: str) -> None:
    wanted = Requirement(text)
    assert wanted.specifier.contains(pins()[canonicalize_name(wanted.name)], prereleases=True)


def test_what_the_project_needs_is_what_the_lock_is_made_from() -> None:
    lines = (ROOT / "requirements.in").read_text(encoding="utf-8").splitlines()
    listed = {canonicalize_name(Requirement(line).name) for line in lines if line}
    assert {canonicalize_name(Requirement(text).name) for text in asked()} == listed


def test_every_pin_has_a_hash() -> None:
    blocks = re.split(r"^(?=[A-Za-z0-9])", LOCK, flags=re.MULTILINE)
    assert all("--hash=sha256:" in block for block in blocks if "==" in block)


def test_this_environment_is_the_lock() -> None:
    installed = {name: importlib.metadata.version(name) for name in pins()}
    assert installed == pins()


def test_conda_and_the_container_install_the_lock_and_nothing_else() -> None:
    conda = yaml.safe_load((ROOT / "envs/scanbench.yaml").read_text(encoding="utf-8"))
    assert conda["channels"] == ["conda-forge"]
    python, pip, packages = conda["dependencies"]
    assert (pip, packages) == ("pip", {"pip": ["-r ../requirements.lock"]})
    recipe = (ROOT / "envs/scanbench.def").read_text(encoding="utf-8")
    made = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert re.findall(r"pip install (.*)", recipe) == [
        "--no-cache-dir --require-hashes -r /opt/requirements.lock"
    ]
    assert "requirements.lock /opt/requirements.lock" in recipe
    assert "--require-hashes -r requirements.lock" in made
    versions = {
        *re.findall(r"^python=(\S+)", python),
        *re.findall(r"^From: python:(\d+\.\d+)-", recipe, re.MULTILINE),
        *re.findall(r"^PYTHON \?= python(\S+)", made, re.MULTILINE),
        *re.findall(r"--python-version (\S+)", made),
        PROJECT["requires-python"].removeprefix(">="),
    }
    assert versions == {"3.11"}


def test_the_container_runs_the_sources_of_the_working_tree(tmp_path: Path) -> None:
    recipe = (ROOT / "envs/scanbench.def").read_text(encoding="utf-8")
    command = re.search(r"(printf .*) > /usr/local/bin/scanbench", recipe)
    assert command
    launcher = subprocess.run(["sh", "-c", command[1]], capture_output=True, check=True).stdout
    (tmp_path / "src").symlink_to(ROOT / "src")
    path = tmp_path / "scanbench"
    path.write_bytes(launcher)
    done = subprocess.run(
        ["sh", str(path), "train", "nothing"],
        cwd=tmp_path,
        env={"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert "usage: scanbench train" in done.stderr
