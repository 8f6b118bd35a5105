"""Withheld classes are never seen, and scores of strangeness are what their papers say."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from prediction_data import CLASSES as FOUR
from prediction_data import held_out, scans
from scipy.spatial.distance import mahalanobis
from sklearn.covariance import LedoitWolf
from small_study import CLASSES, LINES, PIXELS, ids, make, spec
from torch import Tensor

from scanbench.errors import UserError
from scanbench.files import sha256_of
from scanbench.prediction import predict
from scanbench.runs import load_run
from scanbench.samples import trained_classes
from scanbench.store import Store
from scanbench.tipstate.anomaly import (
    SCORES,
    Gaussians,
    anomaly_scores,
    answers_and_features,
    attention_entropy,
    aurocs,
    drawing,
    energy,
    max_softmax,
    read_scores,
)
from scanbench.tipstate.models import build
from scanbench.training import train

INTERVALS = {"bootstrap": 200, "confidence": 0.95, "seed": 0, "withheld": ["defect"]}


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return make(tmp_path_factory.mktemp("study"))


def withholding(model: str, **changes: Any) -> dict[str, Any]:
    return spec(model, withhold=["defect"], training={"epochs": 1}, **changes)


@pytest.fixture(scope="module")
def runs(study: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Runs of several kinds of model that never saw class `defect`, with their scores."""
    folder = tmp_path_factory.mktemp("runs")
    for model in ("features", "cnn-scan", "causal"):
        train(withholding(model), *study, folder / model)
        anomaly_scores(*study, folder / model, folder / model / "anomaly.parquet")
    return {path.name: path for path in folder.iterdir()}


# ------------------------------------------------------------------------------------ withholding


@given(
    withheld=st.lists(st.sampled_from("abcde"), max_size=3, unique=True),
    labels=st.lists(st.integers(-1, 4), max_size=30),
)
def test_withheld_classes_have_no_index_and_others_keep_their_name(
    withheld: list[str], labels: list[int]
) -> None:
    kept, new_N = trained_classes("abcde", withheld, np.array(labels, int))
    assert kept == [name for name in "abcde" if name not in withheld]
    for old, new in zip(labels, new_N, strict=True):
        known = old >= 0 and "abcde"[old] not in withheld
        assert (kept[new] == "abcde"[old]) if known else new == -1


def test_what_cannot_be_withheld_is_refused() -> None:
    with pytest.raises(UserError, match="withhold: no class 'defct'; did you mean 'defect'"):
        trained_classes(CLASSES, ["defct"], np.array([0]))
    with pytest.raises(UserError, match="leaves fewer than two classes"):
        trained_classes(CLASSES, ["defect", "rows"], np.array([0]))


@pytest.mark.parametrize("model", ["cnn-scan", "features"])
def test_scans_of_withheld_classes_are_never_read_in_training(
    study: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: str
) -> None:
    asked: set[str] = set()
    read = Store.read

    def spy(self: Store, indices: Any, *args: Any, **kwargs: Any) -> Any:
        asked.update(self.scan_id[np.asarray(indices)].tolist())
        return read(self, indices, *args, **kwargs)

    monkeypatch.setattr(Store, "read", spy)
    train(withholding(model), *study, tmp_path / model)
    with Store(study[0]) as data:
        label_of = dict(zip(data.scan_id.tolist(), data.label.tolist(), strict=True))
    given_scans = {*ids(study[1], "train"), *ids(study[1], "validation")}
    assert asked == {scan for scan in given_scans if CLASSES[label_of[scan]] != "defect"}


def test_other_heights_of_withheld_scans_change_no_weight(
    study: tuple[Path, Path], runs: dict[str, Path], tmp_path: Path
) -> None:
    store, split = tmp_path / "store.h5", tmp_path / "split.json"
    store.write_bytes(study[0].read_bytes())
    with h5py.File(store, "r+") as file:
        withheld = file["label"][:] == CLASSES.index("defect")
        for k in np.flatnonzero(withheld):
            file["scans"][k] = 1e-9
    document = {**json.loads(study[1].read_text()), "store_sha256": sha256_of(store)}
    split.write_text(json.dumps(document))
    train(withholding("cnn-scan"), store, split, tmp_path / "run")
    weights = (tmp_path / "run" / "weights.safetensors").read_bytes()
    assert weights == (runs["cnn-scan"] / "weights.safetensors").read_bytes()


