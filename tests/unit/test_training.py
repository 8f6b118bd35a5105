"""The training loop: honest about its data, the same bytes every time, also after a kill."""

from __future__ import annotations

import csv
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import small_study
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_study import CLASSES, ids, spec
from torch import nn
from torch.nn import functional as F

from scanbench import learning, sources
from scanbench.augment import Augmentation
from scanbench.checkpoints import WholeCheckpoints
from scanbench.classification import Classification
from scanbench.errors import UserError
from scanbench.files import sha256_of
from scanbench.learner import learning_rate, parameter_groups
from scanbench.runs import AnswerTimes, load_run
from scanbench.samples import Batch, class_weights
from scanbench.settings import Settings, from_config
from scanbench.store import Store
from scanbench.training import HISTORY, train


@pytest.fixture(scope="session")
def study(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return small_study.make(tmp_path_factory.mktemp("study"))


def weights(run: Path) -> bytes:
    return (run / "weights.safetensors").read_bytes()


def history(run: Path) -> list[dict[str, str]]:
    with (run / "history.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def untimed(run: Path) -> list[dict[str, str]]:
    """Return the history without the wall time of each epoch."""
    return [{k: v for k, v in row.items() if k != "seconds"} for row in history(run)]


# ------------------------------------------------------------------------------------- the data


def test_test_scans_are_never_read(
    study: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: set[str] = set()
    read = Store.read

    def spy(self: Store, indices: Any, *args: Any, **kwargs: Any) -> Any:
        asked.update(self.scan_id[np.asarray(indices)].tolist())
        return read(self, indices, *args, **kwargs)

    monkeypatch.setattr(Store, "read", spy)
    for model in ("cnn-scan", "features"):
        train(spec(model, training={"epochs": 1}), *study, tmp_path / model)
    assert asked == {*ids(study[1], "train"), *ids(study[1], "validation")}
    assert asked.isdisjoint(ids(study[1], "test"))


def test_a_test_scan_in_the_training_part_is_refused(
    study: tuple[Path, Path], tmp_path: Path
) -> None:
    store, split = study
    document = json.loads(split.read_text())
    document["folds"][0]["train"].append(document["folds"][0]["test"][0])
    leaky = tmp_path / "split.json"
    leaky.write_text(json.dumps(document))
    with pytest.raises(UserError, match="stands twice"):
        train(spec(), store, leaky, tmp_path / "run")


def test_only_what_can_change_a_run_trains_it_again() -> None:
    """The workflow trains again when one of these files is edited: hours, where it is not needed.

    `sources` names the checkpoint and `provenance` writes `train.json`, which is part of the run.
    """
    names = {path.stem for path in sources.closure("scanbench.training")}
    shared = {"__init__", "errors", "files", "provenance", "sources"}
    reading = {"split_file", "store", "windows"}
    data = {"augment", "samples"}
    loop = {"checkpoints", "classification", "distillation", "learner", "learning"}
    ours = {"answers", "runs", "settings", "start", "training", "tuning"}
    assert names == shared | reading | data | loop | ours


# ------------------------------------------------------------------------------------- the loss


@given(counts=st.lists(st.integers(1, 50), min_size=2, max_size=6))
def test_class_weights_make_classes_count_alike(counts: list[int]) -> None:
    weight_C = class_weights(np.array(counts), [f"c{k}" for k in range(len(counts))], "split")
    assert np.allclose(weight_C * counts, sum(counts) / len(counts))


def test_a_class_without_a_training_sample_is_an_error() -> None:
    with pytest.raises(UserError, match=r"split\.json: fold 0: no training sample of class 'b'"):
        class_weights(np.array([2, 0, 1]), ["a", "b", "c"], "split.json: fold 0")


def edited_store(study: tuple[Path, Path], folder: Path, n_lines: Any) -> tuple[Path, Path]:
    """Copy a study with `n_lines(label, n_lines, scan ids of the split)` measured lines."""
    store, split = folder / "store.h5", folder / "split.json"
    shutil.copy(study[0], store)
    document = json.loads(study[1].read_text())
    with h5py.File(store, "r+") as file:
        ids_N = np.char.decode(file["scan_id"][:])
        file["n_lines"][:] = n_lines(file["label"][:], file["n_lines"][:], ids_N, document)
    split.write_text(json.dumps(document | {"store_sha256": sha256_of(store)}))
    return store, split


def test_classes_are_counted_in_samples_that_the_model_gets(
    study: tuple[Path, Path], tmp_path: Path
) -> None:
    """Windows are samples, and what is too short for the model is none."""
    window = {"lines": 6, "stride": 2}
    train(spec("majority", window=window), *study, tmp_path / "run")
    with Store(study[0]) as store:
        scans = store.index_of(ids(study[1], "train"))
        label_N, n_lines_N = store.label[scans], store.n_lines[scans]
    windows_N = np.maximum((n_lines_N - 6) // 2 + 1, 0)
    counts = [int(windows_N[label_N == c].sum()) for c in range(len(CLASSES))]
    meta = load_run(tmp_path / "run").meta
    assert meta["class_counts"] == counts
    expected = [sum(counts) / len(counts) / n for n in counts]
    assert meta["class_weights"] == pytest.approx(expected)
    share_C = load_run(tmp_path / "run").model.log_share_C.exp().numpy()  # type: ignore[operator, union-attr]
    assert share_C == pytest.approx(np.array(counts) / sum(counts))


def test_a_class_whose_scans_are_all_too_short_is_an_error(
    study: tuple[Path, Path], tmp_path: Path
) -> None:
    def short(label: Any, n_lines: Any, *_: Any) -> Any:
        return np.where(label == 1, np.minimum(n_lines, 7), n_lines)

    wanted = spec("lrcn")  # answers first after 10 lines
    with pytest.raises(UserError, match="no training sample of class 'defect'"):
        train(wanted, *edited_store(study, tmp_path, short), tmp_path / "run")


def test_validation_samples_of_one_class_cannot_choose_an_epoch(
    study: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By scans there are all classes; by samples of a model that needs 10 lines there are not."""

    def short_in_validation(*classes: int) -> Any:
        def n_lines(label: Any, n_lines: Any, scan_id: Any, document: Any) -> Any:
            short = np.isin(label, classes) & np.isin(scan_id, document["folds"][0]["validation"])
            return np.where(short, 7, n_lines)

        return n_lines

    wanted = spec("lrcn", training={"epochs": 2, "monitor": "val_auroc"})
    (tmp_path / "one").mkdir()
    one = edited_store(study, tmp_path / "one", short_in_validation(1, 2))
    with pytest.raises(UserError, match="all validation samples are of one class"):
        train(wanted, *one, tmp_path / "run")
    (tmp_path / "two").mkdir()
    two = edited_store(study, tmp_path / "two", short_in_validation(1))
    train(wanted, *two, tmp_path / "run")
    assert "no validation sample of class defect" in capsys.readouterr().err
    assert all(math.isfinite(float(row["val_auroc"])) for row in history(tmp_path / "run"))


class Fixed(nn.Module):
    """Give the same logits whatever the scan."""

    def __init__(self, logits_BTC: torch.Tensor) -> None:
        super().__init__()
        self.logits = nn.Parameter(logits_BTC)

    def forward(self, x_BLP: torch.Tensor, n_lines_B: torch.Tensor) -> torch.Tensor:
        return self.logits


def a_task(answer_lines: list[int], weight_C: Any, **changes: Any) -> Classification:
    return Classification(
        AnswerTimes(answer_lines, at_end=len(answer_lines) == 1),
        np.asarray(weight_C),
        Settings(**changes),
        Augmentation(),
    )


def test_class_weights_reach_the_loss() -> None:
    torch.manual_seed(0)
    model, label_B = Fixed(torch.randn(7, 1, 3)), torch.tensor([0, 1, 2, 0, 1, 0, 0])
    batch = Batch(torch.zeros(7, 8, 4), torch.full((7,), 8), label_B)
    for weight_C in ([1.0, 1.0, 1.0], [0.2, 5.0, 1.5]):
        loss = a_task([8], weight_C).step(model, batch, "train")
        expected = F.cross_entropy(model.logits[:, 0], label_B, torch.tensor(weight_C))
        torch.testing.assert_close(loss, expected)


def test_the_loss_takes_the_last_valid_answer_or_the_mean_of_all_valid_ones() -> None:
    torch.manual_seed(0)
    model, label_B = Fixed(torch.randn(3, 4, 3)), torch.tensor([0, 1, 2])
    valid = [1, 4, 2]
    batch = Batch(torch.zeros(3, 8, 4), torch.tensor([3, 8, 5]), label_B)
    each = [
        [F.cross_entropy(model.logits[b, t], label_B[b]).item() for t in range(valid[b])]
        for b in range(3)
    ]
    last = a_task([2, 4, 6, 8], np.ones(3), answers="last").step(model, batch, "train")
    assert float(last) == pytest.approx(np.mean([e[-1] for e in each]), rel=1e-5)
    mean = a_task([2, 4, 6, 8], np.ones(3), answers="all").step(model, batch, "train")
    assert float(mean) == pytest.approx(np.mean([np.mean(e) for e in each]), rel=1e-5)


def test_training_weights_follow_the_class_weights_of_the_config(
    study: tuple[Path, Path], tmp_path: Path
) -> None:
    for on in (True, False):
        train(spec(training={"epochs": 1, "class_weights": on}), *study, tmp_path / str(on))
    assert weights(tmp_path / "True") != weights(tmp_path / "False")
    counts = load_run(tmp_path / "True").meta["class_counts"]
    assert len(set(counts)) > 1
    expected = [sum(counts) / len(counts) / n for n in counts]
    assert load_run(tmp_path / "True").meta["class_weights"] == pytest.approx(expected)
    assert load_run(tmp_path / "False").meta["class_weights"] == [1.0] * len(CLASSES)


# ------------------------------------------------------------------------- figures of validation


def test_validation_figures_are_those_of_scikit_learn_without_classes_that_are_absent() -> None:
    from sklearn.metrics import balanced_accuracy_score, roc_auc_score

    torch.manual_seed(0)
    label_B = torch.tensor([0, 1, 3, 0, 1, 3, 0, 0, 1, 3])  # class 2 has no scan
    model = Fixed(torch.randn(10, 1, 4))
    task = a_task([8], np.ones(4))
    for part in (slice(0, 4), slice(4, 10)):
        batch = Batch(torch.zeros(10, 8, 4)[part], torch.full((10,), 8)[part], label_B[part])
        task.step(Fixed(model.logits[part].detach()), batch, "val")
    figures = task.figures("val")
    p_BC = model.logits[:, 0].detach().softmax(1).numpy()
    truth = label_B.numpy()
    assert figures["accuracy"] == pytest.approx((p_BC.argmax(1) == truth).mean())
    recall = [(p_BC.argmax(1)[truth == c] == c).mean() for c in (0, 1, 3)]
    assert figures["balanced_accuracy"] == pytest.approx(np.mean(recall))
    one = [roc_auc_score(truth == c, p_BC[:, c]) for c in (0, 1, 3)]
    assert figures["auroc"] == pytest.approx(np.mean(one), rel=1e-5)
    assert balanced_accuracy_score(truth, truth) == 1.0
    assert math.isnan(float(task.val_loss.compute())), "figures are forgotten once told"


# --------------------------------------------------------------------------- the learning rate


@given(
    steps=st.integers(1, 20),
    warmup=st.integers(0, 5),
    schedule=st.sampled_from(["constant", "cosine", "plateau"]),
)
def test_the_learning_rate_rises_to_its_peak_and_never_above(
    steps: int, warmup: int, schedule: str
) -> None:
    settings = Settings(
        epochs=10, warmup_epochs=warmup, warmup_start=1e-6, learning_rate=1e-3, schedule=schedule
    )
    rates = [learning_rate(step, steps, settings) for step in range(10 * steps)]
    rise = [rate for rate in rates[: warmup * steps + 1] if rate is not None]
    assert rise == sorted(rise)
    assert rates[0] == pytest.approx(1e-6 if warmup else 1e-3)
    assert rates[warmup * steps] == pytest.approx(1e-3)
    after = rates[warmup * steps + 1 :]
    if schedule == "plateau":
        assert set(after) <= {None}
    elif schedule == "constant":
        assert set(after) <= {1e-3}
    else:
        falling = [rate for rate in after if rate is not None]
        assert falling == sorted(falling, reverse=True)
        assert 0 < falling[-1] < 1e-3


def test_a_plateau_lowers_the_rate_after_the_warm_up(
    study: tuple[Path, Path], tmp_path: Path
) -> None:
    training = {"epochs": 6, "learning_rate": 1e-12, "warmup_start": 0.0, "warmup_epochs": 2}
    training |= {"plateau_patience": 0, "plateau_factor": 0.1, "monitor": "val_balanced_accuracy"}
    train(spec(training=training | {"schedule": "plateau"}), *study, tmp_path / "run")
    rates = [float(row["lr"]) for row in history(tmp_path / "run")]
    assert rates[0] < rates[1] < 1e-12
    assert rates[2] == pytest.approx(1e-12)
    assert rates[3:] == pytest.approx([1e-12, 1e-13, 1e-14])


def test_only_matrices_of_layers_decay() -> None:
    class Everything(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.norm = nn.Linear(3, 3), nn.LayerNorm(3)
            self.convolution, self.batch = nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)
            self.lstm, self.embedding = nn.LSTM(3, 3), nn.Embedding(4, 3)
            self.attention = nn.MultiheadAttention(4, 2)
            self.positions = nn.Parameter(torch.zeros(5, 3))
            self.class_token = nn.Parameter(torch.zeros(1, 1, 3))

    model = Everything()
    decayed, free = parameter_groups(model, 0.1)
    assert (decayed["weight_decay"], free["weight_decay"]) == (0.1, 0.0)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    assert {names[id(p)] for p in decayed["params"]} == {
        "linear.weight",
        "convolution.weight",
        "lstm.weight_ih_l0",
        "lstm.weight_hh_l0",
        "attention.in_proj_weight",
        "attention.out_proj.weight",
    }
    assert len(decayed["params"]) + len(free["params"]) == len(names)


# ----------------------------------------------------------------------------- what is written


@pytest.mark.parametrize("model", ["cnn-scan", "features", "majority", "vit-prefix", "causal"])
def test_a_run_is_whole_and_the_same_bytes_each_time(
    model: str, study: tuple[Path, Path], tmp_path: Path
) -> None:
    wanted = spec(model, training={"epochs": 2})
    for name in ("a", "b"):
        torch.manual_seed(hash(name) % 1000)  # what was drawn before must not matter
        train(wanted, *study, tmp_path / name)
    assert weights(tmp_path / "a") == weights(tmp_path / "b")
    assert (tmp_path / "a/model.json").read_bytes() == (tmp_path / "b/model.json").read_bytes()
    rows = history(tmp_path / "a")
    assert tuple(rows[0]) == HISTORY
    assert len(rows) == (1 if model in ("features", "majority") else 2)
    best = load_run(tmp_path / "a").meta["best_epoch"]
    assert float(rows[best - 1]["val_loss"]) == min(float(row["val_loss"]) for row in rows)
    record = json.loads((tmp_path / "a/train.json").read_text())
    assert set(record["inputs"]) == {"store", "split"}
    assert record["config"] == wanted
    assert not (tmp_path / ".checkpoints").exists(), "checkpoints go when the run is whole"
    train(wanted | {"seed": 1}, *study, tmp_path / "c")
    if model not in ("features", "majority"):
        assert weights(tmp_path / "a") != weights(tmp_path / "c")


def test_the_best_weights_are_saved_not_the_last(study: tuple[Path, Path], tmp_path: Path) -> None:
    """A rate that is far too high for the last epochs spoils what was learned."""
    training = {"epochs": 8, "learning_rate": 0.3, "schedule": "constant", "gradient_clip": 0.0}
    training |= {"early_stopping_patience": None, "warmup_epochs": 7, "warmup_start": 1e-4}
    wanted = spec(training=training, augmentation={"flip_fast": 0.0, "noise": 0.0})
    train(wanted, *study, tmp_path / "run")
    run = load_run(tmp_path / "run")
    rows = history(tmp_path / "run")
    assert run.meta["best_epoch"] < len(rows), "the example must get worse at its end"
    with Store(study[0]) as store:
        scans = store.index_of(ids(study[1], "validation"))
        x_BLP, n_lines_B = store.read(scans, "line"), store.n_lines[scans].astype(np.int64)
        batch = Batch(*map(torch.from_numpy, (x_BLP, n_lines_B, store.label[scans].astype(int))))
    task = a_task([small_study.LINES], run.meta["class_weights"])
    with torch.no_grad():
        task.step(run.model, batch, "val")
    found = task.figures("val")["loss"]
    assert found == pytest.approx(float(rows[run.meta["best_epoch"] - 1]["val_loss"]), rel=1e-4)


def test_training_stops_early_when_nothing_improves(
    study: tuple[Path, Path], tmp_path: Path
) -> None:
    training = {"epochs": 50, "learning_rate": 1e-12, "early_stopping_patience": 2}
    training |= {"monitor": "val_balanced_accuracy", "schedule": "constant"}
    train(spec("causal", training=training), *study, tmp_path / "run")
    assert len(history(tmp_path / "run")) == 3
    assert load_run(tmp_path / "run").meta["best_epoch"] == 1


def test_heights_in_metres_can_be_learned_without_normalisation(
    study: tuple[Path, Path], tmp_path: Path
) -> None:
    """At 1e-10 every scan would look the same to the first layer."""
    training = {"epochs": 1, "monitor": "val_auroc"}
    for model in ("vit-prefix", "features"):
        wanted = spec(model, normalisation="none", training=training)
        train(wanted, *study, tmp_path / model)
    with Store(study[0]) as store:
        x_BLP = torch.from_numpy(store.read(range(12), "none"))
        n_lines_B = torch.from_numpy(store.n_lines[:12].astype(np.int64))
    with torch.no_grad():
        logits_B1C = load_run(tmp_path / "vit-prefix").model(x_BLP, n_lines_B)
    assert logits_B1C.std(0).min() > 1e-3
    assert float(history(tmp_path / "features")[0]["val_auroc"]) > 0.9


def test_windows_are_samples_of_their_own_length(study: tuple[Path, Path], tmp_path: Path) -> None:
    wanted = spec("vit", window={"lines": 6, "stride": 3}, training={"epochs": 1})
    train(wanted, *study, tmp_path / "run")
    meta = load_run(tmp_path / "run").meta
    assert (meta["lines"], meta["scan_lines"]) == (6, small_study.LINES)


# ------------------------------------------------------------------------------------- resuming

SCRIPT = """
import json, sys
from pathlib import Path
from scanbench.training import train
spec, store, split, out = sys.argv[1:]
train(json.loads(spec), Path(store), Path(split), Path(out))
"""


def start(wanted: dict[str, Any], study: tuple[Path, Path], out: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", SCRIPT, json.dumps(wanted), *map(str, study), str(out)]
    return subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


LONG: dict[str, Any] = {
    "training": {
        "epochs": 12,
        "schedule": "plateau",
        "plateau_patience": 0,
        "warmup_epochs": 2,
        "early_stopping_patience": 6,
    },
    "augmentation": {"flip_slow": 0.5, "line_dropout": 0.1},
}


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[:-1] + bytes([content[-1] ^ 1]),
        lambda content: b"0" + content[1:],
        lambda content: content[:-1],
        lambda content: b"",
    ],
)
def test_a_damaged_checkpoint_is_named_and_not_gone_on_from(damage: Any, tmp_path: Path) -> None:
    path, kept = tmp_path / "last.ckpt", {"epoch": 3, "weights": torch.arange(4.0)}
    WholeCheckpoints().save_checkpoint(kept, path)
    assert torch.equal(WholeCheckpoints().load_checkpoint(path)["weights"], kept["weights"])
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError, match=r"last\.ckpt: .* is damaged; remove it"):
        WholeCheckpoints().load_checkpoint(path)


def test_a_checkpoint_that_would_have_to_be_unpickled_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    WholeCheckpoints().save_checkpoint({"path": tmp_path}, path)
    with pytest.raises(UserError, match=r"last\.ckpt: "):
        WholeCheckpoints().load_checkpoint(path)


def test_a_killed_run_goes_on_and_ends_with_the_same_bytes(
    study: tuple[Path, Path], tmp_path: Path
) -> None:
    """The process is really killed: once after its third epoch, once at no particular moment."""
    wanted = spec("cnn-scan", **LONG)
    train(wanted, *study, tmp_path / "whole" / "run")
    out = tmp_path / "killed" / "run"

    first = start(wanted, study, out)
    assert first.stderr is not None
    for line in first.stderr:
        if "epoch 3/" in line:
            break
    first.send_signal(signal.SIGKILL)
    assert first.wait() == -signal.SIGKILL
    first.stderr.close()
    assert not (out / "weights.safetensors").exists()
    assert len(list(tmp_path.glob("killed/.checkpoints/*/last.ckpt"))) == 1

    train(wanted, *study, out)
    assert weights(out) == weights(tmp_path / "whole" / "run")
    assert untimed(out) == untimed(tmp_path / "whole" / "run")
    assert not (tmp_path / "killed" / ".checkpoints").exists()


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("model", ["cnn-scan", "lrcn"])
def test_interruptions_at_random_moments_change_nothing(
    model: str,
    seed: int,
    study: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Interrupted(Exception):
        pass

    wanted = spec(model, **LONG)
    train(wanted, *study, tmp_path / "whole" / "run")
    rng = np.random.default_rng(seed)
    left = [int(rng.integers(1, 9))]
    step = Classification.step

    def failing(self: Classification, *args: Any) -> Any:
        left[0] -= 1
        if left[0] == 0:
            raise Interrupted
        return step(self, *args)

    monkeypatch.setattr(Classification, "step", failing)
    interruptions = 0
    for _ in range(100):
        left[0] = int(rng.integers(6, 25))  # more than the steps of one epoch: it gets on
        try:
            train(wanted, *study, tmp_path / "run" / "run")
            break
        except Interrupted:
            interruptions += 1
    assert interruptions >= 2
    assert weights(tmp_path / "run" / "run") == weights(tmp_path / "whole" / "run")
    assert untimed(tmp_path / "run" / "run") == untimed(tmp_path / "whole" / "run")


def test_a_kill_between_the_last_epoch_and_the_files_adds_no_epoch(
    study: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = {"epochs": 30, "learning_rate": 1e-12, "early_stopping_patience": 2}
    wanted = spec(training=training | {"monitor": "val_balanced_accuracy"})
    train(wanted, *study, tmp_path / "whole" / "run")

    def full_disk(*_: Any) -> None:
        raise OSError("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("scanbench.training.save_run", full_disk)
        with pytest.raises(OSError, match="No space"):
            train(wanted, *study, tmp_path / "again" / "run")
    train(wanted, *study, tmp_path / "again" / "run")
    assert len(history(tmp_path / "again" / "run")) == len(history(tmp_path / "whole" / "run"))
    assert weights(tmp_path / "again" / "run") == weights(tmp_path / "whole" / "run")


@pytest.mark.parametrize("resume", [True, False])
def test_a_full_disk_is_told_in_one_line_that_names_the_file(
    resume: bool, study: tuple[Path, Path], tmp_path: Path
) -> None:
    """The process may write files of 20 kB only: less than a checkpoint and than the weights."""
    script = """
import resource, sys
from scanbench.cli import main
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
sys.exit(main(sys.argv[1:]))
"""
    weights_file = tmp_path / "run" / "weights.safetensors"
    wanted = json.dumps(spec("vit", training={"epochs": 1, "resume": resume}))
    command = ["train", "--spec", wanted, *map(str, study), str(weights_file)]
    done = subprocess.run(
        [sys.executable, "-c", script, *command], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    last = done.stderr.splitlines()[-1]
    assert ("last.ckpt" if resume else "weights.safetensors") in last
    assert "File too large" in last
    assert not weights_file.exists()


def test_the_cost_of_a_resumed_run_is_that_of_all_its_processes(
    study: tuple[Path, Path], tmp_path: Path
) -> None:
    """A process that had spent an hour was stopped after its last epoch; this one adds seconds."""
    script = """
import json, sys, time
from pathlib import Path
used, time.process_time = time.process_time, lambda: 3600 + used()
from scanbench import training
training.save_run = lambda *_: sys.exit(9)
spec, store, split, out = sys.argv[1:]
training.train(json.loads(spec), Path(store), Path(split), Path(out))
"""
    wanted, out = spec(), tmp_path / "run"
    command = [sys.executable, "-c", script, json.dumps(wanted), *map(str, study), str(out)]
    assert subprocess.run(command, capture_output=True, check=False).returncode == 9
    before = time.process_time()
    train(wanted, *study, out)
    spent = json.loads((out / "train.json").read_text())["cpu_seconds"]
    assert 3600 + before < spent < 3700 + time.process_time()


def test_another_configuration_does_not_take_up_a_checkpoint(
    study: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full_disk(*_: Any) -> None:
        raise OSError("No space left on device")

    other = spec(training={"epochs": 2, "learning_rate": 1e-4})
    with monkeypatch.context() as patch:
        patch.setattr("scanbench.training.save_run", full_disk)
        with pytest.raises(OSError, match="No space"):
            train(spec(training={"epochs": 2}), *study, tmp_path / "a" / "run")
    train(other, *study, tmp_path / "a" / "run")
    train(other, *study, tmp_path / "b" / "run")
    assert weights(tmp_path / "a" / "run") == weights(tmp_path / "b" / "run")


# --------------------------------------------------------------------------------- bad settings


def test_a_loss_that_is_not_finite_is_told_with_its_mend(
    study: tuple[Path, Path], tmp_path: Path
) -> None:
    training = {"learning_rate": 1e30, "gradient_clip": 0.0, "schedule": "constant"}
    with pytest.raises(
        UserError, match=r"loss is (nan|inf); lower training.learning_rate"
    ) as caught:
        train(spec(training=training), *study, tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert "precision" in str(caught.value)
    assert not (tmp_path / "run" / "weights.safetensors").exists()


@pytest.mark.parametrize(
    ("training", "message"),
    [
        ({"epoch": 3}, "training.epoch: unknown key; did you mean 'epochs'?"),
        ({"schedule": "cosin"}, "training.schedule: 'cosin'; did you mean 'cosine'?"),
        ({"batch_size": 0}, "training.batch_size: 0 must be more than 0"),
        ({"monitor": "val_auc"}, "training.monitor: .*did you mean 'val_auroc'?"),
        ({"precision": "fp16"}, "fp16 needs a GPU"),
    ],
)
def test_a_wrong_setting_is_told_in_one_line(
    training: dict[str, Any], message: str, study: tuple[Path, Path], tmp_path: Path
) -> None:
    if "precision" in training and torch.cuda.is_available():
        pytest.skip("there is a GPU, so fp16 works")
    with pytest.raises(UserError, match=message):
        train(spec(training=training), *study, tmp_path / "run")


def test_a_wrong_option_names_its_key_in_the_configuration(
    study: tuple[Path, Path], tmp_path: Path
) -> None:
    wrong = spec("cnn-scan", name="large", options={"dropout": 2.0})
    with pytest.raises(UserError, match=r"^experiments\.large\.options\.dropout: 2\.0 is not"):
        train(wrong, *study, tmp_path / "run")


@pytest.mark.parametrize(
    "odd", [{"model": "causal"}, {"window": {"lines": 8, "stride": 4}}], ids=["causal", "windows"]
)
def test_answers_of_a_running_scan_cannot_look_at_lines_not_yet_measured(
    odd: dict[str, Any], study: tuple[Path, Path], tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"\.normalisation: scan looks at lines not yet measured"):
        train(spec(**odd, normalisation="scan"), *study, tmp_path / "run")


@pytest.mark.parametrize(("model", "expected"), [("majority", 3), ("features", 174 * 5 + 3)])
def test_what_is_fitted_without_gradients_counts_as_parameters(
    model: str, expected: int, study: tuple[Path, Path], tmp_path: Path
) -> None:
    train(spec(model), *study, tmp_path / "run")
    assert load_run(tmp_path / "run").meta["parameters"] == expected


def test_a_fold_that_is_not_there_is_told(study: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"there is no fold 7, the folds are 0 to 1"):
        train(spec(fold=7), *study, tmp_path / "run")


def test_bf16_is_chosen_only_where_the_processor_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for has in (True, False):
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda has=has: has)
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
        assert learning.resolve_precision("auto", "cpu") == ("bf16" if has else "fp32")
        assert learning.resolve_precision("fp32", "cpu") == "fp32"


def test_settings_of_the_schema_are_settings_of_the_loop() -> None:
    import yaml

    schema = Path(__file__).parents[2] / "workflow/schemas/config.schema.yaml"
    parts = yaml.safe_load(schema.read_text(encoding="utf-8"))["$defs"]
    for name, kind in (("training", Settings), ("augmentation", Augmentation)):
        defaults = {k: rule["default"] for k, rule in parts[name]["properties"].items()}
        assert from_config(kind, defaults, name) == kind(), f"defaults of {name} differ"


# ------------------------------------------------------------------------------ several devices


def test_two_processes_divide_the_batches_and_agree_with_one(
    study: tuple[Path, Path], tmp_path: Path
) -> None:
    """The gradient of a batch is the mean of its halves' gradients: the same up to rounding."""
    if torch.cuda.is_available():
        pytest.skip("tests the processes of a machine without GPU")

    def wanted(devices: int) -> dict[str, Any]:
        training = {"epochs": 2, "devices": devices, "class_weights": False, "resume": False}
        still = {"flip_fast": 0.0, "noise": 0.0}
        options = {"d_model": 16, "layers": 1, "heads": 2, "ffn": 16, "dropout": 0.0}
        return spec("vit", training=training, augmentation=still, options=options)

    train(wanted(1), *study, tmp_path / "one" / "run")
    script = tmp_path / "train.py"
    script.write_text(SCRIPT)
    out = tmp_path / "two" / "run"
    command = [sys.executable, script, json.dumps(wanted(2)), *study, out]
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("epoch 2/2") == 1, "one process speaks"
    for one, two in zip(history(tmp_path / "one" / "run"), history(out), strict=True):
        for key in ("train_loss", "val_loss"):
            assert float(two[key]) == pytest.approx(float(one[key]), rel=1e-4)
        assert two["step"] == one["step"]
