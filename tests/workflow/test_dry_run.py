"""Every configuration plans without data, SLURM or a GPU; every mistake is one clear line."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yte
from conftest import ROOT, Project

pytestmark = pytest.mark.workflow


# Experiments of the twelve ablations together; some stand in several of them.
ABLATIONS = 58


@pytest.mark.parametrize("overlay", sorted(path.name for path in (ROOT / "config").glob("*.yaml")))
def test_every_overlay_plans(project: Project, overlay: str) -> None:
    done = project.run("snakemake", "--dry-run", "--configfile", "config.yaml", *layers(overlay))
    assert ("realism" if overlay == "realism.yaml" else "train") in done.stdout + done.stderr


def test_tuning_plans_as_many_trials_for_every_experiment(project: Project) -> None:
    done = project.run(
        *("snakemake", "--dry-run", "--quiet", "rules"),
        *("--configfile", "config.yaml", "config/tuned.yaml"),
    )
    counts = dict(line.split()[:2] for line in done.stdout.splitlines() if len(line.split()) == 2)
    tuned, folds, trials = 7, 5, 8  # majority and vit-prefix have nothing to tune
    assert counts["choose"] == str(tuned * folds)
    assert counts["trial"] == str(tuned * folds * trials)


def test_jobs_find_the_commands_of_an_environment_that_is_not_activated(project: Project) -> None:
    path = os.pathsep.join(
        folder
        for folder in os.environ["PATH"].split(os.pathsep)
        if not (Path(folder) / "scanbench").exists()
    )
    done = subprocess.run(
        [
            *(Path(sys.executable).with_name("snakemake"), "--cores", "1", "--until", "ingest"),
            *("--configfile", "config.yaml", project.overlay({})),
        ],
        cwd=project.folder,
        env={**project.environment, "PATH": path},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert (project.folder / "results/data/simulated/scans/manifest.csv").is_file()


def layers(overlay: str) -> list[str]:
    """Give the overlays that one needs: that of a small size rests on the one of full size."""
    below = overlay.replace("-small.yaml", ".yaml")
    whole = {below, overlay} if (ROOT / "config" / below).is_file() else {overlay}
    return [f"config/{name}" for name in sorted(whole, key=len)]


@pytest.mark.parametrize(
    ("overlay", "folds", "seeds"), [("ablations.yaml", 5, 3), ("ablations-small.yaml", 3, 1)]
)
def test_the_ablations_plan_each_run_once(
    project: Project, overlay: str, folds: int, seeds: int
) -> None:
    done = project.run(
        *("snakemake", "--dry-run", "--quiet", "rules"),
        *("--configfile", "config.yaml", *layers(overlay)),
    )
    counts = dict(line.split()[:2] for line in done.stdout.splitlines() if len(line.split()) == 2)
    assert counts["train"] == counts["predict"] == str(ABLATIONS * folds * seeds)
    assert counts["evaluate"] == counts["render"] == "12"


def test_the_full_study_plans_exactly_its_runs(project: Project) -> None:
    done = project.run("snakemake", "--dry-run", "--quiet", "rules")
    counts = dict(line.split()[:2] for line in done.stdout.splitlines() if len(line.split()) == 2)
    assert counts["train"] == counts["predict"] == str(9 * 5 * 3)


def test_what_leakage_is_worth_plans_three_splits_of_one_data_set(project: Project) -> None:
    done = project.run(
        *("snakemake", "--dry-run", "--quiet", "rules"),
        *("--configfile", "config.yaml", "config/leakage.yaml"),
    )
    counts = dict(line.split()[:2] for line in done.stdout.splitlines() if len(line.split()) == 2)
    once = ("ingest", "convert", "copies", "protocols")
    assert [counts[rule] for rule in once] == ["1"] * len(once)
    assert counts["split"] == counts["evaluate"] == "3"
    assert counts["train"] == str(4 * 3 * 3)


def test_realism_plans_two_stores_and_trains_nothing(project: Project) -> None:
    done = project.run(
        *("snakemake", "--dry-run", "--quiet", "rules"),
        *("--configfile", "config.yaml", "config/realism.yaml"),
    )
    counts = dict(line.split()[:2] for line in done.stdout.splitlines() if len(line.split()) == 2)
    rules = ("fetch", "simulate", "realism", "ingest", "convert")
    assert [counts[rule] for rule in rules] == ["1", "1", "1", "2", "2"]
    assert "train" not in counts


def resources(text: str) -> dict[str, list[dict[str, str]]]:
    """Read the resources of every job from what a dry run prints, by rule."""
    found: dict[str, list[dict[str, str]]] = {}
    rule = ""
    for line in text.splitlines():
        if header := re.match(r"(?:local)?rule (\w+):$", line):
            rule = header[1]
        elif line.startswith("    resources: "):
            items = line.removeprefix("    resources: ").split(", ")
            found.setdefault(rule, []).append(dict(item.split("=", 1) for item in items))
    return found


def slurm_profile() -> dict:
    """Read the profile as Snakemake does."""
    with (ROOT / "profiles/slurm/config.yaml").open(encoding="utf-8") as file:
        return yte.process_yaml(file, require_use_yte=True)


def test_every_rule_has_a_place_on_a_cluster(project: Project) -> None:
    rules = set(project.run("snakemake", "--list-rules").stdout.split())
    local = re.search(r"^localrules:\n((?:    \w+,\n)+)", (ROOT / "Snakefile").read_text(), re.M)
    assert local
    here = set(local[1].replace(",", " ").split())
    placed = slurm_profile()["set-resources"]
    assert set(placed) | here == rules
    assert not set(placed) & here
    for rule, resources in placed.items():
        for name in ("mem_mb", "runtime"):
            assert re.fullmatch(r"\d+ \* attempt", resources[name]), f"{rule}: {name}"


@pytest.mark.parametrize("overlay", ["", "withheld-defect.yaml"])
def test_slurm_profile_plans_as_typed_and_asks_for_one_gpu_where_one_is_used(
    project: Project, overlay: str
) -> None:
    overlays = ("--configfile", "config.yaml", f"config/{overlay}") if overlay else ()
    done = project.run("snakemake", "--profile", "slurm", "--dry-run", *overlays)
    by_rule = resources(done.stdout + done.stderr)
    assert set(by_rule) >= {"fetch", "ingest", "convert", "split", "train"}
    placed = slurm_profile()["set-resources"]
    for rule in set(by_rule) & set(placed):
        on_gpu = placed[rule].get("slurm_partition") == "gpu"
        for job in by_rule[rule]:
            # The plugin turns `gpu` into `--gpus`; beside it, `gres` would ask a second time.
            assert job.get("gpu") == ("1" if on_gpu else None)
            assert "gres" not in job
            assert job["slurm_partition"] == ("gpu" if on_gpu else "cpu")
            assert int(job["mem_mb"]) >= 600


MISTAKES = {
    "misspelt key": ({"trainig": {}}, "config: trainig: unknown key; did you mean 'training'?"),
    "misspelt key inside": (
        {"experiments": {"vit": {"training": {"epoch": 3}}}},
        "config: experiments.vit.training.epoch: unknown key; did you mean 'epochs'?",
    ),
    "misspelt option": (
        {"experiments": {"lrcn-w20": {"options": {"windw": 12}}}},
        "config: experiments.lrcn-w20.options.windw: unknown key; did you mean 'window'?",
    ),
    "misspelt store key": (
        {"datasets": {"simulated": {"store": {"line": 12}}}},
        "config: datasets.simulated.store.line: unknown key; did you mean 'lines'?",
    ),
    "number that YAML reads as text": (
        {"training": {"learning_rate": "1e-3"}},
        "config: training.learning_rate: '1e-3' is text in YAML; write 0.001",
    ),
    "wrong type": (
        {"training": {"epochs": 2.5}},
        "config: training.epochs: 2.5 is not of type 'integer'",
    ),
    "unknown model": (
        {"experiments": {"vit": {"model": "vti"}}},
        "config: experiments.vit.model: no model 'vti'; did you mean 'vit'?",
    ),
    "unknown experiment": (
        {"comparisons": {"simulated": {"experiments": ["majorty"]}}},
        "no experiment 'majorty'; did you mean 'majority'?",
    ),
    "unknown target": ({"targets": ["simulatd"]}, "no comparison 'simulatd'"),
    "window longer than a scan": (
        {"experiments": {"majority": {"window": {"lines": 33}}}},
        "config: experiments.majority.window.lines: 33 lines do not fit into the 32 lines",
    ),
    "a name that leaves its folder": (
        {"experiments": {"../up": {"model": "vit"}}},
        "config: experiments: '../up' cannot be used; use letters, digits, dots and hyphens",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_in_the_configuration_is_one_clear_line(project: Project, mistake: str) -> None:
    config, line = MISTAKES[mistake]
    done = project.snakemake("--dry-run", config=config, check=False)
    assert done.returncode != 0
    # A dry run prints its errors to the standard output.
    said = done.stdout + done.stderr
    assert line in said
    assert "Traceback" not in said


def test_a_key_that_stands_twice_in_an_overlay_is_refused(project: Project) -> None:
    """YAML keeps the later one, and a run would be of other settings than the file says."""
    text = "training: {epochs: 3}\ntargets: [simulated]\ntraining: {batch_size: 8}\n"
    (project.folder / "mine.yaml").write_text(text)
    done = project.run("snakemake", "-n", "--configfile", "config.yaml", "mine.yaml", check=False)
    assert done.returncode
    assert "mine.yaml line 3: key 'training' stands in line 1 already" in done.stdout + done.stderr


def test_a_file_that_is_no_yaml_is_named_with_the_line(project: Project) -> None:
    for name in ("Makefile", "pyproject.toml", "requirements.lock"):
        shutil.copy2(ROOT / name, project.folder)
    venv = project.folder / ".venv"
    venv.mkdir()
    (venv / "bin").symlink_to(Path(sys.executable).parent)
    (venv / ".complete").touch()
    (project.folder / "mine.yaml").write_text("targets: [simulated]\ndatasets: {mine: {\n")
    for target in ("results", "report", "dry-run"):
        done = project.run("make", target, "CONFIG=mine.yaml", check=False)
        assert done.returncode == 2
        assert "scanbench: error: mine.yaml line 3: is no YAML" in done.stderr
        assert "Traceback" not in done.stdout + done.stderr
    with (project.folder / "config.yaml").open("a") as file:
        file.write("\ttargets: []\n")
    lines = len((project.folder / "config.yaml").read_text().splitlines())
    done = project.run("snakemake", "--dry-run", check=False)
    assert f"config.yaml line {lines}: is no YAML" in done.stdout + done.stderr
    assert "indent with spaces" in done.stdout + done.stderr
