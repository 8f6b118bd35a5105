"""The predict stage: every answer of a trained model about scans that it was never shown.

Shape suffixes: R rows of the table.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from scanbench import provenance
from scanbench.answers import Answers, predict_arrays
from scanbench.files import replacing, write_json
from scanbench.predictions import WEIGHTS_KEY, class_columns
from scanbench.runs import META, WEIGHTS, Run, check_trained_on, load_run
from scanbench.split_file import read_split
from scanbench.store import FloatArray, Store

__all__ = ["Answers", "load_run", "predict", "predict_arrays", "unlabelled_scans"]

#: Scans read at once.
BLOCK = 256


class By(Protocol):
    """A way to the answers of a run other than its own forward pass.

    Attributes
    ----------
    file
        What it is read from.
    told
        What it adds to the provenance, once it has answered.
    """

    file: Path
    told: dict[str, Any]

    def answers(self, run: Run, x_NLP: FloatArray, n_lines_N: NDArray[np.int64]) -> Answers:
        """Return every valid answer about scans, as `predict_arrays` does."""


def predict(
    store: str | Path,
    split: str | Path,
    run: str | Path,
    out: str | Path,
    *,
    unlabelled: bool = False,
    exported: By | None = None,
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
        Provenance goes into `predict.json`, or `NAME.json` for scans without label and for another
        way to the answers.
    unlabelled
        Predict the scans without label of the tested groups instead of the test part; see
        `unlabelled_scans`.
    exported
        Another way to the run's answers than its own forward pass.

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
            x_NLP = data.read(block, meta["normalisation"])
            n_lines_N = data.n_lines[block].astype(np.int64)
            if exported:
                answers = exported.answers(trained, x_NLP, n_lines_N)
            else:
                answers = predict_arrays(trained, x_NLP, n_lines_N, device=device)
            found.append(answer_table(answers, block, data, meta["fold"], meta["seed"]))
    table = pa.concat_tables(found).replace_schema_metadata({WEIGHTS_KEY: meta["weights_sha256"]})
    inputs = {"store": store, "split": split, "weights": run / WEIGHTS, "model": run / META}
    if exported:
        inputs["exported"] = exported.file
    record = provenance.record(
        {key: meta[key] for key in ("name", "fold", "seed")},
        inputs=inputs,
        started=started,
        device=torch.cuda.get_device_name() if device == "cuda" else None,
    )
    own = unlabelled or exported
    record |= exported.told if exported else {}
    write_json(out.with_suffix(".json") if own else out.with_name("predict.json"), record)
    # Last: where predictions are, what is told of them is too.
    with replacing(out) as part:
        pq.write_table(table, part, compression="zstd", row_group_size=1 << 20)


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
