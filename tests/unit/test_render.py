"""The render stage on a whole made-up comparison."""

import html
import json
import re
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
import pytest
from comparison_example import CLASSES, NAMES, write

from scanbench import plotting
from scanbench.errors import UserError
from scanbench.files import sha256_of
from scanbench.render import render
from scanbench.tipstate.figures import line_answers

FIGURES = {
    "agreement", "calibration", "confusion", "dataset", "differences", "examples", "groups",
    "learning", "lines", "roc", "scans", "stopping",
}  # fmt: skip
TABLES = {
    "audit", "classes", "costs", "exclusions", "main", "pairs", "progress", "settled", "split",
    "stopping",
}  # fmt: skip
HOSTILE = "<script>alert(1)</script>"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    folder = tmp_path_factory.mktemp("comparison")
    arguments = write(folder, NAMES[1:], hostile=HOSTILE, seeds=1)
    with pytest.MonkeyPatch.context() as patch:
        # PNG is the slow one, and test_plotting saves all three.
        patch.setattr(plotting.save, "__defaults__", (("svg", "pdf"),))
        render(**arguments, out=folder / "out")
    return arguments, folder / "out"


def test_every_promised_file_is_there(made: tuple[dict[str, Any], Path]) -> None:
    _, out = made
    assert {p.stem for p in (out / "figures").glob("*.svg")} == FIGURES
    assert {p.stem for p in (out / "figures").glob("*.pdf")} == FIGURES
    for form in ("csv", "md", "tex"):
        assert {p.stem for p in (out / "tables").glob(f"*.{form}")} == TABLES


def test_each_figure_names_the_files_it_was_made_from(made: tuple[dict[str, Any], Path]) -> None:
    arguments, out = made
    record = json.loads((out / "render.json").read_text())
    assert set(record["figures"]) == FIGURES
    roc = record["figures"]["roc"]
    assert roc == {"scores/roc.csv": sha256_of(arguments["scores"] / "roc.csv")}
    assert record["figures"]["scans"]["store.h5"] == sha256_of(arguments["store"])
    policy = {"scores/policy.json": sha256_of(arguments["scores"] / "policy.json")}
    assert record["pages"] == {"replay.html": {**record["figures"]["examples"], **policy}}
    assert (out / "replay.html").stat().st_size > 10_000


def test_nothing_made_holds_a_path_of_the_machine(made: tuple[dict[str, Any], Path]) -> None:
    _, out = made
    for path in out.rglob("*"):
        if path.is_file():
            assert str(out.parent).encode() not in path.read_bytes(), path


def test_the_page_asks_for_nothing_and_runs_nothing(made: tuple[dict[str, Any], Path]) -> None:
    _, out = made
    page = (out / "summary.html").read_text(encoding="utf-8")
    assert "<script" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    sources = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert sources
    assert all(
        s.startswith(("data:image/svg+xml;base64,", "#")) or s == "replay.html" for s in sources
    )


def test_the_page_says_what_must_not_be_missed(made: tuple[dict[str, Any], Path]) -> None:
    arguments, out = made
    page = (out / "summary.html").read_text(encoding="utf-8")
    assert "Simulated data" in page
    assert arguments["spec"]["attribution"] in page
    assert "There are only 6 test groups." in page
    for reason in ("tie", "below threshold", "truncated", "1 near-duplicate"):
        assert reason in page


def test_captions_tell_how_rules_were_chosen_and_whether_anything_is_settled_early(
    made: tuple[dict[str, Any], Path],
) -> None:
    """The example has one fold, and no answer before the last that is as good."""
    _, out = made
    page = html.unescape((out / "summary.html").read_text(encoding="utf-8"))
    assert "other folds" not in page
    assert "for a wanted share of good scans stopped, on one half of the groups for the oth" in page
    assert "Vertical:" not in page
    assert "Before the end of the scan no AUROC is settled (at most 0.01 below" in page
    assert "None is before the end of the scan." in page


@pytest.mark.parametrize(
    ("scheme", "told"),
    [("fixed", "one half of the groups for the other"), ("kfold", "the scans of all other folds")],
)
def test_the_reports_caption_tells_how_rules_were_chosen(scheme: str, told: str) -> None:
    text = Path(__file__).parents[2].joinpath("workflow/report/stopping.rst").read_text()
    config = {
        "comparisons": {"c": {"dataset": "d", "split": "s"}},
        "datasets": {"d": {"title": "D", "source": "files"}},
        "splits": {"s": {"scheme": scheme}},
    }
    about = {"config": config, "wildcards": {"comparison": "c"}}
    assert f"rules chosen on {told}, with" in jinja2.Template(text).render(snakemake=about)


