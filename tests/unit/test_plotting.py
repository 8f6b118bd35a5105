"""Figures: the same bytes each time, nothing too small to read, hostile names, empty tables."""

import re
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from comparison_example import CLASSES, LONG_NAMES
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.text import Text

from scanbench import comparison_figures, plotting
from scanbench.text import plain
from scanbench.tipstate.figures import Example, Picture, scan_answer

EMPTY = {
    "roc": pd.DataFrame(columns=["experiment", "class", "seed", "fpr", "tpr"]),
    "confusion": pd.DataFrame(columns=["experiment", "seed", "true", "predicted", "count"]),
}


def roc(names: tuple[str, ...]) -> pd.DataFrame:
    fpr = np.linspace(0, 1, 20)
    return pd.concat(
        pd.DataFrame({"experiment": name, "class": c, "seed": seed, "fpr": fpr,
                      "tpr": fpr ** (1 / (2 + i + seed))})
        for i, name in enumerate(names) for c in CLASSES for seed in (0, 1)
    )  # fmt: skip


def confusion(names: tuple[str, ...]) -> pd.DataFrame:
    return pd.DataFrame(
        [(name, 0, t, p, 3) for name in names for t in CLASSES for p in CLASSES],
        columns=["experiment", "seed", "true", "predicted", "count"],
    )


def pairs(names: tuple[str, ...]) -> pd.DataFrame:
    return pd.DataFrame(
        [
            (a, b, "scan", "auroc", d, d - 0.02, d + 0.03, 0.001, 0.04)
            for i, a in enumerate(names)
            for b, d in zip(names[i + 1 :], np.linspace(-0.1, 0.1, 20), strict=False)
        ],
        columns=["experiment_a", "experiment_b", "reading", "metric", "difference", "low", "high",
                 "p", "p_holm"],
    )  # fmt: skip


def texts(figure: plotting.Sheet) -> list[str]:
    return [t.get_text() for t in figure.findobj(Text) if t.get_visible() and t.get_text()]


def test_the_same_table_gives_the_same_bytes_in_every_format(tmp_path: Path) -> None:
    names = LONG_NAMES[:3]
    for folder in ("a", "b"):
        figure = comparison_figures.roc_curves(roc(names), names, CLASSES)
        figure.note("Simulated data: a test")
        plotting.save(figure, tmp_path / folder, "roc")
    for form in plotting.FORMATS:
        first = (tmp_path / "a" / f"roc.{form}").read_bytes()
        assert first == (tmp_path / "b" / f"roc.{form}").read_bytes()
        assert str(tmp_path).encode() not in first
        for mark in (b"CreationDate", b"dc:date", b"Software"):
            assert mark not in first


def test_rounding_errors_of_the_layout_do_not_reach_the_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The solver's answers differ in their last bits from one process to the next.
    def svg(folder: str) -> bytes:
        figure = comparison_figures.confusion_matrices(confusion(("a", "b")), ("a", "b"), CLASSES)
        return plotting.save(figure, tmp_path / folder, "x", ["svg"])["svg"].read_bytes()

    plain = svg("a")
    solve = ConstrainedLayoutEngine.execute

    def execute(engine: ConstrainedLayoutEngine, figure: Figure) -> object:
        solved = solve(engine, figure)
        for axes in figure.axes:
            axes._set_position(np.array(axes.get_position(original=True).bounds) * (1 + 3e-16))
        return solved

    monkeypatch.setattr(ConstrainedLayoutEngine, "execute", execute)
    assert svg("b") == plain


def test_saving_twice_changes_nothing(tmp_path: Path) -> None:
    figure = comparison_figures.confusion_matrices(confusion(("a", "b")), ("a", "b"), CLASSES)
    first = plotting.save(figure, tmp_path / "a", "x", ["svg"])["svg"].read_bytes()
    assert plotting.save(figure, tmp_path / "b", "x", ["svg"])["svg"].read_bytes() == first


def test_a_users_matplotlib_settings_do_not_reach_the_figures(tmp_path: Path) -> None:
    import matplotlib

    def svg(folder: str) -> bytes:
        figure = comparison_figures.differences(pairs(("a", "b", "c")), ("a", "b", "c"))
        return plotting.save(figure, tmp_path / folder, "x", ["svg"])["svg"].read_bytes()

    plain = svg("a")
    with matplotlib.rc_context({"font.size": 20, "axes.grid": True, "svg.hashsalt": "other"}):
        assert svg("b") == plain


