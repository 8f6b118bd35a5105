"""The table of held-out predictions, and what a damaged run is told."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import pytest
import small_study
from small_study import CLASSES, LINES, ids, spec

from scanbench.errors import UserError
from scanbench.files import sha256_of
from scanbench.prediction import load_run, predict, predict_arrays
from scanbench.predictions import HeldOut, read_experiment
from scanbench.store import Store
from scanbench.training import train

#: Each way to answer: at the end, progressively from the first line, from the tenth, by windows.
KINDS: dict[str, dict[str, Any]] = {
    "features": {},
    "causal": {},
    "lrcn": {},
    "vit": {"window": {"lines": 6, "stride": 3}},
}


@pytest.fixture(scope="session")
def study(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return small_study.make(tmp_path_factory.mktemp("study"))


@pytest.fixture(scope="session")
def runs(study: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("runs")
    for model, changes in KINDS.items():
        wanted = spec(model, training={"epochs": 1}, seed=3, fold=1, **changes)
        train(wanted, *study, folder / model)
    return {model: folder / model for model in KINDS}


@pytest.mark.parametrize("model", KINDS)
def test_the_table_is_what_evaluation_wants(
    model: str, study: tuple[Path, Path], runs: dict[str, Path], tmp_path: Path
) -> None:
    out = tmp_path / "predictions.parquet"
    predict(*study, runs[model], out)
    table = read_experiment(model, [out], CLASSES, HeldOut.load(*study))
    assert set(table["scan_id"]) == set(ids(study[1], "test", fold=1))
    assert set(table["fold"]) == {1}
    assert set(table["seed"]) == {3}
    p_RC = table[[f"p_{name}" for name in CLASSES]].to_numpy()
    assert p_RC.dtype == np.float32
    assert np.abs(p_RC.sum(axis=1, dtype=np.float64) - 1).max() < 1e-6
    order = table[["scan_id", "first_line", "lines_seen"]]
    assert order.equals(order.sort_values(list(order.columns), ignore_index=True))
    record = json.loads((tmp_path / "predict.json").read_text())
    assert set(record["inputs"]) == {"store", "split", "weights", "model"}

    again = tmp_path / "again.parquet"
    predict(*study, runs[model], again)
    assert out.read_bytes() == again.read_bytes()


def test_scans_without_label_are_predicted_where_their_whole_group_is_held_out(
    runs: dict[str, Path], tmp_path: Path, study: tuple[Path, Path]
) -> None:
    store, split = small_study.make(tmp_path / "study")
    document = json.loads(split.read_text())
    tested = document["folds"][1]["test"]
    with h5py.File(store, "r+") as file:
        file["label"][:] = np.where(np.isin(file["scan_id"].asstr()[:], tested[::3]), -1, 0)
        lines = dict(zip(file["scan_id"].asstr()[:], file["n_lines"][:], strict=True))
    sha256 = sha256_of(store)
    for fold in document["folds"]:
        for part, names in fold.items():
            fold[part] = [name for name in names if name not in tested[::3]]
    for least, random in ((1, False), (LINES, False), (1, True)):
        changed = json.loads(json.dumps(document | {"store_sha256": sha256}))
        changed["config"] = {"min_lines": least}
        if random:  # one scan of each tested group is trained on
            fold = changed["folds"][1]
            fold["train"] += fold["test"][::2]
            fold["test"] = fold["test"][1::2]
        split.write_text(json.dumps(changed))
        run = tmp_path / f"run{least}{random}"
        shutil.copytree(runs["causal"], run)
        meta = json.loads((run / "model.json").read_text())
        meta |= {"store_sha256": sha256, "split_sha256": sha256_of(split)}
        (run / "model.json").write_text(json.dumps(meta))
        predict(store, split, run, run / "unlabelled.parquet", unlabelled=True)
        table = pd.read_parquet(run / "unlabelled.parquet")
        wanted = {name for name in tested[::3] if lines[name] >= least and not random}
        assert set(table["scan_id"]) == wanted
        assert set(table["label"]) <= {-1}
        assert json.loads((run / "unlabelled.json").read_text())["inputs"]
        assert not (run / "predict.json").exists()


def test_a_run_answers_only_about_the_split_and_the_store_that_it_was_trained_with(
    study: tuple[Path, Path], runs: dict[str, Path], tmp_path: Path
) -> None:
    """In another split of the same store, a test scan may have been trained on."""
    store, split = study
    document = json.loads(split.read_text())
    document["folds"].reverse()
    other = tmp_path / "split.json"
    other.write_text(json.dumps(document))
    with pytest.raises(
        UserError, match=r"another file than \S+split\.json \(split_sha256\)"
    ) as told:
        predict(store, other, runs["causal"], tmp_path / "predictions.parquet")
    assert "\n" not in str(told.value)
    another = small_study.make(tmp_path / "another", groups=9)
    with pytest.raises(UserError, match=r"another file than \S+store\.h5 \(store_sha256\)"):
        predict(*another, runs["causal"], tmp_path / "predictions.parquet")
    assert not (tmp_path / "predictions.parquet").exists()


def test_only_test_scans_are_read(
    study: tuple[Path, Path], runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: set[str] = set()
    read = Store.read

    def spy(self: Store, indices: Any, *args: Any, **kwargs: Any) -> Any:
        asked.update(self.scan_id[np.asarray(indices)].tolist())
        return read(self, indices, *args, **kwargs)

    monkeypatch.setattr(Store, "read", spy)
    predict(*study, runs["causal"], tmp_path / "predictions.parquet")
    assert asked == set(ids(study[1], "test", fold=1))


def test_each_kind_of_model_answers_when_it_can(
    study: tuple[Path, Path], runs: dict[str, Path]
) -> None:
    n_lines_N = np.array([LINES, 12, 5])
    with Store(study[0]) as store:
        x_NLP = store.read([0, 1, 2], "line")
    x_NLP[np.arange(LINES) >= n_lines_N[:, None]] = 0

    def rows(model: str) -> dict[int, list[tuple[int, int, bool, bool]]]:
        found = predict_arrays(load_run(runs[model]), x_NLP, n_lines_N)
        columns = (found.first_line, found.lines_seen, found.final, found.fallback)
        listed = list(zip(*(column.tolist() for column in columns), strict=True))
        return {
            scan: [row for at, row in zip(found.scan, listed, strict=True) if at == scan]
            for scan in range(3)
        }

    assert rows("features") == {k: [(0, int(n), True, False)] for k, n in enumerate(n_lines_N)}
    assert rows("causal") == {
        k: [(0, line, line == n, False) for line in range(1, n + 1)]
        for k, n in enumerate(n_lines_N.tolist())
    }
    assert rows("lrcn") == {
        0: [(0, line, line == 16, False) for line in (10, 12, 14, 16)],
        1: [(0, 10, False, False), (0, 12, True, False)],
        2: [(0, 5, True, True)],  # too short for a window: the prior
    }
    assert rows("vit") == {
        0: [(first, first + 6, True, False) for first in (0, 3, 6, 9)],
        1: [(first, first + 6, True, False) for first in (0, 3, 6)],
        2: [(0, 5, True, True)],
    }


def test_a_scan_that_is_too_short_gets_what_the_model_would_say_of_nothing(
    study: tuple[Path, Path], runs: dict[str, Path], tmp_path: Path
) -> None:
    short = np.zeros((1, LINES, small_study.PIXELS), np.float32)
    weighted = predict_arrays(load_run(runs["lrcn"]), short, np.array([4]))
    assert weighted.probability[0] == pytest.approx(np.full(len(CLASSES), 1 / len(CLASSES)))
    plain = spec("lrcn", training={"epochs": 1, "class_weights": False})
    train(plain, *study, tmp_path / "run")
    run = load_run(tmp_path / "run")
    count_C = np.array(run.meta["class_counts"])
    found = predict_arrays(run, short, np.array([4]))
    assert found.probability[0] == pytest.approx(count_C / count_C.sum())


@pytest.mark.parametrize("model", KINDS)
def test_the_size_of_a_batch_changes_nothing(
    model: str, study: tuple[Path, Path], runs: dict[str, Path]
) -> None:
    run = load_run(runs[model])
    with Store(study[0]) as store:
        x_NLP, n_lines_N = store.read(range(12), "line"), store.n_lines[:12]
    reference = predict_arrays(run, x_NLP, n_lines_N)
    for batch_size in (1, 5):
        other = predict_arrays(run, x_NLP, n_lines_N, batch_size=batch_size)
        assert np.array_equal(other.lines_seen, reference.lines_seen)
        assert other.probability == pytest.approx(reference.probability, abs=1e-5)


def test_majority_gives_the_class_shares(study: tuple[Path, Path], tmp_path: Path) -> None:
    train(spec("majority"), *study, tmp_path / "run")
    out = tmp_path / "run" / "predictions.parquet"
    predict(*study, tmp_path / "run", out)
    table = pd.read_parquet(out)
    count_C = np.array(load_run(tmp_path / "run").meta["class_counts"])
    for k, name in enumerate(CLASSES):
        assert table[f"p_{name}"].to_numpy() == pytest.approx(count_C[k] / count_C.sum())


def test_features_learn_the_period_of_a_line(study: tuple[Path, Path], tmp_path: Path) -> None:
    train(spec("features"), *study, tmp_path / "run")
    out = tmp_path / "run" / "predictions.parquet"
    predict(*study, tmp_path / "run", out)
    table = pd.read_parquet(out)
    guess = table[[f"p_{name}" for name in CLASSES]].to_numpy().argmax(1)
    assert (guess == table["label"]).mean() > 0.9


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda run: (run / "model.json").unlink(), r"model\.json: no such file"),
        (lambda run: (run / "weights.safetensors").unlink(), r"weights\.safetensors: no such file"),
        (lambda run: (run / "model.json").write_text("{"), r"model\.json: not JSON"),
        (
            lambda run: (run / "model.json").write_text("[]"),
            "schema_version is not 1|holds no JSON object",
        ),
        (lambda run: (run / "weights.safetensors").write_bytes(b"x"), "does not match model.json"),
        (lambda run: _edit(run, classes=None), "classes is missing or no list"),
        (lambda run: _edit(run, model="causall"), "no model 'causall'; did you mean 'causal'?"),
        (lambda run: _edit(run, options={"d_model": 64}), "does not fit model causal"),
    ],
)
def test_a_damaged_run_is_told_in_one_line(
    damage: Any, message: str, runs: dict[str, Path], tmp_path: Path
) -> None:
    for name in ("model.json", "weights.safetensors"):
        (tmp_path / name).write_bytes((runs["causal"] / name).read_bytes())
    damage(tmp_path)
    with pytest.raises(UserError, match=message) as caught:
        load_run(tmp_path)
    assert "\n" not in str(caught.value)


def _edit(run: Path, **changes: Any) -> None:
    meta = json.loads((run / "model.json").read_text())
    (run / "model.json").write_text(json.dumps(meta | changes))


def test_scans_of_another_size_are_refused(runs: dict[str, Path]) -> None:
    with pytest.raises(UserError, match="trained on 16 × 16; convert them to that"):
        predict_arrays(load_run(runs["causal"]), np.zeros((1, 8, 16), np.float32), np.array([8]))
