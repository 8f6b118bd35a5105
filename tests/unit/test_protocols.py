"""Several protocols side by side hold the comparisons' own numbers, and mark what leaks."""

from pathlib import Path

import pandas as pd
import pytest

from scanbench.errors import UserError
from scanbench.protocols import drawing, joined, side_by_side, table

SCHEMES = {"sessions": "kfold", "random": "random", "copies": "copies"}
SPEC = {
    "title": "What leakage is worth",
    "confidence": 0.95,
    "experiments": ["features", "cnn-scan"],
    "comparisons": [
        {
            "comparison": f"leakage-{split}",
            "split": split,
            "scheme": scheme,
            "data": "Data: made up",
        }
        for split, scheme in SCHEMES.items()
    ],
}


def metrics(shift: float) -> pd.DataFrame:
    values = {"features": 0.8, "cnn-scan": 0.9, "majority": 0.5}
    return pd.DataFrame(
        [
            (name, reading, None, metric, cls, value + shift, value + shift - 0.02,
             value + shift + 0.03, 1, 27, 300, 300)
            for name, value in values.items()
            for metric in ("auroc", "balanced_accuracy", "ece")
            for reading in ("scan", "lines")
            for cls in (None, "atoms")
        ],
        columns=["experiment", "reading", "lines", "metric", "class", "value", "low", "high",
                 "seeds", "groups", "scans", "rows"],
    )  # fmt: skip


@pytest.fixture
def scores(tmp_path: Path) -> dict[str, Path]:
    folders = {}
    for k, wanted in enumerate(SPEC["comparisons"]):
        folders[wanted["comparison"]] = folder = tmp_path / wanted["comparison"]
        folder.mkdir()
        metrics(0.02 * k).to_csv(folder / "metrics.csv", index=False)
    return folders


def read(scores: dict[str, Path]) -> dict[str, pd.DataFrame]:
    return {n: pd.read_csv(p / "metrics.csv", keep_default_na=False) for n, p in scores.items()}


def test_each_experiment_has_its_figures_under_each_protocol(scores: dict[str, Path]) -> None:
    raw = joined(SPEC, read(scores))
    assert len(raw) == 2 * 2 * 3
    row = raw[(raw["experiment"] == "cnn-scan") & (raw["split"] == "copies")].iloc[0]
    assert row[["value", "low", "high"]].tolist() == pytest.approx([0.94, 0.92, 0.97])
    assert row["more_than_first"] == pytest.approx(0.04)
    assert raw.groupby("split")["leaky"].first().to_dict() == {
        "sessions": False, "random": True, "copies": True,
    }  # fmt: skip


def test_what_leaks_is_marked_in_table_and_figure(scores: dict[str, Path]) -> None:
    raw = joined(SPEC, read(scores))
    shown = table(SPEC, raw).shown
    assert list(shown.columns)[2:] == ["sessions", "random (leaky)", "copies (leaky)"]
    figure = drawing(SPEC, raw)
    legend = [text.get_text() for text in figure.body.legends[0].get_texts()]
    assert legend == ["sessions", "random (leaky)", "copies (leaky)"]


def test_the_same_tables_give_the_same_bytes(scores: dict[str, Path], tmp_path: Path) -> None:
    for out in ("a", "b"):
        side_by_side(SPEC, scores, tmp_path / out)
    names = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert names == [f"protocols.{form}" for form in ("csv", "md", "pdf", "png", "svg", "tex")]
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_a_missing_table_or_experiment_is_named(scores: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="0 rows of auroc of 'vit'; evaluate again"):
        joined({**SPEC, "experiments": ["vit"]}, read(scores))
    (scores["leakage-random"] / "metrics.csv").unlink()
    with pytest.raises(UserError, match=r"leakage-random/metrics\.csv: no such file"):
        side_by_side(SPEC, scores, tmp_path / "out")
