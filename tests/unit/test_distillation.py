"""A student learns from its teacher's soft answers, and only from a teacher that may teach it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small_study
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_study import LINES, ids, spec
from torch.nn import functional as F

from scanbench.answers import Answers
from scanbench.augment import Augmentation
from scanbench.classification import Classification
from scanbench.distillation import Distillation, Teacher, at_lines, soft_loss
from scanbench.errors import UserError
from scanbench.runs import AnswerTimes, load_run
from scanbench.samples import Batch
from scanbench.settings import Settings
from scanbench.store import Store
from scanbench.training import train


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return small_study.make(tmp_path_factory.mktemp("study"))


@pytest.fixture(scope="module")
def taught(study: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("teacher") / "run"
    train(spec("causal", training={"epochs": 1}), *study, folder)
    return folder


def test_the_soft_loss_is_that_of_a_case_by_hand() -> None:
    # Logits 0 and T·ln 3: at temperature T the probabilities are 1/4 and 3/4, of the student 1/2.
    temperature = 2.0
    teacher = torch.tensor([[[0.0, temperature * np.log(3.0)]]], dtype=torch.float32)
    found = soft_loss(torch.zeros(1, 1, 2), teacher, temperature)
    by_hand = temperature**2 * (0.25 * np.log(0.25 / 0.5) + 0.75 * np.log(0.75 / 0.5))
    torch.testing.assert_close(found, torch.tensor([[by_hand]], dtype=torch.float32))


@given(seed=st.integers(0, 99), temperature=st.floats(0.5, 8))
def test_the_soft_loss_is_least_for_the_teachers_own_answers(seed: int, temperature: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    teacher, student = torch.randn(2, 3, 5, 4, generator=generator)
    same = soft_loss(teacher + 7.0, teacher, temperature)  # logits are known up to a constant
    torch.testing.assert_close(same, torch.zeros(3, 5), rtol=0, atol=1e-4)
    assert (soft_loss(student, teacher, temperature) >= -1e-4).all()


@pytest.mark.parametrize("answers", ["last", "all"])
def test_soft_answers_and_labels_share_the_loss_by_their_weight(answers: str) -> None:
    class Constant(torch.nn.Module):
        def forward(self, x_BLP: torch.Tensor, n_lines_B: torch.Tensor) -> torch.Tensor:
            return logits_BTC

    generator = torch.Generator().manual_seed(0)
    logits_BTC, teacher_BTC = torch.randn(2, 2, 3, 4, generator=generator)
    batch = Batch(torch.zeros(2, 3, 1), torch.tensor([3, 2]), torch.tensor([1, 3]), teacher_BTC)
    how = Distillation(temperature=3.0, weight=0.25)
    times = AnswerTimes([1, 2, 3], at_end=False)
    task = Classification(times, np.ones(4), Settings(answers=answers), Augmentation(), how)
    found = task.step(Constant(), batch, "train")

    def loss(sample: int, t: int) -> torch.Tensor:
        hard = F.cross_entropy(logits_BTC[sample, t], batch.label_B[sample])
        p, q = ((x[sample, t] / 3.0).softmax(-1) for x in (teacher_BTC, logits_BTC))
        return 0.75 * hard + 0.25 * 9.0 * (p * (p / q).log()).sum()

    if answers == "last":
        wanted = (loss(0, 2) + loss(1, 1)) / 2
    else:
        wanted = (sum(loss(0, t) for t in range(3)) / 3 + (loss(1, 0) + loss(1, 1)) / 2) / 2
    torch.testing.assert_close(found, wanted)
    # Validation knows labels only: figures of all experiments mean the same.
    hard = task.step(Constant(), batch._replace(teacher_BTC=None), "val")
    alone = Classification(times, np.ones(4), Settings(answers=answers), Augmentation())
    torch.testing.assert_close(hard, alone.step(Constant(), batch, "val"))


def test_a_teachers_answer_at_a_line_is_its_newest_by_then_and_at_first_its_first() -> None:
    p = np.arange(5, dtype=np.float32)[:, None] / 10
    answers = Answers(
        scan=np.array([0, 0, 0, 1, 1]),
        first_line=np.zeros(5, np.int64),
        lines_seen=np.array([2, 4, 6, 2, 4]),
        final=np.array([False, False, True, False, True]),
        fallback=np.zeros(5, bool),
        probability=np.hstack([p, 1 - p]),
    )
    found = at_lines(answers, 2, [1, 2, 3, 4, 5, 6])[..., 0] * 10
    assert found.round().tolist() == [[0, 0, 0, 1, 1, 2], [3, 3, 3, 4, 4, 4]]
    assert (at_lines(answers, 2, None)[..., 0] * 10).round().tolist() == [[2], [4]]


@pytest.mark.parametrize("answers", ["last", "all"])
def test_a_student_is_taught_by_what_the_teacher_says_of_training_scans_alone(
    study: tuple[Path, Path],
    taught: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    answers: str,
) -> None:
    asked: list[str] = []
    original = Teacher.answers

    def spy(self: Teacher, data: Store, scans_N: np.ndarray, lines_T: list[int]) -> Any:
        asked.extend(data.scan_id[scans_N].tolist())
        found = original(self, data, scans_N, lines_T)
        assert found.shape[:2] == (len(scans_N), LINES if answers == "all" else 1)
        return found

    monkeypatch.setattr(Teacher, "answers", spy)
    how = {"experiment": "causal", "temperature": 2.0, "weight": 1.0, "answers": answers}
    student = spec("causal", name="student", teacher=how, training={"answers": "all"})
    train(student, *study, tmp_path / "run", teacher=taught)
    assert sorted(asked) == sorted(ids(study[1], "train"))
    meta = load_run(tmp_path / "run").meta
    assert meta["teacher"]["name"] == "causal"
    assert meta["teacher"]["weights_sha256"] == load_run(taught).meta["weights_sha256"]
    record = json.loads((tmp_path / "run/train.json").read_text())
    assert {"teacher_weights", "teacher_model"} <= set(record["inputs"])
    without = spec("causal", name="student", training={"answers": "all"})
    train(without, *study, tmp_path / "without")
    weights = [(tmp_path / run / "weights.safetensors").read_bytes() for run in ("run", "without")]
    assert weights[0] != weights[1]


@pytest.mark.parametrize(
    ("changes", "teacher", "message"),
    [
        ({"fold": 1}, {}, "fold is 0, but 1 here; a teacher is a run on the same data set, split"),
        ({"seed": 1}, {}, "seed is 0, but 1 here"),
        ({"window": {"lines": 8, "stride": 4}}, {}, "the run is of windows"),
        ({}, {"weight": 1.5}, "teacher.weight: 1.5 is no share"),
        ({}, {"temperature": 0.0}, "teacher.temperature: 0.0 must be more than 0"),
        ({}, {"answers": "first"}, "teacher.answers: 'first' is unknown"),
        ({}, {"warmth": 1}, "teacher.warmth: unknown key"),
        ({"augmentation": {"flip_slow": 0.5}}, {"answers": "all"}, "flip_slow turns scans round"),
        ({"model": "features", "options": {}}, {}, "features is fitted at once"),
    ],
)
def test_a_teacher_that_cannot_teach_is_refused_in_one_line(
    study: tuple[Path, Path],
    taught: Path,
    tmp_path: Path,
    changes: dict[str, Any],
    teacher: dict[str, Any],
    message: str,
) -> None:
    student = spec(**{"model": "causal", **changes})
    student |= {"teacher": {"experiment": "causal", **teacher}}
    with pytest.raises(UserError, match=message) as error:
        train(student, *study, tmp_path / "run", teacher=taught)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


def test_a_teacher_of_another_split_is_refused(
    study: tuple[Path, Path], taught: Path, tmp_path: Path
) -> None:
    split = tmp_path / "split.json"
    shutil.copy(study[1], split)
    document = json.loads(split.read_text())
    document["seed"] = 1
    split.write_text(json.dumps(document))
    with pytest.raises(UserError, match="split_sha256 is"):
        train(
            spec("causal") | {"teacher": {"experiment": "causal"}},
            study[0],
            split,
            tmp_path / "run",
            teacher=taught,
        )
