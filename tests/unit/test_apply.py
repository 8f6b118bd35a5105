"""`scanbench apply`: a trained run judges a new folder of scans."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import small_study

from scanbench.cli import main
from scanbench.errors import UserError
from scanbench.tipstate.apply import apply
from scanbench.training import train


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("study")
    store, split = small_study.make(folder)
    out = folder / "run"
    train(small_study.spec("majority"), store, split, out)
    return out


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    rng = np.random.default_rng(1)
    heights = np.stack([small_study.heights(k % 3, 16, rng) for k in range(6)])
    names = np.array([f"new {k}" for k in range(5)] + ["<b>../evil</b>"])
    np.savez(tmp_path / "new.npz", images=heights, scan_ids=names)
    return tmp_path / "new.npz"


@pytest.fixture
def labels(tmp_path: Path) -> Path:
    names = [*(f"new {k}" for k in range(5)), "<b>../evil</b>"]
    table = pd.DataFrame({"scan": names, "label": ["atoms", "defect", "rows"] * 2})
    table.to_csv(tmp_path / "labels.csv", index=False)
    return tmp_path / "labels.csv"


def test_every_scan_gets_an_answer_and_a_figure(run: Path, scans: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    apply(run, scans, out)
    answers = pd.read_csv(out / "scans.csv")
    assert len(answers) == 6
    assert answers.filter(like="p_").sum(axis=1).to_numpy() == pytest.approx(1, abs=1e-4)
    assert len(list((out / "figures").glob("*.png"))) == 6
    assert not (out / "metrics.csv").exists()


def test_names_from_data_stay_inside_the_figures_folder(
    run: Path, scans: Path, tmp_path: Path
) -> None:
    apply(run, scans, tmp_path / "out")
    names = [path.name for path in (tmp_path / "out/figures").iterdir()]
    assert all(name[0].isdigit() and "<" not in name for name in names)


def test_labels_give_the_metrics_of_the_report(
    run: Path, scans: Path, labels: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    apply(run, scans, out, labels, figures=False)
    metrics = pd.read_csv(out / "metrics.csv")
    macro = metrics[(metrics["reading"] == "scan") & metrics["class"].isna()]
    values = macro.set_index("metric")["value"]
    assert values["auroc"] == pytest.approx(0.5)
    assert values["balanced_accuracy"] == pytest.approx(1 / 3)


def test_a_folder_that_is_no_run_is_one_clear_line(
    scans: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UserError, match="name the folder of a trained run"):
        apply(tmp_path, scans, tmp_path / "out")
    status = main(["apply", str(tmp_path), str(scans), "--out", str(tmp_path / "out")])
    assert status == 2
    assert capsys.readouterr().err.count("\n") == 1
