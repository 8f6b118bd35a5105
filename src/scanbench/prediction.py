"""The predict stage: every answer of a trained model about scans that it was never shown.

Shape suffixes: N scans, L scan lines, P pixels of a line, B batch, T answers, R rows of the table,
C classes.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from tqdm import tqdm

from scanbench import provenance
from scanbench.errors import UserError
from scanbench.files import replacing, write_json
from scanbench.predictions import class_columns
from scanbench.runs import META, WEIGHTS, AnswerTimes, Run, check_trained_on, load_run
from scanbench.split_file import read_split
from scanbench.store import FloatArray, Store
from scanbench.windows import WindowIndex

__all__ = ["Answers", "load_run", "predict", "predict_arrays", "unlabelled_scans"]

#: Samples that go through a model at once. A constant, so that the same scans give the same bytes.
BATCH = 64
#: Scans read at once.
BLOCK = 256


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
    parts = [_fallback(np.arange(len(n_lines_N)), n_lines_N, run.meta["prior"])]
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


def _fallback(
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


def predict(
    store: str | Path,
    split: str | Path,
    run: str | Path,
    out: str | Path,
    *,
    unlabelled: bool = False,
) -> None:
    """Write every held-out prediction of a run, and its provenance beside the table.

    Parameters
    ----------
    store, split
        The data set and its division; only the test part of the run's fold is read.
    run
        Folder of a trained run.
    out
        The Parquet file to write; the same input gives the same bytes on the same machine.
        Provenance goes into `predict.json`, or `NAME.json` for scans without label.
    unlabelled
        Predict the scans without label of the tested groups instead of the test part; see
        `unlabelled_scans`.

    Raises
    ------
    UserError
        If a file is damaged, or the run was trained on another data set or division of it, so
        that it may have been trained on what is tested.
    """
    started = time.time()
    run, out = Path(run), Path(out)
    trained = load_run(run)
    meta = trained.meta
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_num_threads(meta["training"]["num_threads"])
    with Store(store) as data:
        document = read_split(split, data)
        check_trained_on(run, meta, data, split)
        test = (
            unlabelled_scans(data, document, meta["fold"])
            if unlabelled
            else np.sort(data.index_of(document["folds"][meta["fold"]]["test"]))
        )
        blocks = [test[begin : begin + BLOCK] for begin in range(0, max(1, len(test)), BLOCK)]
        title = f"predict {meta['name']} fold {meta['fold']} seed {meta['seed']}"
        found = []
        for block in tqdm(blocks, desc=title, unit="block"):
            answers = predict_arrays(
                trained,
                data.read(block, meta["normalisation"]),
                data.n_lines[block],
                device=device,
            )
            found.append(answer_table(answers, block, data, meta["fold"], meta["seed"]))
    table = pa.concat_tables(found)
    with replacing(out) as part:
        pq.write_table(table, part, compression="zstd", row_group_size=1 << 20)
    inputs = {"store": store, "split": split, "weights": run / WEIGHTS, "model": run / META}
    record = provenance.record(
        {key: meta[key] for key in ("name", "fold", "seed")},
        inputs=inputs,
        started=started,
        device=torch.cuda.get_device_name() if device == "cuda" else None,
    )
    write_json(out.with_suffix(".json") if unlabelled else out.with_name("predict.json"), record)


def unlabelled_scans(data: Store, split: Mapping[str, Any], fold: int) -> NDArray[np.int64]:
    """Return the scans without label of the groups that a fold tests, by their place in the store.

    Such a scan stands in no part. It is held out where its group is: a group with a scan in the
    training or validation part, as in a random split, gives none. Scans have at least the lines
    that the split asks for.
    """
    parts = split["folds"][fold]
    tested, used = (
        {str(group) for name in names for group in data.group[data.index_of(parts[name])]}
        for names in (("test",), ("train", "validation"))
    )
    held_out = np.isin(data.group.astype(str), sorted(tested - used))
    least = max(1, int(split["config"].get("min_lines", 1)))
    return np.flatnonzero(held_out & (data.label < 0) & (data.n_lines >= least))


def answer_table(
    answers: Answers, scans: NDArray[np.int64], data: Store, fold: int, seed: int
) -> pa.Table:
    """Return answers about scans of a store as rows of `predictions.parquet`."""
    scan_R = scans[answers.scan]
    rows = len(scan_R)
    columns = {
        "scan_id": pa.array(data.scan_id[scan_R].tolist(), pa.string()),
        "group": pa.array(data.group[scan_R].tolist(), pa.string()),
        "label": pa.array(data.label[scan_R].astype(np.int64)),
        "fold": pa.array(np.full(rows, fold, np.int64)),
        "seed": pa.array(np.full(rows, seed, np.int64)),
        "first_line": pa.array(answers.first_line),
        "lines_seen": pa.array(answers.lines_seen),
        "final": pa.array(answers.final),
    }
    for name, p_R in zip(class_columns(data.classes), answers.probability.T, strict=True):
        columns[name] = pa.array(np.ascontiguousarray(p_R))
    return pa.table(columns)