def test_the_main_table_holds_the_numbers_of_the_evaluation(
    made: tuple[dict[str, Any], Path],
) -> None:
    arguments, out = made
    metrics = pd.read_csv(arguments["scores"] / "metrics.csv")
    rows = metrics[(metrics["reading"] == "scan") & metrics["class"].isna()]
    main = pd.read_csv(out / "tables" / "main.csv").set_index("experiment")
    for row in rows[rows["metric"] == "balanced_accuracy"].itertuples():
        assert main.loc[row.experiment, "balanced_accuracy"] == pytest.approx(row.value, rel=1e-5)
        assert main.loc[row.experiment, "balanced_accuracy_low"] == pytest.approx(row.low, rel=1e-5)


@pytest.mark.parametrize(
    ("break_it", "named"),
    [
        (lambda a: (a["scores"] / "roc.csv").unlink(), "roc.csv: no such file"),
        (lambda a: (a["scores"] / "roc.csv").write_text("x,y\n1,2\n"), "column 'experiment'"),
        (lambda a: (a["split"]).write_text("{"), "split.json: not JSON"),
        (lambda a: a["spec"].pop("simulated"), "key 'simulated'"),
        (lambda a: a["spec"].update(experiments=["nobody"]), "no rows of 'nobody'"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_no_record(
    tmp_path: Path, break_it: Any, named: str
) -> None:
    arguments = write(tmp_path, ("causal-full",), seeds=1, per_group=10)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "render.json").write_text("{}")
    break_it(arguments)
    with pytest.raises(UserError, match=re.escape(named)) as caught:
        render(**arguments, out=tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert named.startswith("key") or not (tmp_path / "out" / "render.json").exists()


def test_windows_answer_when_they_end_with_the_mean_of_those_so_far() -> None:
    """As the evaluation reads them; an answer inside a window does not count."""
    table = pd.DataFrame(
        {"scan_id": "s", "seed": 0, "first_line": [10, 0, 0, 15], "lines_seen": [20, 20, 5, 18],
         **{f"p_{c}": [float(c == k) for k in CLASSES] for c in CLASSES}}
    )  # fmt: skip
    answers = line_answers(table, "s", CLASSES)
    assert list(answers.index) == [18, 20]
    assert answers.loc[18, CLASSES[3]] == 1
    assert answers.loc[20].to_numpy() == pytest.approx([1 / 3, 1 / 3, 0, 1 / 3])


def test_a_scan_that_is_followed_from_its_first_line_shows_every_answer() -> None:
    table = pd.DataFrame(
        {"scan_id": "s", "seed": 0, "first_line": 0, "lines_seen": [20, 5, 9],
         **{f"p_{c}": 0.25 for c in CLASSES}}
    )  # fmt: skip
    assert list(line_answers(table, "s", CLASSES).index) == [5, 9, 20]


def test_the_page_shows_models_against_people_where_people_are_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = write(tmp_path, ("causal-full",), seeds=1, per_group=10)
    people = tmp_path / "agreement"
    people.mkdir()
    ends = {f"{name}{end}": 0.5 for name in ("people", "model", "difference", "positive_model",
            "positive_difference") for end in ("", "_low", "_high")}  # fmt: skip
    rows = [
        {"experiment": "causal-full", "reading": how, "class": name, **ends, "people_rate": 0.2,
         "model_rate": 0.2, "seeds": 1, "groups": 6, "scans": 9, "unlabelled": 2}
        for how in ("fewest", "most", "likely") for name in ("rows", "")
    ]  # fmt: skip
    pd.DataFrame(rows).to_csv(people / "agreement.csv", index=False)
    ends = {"low": 0.1, "high": 0.9, "scans": 9}
    pd.DataFrame(
        [{"scope": "all", "reading": "fewest", "class": "rows", "probability": 0.7, **ends,
          "rate": 0.2, "groups": 6, "both": 3, "one": 2, "unknown": 0}]
    ).to_csv(people / "people.csv", index=False)  # fmt: skip
    pd.DataFrame(
        [{"reader": "second volunteer", "labels": "one volunteer", "metric": "auroc", "class": "",
          "value": 0.7123, **ends}]
    ).to_csv(people / "ceiling.csv", index=False)  # fmt: skip
    pd.DataFrame(
        [{"experiment": "causal-full", "by": "responses", "value": "3+", "errors": 2, "rate": 0.2,
          **ends}]
    ).to_csv(people / "errors.csv", index=False)  # fmt: skip
    monkeypatch.setattr(plotting.save, "__defaults__", (("svg",),))
    render(**arguments, out=tmp_path / "out", people=people)
    page = (tmp_path / "out/summary.html").read_text(encoding="utf-8")
    assert 'id="people"' in page
    assert "0.712" in page
    record = json.loads((tmp_path / "out/render.json").read_text())
    assert set(record["figures"]["agreement"]) == {"agreement/agreement.csv"}
    for name in ("agreement", "ceiling", "errors"):
        assert (tmp_path / f"out/tables/{name}.csv").is_file()