def test_a_run_that_cannot_name_a_class_is_of_no_other_use(
    study: tuple[Path, Path], runs: dict[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="defect was withheld from its training"):
        load_run(runs["cnn-scan"])
    with pytest.raises(UserError, match="serves an anomaly comparison only"):
        predict(*study, runs["cnn-scan"], tmp_path / "predictions.parquet")
    run = load_run(runs["cnn-scan"], withheld=True)
    assert run.classes == ["atoms", "rows"]
    assert run.meta["withheld"] == ["defect"]
    assert len(run.meta["prior"]) == len(run.meta["class_counts"]) == 2


def test_a_run_that_knows_every_class_is_not_scored(
    study: tuple[Path, Path], tmp_path: Path
) -> None:
    train(spec("majority"), *study, tmp_path / "run")
    with pytest.raises(UserError, match="no class was withheld"):
        anomaly_scores(*study, tmp_path / "run", tmp_path / "anomaly.parquet")


# ----------------------------------------------------------------------------------------- scores


@given(logits=st.lists(st.floats(-30, 30), min_size=2, max_size=6), shift=st.floats(-30, 30))
def test_energy_is_the_free_energy_of_the_logits(logits: list[float], shift: float) -> None:
    z_BC = torch.tensor([logits], dtype=torch.float64)
    # p(y | x) = exp(f_y(x) + E(x)): eq. 2 to 4 of Liu et al. 2020.
    torch.testing.assert_close(z_BC.softmax(1), (z_BC + energy(z_BC)[:, None]).exp())
    torch.testing.assert_close(energy(z_BC + shift), energy(z_BC) - shift)
    torch.testing.assert_close(max_softmax(z_BC + shift), max_softmax(z_BC))


def test_a_model_that_does_not_know_is_strangest() -> None:
    even, sure = torch.zeros(1, 4), torch.tensor([[100.0, 0, 0, 0]])
    assert float(max_softmax(even)) == pytest.approx(0.75)
    assert float(max_softmax(sure)) == 0
    assert float(energy(even)) == pytest.approx(-math.log(4))
    assert float(energy(sure)) == pytest.approx(-100)


@given(n=st.integers(2, 9), scale=st.floats(0.01, 100))
def test_attention_entropy_is_1_for_even_attention_and_0_for_one_line(n: int, scale: float) -> None:
    even_BL = torch.zeros(1, 9, dtype=torch.float64)
    even_BL[0, :n] = scale
    one_BL = torch.zeros_like(even_BL)
    one_BL[0, n - 1] = scale
    n_lines_B = torch.tensor([n])
    assert float(attention_entropy(even_BL, n_lines_B)) == pytest.approx(1)
    assert float(attention_entropy(one_BL, n_lines_B)) == 0
    assert float(attention_entropy(torch.ones(1, 1), torch.tensor([1]))) == 0


def test_distances_are_mahalanobis_to_the_nearest_mean() -> None:
    rng = np.random.default_rng(0)
    mixing = rng.normal(size=(3, 3))
    label_R = np.repeat([0, 1], 200)
    feature_RF = rng.normal(size=(400, 3)) @ mixing + 5 * label_R[:, None]
    gaussians = Gaussians.of(feature_RF, label_R, 2)
    scaled_RF = feature_RF / feature_RF.std(axis=0)
    means = [scaled_RF[label_R == c].mean(axis=0) for c in (0, 1)]
    fitted = LedoitWolf(assume_centered=True).fit(
        np.concatenate([scaled_RF[label_R == c] - means[c] for c in (0, 1)])
    )
    expected = [
        min(mahalanobis(row, mean, fitted.precision_) ** 2 for mean in means) for row in scaled_RF
    ]
    np.testing.assert_allclose(gaussians.distance(feature_RF), expected)
    own = np.stack([feature_RF[label_R == c].mean(axis=0) for c in (0, 1)])
    np.testing.assert_allclose(gaussians.distance(own), 0, atol=1e-12)
    # The unit of a feature does not matter, nor one that is constant.
    unit_F = np.array([1e-3, 1.0, 1e4])
    with_constant_RF = np.column_stack([feature_RF * unit_F, np.full(400, 7.0)])
    others = Gaussians.of(with_constant_RF, label_R, 2)
    assert np.corrcoef(others.distance(with_constant_RF), expected)[0, 1] > 0.999


@pytest.mark.parametrize("name", ["vit", "vit-prefix", "causal", "cnn-scan", "lrcn", "features"])
def test_features_are_what_the_answer_is_read_from(name: str) -> None:
    torch.manual_seed(0)
    model = build(name, spec(name)["options"], LINES, PIXELS, 3).eval()
    x_BLP = torch.randn(2, LINES, PIXELS)
    n_lines_B = torch.tensor([LINES, LINES])
    logits_BTC = model(x_BLP, n_lines_B)
    last_B = torch.full((2,), logits_BTC.shape[1] - 1)
    logits_BC, feature_BF = answers_and_features(model, x_BLP, n_lines_B, last_B)
    assert torch.equal(logits_BC, logits_BTC[:, -1])
    assert feature_BF is not None
    head = getattr(model, "head", None)
    if head is None:
        assert torch.equal(feature_BF, model.features(x_BLP, n_lines_B))  # type: ignore[operator]
    else:
        torch.testing.assert_close(head(feature_BF)[:, :3], logits_BC)
        assert not head._forward_pre_hooks


def test_a_model_without_features_has_none() -> None:
    model = build("majority", {}, LINES, PIXELS, 3)
    x_BLP: Tensor = torch.randn(1, LINES, PIXELS)
    logits_BC, feature_BF = answers_and_features(
        model, x_BLP, torch.tensor([LINES]), torch.tensor([0])
    )
    assert logits_BC.shape == (1, 3)
    assert feature_BF is None


# ----------------------------------------------------------------------------------------- stages


def test_every_test_scan_is_scored_once_also_withheld_ones(
    study: tuple[Path, Path], runs: dict[str, Path]
) -> None:
    for name, run in runs.items():
        table = pd.read_parquet(run / "anomaly.parquet")
        assert sorted(table["scan_id"]) == sorted(ids(study[1], "test"))
        assert (table["withheld"] == (table["label"] == CLASSES.index("defect"))).all()
        assert 0 < table["withheld"].sum() < len(table)
        scores = [c.removeprefix("score_") for c in table.columns if c.startswith("score_")]
        lacking = {"attention-entropy"} if name != "causal" else set()
        assert scores == [score for score in SCORES if score not in lacking]
        record = json.loads((run / "anomaly.json").read_text())
        assert set(record["inputs"]) == {"store", "split", "weights", "model"}


def test_no_model_takes_part_in_the_trivial_score(runs: dict[str, Path]) -> None:
    steps = [pd.read_parquet(run / "anomaly.parquet")["score_line-step"] for run in runs.values()]
    assert all(step.equals(steps[0]) for step in steps[1:])


def test_a_test_scan_too_short_for_a_model_is_named(
    study: tuple[Path, Path], tmp_path: Path
) -> None:
    train(withholding("lrcn"), *study, tmp_path / "run")
    with pytest.raises(UserError, match=r"cannot answer about test scan 'scan\d+', which has \d"):
        anomaly_scores(*study, tmp_path / "run", tmp_path / "anomaly.parquet")


def scored(skill: float, seeds: int = 2) -> pd.DataFrame:
    """Scores of scans whose class `defect` is stranger by `skill`."""
    every = scans()
    rng = np.random.default_rng(0)
    frames = []
    for seed in range(seeds):
        frame = every.reset_index()[["scan_id", "group", "label"]].assign(fold=0, seed=seed)
        frame["withheld"] = frame["label"] == FOUR.index("defect")
        noise = rng.normal(size=len(frame))
        frame["score_max-softmax"] = noise
        frame["score_energy"] = noise + skill * frame["withheld"]
        frames.append(frame)
    return pd.concat(frames, ignore_index=True)


def test_a_score_that_always_tells_has_auroc_1_and_its_difference_an_interval() -> None:
    found = aurocs(scored(100), FOUR, INTERVALS).set_index(["score", "against"])
    for against in ("", "atoms", "asymmetry/dimer", "rows"):
        assert found.loc[("energy", against), ["value", "low", "high"]].tolist() == [1, 1, 1]
        difference = found.loc[("energy", against), "difference"]
        assert difference == pytest.approx(1 - found.loc[("max-softmax", against), "value"])
        assert found.loc[("max-softmax", against), "difference"] == 0
    assert found.loc[("energy", ""), ["seeds", "groups", "scans", "withheld"]].tolist() == [
        2, 6, 48, 12,
    ]  # fmt: skip
    assert found.loc[("energy", "rows"), "scans"] == 24
    turned = aurocs(scored(-100), FOUR, INTERVALS).set_index(["score", "against"])
    assert turned.loc[("energy", ""), "value"] == 0


def test_scores_of_other_scans_than_the_test_part_are_refused(tmp_path: Path) -> None:
    every, table = scans(), scored(1, seeds=1)
    held = held_out(every)

    def read(frame: pd.DataFrame) -> pd.DataFrame:
        folder = tmp_path / "run"
        folder.mkdir(exist_ok=True)
        frame.to_parquet(folder / "anomaly.parquet")
        return read_scores("vit", [folder], held, ["defect"])

    assert len(read(table)) == len(every)
    with pytest.raises(UserError, match="is not about the test scans of its fold"):
        read(table.iloc[1:])
    with pytest.raises(UserError, match="withheld disagrees"):
        read(table.assign(withheld=False))
    with pytest.raises(UserError, match="a score is NaN or infinite"):
        read(table.assign(score_energy=math.nan))
    with pytest.raises(UserError, match="no such file; score the run again"):
        read_scores("vit", [tmp_path / "absent"], held, ["defect"])


def test_the_figure_names_what_was_withheld_and_says_when_scans_are_simulated() -> None:
    found = aurocs(scored(1), FOUR, INTERVALS).assign(experiment="vit")
    figure = drawing(found, ["vit"], ["defect"], simulated=True)
    texts = [text.get_text() for text in figure.findobj(match=lambda a: hasattr(a, "get_text"))]
    assert "Flagging simulated scans of a kind never trained on: defect" in texts
    assert {"against all known", "against atoms"} <= set(texts)
