"""`scanbench apply`: a trained run judges a new folder of scans."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import small_study
import yaml

from scanbench.cli import main
from scanbench.errors import UserError
from scanbench.files import sha256_of
from scanbench.scans import read_manifest
from scanbench.store import Store
from scanbench.tipstate import apply as apply_module
from scanbench.tipstate.apply import apply
from scanbench.tipstate.figures import Example, picture, scan_answer
from scanbench.tipstate.sxm import Channel, Header, write_sxm
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


def test_labels_are_names_and_lines_are_told_in_those_of_the_instrument(
    run: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "scans"
    folder.mkdir()
    sxm(folder / "whole.sxm", 512)
    sxm(folder / "aborted.sxm", 300)
    (tmp_path / "labels.csv").write_text("scan,label\nwhole,rows\n")
    apply(run, folder, tmp_path / "out", tmp_path / "labels.csv", figures=False)
    scans = pd.read_csv(tmp_path / "out/scans.csv", keep_default_na=False).set_index("scan_id")
    lines = pd.read_csv(tmp_path / "out/lines.csv", keep_default_na=False).set_index("scan_id")
    assert dict(scans["label"]) == dict(lines["label"]) == {"aborted": "", "whole": "rows"}
    assert lines[["lines_seen", "measured_lines"]].to_numpy().tolist() == [[9, 288], [16, 512]]


def test_a_figure_says_that_its_lines_are_resampled(run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "scans"
    folder.mkdir()
    sxm(folder / "whole.sxm", 512)
    apply(run, folder, tmp_path / "out", figures=False)
    with Store(tmp_path / "out/store.h5") as store:
        shown = picture(store, read_manifest(tmp_path / "out/scans"), 0)
    answers = pd.DataFrame(1 / 3, index=[16], columns=list(small_study.CLASSES))
    example = Example(picture=shown, label="", predicted="rows", answers=answers)
    figure = scan_answer(example, small_study.CLASSES)
    said = [axes.get_ylabel() for axes in figure.body.axes]
    assert "Scan line\n(of 16, resampled from 512)" in said


def test_the_closing_lines_name_every_file_and_the_classes_that_are_not_there(
    run: Path,
    scans: Path,
    labels: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = ["apply", str(run), str(scans), "--out", str(tmp_path / "out"), "--labels"]
    assert main([*arguments, str(labels), "--no-figures"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[-1] == f"{tmp_path / 'out'}: scans.csv, lines.csv, left_out.csv, metrics.csv"
    assert not any("not defined" in line for line in said)
    table = pd.read_csv(labels)
    table.loc[table["label"] == "rows", "label"] = "atoms"
    table.to_csv(labels, index=False)
    assert main([*arguments, str(labels)]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[-1].endswith("metrics.csv, figures")
    assert said[-2] == "not defined without labelled scans of rows: auroc, balanced_accuracy"
    assert not any("nan" in line for line in said)


def test_a_folder_that_is_no_run_is_one_clear_line(
    scans: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UserError, match="name the folder of a trained run"):
        apply(tmp_path, scans, tmp_path / "out")
    status = main(["apply", str(tmp_path), str(scans), "--out", str(tmp_path / "out")])
    assert status == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_folder_that_is_not_there_is_said_so_wherever_the_answers_shall_go(
    run: Path, tmp_path: Path
) -> None:
    absent = tmp_path / "absent"
    for out in (tmp_path / "out", absent / "out"):
        with pytest.raises(UserError, match="absent: no such data folder or file; name that of"):
            apply(run, absent, out)
        assert not absent.exists()


def test_a_label_that_the_run_does_not_know_is_told_with_the_option_that_maps_it(
    run: Path, scans: Path, labels: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = pd.read_csv(labels).replace({"rows": "good"})
    table.to_csv(labels, index=False)
    command = ["apply", str(run), str(scans), "--out", str(tmp_path / "out"), "--no-figures"]
    command += ["--labels", str(labels)]
    assert main(command) == 2
    said = capsys.readouterr().err
    assert "label 'good' is not one of" in said
    assert "--classes" not in said
    _, _, option = said.strip().rpartition("; mend it, or say which of them it is: ")
    option = option.replace("LABEL", "good").replace("CLASS", "rows")
    assert main([*command, *shlex.split(option)]) == 0


def test_rows_without_scan_are_passed_over_with_the_option_that_is_told(
    run: Path, scans: Path, labels: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labels.write_text(labels.read_text() + "nobody,rows\n")
    command = ["apply", str(run), str(scans), "--out", str(tmp_path / "out"), "--no-figures"]
    command += ["--labels", str(labels)]
    assert main(command) == 2
    option = re.search("--spec '.*'", capsys.readouterr().err.strip().splitlines()[-1])
    assert option is not None
    assert main([*command, *shlex.split(option[0])]) == 0


def test_metrics_are_scored_as_the_config_does_by_default() -> None:
    schema = Path(__file__).parents[2] / "workflow/schemas/config.schema.yaml"
    defaults = yaml.safe_load(schema.read_text())["$defs"]["evaluation"]["properties"]
    assert list(apply_module.LINES) == defaults["lines"]["default"]
    assert defaults["ece_bins"]["default"] == apply_module.ECE_BINS


def test_a_second_run_leaves_nothing_of_the_first(
    run: Path, scans: Path, labels: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    apply(run, scans, out, labels)
    apply(run, scans, out, figures=False)
    assert not (out / "metrics.csv").exists()
    assert not (out / "figures").exists()


def test_scans_that_the_run_was_trained_on_are_told(
    run: Path, scans: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    known = Path(shutil.copytree(run, tmp_path / "known"))
    command = ["apply", str(known), str(scans), "--no-figures", "--out", str(tmp_path / "out")]
    assert main(command) == 0
    assert "had a part" not in capsys.readouterr().out
    with (known / "seen.txt").open("a") as file:
        file.write(f"{sha256_of(scans)}\n")
    assert main(command) == 0
    assert "6 of 6 scans had a part in the run's training" in capsys.readouterr().out
    (known / "seen.txt").unlink()
    assert main(command) == 0
    assert "whether the run was trained on these is unknown" in capsys.readouterr().out


def test_only_an_earlier_output_is_replaced(run: Path, scans: Path, tmp_path: Path) -> None:
    mine = tmp_path / "thesis"
    mine.mkdir()
    (mine / "chapter.tex").write_text("x")
    with pytest.raises(UserError, match=r"exists and would be replaced.* give --out another"):
        apply(run, scans, mine)
    with pytest.raises(UserError, match=r"would be replaced, but holds .*; give --out another"):
        apply(run, scans, tmp_path)
    with pytest.raises(UserError, match="give --out a folder outside"):
        apply(run, tmp_path, tmp_path / "answers")
    assert (mine / "chapter.tex").read_text() == "x"


def test_a_failed_run_leaves_the_earlier_output(run: Path, scans: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    apply(run, scans, out, figures=False)
    before = (out / "scans.csv").read_bytes()
    with pytest.raises(UserError):
        apply(run, scans, out, tmp_path / "no labels.csv", figures=False)
    assert (out / "scans.csv").read_bytes() == before


def sxm(path: Path, measured: int, *, channel: str = "Z", unit: str = "m") -> None:
    """Write a scan of 512 planned lines that was aborted after `measured`."""
    x_LP = np.full((512, 16), np.nan)
    x_LP[:measured] = 1e-10 * small_study.heights(0, measured, np.random.default_rng(2))
    header = Header(width_m=1e-8, height_m=1e-8, line_time_s=0.1, bias_v=-2.0, setpoint_a=5e-11)
    signals = {channel: Channel(unit=unit, forward_LP=x_LP, backward_LP=x_LP)}
    write_sxm(path, header, signals)


def test_a_scan_of_which_nothing_is_left_is_listed_and_the_others_are_judged(
    run: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "scans"
    folder.mkdir()
    sxm(folder / "whole.sxm", 512)
    sxm(folder / "aborted.sxm", 2)
    done = apply(run, folder, tmp_path / "out", figures=False)
    assert set(done.left_out) == {"aborted"}
    assert "after 2 of 512 lines" in done.left_out["aborted"]
    assert pd.read_csv(tmp_path / "out/scans.csv")["scan_id"].tolist() == ["whole"]
    assert pd.read_csv(tmp_path / "out/left_out.csv")["scan_id"].tolist() == ["aborted"]
    (folder / "whole.sxm").unlink()
    with pytest.raises(UserError, match="no scan is long enough: aborted after 2 of 512 lines"):
        apply(run, folder, tmp_path / "out", figures=False)


def test_scans_of_another_unit_are_refused(run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "scans"
    folder.mkdir()
    sxm(folder / "current.sxm", 512, channel="Current", unit="A")
    with pytest.raises(UserError, match="'Current' in 'A', but the run was trained") as told:
        apply(run, folder, tmp_path / "out", options={"channel": "Current"})
    assert "\n" not in str(told.value)
    assert not (tmp_path / "out").exists()


def test_a_run_on_grey_levels_judges_heights_in_metres(run: Path, tmp_path: Path) -> None:
    """The published images are grey levels; a laboratory has instrument files."""
    (tmp_path / "scans").mkdir()
    sxm(tmp_path / "scans/whole.sxm", 512)
    trained = tmp_path / "run"
    shutil.copytree(run, trained)
    meta = json.loads((run / "model.json").read_text()) | {"unit": "level"}
    (trained / "model.json").write_text(json.dumps(meta))
    apply(trained, tmp_path / "scans", tmp_path / "out", figures=False)
    assert pd.read_csv(tmp_path / "out/scans.csv")["scan_id"].tolist() == ["whole"]
    (trained / "model.json").write_text(json.dumps(meta | {"normalisation": "none"}))
    with pytest.raises(UserError, match=r"in 'm', but the run was trained on .* in 'level'"):
        apply(trained, tmp_path / "scans", tmp_path / "out", figures=False)


def test_files_are_read_as_those_of_the_run_were(run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "scans"
    folder.mkdir()
    sxm(folder / "topography.sxm", 512, channel="Topography")
    with pytest.raises(UserError):
        apply(run, folder, tmp_path / "out", figures=False)
    trained = tmp_path / "run"
    shutil.copytree(run, trained)
    meta = json.loads((run / "model.json").read_text())
    meta["ingest"] = {"channel": "Topography", "directions": ["backward"]}
    (trained / "model.json").write_text(json.dumps(meta))
    apply(trained, folder, tmp_path / "out", figures=False)
    assert pd.read_csv(tmp_path / "out/scans.csv")["scan_id"].tolist() == ["topography:backward"]


def test_how_scans_were_read_travels_from_ingest_to_the_store(run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "scans"
    folder.mkdir()
    sxm(folder / "whole.sxm", 512)
    apply(run, folder, tmp_path / "out", options={"directions": ["backward"]}, figures=False)
    with Store(tmp_path / "out/store.h5") as store:
        assert (store.channel, store.unit) == ("Z", "m")
        assert store.ingest["directions"] == ["backward"]


def test_the_default_name_tells_runs_of_several_experiments_apart(
    run: Path, scans: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "results/runs/simulated/sessions/majority/fold0-seed0"
    shutil.copytree(run, place)
    monkeypatch.chdir(tmp_path)
    assert main(["apply", str(place), str(scans), "--no-figures"]) == 0
    assert (tmp_path / "new-simulated-sessions-majority-fold0-seed0/scans.csv").is_file()
