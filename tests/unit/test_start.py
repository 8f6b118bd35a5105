"""Training that starts from another run, and never from one that knows what is tested."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import small_study
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_study import ids, spec

from scanbench.errors import UserError
from scanbench.files import sha256_of
from scanbench.runs import load_run
from scanbench.samples import share_of
from scanbench.start import SEEN
from scanbench.store import Store
from scanbench.training import train

Study = tuple[Path, Path]
#: Another digit for each.
OTHER = bytes.maketrans(b"0123456789abcdef", b"fedcba9876543210")
AS_IT_IS: dict[str, Any] = {"training": {"epochs": 0}}


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Study:
    return small_study.make(tmp_path_factory.mktemp("real"))


@pytest.fixture(scope="module")
def simulated(real: Study, tmp_path_factory: pytest.TempPathFactory) -> Study:
    """Give a study of other scans, as far as their hashes tell."""
    return edited(real, tmp_path_factory.mktemp("simulated"), hashes=("file", "scan"))


def edited(
    study: Study, folder: Path, *, hashes: tuple[str, ...] = (), **attributes: str | list[str]
) -> Study:
    """Copy a study with other hashes, or other attributes of its store."""
    folder.mkdir(exist_ok=True)
    store, split = folder / "store.h5", folder / "split.json"
    shutil.copy(study[0], store)
    with h5py.File(store, "r+") as file:
        for name in hashes:
            old = file[f"{name}_sha256"]
            old[:] = np.array([sha256.translate(OTHER) for sha256 in old[:]], old.dtype)
        for key, value in attributes.items():
            file.attrs[key] = value if isinstance(value, str) else json.dumps(value)
    document = json.loads(study[1].read_text()) | {"store_sha256": sha256_of(store)}
    split.write_text(json.dumps(document))
    return store, split


@pytest.fixture(scope="module")
def start(simulated: Study, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("start") / "run"
    train(spec(training={"epochs": 1}), *simulated, folder)
    return folder


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_run(run).model.state_dict()


def hashes_of(study: Study, *parts: str) -> set[str]:
    with Store(study[0]) as store:
        scans = [k for part in parts for k in store.index_of(ids(study[1], part))]
        return {*store.file_sha256[scans].tolist(), *store.scan_sha256[scans].tolist()}


def test_without_an_epoch_the_start_is_taken_as_it_is_and_no_label_counts(
    real: Study, start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object, **__: object) -> None:
        raise AssertionError("a scan was read")

    with monkeypatch.context() as patch:
        patch.setattr(Store, "read", refused)
        train(spec(**AS_IT_IS), *real, tmp_path / "run", start)
    assert (tmp_path / "run/weights.safetensors").read_bytes() == (
        start / "weights.safetensors"
    ).read_bytes()
    ours, theirs = (load_run(run).meta for run in (tmp_path / "run", start))
    for key in ("prior", "class_counts", "class_weights"):
        assert ours[key] == theirs[key]
    assert ours["best_epoch"] == 0
    assert ours["start"]["weights_sha256"] == theirs["weights_sha256"]
    with (tmp_path / "run/history.csv").open(newline="") as file:
        assert list(csv.DictReader(file)) == []
    assert (tmp_path / "run" / SEEN).read_bytes() == (start / SEEN).read_bytes()


def test_training_goes_on_from_the_weights_of_the_start(
    real: Study, start: Path, tmp_path: Path
) -> None:
    still = {"epochs": 1, "learning_rate": 1e-12}
    train(spec(training=still), *real, tmp_path / "run", start)
    ours, theirs = weights(tmp_path / "run"), weights(start)
    for name, parameter in load_run(start).model.named_parameters():
        torch.testing.assert_close(ours[name], parameter, rtol=0, atol=1e-8)
    # The statistics of the batch normalisations are those of the new scans.
    assert any(not torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_frozen_backbone_keeps_its_weights_and_statistics(
    real: Study, start: Path, tmp_path: Path
) -> None:
    train(spec(training={"frozen": "backbone"}), *real, tmp_path / "run", start)
    ours, theirs = weights(tmp_path / "run"), weights(start)
    changed = {name for name in ours if not torch.equal(ours[name], theirs[name])}
    assert changed == {"head.weight", "head.bias"}
    assert load_run(tmp_path / "run").meta["parameters"] == sum(
        ours[name].numel() for name in changed
    )


def test_other_classes_get_a_new_head(real: Study, start: Path, tmp_path: Path) -> None:
    other = edited(real, tmp_path / "other", classes=["a", "b", "c"])
    frozen = {"frozen": "backbone", "epochs": 1, "learning_rate": 1e-12}
    train(spec(training=frozen), *other, tmp_path / "run", start)
    ours, theirs = weights(tmp_path / "run"), weights(start)
    assert {n for n in ours if not torch.equal(ours[n], theirs[n])} == {"head.weight", "head.bias"}
    with pytest.raises(UserError, match=r"has classes atoms, defect, rows, not a, b, c; train for"):
        train(spec(**AS_IT_IS), *other, tmp_path / "none", start)


def test_a_model_that_is_fitted_at_once_is_taken_as_it_is_or_not_at_all(
    real: Study, simulated: Study, tmp_path: Path
) -> None:
    train(spec("features"), *simulated, tmp_path / "start")
    train(spec("features", **AS_IT_IS), *real, tmp_path / "run", tmp_path / "start")
    ours, theirs = weights(tmp_path / "run"), weights(tmp_path / "start")
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    with pytest.raises(UserError, match=r"features is fitted at once.*training\.epochs to 0"):
        train(spec("features"), *real, tmp_path / "again", tmp_path / "start")


@pytest.mark.parametrize(
    ("model", "options", "fitted"),
    [
        ("efficientnet-linear", {}, {"head.weight", "head.bias"}),
        (
            "efficientnet-rolling",
            {"window": 12, "stride": 4},
            {"coefficient_TCF", "intercept_TC"},
        ),
    ],
)
def test_a_model_that_can_be_fitted_anew_is_drawn_to_its_start(
    real: Study,
    simulated: Study,
    tmp_path: Path,
    model: str,
    options: dict[str, int],
    fitted: set[str],
) -> None:
    def linear(strength: float, **changes: Any) -> dict[str, Any]:
        how = options | {"magnification": 3, "inverse_regularisation": strength}
        return spec(model, options=how, **changes)

    coefficients = next(name for name in fitted if name in ("head.weight", "coefficient_TCF"))

    moved = []
    for strength in (1e-6, 0.1):
        start = tmp_path / f"start-{strength}"
        train(linear(strength), *simulated, start)
        # Trained on a few scans of the same surface; all of them are another's.
        train(linear(strength, training={"fraction": 0.1}), *real, tmp_path / f"{strength}", start)
        ours, theirs = weights(tmp_path / f"{strength}"), weights(start)
        changed = {name for name in ours if not torch.equal(ours[name], theirs[name])}
        assert changed <= fitted
        moved.append(float((ours[coefficients] - theirs[coefficients]).norm()))
    assert moved[0] < 1e-3 < moved[1]
    other = edited(real, tmp_path / "other", classes=["a", "b", "c"])
    with pytest.raises(UserError, match=f"{model} is fitted at once and keeps its"):
        train(linear(0.1), *other, tmp_path / "none", start)


# --------------------------------------------------------------------------- what was seen before


def test_a_run_tells_the_scans_that_it_and_its_start_have_seen(
    real: Study, simulated: Study, start: Path, tmp_path: Path
) -> None:
    seen = set((start / SEEN).read_text().split())
    assert seen == hashes_of(simulated, "train", "validation")
    train(spec(training={"epochs": 1}), *real, tmp_path / "run", start)
    both = set((tmp_path / "run" / SEEN).read_text().split())
    assert both == seen | hashes_of(real, "train", "validation")


def test_a_start_that_has_seen_a_scan_of_the_tested_groups_is_refused(
    real: Study, simulated: Study, tmp_path: Path
) -> None:
    """The same scans under another name, in other files, in another fold, and through a run."""
    train(spec("features", fold=1), *real, tmp_path / "leaky")
    alias = edited(real, tmp_path / "alias", unit="pm")
    converted = edited(real, tmp_path / "converted", hashes=("file",))
    refused = r"leaky: has seen \d+ scans of the groups that .*split\.json, fold 0 tests"
    for study in (real, alias, converted):
        with pytest.raises(UserError, match=refused):
            train(spec("features", **AS_IT_IS), *study, tmp_path / "run", tmp_path / "leaky")
    train(spec("features", **AS_IT_IS), *simulated, tmp_path / "between", tmp_path / "leaky")
    with pytest.raises(UserError, match=refused.replace("leaky", "between")):
        train(spec("features", **AS_IT_IS), *real, tmp_path / "run", tmp_path / "between")


def test_a_start_of_the_same_fold_of_the_same_split_has_not_seen_what_it_tests(
    real: Study, tmp_path: Path
) -> None:
    train(spec("features"), *real, tmp_path / "start")
    train(spec("features", **AS_IT_IS), *real, tmp_path / "run", tmp_path / "start")
    assert not set((tmp_path / "run" / SEEN).read_text().split()) & hashes_of(real, "test")


MISFITS = {
    "another model": ({"model": "vit", "options": {}}, "has model 'cnn-scan', not 'vit'"),
    "another width": ({"options": {"widths": [8, 8]}}, "has options"),
    "another normalisation": ({"normalisation": "scan"}, "has normalisation 'line', not 'scan'"),
    "another size": ({"window": {"lines": 8, "stride": 8}}, "has lines 16, not 8"),
}


@pytest.mark.parametrize("misfit", MISFITS)
def test_a_start_that_does_not_fit_is_one_line(
    real: Study, start: Path, tmp_path: Path, misfit: str
) -> None:
    changes, line = MISFITS[misfit]
    with pytest.raises(UserError) as error:
        train(spec(**changes), *real, tmp_path / "run", start)
    assert line in str(error.value)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


def test_a_start_that_is_missing_is_named(real: Study, start: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="name the folder of a trained run"):
        train(spec(), *real, tmp_path / "run", tmp_path / "nothing")
    older = Path(shutil.copytree(start, tmp_path / "older"))
    (older / SEEN).unlink()
    with pytest.raises(UserError, match=r"seen\.txt: no such file; train the run again"):
        train(spec(), *real, tmp_path / "run", older)
    for settings in ({"epochs": 0}, {"frozen": "backbone"}):
        with pytest.raises(UserError, match=r"start.*name one"):
            train(spec(training=settings), *real, tmp_path / "run")


# ------------------------------------------------------------------------------------ few labels


fractions = st.integers(1, 100).map(lambda percent: percent / 100)


@given(small=fractions, large=fractions, seed=st.integers(0, 9))
def test_a_smaller_share_is_part_of_a_larger_one_and_no_class_is_lost(
    real: Study, small: float, large: float, seed: int
) -> None:
    small, large = sorted((small, large))
    with Store(real[0]) as store:
        scans = store.index_of(ids(real[1], "train"))
        few, many = (share_of(store, scans, share, seed) for share in (small, large))
        assert set(few) <= set(many) <= set(scans)
        for label in np.unique(store.label[scans]):
            own, drawn = (int((store.label[k] == label).sum()) for k in (scans, few))
            # The least whole number of scans that is no smaller a share.
            assert max(0, drawn - 1) < small * own + 1e-9 <= drawn + 1e-6
        # Which scans are drawn does not hang on the order that they come in.
        assert set(share_of(store, scans[::-1], small, seed)) == set(few)


def test_the_draw_depends_on_the_seed(real: Study) -> None:
    with Store(real[0]) as store:
        scans = store.index_of(ids(real[1], "train"))
        draws = {tuple(share_of(store, scans, 0.3, seed)) for seed in range(5)}
    assert len(draws) > 1


def test_few_labels_teach_and_choose_in_as_many_steps_as_all(real: Study, tmp_path: Path) -> None:
    for name, fraction in (("all", 1.0), ("few", 0.2)):
        train(spec(training={"fraction": fraction, "epochs": 2}), *real, tmp_path / name)
    steps = {
        name: [row["step"] for row in csv.DictReader((tmp_path / name / "history.csv").open())]
        for name in ("all", "few")
    }
    assert steps["few"] == steps["all"]
    seen = {name: set((tmp_path / name / SEEN).read_text().split()) for name in steps}
    assert seen["few"] < seen["all"]
    with Store(real[0]) as store:
        drawn = {}
        for part in ("train", "validation"):
            scans = share_of(store, store.index_of(ids(real[1], part)), 0.2, 0)
            drawn[part] = {*store.file_sha256[scans].tolist(), *store.scan_sha256[scans].tolist()}
        counts = np.bincount(
            store.label[share_of(store, store.index_of(ids(real[1], "train")), 0.2, 0)]
        )
    assert seen["few"] == drawn["train"] | drawn["validation"]
    assert load_run(tmp_path / "few").meta["class_counts"] == counts.tolist()
