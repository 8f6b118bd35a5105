"""Results as a Workflow Run RO-Crate, checked by the validator of RO-Crates."""

from __future__ import annotations

import json
import shutil
import zipfile
from pathlib import Path
from typing import Any

import pytest
from crate_validation import issues
from recorded_study import Study, write

from scanbench.cli import main
from scanbench.crate import export
from scanbench.errors import UserError
from scanbench.files import sha256_of
from scanbench.verification import verify

METADATA = "ro-crate-metadata.json"


@pytest.fixture
def study(tmp_path: Path) -> Study:
    write(tmp_path / "Snakefile", "rule all:\n")
    write(tmp_path / "config.yaml", "targets: []\n")
    write(tmp_path / "workflow/rules/train.smk", "rule train:\n")
    return Study(tmp_path)


def entities(metadata: str | bytes) -> dict[str, dict[str, Any]]:
    return {entity["@id"]: entity for entity in json.loads(metadata)["@graph"]}


def test_a_crate_passes_its_validator_and_verifies(
    study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "crate"
    assert export(study.results, out) == 9
    assert [issue for issue in issues(out, monkeypatch) if issue.startswith("REQUIRED")] == []
    shutil.rmtree(study.raw)
    assert verify(out / "results").faults == []


def test_a_crate_takes_the_place_of_a_crate_alone(study: Study, tmp_path: Path) -> None:
    for own in (study.results, tmp_path):
        with pytest.raises(UserError, match="exists and would be replaced"):
            export(study.results, own)
    assert verify(study.results).faults == []


def test_the_validator_sees_what_a_crate_lacks(
    study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "crate"
    export(study.results, out)
    metadata = json.loads((out / METADATA).read_bytes())
    for entity in metadata["@graph"]:
        if entity["@type"] == "ControlAction":
            del entity["instrument"]
    (out / METADATA).write_text(json.dumps(metadata))
    (found,) = {issue for issue in issues(out, monkeypatch) if issue.startswith("REQUIRED")}
    assert "ControlAction must reference a HowToStep" in found


def test_every_job_is_an_action_from_its_inputs_to_its_outputs(
    study: Study, tmp_path: Path
) -> None:
    export(study.results / "scores/metrics.csv", tmp_path / "crate", licence="CC-BY-4.0")
    told = entities((tmp_path / "crate" / METADATA).read_bytes())
    action = told["#job-records/train1.json"]
    assert action["instrument"] == {"@id": "#train"}
    assert action["object"] == {"@id": "results/data/d/store.h5"}
    assert action["result"] == {"@id": "results/runs/1/weights"}
    assert told["results/runs/1/weights"]["sha256"] == sha256_of(study.results / "runs/1/weights")
    steps = [told[part["@id"]]["name"] for part in told["Snakefile"]["step"]]
    assert steps == ["ingest", "convert", "train", "evaluate"]  # not the figure's
    assert not (tmp_path / "crate/results/figures").exists()
    assert told["./"]["license"] == "CC-BY-4.0"
    # Raw files of the user stay where they are; the crate names them by their content.
    outside = [entity for entity in told.values() if entity["@id"].startswith("ni:///sha-256;")]
    assert {entity["sha256"] for entity in outside} == {
        sha256_of(path) for path in study.raw.iterdir()
    }
    assert str(tmp_path) not in (tmp_path / "crate" / METADATA).read_text()


def test_a_crate_may_be_one_file(
    study: Study, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "crate.zip"
    assert main(["crate", str(study.results), str(out)]) == 0
    assert "9 files of results" in capsys.readouterr().out
    with zipfile.ZipFile(out) as archive:
        assert archive.read("results/render.json") == (study.results / "render.json").read_bytes()
        assert "#run" in entities(archive.read(METADATA))


def test_what_is_damaged_is_not_exported(study: Study, tmp_path: Path) -> None:
    write(study.results / "runs/0/weights", "damaged")
    with pytest.raises(UserError, match=r"runs/0/weights: .* scanbench verify"):
        export(study.results / "figures/lines.svg", tmp_path / "crate")
    study.job("train", ["data/d/store.h5"], ["runs/0/weights"], seed=0)
    weights = study.results / "runs/1/weights"
    study.job(
        "train", ["data/d/store.h5"], ["runs/1/weights"], lambda: write(weights, "!") and None, 1
    )
    with pytest.raises(UserError, match=r"lines\.svg: not as recorded, or made from another"):
        export(study.results / "figures/lines.svg", tmp_path / "crate")
    assert not (tmp_path / "crate").exists()
    with pytest.raises(UserError, match=r"Snakefile: missing"):
        export(study.results, tmp_path / "crate", tmp_path / "elsewhere")
