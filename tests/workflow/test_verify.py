"""Every byte of a finished study is accounted for, from the raw files to the figures."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from conftest import ROOT, Project

from scanbench.records import FOLDER, read_records
from scanbench.tracing import trace
from scanbench.verification import verify

pytestmark = pytest.mark.workflow

RUN = "runs/simulated/sessions/{}/fold0-seed0"
COMPARISON = "comparisons/simulated"
RENDER = {("render", "comparison=simulated")}


@pytest.fixture(scope="module")
def project(undisturbed_run: Project, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """Give a copy of the finished study in which files may be broken."""
    folder = tmp_path_factory.mktemp("broken") / "project"
    return Project(Path(shutil.copytree(undisturbed_run.folder, folder, symlinks=True)))


@pytest.fixture
def results(project: Project) -> Path:
    return project.folder / "results"


def faults(results: Path) -> list[str]:
    return [fault.path for fault in verify(results).faults]


def test_every_rule_that_writes_something_is_recorded() -> None:
    rules = {}
    for path in sorted((ROOT / "workflow/rules").glob("*.smk")):
        for rule in re.split(r"(?m)^(?=(?:use )?rule )", path.read_text(encoding="utf-8"))[1:]:
            name = re.match(r"(?:use rule \w+ as|rule) (\w+)", rule)
            assert name, rule
            rules[name[1]] = rule
    assert len(rules) > 20
    for name, rule in rules.items():
        assert re.search(r"\n {8}record=", rule), f"{name} has no record among its outputs"
        assert "\n        recorded(" in rule or rule.startswith("use rule"), (
            f"{name} is not recorded"
        )


def test_every_file_of_the_study_has_a_record(project: Project, results: Path) -> None:
    done = project.run("scanbench", "verify", "results")
    assert "results: every checksum holds: " in done.stdout
    files = {
        path.relative_to(results).as_posix()
        for path in results.rglob("*.*")
        if path.is_file() and not path.name.startswith(".")
    }
    known, damaged = read_records(results)
    told = {name for record in known.values() for name in record.outputs}
    rest = files - told
    assert damaged == {}
    assert {name.partition("/")[0] for name in rest} == {FOLDER, "logs", "benchmarks"}


#: One file of each kind that a stage writes.
KINDS = (
    "data/simulated/source/labels.csv",
    "data/simulated/source/session-003/scan-0013.sxm",
    "data/simulated/scans/manifest.csv",
    "data/simulated/scans/shard-00000-00000.npz",
    "data/simulated/store.h5",
    "data/simulated/splits/sessions.json",
    f"{RUN.format('lrcn-w20')}/history.csv",
    f"{RUN.format('lrcn-w20')}/model.json",
    f"{RUN.format('lrcn-w20')}/predictions.parquet",
    f"{RUN.format('lrcn-w20')}/seen.txt",
    f"{RUN.format('lrcn-w20')}/train.json",
    f"{RUN.format('lrcn-w20')}/weights.safetensors",
    f"{COMPARISON}/scores/evaluate.json",
    f"{COMPARISON}/scores/metrics.csv",
    f"{COMPARISON}/scores/policy.json",
    f"{COMPARISON}/figures/lines.pdf",
    f"{COMPARISON}/figures/lines.png",
    f"{COMPARISON}/figures/lines.svg",
    f"{COMPARISON}/tables/main.csv",
    f"{COMPARISON}/tables/main.md",
    f"{COMPARISON}/tables/main.tex",
    f"{COMPARISON}/render.json",
    f"{COMPARISON}/replay.html",
    f"{COMPARISON}/summary.html",
    "records/convert/simulated.json",
    f"records/{RUN.format('lrcn-w20')}/train.json",
)


@pytest.mark.parametrize("name", KINDS)
def test_a_changed_byte_and_a_missing_file_are_named(results: Path, name: str) -> None:
    path = results / name
    whole = path.read_bytes()
    middle = len(whole) // 2
    try:
        path.write_bytes(whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :])
        assert faults(results) == [name]
        path.unlink()
        if name.startswith(FOLDER):
            # Then its job's outputs are what nobody knows of.
            assert faults(results)
            assert all(not fault.startswith(FOLDER) for fault in faults(results))
        else:
            assert faults(results) == [name]
    finally:
        path.write_bytes(whole)


def test_swapped_weights_and_models_of_two_runs_are_named(results: Path) -> None:
    names = ("model.json", "weights.safetensors")
    first, second = (RUN.format(experiment) for experiment in ("causal-full", "lrcn-w20"))
    files = [(results / first / name, results / second / name) for name in names]

    def swap() -> None:
        for one, other in files:
            mine = one.read_bytes()
            one.write_bytes(other.read_bytes())
            other.write_bytes(mine)

    swap()
    try:
        assert faults(results) == [f"{run}/{name}" for run in (first, second) for name in names]
    finally:
        swap()


def test_weights_with_the_record_of_another_run_are_named(results: Path) -> None:
    # Files and record of one run are put in the place of another's, as by a wrong copy.
    kept = {}
    mine, other = (RUN.format(experiment) for experiment in ("lrcn-w20", "causal-full"))
    for name in ("weights.safetensors", "model.json"):
        path = results / mine / name
        kept[path] = path.read_bytes()
        path.write_bytes((results / other / name).read_bytes())
    record = results / FOLDER / mine / "train.json"
    kept[record] = record.read_bytes()
    record.write_bytes((results / FOLDER / other / "train.json").read_bytes())
    try:
        found = {fault.path: fault.what for fault in verify(results).faults}
        assert f"records/{mine}/train.json" in found
        # Of the files of this run that the record told of, none does any more.
        (lost,) = [what for path, what in found.items() if path == f"{mine}/"]
        assert "no record tells of" in lost
        assert "model.json" in lost
    finally:
        for path, content in kept.items():
            path.write_bytes(content)
    assert faults(results) == []


def test_every_figure_and_table_goes_back_to_the_raw_files(results: Path) -> None:
    raw = {
        path.relative_to(results).as_posix()
        for path in (results / "data/simulated/source").rglob("*.*")
        if not path.name.startswith(".")
    }
    shown = [
        path for kind in ("figures", "tables") for path in (results / COMPARISON / kind).iterdir()
    ]
    assert len(shown) > 50
    for path in shown:
        chain = trace(path)
        assert not chain.changed
        assert set(chain.raw) == raw
        stages = list(chain.steps)
        assert (stages[0], *stages[-2:]) == ("render", "ingest", "simulate")
    lines = trace(results / COMPARISON / "figures/lines.svg")
    stages = ["render", "evaluate", "predict", "train", "split", "convert", "ingest", "simulate"]
    assert list(lines.steps) == stages
    assert len(lines.steps["train"]) == 4
    assert len(lines.sessions) == 12


def test_delete_makes_snakemake_run_the_jobs_at_fault_again(project: Project) -> None:
    figure = project.folder / "results" / COMPARISON / "figures/lines.pdf"
    figure.write_bytes(b"damaged")
    done = project.run("scanbench", "verify", "results", "--delete", check=False)
    assert done.returncode == 1
    assert done.stdout.startswith(f"{COMPARISON}/figures/lines.pdf: its SHA-256 is ")
    assert done.stdout.endswith(" deleted: run again\n")
    assert project.planned() == RENDER
