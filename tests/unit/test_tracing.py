"""What a result goes back to."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from recorded_study import Study, write

from scanbench.cli import main
from scanbench.errors import UserError
from scanbench.files import sha256_of
from scanbench.tracing import trace


@pytest.fixture
def study(tmp_path: Path) -> Study:
    return Study(tmp_path)


def test_a_figure_goes_back_to_the_raw_files_by_every_step(study: Study) -> None:
    chain = trace(study.results / "figures/lines.svg")
    assert list(chain.steps) == ["render", "evaluate", "train", "convert", "ingest"]
    trained = chain.steps["train"]
    assert [job.record.seeds for job in trained] == [{"seed": 0}, {"seed": 1}]
    assert [list(job.used) for job in trained] == [["runs/0/weights"], ["runs/1/weights"]]
    assert chain.raw == {str(path): sha256_of(path) for path in sorted(study.raw.iterdir())}
    assert chain.sessions == ["monday", "tuesday"]
    assert not chain.changed


def test_only_what_a_figure_was_drawn_from_is_followed(study: Study) -> None:
    # `render` reads the weights too, and its record of figures says that this one needs the table.
    (evaluated,) = trace(study.results / "figures/lines.pdf").steps["evaluate"]
    assert list(evaluated.used) == ["scores/metrics.csv"]
    study.job("train", ["data/d/store.h5"], ["runs/2/weights"], seed=2)
    both = ["scores/metrics.csv", "runs/2/weights"]
    study.job("render", both, ["figures/lines.svg"], study._figure)
    chain = trace(study.results / "figures/lines.svg")
    assert len(chain.steps["train"]) == 2
    assert len(trace(study.results / "render.json").steps["train"]) == 3


def test_a_table_needs_no_figure(study: Study) -> None:
    chain = trace(study.results / "scores/metrics.csv")
    assert list(chain.steps) == ["evaluate", "train", "convert", "ingest"]


def test_a_folder_goes_back_to_what_all_its_files_do(study: Study) -> None:
    assert list(trace(study.results / "runs").files) == ["runs/0/weights", "runs/1/weights"]
    assert len(trace(study.results).files) == 9


def test_a_run_that_rests_on_another_has_both_in_one_step(study: Study) -> None:
    study.job("train", ["data/d/store.h5", "runs/0/weights"], ["runs/3/weights"], seed=3)
    chain = trace(study.results / "runs/3/weights")
    assert list(chain.steps) == ["train", "convert", "ingest"]
    assert [job.record.seeds["seed"] for job in chain.steps["train"]] == [0, 3]


def test_a_changed_file_is_said_to_be_changed(
    study: Study, capsys: pytest.CaptureFixture[str]
) -> None:
    figure = study.results / "figures/lines.svg"
    write(figure, "better")
    assert trace(figure).changed == ["figures/lines.svg"]
    assert main(["trace", str(figure)]) == 0
    assert "figures/lines.svg is not as recorded" in capsys.readouterr().out


def test_what_was_made_from_replaced_files_is_said_to_be_changed(study: Study) -> None:
    weights = study.results / "runs/1/weights"
    study.job(
        "train", ["data/d/store.h5"], ["runs/1/weights"], lambda: write(weights, "!") and None, 1
    )
    assert trace(weights).changed == []
    assert trace(study.results / "scores/metrics.csv").changed == ["scores/metrics.csv"]
    figure = trace(study.results / "figures/lines.svg")
    assert figure.changed == ["figures/lines.svg", "scores/metrics.csv"]


def test_a_name_that_does_not_exist_is_said_to_be_none(study: Study) -> None:
    with pytest.raises(UserError, match=r"line\.svg: no such file"):
        trace(study.results / "figures/line.svg")


def test_trace_on_the_command_line(study: Study, capsys: pytest.CaptureFixture[str]) -> None:
    figure = str(study.results / "figures/lines.svg")
    assert main(["trace", figure]) == 0
    printed = capsys.readouterr().out
    stages = ["render", "evaluate", "train × 2", "convert", "ingest", "2 raw files"]
    at = [printed.index(stage) for stage in stages]
    assert at == sorted(at)
    assert "2 sessions: monday, tuesday" in printed
    weights = sha256_of(study.results / "runs/1/weights")
    assert f"runs/1/weights  {weights[:12]}  seed=1" in printed
    assert main(["trace", figure, "--files"]) == 0
    assert f"runs/1/weights  {weights}  seed=1" in capsys.readouterr().out
    assert main(["trace", figure, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [step["stage"] for step in told["steps"]][-1] == "ingest"
    assert told["steps"][2]["jobs"][1]["used"] == {"runs/1/weights": weights}


def test_what_cannot_be_traced_is_one_clear_line(study: Study, tmp_path: Path) -> None:
    write(study.results / "foreign.svg", "")
    with pytest.raises(UserError, match=r"foreign\.svg: no record tells of it"):
        trace(study.results / "foreign.svg")
    with pytest.raises(UserError, match="no folder above it holds records/"):
        trace(tmp_path / "figure.svg")
    (study.results / "records/train0.json").write_text("{}")
    with pytest.raises(UserError, match=r"train0\.json: is no record of a job"):
        trace(study.results / "figures/lines.svg")


def test_of_two_records_of_one_file_the_one_of_its_bytes_is_followed(study: Study) -> None:
    study.job("combine", ["data/d/store.h5"], ["runs/1/weights"])
    for stage in ("combine", "train"):
        chain = trace(study.results / "runs/1/weights")
        assert (next(iter(chain.steps)), chain.changed) == (stage, [])
        study.job("train", ["data/d/store.h5"], ["runs/1/weights"], seed=1)


def test_records_that_lead_in_a_circle_are_refused(study: Study) -> None:
    study.job("combine", ["runs/0/weights"], ["runs/4/weights"])
    study.job("train", ["runs/4/weights"], ["runs/0/weights"], seed=0)
    with pytest.raises(UserError, match="circle"):
        trace(study.results / "figures/lines.svg")
