"""The stages of explanation: what is explained, what comes out, and how it is scored."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from small_study import LINES, PIXELS, ids, make, spec

from scanbench.errors import UserError
from scanbench.split_file import read_split
from scanbench.store import Store
from scanbench.tipstate.attention import ATTENTION
from scanbench.tipstate.attribution import GRADIENT, STEPS
from scanbench.tipstate.explanation import (
    METHODS,
    areas_under,
    attribute,
    chance_of_hit,
    choose,
    explain,
    hit_rates,
    read_tables,
)
from scanbench.training import train

OPTIONS = {
    "scans": 5, "examples": 2, "steps": 8, "points": 4, "random_orders": 3, "fill": "zero",
    "seed": 0,
}  # fmt: skip
INTERVALS = {"bootstrap": 200, "confidence": 0.95, "seed": 0, "tolerance": 3}


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return make(tmp_path_factory.mktemp("study"), changes=True)


@pytest.fixture(scope="module")
def attributed(
    study: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, list[Path]]:
    """Explain a transformer with two seeds, and a convolutional network."""
    folder = tmp_path_factory.mktemp("attributed")
    found: dict[str, list[Path]] = {}
    for model, seeds in (("causal", (0, 1)), ("cnn-scan", (0,))):
        for seed in seeds:
            run, out = folder / model / f"run{seed}", folder / model / f"fold0-seed{seed}"
            train(spec(model, seed=seed, training={"epochs": 1}), *study, run)
            attribute(OPTIONS, *study, run, out)
            found.setdefault(model, []).append(out)
    return found


def test_only_whole_test_scans_are_explained_and_the_same_ones_by_every_model(
    study: tuple[Path, Path], attributed: dict[str, list[Path]]
) -> None:
    tables = [
        read_tables([path], "attributions") for paths in attributed.values() for path in paths
    ]
    explained = [set(zip(t["check"], t["scan_id"], strict=True)) for t in tables]
    assert explained[0] == explained[1] == explained[2]
    scans = {scan for _, scan in explained[0]}
    assert scans <= set(ids(study[1], "test"))
    with Store(study[0]) as data:
        assert (data.n_lines[data.index_of(sorted(scans))] == LINES).all()
    by_check = pd.Series([check for check, _ in explained[0]]).value_counts()
    assert by_check.to_dict() == {"localisation": 5, "faithfulness": 5}


def test_every_method_that_a_model_has_attributes_every_line(
    attributed: dict[str, list[Path]],
) -> None:
    for model, wanted in (
        ("causal", (*ATTENTION, *GRADIENT, *STEPS)),
        ("cnn-scan", (*GRADIENT, *STEPS)),
    ):
        table = read_tables(attributed[model][:1], "attributions")
        assert tuple(dict.fromkeys(table["method"])) == wanted
        assert table["value"].notna().all()
        per_method = table.groupby(["check", "scan_id", "method"])["line"].agg(list)
        assert all(lines == list(range(LINES)) for lines in per_method)


def test_a_tip_change_is_explained_by_its_label_and_other_scans_by_the_prediction(
    attributed: dict[str, list[Path]],
) -> None:
    table = read_tables(attributed["cnn-scan"], "attributions")
    for check, column in (("localisation", "label"), ("faithfulness", "predicted")):
        part = table[table["check"] == check]
        assert (part["explained"] == part[column]).all()
    assert (table.loc[table["check"] == "localisation", "change_line"] == 7).all()


def test_curves_begin_and_end_with_the_whole_scan_and_without_any_line(
    attributed: dict[str, list[Path]],
) -> None:
    table = read_tables(attributed["causal"][:1], "curves")
    assert set(table["method"]) == {*ATTENTION, *GRADIENT, *STEPS, "random"}
    ends = table.pivot(
        index=["scan_id", "method"], columns="share", values=["deletion", "insertion"]
    )
    for metric, whole, empty in (("deletion", 0.0, 1.0), ("insertion", 1.0, 0.0)):
        for share in (whole, empty):
            spread = ends[metric, share].groupby("scan_id").agg(np.ptp)
            assert (spread < 1e-6).all()
    assert np.allclose(ends["deletion", 0.0], ends["insertion", 1.0])
    attributions = read_tables(attributed["causal"][:1], "attributions")
    known = attributions[attributions["check"] == "faithfulness"].drop_duplicates("scan_id")
    p = known.set_index("scan_id")["p_explained"]
    begin = ends["deletion", 0.0].groupby("scan_id").first()
    assert np.allclose(begin, p[begin.index], atol=1e-6)


def test_the_same_run_gives_the_same_bytes(
    study: tuple[Path, Path], attributed: dict[str, list[Path]], tmp_path: Path
) -> None:
    first = attributed["cnn-scan"][0]
    attribute(OPTIONS, *study, first.parent / "run0", tmp_path / "again")
    for name in ("attributions.parquet", "curves.parquet", "maps.npz"):
        assert (tmp_path / "again" / name).read_bytes() == (first / name).read_bytes()
    record = json.loads((first / "attribute.json").read_text())
    assert set(record["inputs"]) == {"store", "split", "weights", "model"}
    with np.load(first / "maps.npz", allow_pickle=False) as maps:
        assert maps["saliency"].shape == (2, LINES, PIXELS)


def test_a_run_of_another_split_is_refused(
    study: tuple[Path, Path], attributed: dict[str, list[Path]], tmp_path: Path
) -> None:
    store, split = study
    other = tmp_path / "split.json"
    other.write_text(json.dumps({**json.loads(split.read_text()), "seed": 1}))
    run = attributed["cnn-scan"][0].parent / "run0"
    with pytest.raises(UserError, match="was trained with another file"):
        attribute(OPTIONS, store, other, run, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_split_within_groups_is_refused(study: tuple[Path, Path]) -> None:
    store, split = study
    with Store(store) as data:
        document = {**read_split(split, data), "config": {"scheme": "random"}}
        with pytest.raises(UserError, match="'random' has scans of one group on both sides"):
            choose(data, document, 0, 5, 0)


def test_explain_writes_tables_and_figures(
    study: tuple[Path, Path], attributed: dict[str, list[Path]], tmp_path: Path
) -> None:
    whole = {**INTERVALS, "simulated": True, "data": "Simulated data: waves"}
    folders = {"cnn-scan": attributed["cnn-scan"]}
    explain(whole, folders, study[0], study[0].parent / "scans", tmp_path / "out")
    for file in ("localisation.csv", "curves.csv", "checks.svg", "curves.svg", "explain.json"):
        assert (tmp_path / "out" / file).is_file()
    assert [path.name for path in sorted((tmp_path / "out/scans").iterdir())] == [
        "cnn-scan.png",
        "cnn-scan.svg",
    ]
    faithfulness = pd.read_csv(tmp_path / "out/faithfulness.csv")
    assert set(faithfulness["metric"]) == {"deletion", "insertion"}
    assert (faithfulness.loc[faithfulness["method"] == "random", "difference"] == 0).all()


# --------------------------------------------------------------------------------------- scoring


def attributions(largest: dict[str, list[int]], lines: int = 20) -> pd.DataFrame:
    """Scans whose tip changes at line 10; a method's largest attribution stands where told."""
    rows = []
    for method, places in largest.items():
        for k, place in enumerate(places):
            for line in range(lines):
                rows.append(
                    {
                        "check": "localisation", "scan_id": f"scan{k}", "group": f"group{k // 2}",
                        "label": "defect", "predicted": "defect" if k else "rows",
                        "change_line": 10, "seed": 0, "method": method, "line": line,
                        "value": float(line == place),
                    }
                )  # fmt: skip
    return pd.DataFrame(rows)


