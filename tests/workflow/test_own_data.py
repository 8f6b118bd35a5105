"""A user's own data through the real Snakefile: what works, and one clear line for what cannot."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import pytest
from conftest import Project

from scanbench.store import Store
from scanbench.tipstate import CLASSES

pytestmark = pytest.mark.workflow

SPLIT = "results/data/mine/splits/sessions.json"
SESSIONS, EACH, LINES, PIXELS = 12, 4, 16, 20


def mine(path: str | Path, labels: str | Path | None = None, **ingest: Any) -> dict[str, Any]:
    """Return the overlay that `config/own-folder.yaml` shows, with a small store."""
    return {
        "targets": ["mine"],
        "datasets": {
            "mine": {
                "title": "My scans",
                "source": "files",
                "path": str(path),
                "labels": None if labels is None else str(labels),
                "ingest": {"min_lines": 12, **ingest},
                "store": {"lines": 16, "pixels": 16},
            }
        },
        "comparisons": {
            "mine": {
                "title": "Mine",
                "dataset": "mine",
                "split": "sessions",
                "seeds": [0],
                "experiments": ["majority"],
            }
        },
        "experiments": {"lrcn-w20": {"model": "lrcn"}},
    }


def heights() -> np.ndarray:
    """Return noise [n, L, P]; every scan is unlike the others."""
    shape = (SESSIONS * EACH, LINES, PIXELS)
    return np.random.default_rng(0).normal(size=shape).astype("f4")


def labels() -> np.ndarray:
    """Return class numbers [n]: every session holds every class."""
    return np.tile(np.arange(EACH), SESSIONS)


def groups() -> np.ndarray:
    return np.repeat([f"day{k:02d}" for k in range(SESSIONS)], EACH)


def split_of(project: Project, config: dict[str, Any]) -> dict[str, Any]:
    project.snakemake("--cores", "2", SPLIT, config=config)
    return json.loads((project.folder / SPLIT).read_text(encoding="utf-8"))


def manifest(project: Project) -> pd.DataFrame:
    return pd.read_csv(project.folder / "results/data/mine/scans/manifest.csv", dtype=str)


def assert_groups_apart(project: Project, split: dict[str, Any], n_groups: int) -> None:
    group = dict(manifest(project)[["scan_id", "group"]].itertuples(index=False))
    fold = split["folds"][0]
    parts = [{group[scan] for scan in fold[part]} for part in ("train", "validation", "test")]
    assert all(parts)
    assert len(set.union(*parts)) == sum(map(len, parts)) == n_groups
    assert split["audit"][0]["shared_groups"] == []


def refused(project: Project, config: dict[str, Any], target: str = SPLIT) -> str:
    """Run what must fail, and return the one line that says why."""
    done = project.snakemake("--cores", "2", target, config=config, check=False)
    said = done.stdout + done.stderr
    assert done.returncode != 0
    assert "Traceback" not in said
    lines = [line for line in said.splitlines() if line.startswith("scanbench: error: ")]
    assert len(lines) == 1, said[-4000:]
    return lines[0].removeprefix("scanbench: error: ")


# --------------------------------------------------------------------------------- folder of files


@pytest.fixture
def folder(finished: Project, tmp_path: Path) -> Path:
    """Give a folder of Nanonis files in one folder a session, and `labels.csv` beside it."""
    source = finished.folder / "results/data/simulated/source"
    shutil.copytree(source, tmp_path / "my scans", ignore=shutil.ignore_patterns("*.csv"))
    shutil.copy(source / "labels.csv", tmp_path / "labels.csv")
    return tmp_path / "my scans"


def test_folder_and_table_run_though_one_file_is_broken(project: Project, folder: Path) -> None:
    whole = sorted(folder.rglob("*.sxm"))
    (folder / "broken.sxm").write_bytes(whole[0].read_bytes()[:700])
    table = folder.parent / "labels.csv"
    split = split_of(project, mine(folder, table, group="table"))
    scans = manifest(project)
    expected = pd.read_csv(table, dtype=str).set_index("scan")
    assert len(scans) == len(whole) == len(expected)
    assert dict(zip(scans["scan_id"], scans["label"], strict=True)) == dict(expected["label"])
    assert dict(zip(scans["scan_id"], scans["group"], strict=True)) == dict(expected["group"])
    rejected = pd.read_csv(project.folder / "results/data/mine/scans/rejected.csv")
    assert list(rejected["file"]) == ["broken.sxm"]
    assert rejected["reason"].str.len().gt(10).all()
    assert_groups_apart(project, split, expected["group"].nunique())


def test_missing_folder_plans_and_then_is_one_clear_line(project: Project) -> None:
    config = mine("/nowhere/my scans", "/nowhere/labels.csv")
    assert ("ingest", "dataset=mine") in project.planned(config=config)
    line = refused(project, config)
    assert line.startswith("mine: /nowhere/my scans: no such data folder or file")


def test_missing_label_table_is_one_clear_line(project: Project, folder: Path) -> None:
    line = refused(project, mine(folder, "/nowhere/labels.csv"))
    assert "/nowhere/labels.csv" in line


def test_changed_table_reruns_from_ingest_on(project: Project, folder: Path) -> None:
    table = folder.parent / "labels.csv"
    config = mine(folder, table, group="table")
    split_of(project, config)
    assert project.planned(SPLIT, config=config) == set()
    rows = table.read_text(encoding="utf-8").splitlines()
    table.write_text("\n".join(rows[:-1]) + "\n", encoding="utf-8")
    planned = project.planned(SPLIT, config=config)
    assert {rule for rule, _ in planned} == {"ingest", "convert", "split"}


def test_a_scan_replaced_in_place_by_one_of_its_size_reruns_from_ingest_on(
    project: Project, folder: Path
) -> None:
    config = mine(folder, folder.parent / "labels.csv", group="table")
    split_of(project, config)
    first = min(folder.rglob("*.sxm"))
    content = first.read_bytes()
    first.write_bytes(content)
    assert project.planned(SPLIT, config=config) == set()
    assert "every checksum holds" in project.run("scanbench", "verify", "results").stdout
    first.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    verified = project.run("scanbench", "verify", "results", check=False)
    assert verified.returncode == 1
    (fault, _) = verified.stdout.splitlines()
    assert fault.startswith(f"{first}: its SHA-256 is ")
    assert fault.endswith(": restore it, or run again with it")
    planned = project.planned(SPLIT, config=config)
    assert {rule for rule, _ in planned} == {"ingest", "convert", "split"}


# ------------------------------------------------------------------------------------- one file


def write_npz(path: Path, **change: Any) -> Path:
    arrays = {"images": heights(), "labels": labels(), "groups": groups(), **change}
    np.savez(path, **{key: value for key, value in arrays.items() if value is not None})
    return path


def assert_store_holds(project: Project, scans: np.ndarray, numbers: np.ndarray) -> None:
    with Store(project.folder / "results/data/mine/store.h5") as store:
        assert list(store.classes) == list(CLASSES)
        assert len(store) == len(scans)
        assert np.array_equal(store.label, numbers)
        assert np.allclose(store.statistics["scan_mean"], scans.mean((1, 2)), atol=0.05)


def test_npz_runs(project: Project, tmp_path: Path) -> None:
    split = split_of(project, mine(write_npz(tmp_path / "scans.npz")))
    assert_store_holds(project, heights(), labels())
    assert_groups_apart(project, split, SESSIONS)


def test_matlab_file_runs(project: Project, tmp_path: Path) -> None:
    # MATLAB's x_raw [pixels, lines·n] and one-hot y [classes, n] are reversed in HDF5.
    path = tmp_path / "scans.mat"
    with h5py.File(path, "w", userblock_size=512) as file:
        file["x_raw"] = heights().reshape(-1, PIXELS)
        file["y"] = np.eye(len(CLASSES))[labels()]
    with path.open("r+b") as file:
        file.write(b"MATLAB 7.3 MAT-file, Platform: GLNXA64".ljust(124) + b"\x00\x02IM")
    split = split_of(project, mine(path, group="scan"))
    assert_store_holds(project, heights(), labels())
    assert_groups_apart(project, split, SESSIONS * EACH)


MISTAKES: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "one group only": (
        {"groups": np.full(SESSIONS * EACH, "day")},
        ("datasets.mine.ingest.group",),
    ),
    "no labels": ({"labels": None}, ("label",)),
    "label out of range": ({"labels": labels() + 1}, ("scans.npz", "4", "out of range")),
    "pickled images": ({"images": np.array([None, 1], object)}, ("scans.npz", "pickle")),
    "nothing but NaN": ({"images": heights() * np.nan}, ("scans.npz", "NaN")),
    "images of one dimension too few": ({"images": heights()[0]}, ("scans.npz", "(16, 20)")),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_data_that_cannot_be_used_are_one_clear_line(
    project: Project, tmp_path: Path, mistake: str
) -> None:
    change, words = MISTAKES[mistake]
    line = refused(project, mine(write_npz(tmp_path / "scans.npz", **change)))
    for word in words:
        assert word in line, line
