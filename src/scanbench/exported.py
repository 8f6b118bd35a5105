"""An exported step at work: a monitor's answers as onnxruntime gives them, on one thread.

Shape suffixes: N scans, L scan lines, P pixels of a line, R rows (answers about all scans),
C classes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import ArrayLike, NDArray

from scanbench.answers import Answers, fallback, valid_logits
from scanbench.errors import UserError, first_line
from scanbench.files import parse_json
from scanbench.prediction import predict
from scanbench.runs import META, Run
from scanbench.store import FloatArray

#: Numbers that the state of a step may hold.
LARGEST_STATE = 2**26
TYPES = {"tensor(float)": np.float32, "tensor(int64)": np.int64}


class Exported:
    """A step in an ONNX file, fed line by line.

    Parameters
    ----------
    model
        The file, or its bytes.

    Raises
    ------
    UserError
        If onnxruntime cannot read it, or it is no step that `scanbench export` wrote.
    """

    def __init__(self, model: Path | bytes) -> None:
        options = onnxruntime.SessionOptions()
        # A line is too little work to share, and a thread that waits by spinning costs a core.
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        given = model if isinstance(model, bytes) else str(model)
        name = "the exported step" if isinstance(model, bytes) else str(model)
        try:
            self.session = onnxruntime.InferenceSession(
                given, options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # onnxruntime's own kinds share no other base
            raise UserError(
                f"{name}: cannot be run ({first_line(error)}); export it again"
            ) from None
        told = self.session.get_modelmeta().custom_metadata_map
        try:
            #: What `scanbench export` noted, and the form of the weights.
            self.about: dict[str, Any] = parse_json(told["scanbench"])
            self.form: str = told.get("form", "")
            state = self.session.get_inputs()[1:]
            if sum(math.prod(node.shape) for node in state) > LARGEST_STATE:
                raise ValueError("its state is too large")
            self.before = {node.name: np.zeros(node.shape, TYPES[node.type]) for node in state}
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"{name}: is no exported step ({first_line(error)}); export it again"
            ) from None
        self.reset()

    def reset(self) -> None:
        """Begin another scan."""
        self.state = dict(self.before)

    def push(self, line_P: FloatArray) -> FloatArray | None:
        """Return logits [C] if the model answers after this line, normalised."""
        logits_C, answered, *after = self.session.run(None, {"line": line_P, **self.state})
        self.state = dict(zip(self.before, after, strict=True))
        return logits_C if answered[0] else None

    def logits(self, x_NLP: FloatArray, n_lines_N: ArrayLike) -> Iterator[tuple[int, int, Any]]:
        """Yield (scan, lines seen, logits [C]) of every answer about scans."""
        for scan, (x_LP, n_lines) in enumerate(zip(x_NLP, np.asarray(n_lines_N), strict=True)):
            self.reset()
            for seen, line_P in enumerate(x_LP[:n_lines], 1):
                if (logits_C := self.push(line_P)) is not None:
                    yield scan, seen, logits_C


def streamed_answers(
    exported: Exported, x_NLP: FloatArray, n_lines_N: NDArray[np.int64], prior_C: list[float]
) -> tuple[Answers, FloatArray]:
    """Return every answer of an exported step about scans, and its logits [R, C].

    Parameters
    ----------
    exported
        The step.
    x_NLP
        Scans normalised as the run's are.
    n_lines_N
        Measured lines of each scan.
    prior_C
        What stands for the answer about a scan too short for one, as in `answers.predict_arrays`.
        Such a row has no logits.
    """
    scan_R, seen_R, logits_R = zip(*exported.logits(x_NLP, n_lines_N), strict=True)
    scan, logits_RC = np.array(scan_R, np.int64), np.stack(logits_R).astype(np.float32)
    shifted_RC = np.exp(logits_RC.astype(np.float64) - logits_RC.max(1, keepdims=True))
    given = Answers(
        scan=scan,
        first_line=np.zeros(len(scan), np.int64),
        lines_seen=np.array(seen_R, np.int64),
        final=np.append(scan[1:] != scan[:-1], True),
        fallback=np.zeros(len(scan), bool),
        probability=(shifted_RC / shifted_RC.sum(1, keepdims=True)).astype(np.float32),
    )
    mute = np.setdiff1d(np.arange(len(x_NLP)), scan)
    joined = Answers.joined([given, fallback(mute, n_lines_N[mute], prior_C)])
    return joined[np.lexsort((joined.lines_seen, joined.scan))], logits_RC


class Streamed:
    """A way for `predict` to a run's answers: its exported step, a scan line by line.

    Parameters
    ----------
    file
        The step.

    Attributes
    ----------
    told
        `form`, and `largest_logit_difference`: how far a logit was at most from that of the run.
    """

    def __init__(self, file: Path) -> None:
        self.file, self.step = file, Exported(file)
        self.told: dict[str, Any] = {"form": self.step.form, "largest_logit_difference": 0.0}

    def answers(self, run: Run, x_NLP: FloatArray, n_lines_N: NDArray[np.int64]) -> Answers:
        """Return every answer about scans.

        Raises
        ------
        UserError
            If the step is another run's.
        """
        if self.step.about.get("weights_sha256") != run.meta["weights_sha256"]:
            raise UserError(
                f"{self.file}: is of other weights than {META} tells of; export that run again"
            )
        found, logits_RC = streamed_answers(self.step, x_NLP, n_lines_N, run.meta["prior"])
        away = float(np.abs(valid_logits(run, x_NLP, n_lines_N) - logits_RC).max(initial=0.0))
        self.told["largest_logit_difference"] = max(self.told["largest_logit_difference"], away)
        return found


def predict_exported(store: Path, split: Path, run: Path, exported: Path, out: Path) -> None:
    """Write every held-out prediction of a run's exported step, as `predict` does of the run."""
    predict(store, split, run, out, exported=Streamed(exported))