def test_hits_are_counted_within_the_tolerance_and_chance_is_exact() -> None:
    table = attributions(
        {"attention": [10, 7, 13, 6], "line-step": [0, 0, 0, 14], "height-step": [9, 9, 9, 9]}
    )
    found = hit_rates(table, INTERVALS).set_index(["scans_of", "method"])
    assert found.loc[("all", "attention"), "value"] == 0.75
    assert found.loc[("all", "line-step"), "value"] == 0
    assert found.loc[("all", "height-step"), "value"] == 1
    assert found.loc[("all", "random"), "value"] == pytest.approx(7 / 20)
    assert found.loc[("all", "attention"), "above_chance"] == pytest.approx(0.75 - 7 / 20)
    assert found.loc[("right", "attention"), "value"] == pytest.approx(2 / 3)
    assert found.loc[("right", "attention"), ["groups", "scans"]].tolist() == [2, 3]
    # The interval is that of groups, of which one has 2 of 2 and one 1 of 2 hits.
    assert found.loc[("all", "attention"), ["low", "high"]].tolist() == [0.5, 1.0]
    assert list(dict.fromkeys(found.reset_index()["method"])) == [
        m for m in METHODS if m in {"attention", "line-step", "height-step", "random"}
    ]


def test_a_line_at_random_hits_a_change_at_the_edge_less_often() -> None:
    change = np.array([0, 2, 10, 19])
    assert chance_of_hit(change, 20, 3).tolist() == [4 / 20, 6 / 20, 7 / 20, 4 / 20]
    for place, p in zip(change, chance_of_hit(change, 20, 3), strict=True):
        assert p == np.mean(np.abs(np.arange(20) - place) <= 3)


