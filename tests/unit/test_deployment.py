"""An exported run is scored as a laboratory runs it: line by line, on the scans held out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import small_study
from small_study import CLASSES, ids, spec

from scanbench.cli import main
from scanbench.deployment import PYTORCH, deployment, scores, shown
from scanbench.errors import UserError
from scanbench.export import export
from scanbench.exported import Exported, predict_exported
from scanbench.files import sha256_of
from scanbench.prediction import predict
from scanbench.predictions import class_columns
from scanbench.training import train

FORMS = ["fp32", "int8"]
SETTINGS: dict[str, Any] = {
    "name": "monitor",
    "experiment": "student",
    "dataset_title": "waves (simulated)",
    "teacher": "teacher",
    "forms": FORMS,
    "runs": ["student/fold0-seed0"],
    "teacher_runs": ["teacher/fold0-seed0"],
    "lines": [4, 16],
    "bootstrap": 100,
    "confidence": 0.95,
    "ece_bins": 5,
    "seed": 0,
}


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return small_study.make(tmp_path_factory.mktemp("study"))


@pytest.fixture(scope="module")
def results(study: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a folder with a student and its teacher, predicted, and the student's exported forms."""
    folder = tmp_path_factory.mktemp("results")
    for name in ("teacher", "student"):
        run = folder / name / "fold0-seed0"
        teacher = folder / "teacher/fold0-seed0" if name == "student" else None
        given = {"teacher": {"experiment": "teacher"}} if teacher else {}
        train(spec("causal", name=name, **given), *study, run, teacher=teacher)
        predict(*study, run, run / "predictions.parquet")
    for form in FORMS:
        step = run / f"onnx/{form}.onnx"
        export(run, step, form=form)
        predict_exported(*study, run, step, step.with_suffix(".parquet"))
    return folder


def test_an_exported_step_answers_about_the_held_out_scans_as_the_run_does(
    study: tuple[Path, Path], results: Path
) -> None:
    run = results / "student/fold0-seed0"
    own, streamed = (
        pd.read_parquet(run / name) for name in ("predictions.parquet", "onnx/fp32.parquet")
    )
    keys = [name for name in own.columns if not name.startswith("p_")]
    pd.testing.assert_frame_equal(own[keys], streamed[keys])
    assert set(streamed["scan_id"]) == set(ids(study[1], "test"))
    columns = class_columns(CLASSES)
    np.testing.assert_allclose(streamed[columns], own[columns], atol=1e-5)
    record = json.loads((run / "onnx/fp32.json").read_text())
    assert 0 < record["largest_logit_difference"] < 1e-4
    assert record["inputs"]["exported"] == sha256_of(run / "onnx/fp32.onnx")
    coarse = json.loads((run / "onnx/int8.json").read_text())
    assert coarse["form"] == "int8"
    assert coarse["largest_logit_difference"] > record["largest_logit_difference"]
    assert not (run / "onnx/predict.json").exists()  # the run's own record is left alone


def test_a_deployment_tells_what_is_lost_to_the_run_and_to_its_teacher(
    study: tuple[Path, Path], results: Path, tmp_path: Path
) -> None:
    deployment(SETTINGS, results, *study, tmp_path / "out")
    raw = pd.read_csv(tmp_path / "out/forms.csv")
    scan = raw[raw["reading"] == "scan"].set_index(["form", "metric"])
    auroc = scan.xs("auroc", level="metric")
    assert list(auroc.index) == [PYTORCH, *FORMS, "teacher"]
    for form in FORMS:
        for other, column in ((PYTORCH, "than_pytorch"), ("teacher", "than_teacher")):
            difference = auroc.loc[form, "value"] - auroc.loc[other, "value"]
            assert auroc.loc[form, column] == pytest.approx(difference, abs=1e-5)
    assert np.isnan(auroc.loc[PYTORCH, "than_pytorch"])
    assert np.isnan(auroc.loc["teacher", "than_teacher"])
    assert set(raw.loc[raw["reading"] == "lines", "lines"]) == {4, 16}
    card = (tmp_path / "out/card-int8.md").read_text(encoding="utf-8")
    assert sha256_of(results / "student/fold0-seed0/onnx/int8.onnx") in card
    assert f"| scan | auroc | {auroc.loc['int8', 'value']:.3f} |" in card
    assert "Of the float32 weights" not in card
    table = (tmp_path / "out/forms.md").read_text(encoding="utf-8")
    assert "ONNX int8" in table
    command = ["deployment", "--spec", json.dumps(SETTINGS), "--results", str(results)]
    assert main([*command, *map(str, study), str(tmp_path / "again")]) == 0
    for name in ("forms.csv", "forms.md", "card-fp32.md"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


def test_the_same_answers_lose_nothing_whatever_the_resample(
    study: tuple[Path, Path], results: Path
) -> None:
    own = pd.read_parquet(results / "student/fold0-seed0/predictions.parquet")
    own["label"] = own["label"].astype("int64")
    raw = scores({PYTORCH: own, "fp32": own}, CLASSES, SETTINGS | {"teacher": None})
    lost = raw.loc[raw["form"] == "fp32", ["than_pytorch", "than_pytorch_low", "than_pytorch_high"]]
    assert (lost == 0).all(axis=None)
    assert raw["than_teacher"].isna().all()
    raw[["largest_logit_difference", "megabytes"]] = np.nan
    assert "0.0000 (0.0000 to 0.0000)" in shown(raw, SETTINGS).shown.to_string()


def test_the_step_of_another_run_is_refused(
    study: tuple[Path, Path], results: Path, tmp_path: Path
) -> None:
    step = results / "student/fold0-seed0/onnx/fp32.onnx"
    with pytest.raises(UserError, match=r"is of other weights than model\.json tells of"):
        predict_exported(*study, results / "teacher/fold0-seed0", step, tmp_path / "out.parquet")
    (tmp_path / "bad.onnx").write_bytes(b"no model")
    with pytest.raises(UserError, match=r"bad\.onnx.*cannot be run .* export it again"):
        Exported(tmp_path / "bad.onnx")
