"""Let a trained run judge a new folder of scans, by the same code as the report."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from tqdm import tqdm

from scanbench import plotting, provenance
from scanbench.convert import convert
from scanbench.evaluation import metrics_for
from scanbench.files import replacing, write_json
from scanbench.prediction import BLOCK, answer_table, predict_arrays
from scanbench.predictions import class_columns, scan_reading
from scanbench.runs import META, WEIGHTS, load_run
from scanbench.scans import read_manifest
from scanbench.store import Store
from scanbench.tipstate.figures import Example, line_answers, picture, scan_answer
from scanbench.tipstate.ingest import IngestSummary, ingest

#: Lines at which running scans are scored, as in the report's default, and bins of confidence.
LINES = (1, 2, 3, 5, 10, 15, 20, 30, 40, 64, 96, 128)
ECE_BINS = 15


def apply(
    run: Path,
    folder: Path,
    out: Path,
    labels: Path | None = None,
    options: Mapping[str, Any] | None = None,
    figures: bool = True,
) -> IngestSummary:
    """Write a run's answers about the scans of a folder.

    Into `out` go `scans.csv` (one answer per scan), `lines.csv` (every answer while the scan ran),
    `figures/<scan>.png`, the ingested `scans/` and `store.h5`, `apply.json` (provenance) and, where
    labels are given, `metrics.csv`.

    Parameters
    ----------
    run
        Folder of a trained run.
    folder
        Instrument files, an NPZ or a .mat file.
    out
        Folder to write into.
    labels
        Table with columns `scan` and `label`; None: no metrics.
    options
        Keys of `ingest.IngestOptions`, for files that need them.
    figures
        Draw a figure for each scan.

    Returns
    -------
    IngestSummary
        Every file of the folder and what became of it.

    Raises
    ------
    UserError
        If the run or the labels are wrong, or no scan can be read.
    """
    started = time.time()
    trained = load_run(run)
    meta, classes = trained.meta, trained.classes
    spec = {"min_lines": 1, **(options or {}), "classes": classes}
    found = ingest(spec, folder, labels, out / "scans")
    size = {"lines": meta["scan_lines"], "pixels": meta["pixels"]}
    convert({"study": meta["study"], "classes": classes, **size}, out / "scans", out / "store.h5")

    manifest = read_manifest(out / "scans")
    with Store(out / "store.h5") as store:
        table = _answers(run, store)
        scans = _scan_answers(table, store)
        _write_csv(scans, out / "scans.csv")
        _write_csv(table, out / "lines.csv")
        if figures:
            _draw(table, scans, store, manifest, out / "figures")
    if labels is not None:
        lines = [count for count in LINES if count <= meta["scan_lines"]]
        scored = metrics_for(table, classes, lines=lines, ece_bins=ECE_BINS, where=str(labels))
        _write_csv(scored, out / "metrics.csv")
    inputs = {"weights": run / WEIGHTS, "model": run / META, "store": out / "store.h5"}
    if labels is not None:
        inputs["labels"] = labels
    write_json(out / "apply.json", provenance.record(spec, inputs=inputs, started=started))
    return found


def _answers(run: Path, store: Store) -> pd.DataFrame:
    """Return every answer about every scan of a store, as rows of `predictions.parquet`."""
    trained = load_run(run)
    meta = trained.meta
    everything = np.arange(len(store.scan_id))
    blocks = [everything[begin : begin + BLOCK] for begin in range(0, len(everything), BLOCK)]
    found = []
    for block in tqdm(blocks, desc="predict", unit="block", disable=None):
        x_NLP = store.read(block, meta["normalisation"])
        answers = predict_arrays(trained, x_NLP, store.n_lines[block])
        found.append(answer_table(answers, block, store, fold=0, seed=meta["seed"]))
    return pa.concat_tables(found).to_pandas()


def _scan_answers(table: pd.DataFrame, store: Store) -> pd.DataFrame:
    """Return one row per scan: its label if it has one, the answer and all probabilities."""
    reading = scan_reading(table, store.classes)
    p_NC = reading.p_SNC[0]
    names = np.array([*store.classes, ""], dtype=object)
    frame = pd.DataFrame(
        {
            "scan_id": reading.scan_id_N,
            "group": reading.group_N,
            "label": names[reading.label_N],
            "predicted": names[p_NC.argmax(axis=1)],
        }
    )
    return frame.assign(**dict(zip(class_columns(store.classes), p_NC.T, strict=True)))


def _draw(
    table: pd.DataFrame, scans: pd.DataFrame, store: Store, manifest: pd.DataFrame, folder: Path
) -> None:
    rows_of = dict(list(table.groupby("scan_id")))
    for row in tqdm(scans.to_dict("records"), desc="draw figures", unit="scan"):
        k = int(store.index_of([row["scan_id"]])[0])
        change = int(store.change_line[k])
        example = Example(
            picture=picture(store, manifest, k),
            label=row["label"],
            predicted=row["predicted"],
            answers=line_answers(rows_of[row["scan_id"]], row["scan_id"], store.classes),
            change_line=change if change >= 0 else None,
        )
        # A scan's name comes from a file and may hold anything; a file's name may not.
        name = "".join(c if c.isalnum() or c in "-_." else "_" for c in row["scan_id"])
        plotting.save(scan_answer(example, store.classes), folder, f"{k:05d}-{name}", ["png"])


def _write_csv(frame: pd.DataFrame, path: Path) -> None:
    with replacing(path) as part:
        frame.to_csv(part, index=False, float_format="%.6g", lineterminator="\n")