def test_without_a_known_change_there_are_no_hits() -> None:
    table = attributions({"attention": [10]})
    empty = hit_rates(table.assign(check="faithfulness"), INTERVALS)
    assert empty.empty
    assert {"method", "value", "above_chance"} <= set(empty.columns)


def test_areas_are_compared_with_random_orders_scan_by_scan() -> None:
    def row(scan: str, method: str, deletion: list[float]) -> list[dict[str, Any]]:
        return [
            {
                "seed": 0, "scan_id": scan, "group": scan, "method": method, "share": share,
                "deletion": p, "insertion": 1 - p,
            }
            for share, p in zip((0, 0.5, 1), deletion, strict=True)
        ]  # fmt: skip

    table = pd.DataFrame(
        [
            *row("a", "saliency", [1, 0, 0]), *row("a", "random", [1, 0.5, 0]),
            *row("b", "saliency", [0.8, 0.4, 0]), *row("b", "random", [0.8, 0.8, 0]),
        ]
    )  # fmt: skip
    found = areas_under(table, INTERVALS).set_index(["metric", "method"])
    assert found.loc[("deletion", "saliency"), "value"] == pytest.approx((0.25 + 0.4) / 2)
    assert found.loc[("deletion", "saliency"), "difference"] == pytest.approx((-0.25 - 0.2) / 2)
    assert found.loc[("deletion", "saliency"), "difference_low"] == pytest.approx(-0.25)
    assert found.loc[("deletion", "saliency"), "difference_high"] == pytest.approx(-0.2)
    assert found.loc[("insertion", "saliency"), "difference"] == pytest.approx(0.225)


def test_seeds_that_explain_other_scans_are_refused(tmp_path: Path) -> None:
    for seed in (0, 1):
        folder = tmp_path / f"fold0-seed{seed}"
        folder.mkdir()
        pd.DataFrame({"seed": [seed], "scan_id": [f"scan{seed}"]}).to_parquet(
            folder / "attributions.parquet"
        )
    with pytest.raises(UserError, match="seeds explain different scans"):
        read_tables(sorted(tmp_path.iterdir()), "attributions")
    with pytest.raises(UserError, match=r"curves\.parquet: no such file; attribute the run again"):
        read_tables([tmp_path / "fold0-seed0"], "curves")
