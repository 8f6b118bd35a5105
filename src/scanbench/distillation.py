"""Learning from a trained model: its soft answers beside the labels.

G. Hinton, O. Vinyals & J. Dean, "Distilling the Knowledge in a Neural Network" (arXiv 1503.02531).
The teacher is a run on the same data set, split, fold and seed, so it has seen no scan that the
student is tested on; and it answers about the student's training scans alone.

Shape suffixes: N scans, B batch, T answers of the student, L scan lines, C classes, O outputs of a
model (the classes first).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from scanbench.answers import Answers, predict_arrays
from scanbench.errors import UserError, did_you_mean
from scanbench.runs import META
from scanbench.settings import from_config
from scanbench.start import Foundation, load_foundation
from scanbench.store import FloatArray, Store

#: Scans that the teacher is asked about at once.
BLOCK = 256
#: What a run must share with its teacher: these keys of `model.json`.
SHARED = ("store_sha256", "split_sha256", "fold", "seed", "classes")


@dataclass(frozen=True, kw_only=True)
class Distillation:
    """How much a student listens to its teacher.

    Parameters
    ----------
    temperature
        Logits of both are divided by it before their softmax; above 1, what the teacher thinks of
        the classes that it does not choose counts for more.
    weight
        Share of the soft answers in the loss, from 0 to 1; the labels have the rest.
    answers
        `last`: the teacher's answer about the whole scan is what each answer of the student aims
        at; `all`: its answer after as many lines, for a teacher that answers line by line.
    """

    temperature: float = 2.0
    weight: float = 0.5
    answers: str = "last"

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise UserError(f"teacher.temperature: {self.temperature} must be more than 0")
        if not 0 <= self.weight <= 1:
            raise UserError(f"teacher.weight: {self.weight} is no share from 0 to 1")
        if self.answers not in (known := ("last", "all")):
            raise UserError(
                f"teacher.answers: {self.answers!r} is unknown; {did_you_mean(self.answers, known)}"
            )


def soft_loss(logits_BTO: Tensor, teacher_BTC: Tensor, temperature: float) -> Tensor:
    """Return how far a student's answers are from the teacher's, [B, T].

    T²·KL(p ‖ q) with the softmax of both at temperature T (arXiv 1503.02531, section 2): the square
    keeps its gradient the size of the labels' cross-entropy whatever the temperature. Outputs
    without a class count as impossible for the teacher.

    Parameters
    ----------
    logits_BTO
        Of the student.
    teacher_BTC
        Logits of the teacher, or its log-probabilities; T may be 1.
    temperature
        More than 0.
    """
    log_q_BTO = F.log_softmax(logits_BTO.float() / temperature, -1)
    log_q_BTC = log_q_BTO[..., : teacher_BTC.shape[-1]]
    log_p_BTC = F.log_softmax(teacher_BTC / temperature, -1)
    return temperature**2 * (log_p_BTC.exp() * (log_p_BTC - log_q_BTC)).sum(-1)


@dataclass(frozen=True, kw_only=True)
class Teacher:
    """A trained run that teaches another, and how.

    Attributes
    ----------
    foundation
        The run.
    how
        How much is listened to.
    """

    foundation: Foundation
    how: Distillation

    @classmethod
    def of(cls, spec: Mapping[str, Any], folder: Path, student: Mapping[str, Any]) -> Teacher:
        """Read a teacher, and refuse one that may know what the student is tested on.

        Parameters
        ----------
        spec
            The keys of `Distillation`; `experiment` may stand beside them.
        folder
            Of the teacher's run.
        student
            The keys `SHARED`, `name`, `window` and `augmentation` of the student.

        Raises
        ------
        UserError
            If it is of another data set, split, fold or seed, or cannot teach this student.
        """
        given = {key: value for key, value in spec.items() if key != "experiment"}
        how: Distillation = from_config(Distillation, given, "teacher")
        foundation = load_foundation(folder)
        meta, model = foundation.run.meta, foundation.run.model
        where = f"experiments.{student['name']}.teacher: {folder / META}"
        for key in SHARED:
            if meta[key] != student[key]:
                raise UserError(
                    f"{where}: {key} is {meta[key]!r}, but {student[key]!r} here; a teacher is a "
                    "run on the same data set, split, fold and seed"
                )
        for who, window in (("the teacher", meta["window"]), ("the run", student["window"])):
            if window:
                raise UserError(f"{where}: {who} is of windows; both must see whole scans")
        if how.answers == "all" and getattr(model, "answers_at_end", True):
            raise UserError(
                f"{where}: {meta['model']} answers once, at the end; set teacher.answers to last"
            )
        if how.answers == "all" and student["augmentation"].flip_slow:
            raise UserError(
                f"{where}: what a teacher says after so many lines is of the scan as measured, and "
                "augmentation.flip_slow turns scans round; set it to 0, or teacher.answers to last"
            )
        return cls(foundation=foundation, how=how)

    def answers(self, data: Store, scans_N: np.ndarray, lines_T: Sequence[int]) -> FloatArray:
        """Return what the teacher says of scans, as log-probabilities [N, T, C].

        T is 1 where its last answers count. Before its first answer it is taken to say what it says
        then. Scans are shown to it as they are, not as augmentation changes them: mirrored ones
        mean the same to it, or nearly.

        Parameters
        ----------
        data
            The store.
        scans_N
            Places of the scans in it.
        lines_T
            Lines seen at each of the student's answers.
        """
        run = self.foundation.run
        found = []
        blocks = [scans_N[begin : begin + BLOCK] for begin in range(0, len(scans_N), BLOCK)]
        for block in tqdm(blocks, desc=f"ask the teacher {run.meta['name']}", unit="block"):
            x_NLP = data.read(block, run.meta["normalisation"])
            answers = predict_arrays(run, x_NLP, data.n_lines[block])
            wanted = lines_T if self.how.answers == "all" else None
            found.append(at_lines(answers, len(block), wanted))
        return np.log(np.maximum(np.concatenate(found), np.finfo(np.float32).tiny))


def at_lines(answers: Answers, scans: int, lines_T: Sequence[int] | None) -> FloatArray:
    """Return the probabilities of each scan after `lines_T` lines, [N, T, C].

    Those of the newest answer by then, of the first one before it; None: of the last, T is 1.
    """
    # Answers are sorted by scan and lines seen.
    begin_N, end_N = (np.searchsorted(answers.scan, np.arange(scans), s) for s in ("left", "right"))
    if lines_T is None:
        return answers.probability[end_N - 1][:, None]
    rows_NT = np.stack(
        [
            begin + np.searchsorted(answers.lines_seen[begin:end], lines_T, "right") - 1
            for begin, end in zip(begin_N, end_N, strict=True)
        ]
    )
    return answers.probability[np.maximum(rows_NT, begin_N[:, None])]
