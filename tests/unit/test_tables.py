"""Tables: the same content in three forms, and no name that breaks out of its cell."""

import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scanbench import tables


def table(*names: str) -> tables.ResultTable:
    shown = pd.DataFrame({"Name": list(names), "Value": ["0.5 (0.4–0.6)"] * len(names)}, dtype=str)
    return tables.ResultTable(name="t", title="A 100 % title", raw=shown, shown=shown)


def metrics(**auroc: float) -> pd.DataFrame:
    return pd.DataFrame(
        [
            {"experiment": name, "reading": "scan", "lines": float("nan"), "metric": metric,
             "class": "", "value": value, "low": value - 0.1, "high": value + 0.1, "seeds": 2,
             "groups": 5, "scans": 40, "rows": 80}
            for name, value in auroc.items() for metric in ("auroc", "ece")
        ]
    )  # fmt: skip


@settings(max_examples=100, deadline=None)
@given(st.text())
def test_every_markdown_row_has_the_same_cells_whatever_a_name_holds(name: str) -> None:
    lines = tables.markdown(table(name, "b")).splitlines()
    assert len(lines) == 4
    for line in lines:
        assert len(re.findall(r"(?<!\\)(?:\\\\)*\|", line)) == 3
    assert not re.search(r"(?<!\\)<", lines[2])


@settings(max_examples=100, deadline=None)
@given(st.text(alphabet=st.sampled_from("ab\\{}$&#%_^~<>[]\n")))
def test_latex_keeps_no_character_with_a_meaning(name: str) -> None:
    row = tables.latex(table(name)).splitlines()[9].removeprefix("    {}")
    cell = row.split(" & ")[0] if " & " in row else row
    escaped = re.sub(
        r"\\(textbackslash|textasciicircum|textasciitilde|textless|textgreater)\{\}", "", cell
    )
    escaped = re.sub(r"\\[{}$&#%_]", "", escaped)
    assert not re.search(r"[\\{}$&#%_^~]", escaped)


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="no pdflatex on this machine")
def test_latex_compiles(tmp_path: Path) -> None:
    body = tables.latex(table("[a]", "50 % & <b> \\x{ $1 #2 _3 ^4 ~5 × – −"))
    head = "\\documentclass{article}\\usepackage{booktabs}\\begin{document}"
    text = f"{head}{body}\\end{{document}}"
    (tmp_path / "t.tex").write_text(text, encoding="utf-8")
    command = ["pdflatex", "-halt-on-error", "-interaction=nonstopmode", "t.tex"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)


def test_numbers_stand_flush_right_and_names_flush_left() -> None:
    rule = tables.markdown(table("a")).splitlines()[1]
    assert rule == "| ---- | ------------: |"
    assert "\\begin{tabular}{lr}" in tables.latex(table("a"))


def test_the_best_experiment_stands_first_and_missing_facts_are_dashes() -> None:
    costs = pd.DataFrame(
        {"experiment": ["a", "b"], "parameters": [1234567.0, float("nan")], "cpu_seconds": [60, 2]}
    )
    made = tables.main_table(
        metrics(a=0.7, b=0.9), costs, {"a": 1000}, simulated=True, confidence=0.95
    )
    assert list(made.shown["Experiment"]) == ["b", "a"]
    assert list(made.shown["Parameters"]) == ["–", "1,234,567"]
    assert list(made.shown["Windows"]) == ["–", "1,000"]
    assert made.shown["AUROC"][0] == "0.900 (0.800–1.000)"
    assert "simulated" in made.title
    assert "95%" in made.title
    assert "thresholds" not in made.title


def test_the_table_says_where_fitted_thresholds_are_from() -> None:
    costs = pd.DataFrame({"experiment": ["a"], "parameters": [1.0], "cpu_seconds": [2.0]})
    rows = metrics(a=0.7).replace({"metric": {"ece": "balanced_accuracy_fitted"}})
    made = tables.main_table(rows, costs, {}, simulated=False, confidence=0.95)
    assert made.shown["Balanced accuracy, fitted thresholds"][0] == "0.700 (0.600–0.800)"
    assert "Fitted thresholds are of the other folds." in made.title


def test_what_an_experiment_costs_is_told_in_whole_numbers() -> None:
    costs = pd.DataFrame(
        {
            "experiment": ["a"], "parameters": [1234567.0], "operations": [86_400_000.0],
            "cpu_seconds": [60.4], "peak_memory_mb": [812.3], "predict_cpu_seconds": [np.nan],
        }
    )  # fmt: skip
    shown = tables.cost_table(costs).shown
    assert list(shown.loc[0]) == ["a", "1,234,567", "86", "60", "812", "–"]


def test_only_what_is_settled_before_the_last_line_is_settled_early() -> None:
    progress = pd.DataFrame(
        {
            "experiment": ["early"] * 3 + ["late"] * 3 + ["never"] * 3,
            "metric": "auroc",
            "lines": [8, 16, 32] * 3,
            "low": [-0.3, -0.01, 0.0, -0.3, -0.2, 0.0, np.nan, np.nan, np.nan],
        }
    )
    assert tables.settled_early(progress, ["early", "late", "never"], 0.01) == {"early": 16}


def test_rules_of_several_folds_are_said_to_be_chosen_on_the_others() -> None:
    figures = ("wrong_stops", "saved", "lines_spent", "time_saved")
    stops = pd.DataFrame(
        {"experiment": "a", "limit": 0.01, "figure": figures, "value": 0.1, "low": 0, "high": 1}
    )
    titles = [
        tables.stop_table(stops, ["x"], folds=folds, simulated=False).title for folds in (1, 5)
    ]
    assert "on one half of the groups for the other (interval)" in titles[0]
    assert "on the scans of all other folds (interval)" in titles[1]


def test_excluded_and_refused_scans_add_up() -> None:
    manifest = pd.DataFrame(
        {
            "scan_id": ["1", "2", "3", "4", "5"],
            "label": ["a", "a", "", "b", "b"],
            "excluded": ["", "tie", "", "tie", ""],
        }
    )
    split = {"folds": [{"train": ["1"], "test": []}], "config": {"min_lines": 20}}
    rejected = pd.DataFrame(
        {"file": ["x", "y"], "reason": ["truncated: line 3", "truncated: line 9"]}
    )
    raw = tables.exclusion_table(manifest, rejected, split).raw
    assert raw["count"].sum() == len(manifest) + len(rejected)
    assert dict(zip(raw["reason"], raw["count"], strict=True)) == {
        "": 1, "fewer than 20 lines after resampling": 1, "tie": 2, "no label": 1, "truncated": 2,
    }  # fmt: skip


def test_the_same_table_gives_the_same_bytes(tmp_path: Path) -> None:
    first = tables.write(table("a"), tmp_path / "a")
    second = tables.write(table("a"), tmp_path / "b")
    assert set(first) == {"csv", "md", "tex"}
    for form, path in first.items():
        assert path.read_bytes() == second[form].read_bytes()