def unseen_tick_labels(figure: plotting.Sheet) -> set[Text]:
    """Labels of ticks beyond the limits of their axis, which exist but are not drawn."""
    return {
        label
        for axes in figure.body.axes
        for axis in (axes.xaxis, axes.yaxis)
        for tick in axis.get_major_ticks()
        if not min(axis.get_view_interval()) <= tick.get_loc() <= max(axis.get_view_interval())
        for label in (tick.label1, tick.label2)
    }


@pytest.mark.parametrize("count", [3, 10])
def test_no_text_is_smaller_than_seven_points_or_outside_or_on_another(count: int) -> None:
    names = LONG_NAMES[:count]
    for figure in (
        comparison_figures.confusion_matrices(confusion(names), names, CLASSES),
        comparison_figures.differences(pairs(names), names),
    ):
        figure.note("Data: a test. " + "A long line of attribution. " * 6)
        for _ in range(3):
            figure.draw_without_rendering()
        width, height = figure.bbox.width, figure.bbox.height
        boxes = []
        hidden = unseen_tick_labels(figure)
        for text in figure.findobj(Text):
            if not (text.get_visible() and text.get_text().strip()) or text in hidden:
                continue
            assert text.get_fontsize() >= 7
            box = text.get_window_extent()
            assert box.x0 >= -1, text
            assert box.y0 >= -1, text
            assert box.x1 <= width + 1, text
            assert box.y1 <= height + 1, text
            boxes.append((text.get_text(), box))
        for i, (one, a) in enumerate(boxes):
            for other, b in boxes[i + 1 :]:
                across = min(a.x1, b.x1) - max(a.x0, b.x0)
                down = min(a.y1, b.y1) - max(a.y0, b.y0)
                assert min(across, down) < 1.5, f"{one!r} lies on {other!r}"


def test_a_printed_figure_is_one_or_two_columns_wide() -> None:
    millimetres = 25.4
    figure = comparison_figures.roc_curves(roc(("a", "b")), ("a", "b"), CLASSES)
    assert figure.get_figwidth() * millimetres == pytest.approx(178)
    assert plotting.message("nothing").get_figwidth() * millimetres == pytest.approx(85)


def test_experiments_are_told_apart_without_colour() -> None:
    styles = list(plotting.experiment_styles(LONG_NAMES).values())
    assert len({(str(s.line), s.marker) for s in styles}) == len(styles)
    assert len({(s.colour, str(s.line)) for s in styles}) == len(styles)


def test_a_pair_is_turned_so_that_the_larger_comes_first() -> None:
    table = pairs(("low", "high"))  # the difference low − high is −0.1
    figure = comparison_figures.differences(table, ("low", "high"))
    assert "high − low" in texts(figure)
    [dot] = [line for axes in figure.body.axes for line in axes.lines if line.get_marker() == "o"]
    assert dot.get_xdata()[0] == pytest.approx(0.1)


def test_against_a_baseline_differences_keep_their_sign_and_order() -> None:
    table = pairs(("worse", "better", "base"))
    table = table[table["experiment_b"] == "base"]
    figure = comparison_figures.differences(table, ("worse", "better", "base"), baseline="base")
    [first] = table["metric"].unique()[:1]
    dots = [line for line in figure.body.axes[0].lines if line.get_marker() == "o"]
    assert [t.get_text() for t in figure.body.axes[0].get_yticklabels()] == [
        "worse − base",
        "better − base",
    ]
    assert [dot.get_xdata()[0] for dot in dots] == pytest.approx(
        table.loc[table["metric"] == first, "difference"].tolist()
    )


def test_confusion_shows_shares_of_the_true_class_and_counts() -> None:
    table = pd.DataFrame(
        [("m", 0, "a", "a", 3), ("m", 1, "a", "a", 3), ("m", 0, "a", "b", 2)],
        columns=["experiment", "seed", "true", "predicted", "count"],
    )
    shown = texts(comparison_figures.confusion_matrices(table, ("m",), ("a", "b")))
    assert "75%\n6" in shown
    assert "25%\n2" in shown
    assert shown.count("0%\n0") == 2  # a class without scans has no shares, and divides nothing


def test_the_bold_roc_curve_is_the_mean_over_seeds() -> None:
    table = pd.DataFrame(
        {"experiment": "m", "class": "a", "seed": [0, 0, 0, 1, 1], "fpr": [0, 0, 1, 0, 1],
         "tpr": [0, 1, 1, 0, 1]}
    )  # fmt: skip
    figure = comparison_figures.roc_curves(table, ("m",), ("a",))
    bold = max(figure.body.axes[0].lines, key=lambda line: line.get_linewidth())
    x, y = np.asarray(bold.get_xdata(), float), np.asarray(bold.get_ydata(), float)
    assert np.interp(0.5, x[1:], y[1:]) == pytest.approx((1 + 0.5) / 2)


