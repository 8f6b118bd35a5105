"""What a trained model answers about scans: pure, from arrays to arrays.

Shape suffixes: N scans, L scan lines, P pixels of a line, B batch, T answers, R rows (answers about
all scans), C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from scanbench.errors import UserError
from scanbench.runs import AnswerTimes, Run
from scanbench.store import FloatArray
from scanbench.windows import WindowIndex

#: Samples that go through a model at once. A constant, so that the same scans give the same bytes.
BATCH = 64


@dataclass(frozen=True)
class Answers:
    """The answers of a model about N scans, sorted by scan, first line and lines seen.

    Attributes
    ----------
    scan
        Position of the scan among the N, int64 [R].
    first_line
        First line of the sample; 0 for a whole scan, int64 [R].
    lines_seen
        Lines of the scan, counted from its first, measured when the answer was given, int64 [R].
    final
        Whether it is the last answer about this sample, bool [R].
    fallback
        Whether the scan was too short for the model, so that this is its prior, bool [R].
    probability
        float32 [R, C]; each row sums to 1.
    """

    scan: NDArray[np.int64]
    first_line: NDArray[np.int64]
    lines_seen: NDArray[np.int64]
    final: NDArray[np.bool_]
    fallback: NDArray[np.bool_]
    probability: FloatArray

    @classmethod
    def joined(cls, parts: Sequence[Answers]) -> Answers:
        """Return the rows of all parts in one."""
        names = cls.__dataclass_fields__
        return cls(**{name: np.concatenate([getattr(p, name) for p in parts]) for name in names})

    def __getitem__(self, rows: NDArray[np.int64]) -> Answers:
        """Return some of the rows."""
        return Answers(**{name: getattr(self, name)[rows] for name in self.__dataclass_fields__})


def predict_arrays(
    run: Run,
    x_NLP: FloatArray,
    n_lines_N: ArrayLike,
    *,
    batch_size: int = BATCH,
    device: str = "cpu",
) -> Answers:
    """Return every valid answer of a trained model about scans.

    A model that was trained on windows gets the windows of each scan. A scan from which it cannot
    give any answer, being shorter than a window or than the lines before the first answer, gets one
    row with the prior of the training part: what the model would say having seen nothing. So all
    models answer about the same scans.

    Parameters
    ----------
    run
        From `load_run`.
    x_NLP
        Scans normalised as `run.meta["normalisation"]` says, 0 past `n_lines_N`.
    n_lines_N
        Measured lines of each scan, at least 1.
    batch_size
        Samples that go through the model at once; changes nothing but rounding.
    device
        Where to compute.

    Raises
    ------
    UserError
        If the scans have another shape than the model was trained on.
    """
    wanted = (run.meta["scan_lines"], run.meta["pixels"])
    if x_NLP.shape[1:] != wanted:
        raise UserError(
            f"scans of {x_NLP.shape[1]} lines × {x_NLP.shape[2]} pixels, but model "
            f"{run.meta['model']} was trained on {wanted[0]} × {wanted[1]}; convert them to that"
        )
    n_lines_N = np.asarray(n_lines_N, np.int64)
    window = run.meta["window"] or {"lines": None, "stride": 1}
    index = WindowIndex(n_lines_N, window["lines"], window["stride"])
    lines = run.meta["lines"]
    model = run.model.to(device).eval()
    times = AnswerTimes.of(model, lines)
    parts = [fallback(np.arange(len(n_lines_N)), n_lines_N, run.meta["prior"])]
    for begin in range(0, len(index), batch_size):
        scan_B, first_B, length_B = index.lookup(
            np.arange(begin, min(begin + batch_size, len(index)))
        )
        row_BL = first_B[:, None] + np.arange(lines)
        x_BLP = torch.from_numpy(x_NLP[scan_B[:, None], row_BL])
        length = torch.from_numpy(length_B)
        with torch.inference_mode():
            logits_BTC = model(x_BLP.to(device), length.to(device)).cpu()
        parts.append(_rows(logits_BTC, scan_B, first_B, length, times))
    answers = Answers.joined(parts)
    answered = np.isin(answers.scan, answers.scan[~answers.fallback])
    answers = answers[np.flatnonzero(~(answers.fallback & answered))]
    return answers[np.lexsort((answers.lines_seen, answers.first_line, answers.scan))]


def valid_logits(run: Run, x_NLP: FloatArray, n_lines_N: ArrayLike) -> FloatArray:
    """Return the logits of every valid answer about whole scans, by scan and lines, [R, C]."""
    length_N = torch.as_tensor(np.asarray(n_lines_N, np.int64))
    valid_NT = AnswerTimes.of(run.model, run.meta["lines"]).valid(length_N)
    with torch.inference_mode():
        logits_NTC = torch.cat(
            [
                run.model(x_BLP, length_B)
                for x_BLP, length_B in zip(
                    torch.from_numpy(x_NLP).split(BATCH), length_N.split(BATCH), strict=True
                )
            ]
        )
    return logits_NTC[valid_NT].numpy()


def _rows(
    logits_BTC: Tensor,
    scan_B: NDArray[np.int64],
    first_B: NDArray[np.int64],
    length_B: Tensor,
    times: AnswerTimes,
) -> Answers:
    """Return the valid answers of a batch as rows."""
    valid_BT = times.valid(length_B).numpy()
    sample_R, answer_R = np.nonzero(valid_BT)
    # An answer at the end of a partial scan has seen the lines that there are.
    seen_R = np.minimum(np.asarray(times.lines)[answer_R], length_B.numpy()[sample_R])
    # In float64 the sum of the float32 probabilities is off by their own rounding at most.
    probability_BTC = logits_BTC.double().softmax(-1).float().numpy()
    return Answers(
        scan=scan_B[sample_R],
        first_line=first_B[sample_R],
        lines_seen=first_B[sample_R] + seen_R,
        final=answer_R == valid_BT.sum(1)[sample_R] - 1,
        fallback=np.zeros(len(sample_R), bool),
        probability=probability_BTC[sample_R, answer_R],
    )


def fallback(
    scan_R: NDArray[np.int64], n_lines_R: NDArray[np.int64], prior_C: Sequence[float]
) -> Answers:
    """Return the prior for each scan, as if it were a model's answer at its end."""
    rows = len(scan_R)
    return Answers(
        scan=scan_R,
        first_line=np.zeros(rows, np.int64),
        lines_seen=n_lines_R,
        final=np.ones(rows, bool),
        fallback=np.ones(rows, bool),
        probability=np.tile(np.asarray(prior_C, np.float32), (rows, 1)),
    )
