"""Curves over a number hold the comparison's own figures, and where they reach its baseline."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scanbench.curves import (
    AT_MOST,
    MORE_THAN,
    crossing,
    draw_curves,
    drawing,
    point_table,
    points,
    reach_table,
    reaches,
)
from scanbench.errors import UserError
from scanbench.scores import read_scores

SHARES = (0.01, 0.1, 1.0)
#: AUROC of each share, from scratch and tuned; the baseline is from scratch with all labels.
AUROC = {"scratch": (0.6, 0.8, 0.9), "tuned": (0.7, 0.85, 0.95)}
SPEC: dict[str, Any] = {
    "title": "Labels that simulation saves",
    "comparison": "labels",
    "label": "Share of labels",
    "scale": "log",
    "series": [{"name": name, "points": [[x, f"{name}-{x:g}"] for x in SHARES]} for name in AUROC],
    "baseline": "scratch-1",
    "metrics": ["auroc"],
    "confidence": 0.95,
    "data": "Simulated data: made up",
}
ROWS = [
    (f"{n}-{x:g}", v) for n, values in AUROC.items() for x, v in zip(SHARES, values, strict=True)
]


@pytest.fixture
def scores(tmp_path: Path) -> Path:
    folder = tmp_path / "scores"
    folder.mkdir()
    metrics = [
        (name, reading, None, "auroc", cls, value, value - 0.02, value + 0.02, 1, 27, 300, 300)
        for name, value in ROWS
        for reading in ("scan", "lines")
        for cls in (None, "atoms")
    ]
    pd.DataFrame(
        metrics,
        columns=["experiment", "reading", "lines", "metric", "class", "value", "low", "high",
                 "seeds", "groups", "scans", "rows"],
    ).to_csv(folder / "metrics.csv", index=False)  # fmt: skip
    pairs = [
        (name, "scratch-1", "scan", "auroc", value - 0.9, value - 0.94, value - 0.88, 0.01, 0.05)
        for name, value in ROWS
        if name != "scratch-1"
    ]
    pd.DataFrame(
        pairs,
        columns=["experiment_a", "experiment_b", "reading", "metric", "difference", "low", "high",
                 "p", "p_holm"],
    ).to_csv(folder / "pairs.csv", index=False)  # fmt: skip
    return folder


def raw_of(scores: Path) -> pd.DataFrame:
    return points(SPEC, read_scores(scores, "metrics"), read_scores(scores, "pairs"))


def test_each_point_has_its_figure_and_its_difference_from_the_baseline(scores: Path) -> None:
    raw = raw_of(scores).set_index("experiment")
    assert raw["x"].tolist() == [*SHARES, *SHARES]
    assert raw.loc["tuned-0.1", "value"] == pytest.approx(0.85)
    assert raw.loc["tuned-0.1", "difference"] == pytest.approx(-0.05)
    assert raw.loc["tuned-0.1", "difference_low"] == pytest.approx(-0.09)
    assert raw.loc["scratch-1", ["difference", "difference_low", "difference_high"]].tolist() == [
        0.0, 0.0, 0.0,
    ]  # fmt: skip
    assert math.isnan(raw.loc["scratch-1", "p_holm"])


def test_the_baseline_is_reached_between_points_over_the_logarithm(scores: Path) -> None:
    reached = reaches(SPEC, raw_of(scores)).set_index("series")
    # The baseline reaches itself where it stands, whatever its interval.
    assert reached.loc["scratch", ["x", "bound"]].tolist() == [1.0, ""]
    # 0.85 at 0.1 and 0.95 at 1: 0.9 half way, at the geometric mean.
    assert reached.loc["tuned", "x"] == pytest.approx(math.sqrt(0.1))
    # The upper end of the difference is −0.03 at 0.1 and 0.07 at 1.
    assert reached.loc["tuned", "low"] == pytest.approx(10 ** (-1 + 0.3))
    # The lower end: −0.09 and 0.01.
    assert reached.loc["tuned", "high"] == pytest.approx(10 ** (-1 + 0.9))
    linear = reaches({**SPEC, "scale": "linear"}, raw_of(scores)).set_index("series")
    assert linear.loc["tuned", "x"] == pytest.approx(0.55)


def test_what_is_reached_at_once_or_never_is_a_bound() -> None:
    assert crossing([1, 2], [0.1, 0.2], "linear") == (1, AT_MOST)
    assert crossing([1, 2], [0.0, -0.2], "linear") == (1, AT_MOST)
    assert crossing([1, 2], [-0.2, -0.1], "linear") == (2, MORE_THAN)
    assert str(crossing([1, 2], [-0.2, -0.1], "linear")) == "> 2"
    # The first time counts, whatever comes after.
    assert crossing([1, 2, 3, 4], [-1, 1, -1, 1], "linear") == (1.5, "")


heights = st.lists(st.floats(-1, 1), min_size=2, max_size=6)


@given(y_K=heights, lift=st.floats(0, 1), scale=st.sampled_from(["linear", "log"]))
def test_a_higher_curve_never_reaches_later(y_K: list[float], lift: float, scale: str) -> None:
    x_K = [float(2**k) for k in range(len(y_K))]
    lower, higher = crossing(x_K, y_K, scale), crossing(x_K, [y + lift for y in y_K], scale)
    assert x_K[0] <= higher.x <= lower.x * (1 + 1e-9) <= x_K[-1] * (1 + 1e-9)


def test_tables_and_legend_say_what_is_compared(scores: Path) -> None:
    raw = raw_of(scores)
    reached = reaches(SPEC, raw)
    shown = reach_table(SPEC, reached).shown
    assert shown["Share of labels needed"].tolist() == ["1", "0.32"]
    assert shown["Interval"].tolist() == ["1 to 1", "0.2 to 0.79"]
    assert point_table(SPEC, raw).shown["Value − scratch-1"].iloc[2] == "–"
    figure = drawing(SPEC, raw, reached)
    legend = [text.get_text() for text in figure.body.legends[0].get_texts()]
    assert legend == ["scratch", "tuned", "scratch-1 (baseline)", "as good as the baseline"]


def test_the_same_tables_give_the_same_bytes(scores: Path, tmp_path: Path) -> None:
    for out in ("a", "b"):
        draw_curves(SPEC, scores, tmp_path / out)
    tables = [f"{name}.{form}" for name in ("points", "reached") for form in ("csv", "md", "tex")]
    drawn = sorted([*(f"curves.{form}" for form in ("pdf", "png", "svg")), *tables])
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == sorted(
        [*drawn, "curves.json"]
    )
    for name in drawn:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_a_missing_experiment_or_pair_is_named(scores: Path, tmp_path: Path) -> None:
    pairs = pd.read_csv(scores / "pairs.csv")
    pairs[pairs["experiment_a"] != "tuned-1"].to_csv(scores / "pairs.csv", index=False)
    with pytest.raises(UserError, match="0 rows of auroc of 'tuned-1' against 'scratch-1'"):
        draw_curves(SPEC, scores, tmp_path / "out")
    (scores / "pairs.csv").unlink()
    with pytest.raises(UserError, match=r"pairs\.csv: no such file"):
        draw_curves(SPEC, scores, tmp_path / "out")