def test_learning_curves_show_the_gap_at_the_kept_epoch() -> None:
    frame = pd.DataFrame(
        {"epoch": [0, 1, 2], "train_loss": [1, 0.5, 0.2], "val_loss": [1, 0.6, 0.9],
         "train_accuracy": [0.3, 0.8, 1.0], "val_accuracy": [0.3, 0.6, 0.5]}
    )  # fmt: skip
    run = comparison_figures.History(fold=0, seed=0, frame=frame, best_epoch=1)
    assert "gap +0.20" in texts(
        comparison_figures.learning_curves({"m": [run]}, ("m", "untrained"))
    )


@pytest.mark.parametrize(
    "figure",
    [
        lambda: comparison_figures.roc_curves(EMPTY["roc"], ("a",), CLASSES),
        lambda: comparison_figures.confusion_matrices(EMPTY["confusion"], ("a",), CLASSES),
        lambda: comparison_figures.differences(pairs(("a",)), ("a",)),
        lambda: comparison_figures.learning_curves({}, ("a",)),
    ],
)
def test_a_figure_without_data_says_so(figure) -> None:
    [text] = texts(figure())
    assert re.match("No ", text)


@pytest.mark.parametrize("settled", [{}, {"m": 5.0}, {"another": 5.0}])
def test_a_vertical_line_is_explained_where_there_is_one(settled) -> None:
    rows = [
        ("m", "lines", lines, "auroc", None, 0.8, 0.7, 0.9) for lines in (1, 5, 20)
    ]  # fmt: skip
    names = ["experiment", "reading", "lines", "metric", "class", "value", "low", "high"]
    metrics = pd.DataFrame(rows, columns=names)
    figure = comparison_figures.by_lines(metrics, ["m"], settled=settled)
    assert any("vertical" in text for text in texts(figure)) == ("m" in settled)


@pytest.mark.parametrize("lines", [5, 15, 16, 40, 128])
def test_tick_labels_beside_a_scan_do_not_overlap(lines: int) -> None:
    """However early the scan was aborted."""
    shown = Picture(x_LP=np.zeros((lines, 128)), title="s", aspect=lines / 128)
    answers = pd.DataFrame({name: [1 / len(CLASSES)] for name in CLASSES}, index=[lines])
    example = Example(picture=shown, label="", predicted=CLASSES[0], answers=answers)
    figure = scan_answer(example, CLASSES)
    figure.draw_without_rendering()
    scan = figure.body.axes[0]
    bottom, top = scan.get_window_extent().intervaly
    boxes = [label.get_window_extent() for label in scan.get_yticklabels()]
    inside = sorted((b for b in boxes if bottom <= (b.y0 + b.y1) / 2 <= top), key=lambda b: b.y0)
    assert len(inside) >= 2
    assert all(low.y1 <= high.y0 for low, high in pairwise(inside))


@settings(max_examples=60, deadline=None)
@given(st.text(), st.integers(5, 40))
def test_any_name_becomes_one_drawable_line(name: str, width: int) -> None:
    line = plain(name, width)
    assert len(line) <= width
    assert line.isprintable()
    assert plain(line, width) == line


def test_names_that_look_like_markup_are_drawn_as_they_are(tmp_path: Path) -> None:
    names = ("$\\frac{", "<b>&amp;", "a\x00b")
    figure = comparison_figures.roc_curves(roc(names), names, CLASSES)
    svg = plotting.save(figure, tmp_path, "x", ["svg"])["svg"].read_text(encoding="utf-8")
    import xml.etree.ElementTree as ET

    assert ET.fromstring(svg).tag.endswith("svg")
    assert "<b>" not in svg


@pytest.mark.parametrize(
    ("ends", "written"),
    [((0.1, 0.146), "ECE 0.123 (0.100–0.146)"), ((np.nan, np.nan), "ECE 0.123")],
)
def test_an_error_without_interval_stands_alone(ends, written) -> None:
    metrics = pd.DataFrame(
        [("a", "scan", "ece", None, 0.123, *ends)],
        columns=["experiment", "reading", "metric", "class", "value", "low", "high"],
    )
    calibration = pd.DataFrame(
        {"experiment": "a", "bin_low": [0.5], "bin_high": [1.0], "confidence": [0.8],
         "accuracy": [0.7], "count": [9]}
    )  # fmt: skip
    assert f"a\n{written}" in texts(comparison_figures.reliability(calibration, metrics, ["a"]))
