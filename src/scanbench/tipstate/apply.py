"""Let a trained run judge a new folder of scans, by the same code as the report."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray
from tqdm import tqdm

from scanbench import plotting, provenance
from scanbench.convert import convert
from scanbench.errors import UserError
from scanbench.evaluation import metrics_for
from scanbench.files import check_apart, replacing_folder, write_json
from scanbench.prediction import BLOCK, answer_table, predict_arrays
from scanbench.predictions import class_columns, is_windowed, scan_reading
from scanbench.runs import META, WEIGHTS, Run, load_run
from scanbench.scans import read_manifest
from scanbench.start import SEEN, read_seen
from scanbench.store import Store
from scanbench.tipstate.figures import Example, line_answers, picture, scan_answer
from scanbench.tipstate.ingest import IngestSummary, ingest
from scanbench.tipstate.readers import ReadOptions

#: Lines at which running scans are scored and bins of confidence: the config's defaults.
LINES = (1, 2, 3, 5, 10, 15, 20, 30, 40, 64, 96, 128)
ECE_BINS = 15

#: What to do about a label that is no class of the run.
MEND_LABEL = (
    "the run knows no other class; mend it, or say which of them it is: "
    """--spec '{"label_map": {"LABEL": "CLASS"}}'"""
)

#: Written last: a folder that holds it is an earlier output, which may be replaced.
RECORD = "apply.json"


@dataclass(frozen=True, kw_only=True)
class Applied:
    """What became of a folder's files and scans.

    Attributes
    ----------
    found
        Every file and what became of it.
    left_out
        Scan → reason, of scans that were read but of which the run cannot say anything.
    files
        What was written into the output folder, for people to look at.
    absent
        Classes without a labelled scan among those judged; without them some metrics do not exist.
    lines
        Lines of a whole scan at the size that the run looks at.
    judged, seen
        Number of scans with an answer, and of those among them that had a part in the training or
        validation of the run or of what it rests on; None if the run does not tell.
    """

    found: IngestSummary
    left_out: dict[str, str]
    files: tuple[str, ...]
    absent: tuple[str, ...]
    lines: int
    judged: int
    seen: int | None


def apply(
    run: Path,
    folder: Path,
    out: Path,
    labels: Path | None = None,
    options: Mapping[str, Any] | None = None,
    figures: bool = True,
) -> Applied:
    """Write a run's answers about the scans of a folder.

    Into `out` go `scans.csv` (one answer per scan), `lines.csv` (every answer while the scan ran),
    `left_out.csv` (scans without an answer, and why), `figures/<scan>.png`, the ingested `scans/`
    and `store.h5`, `apply.json` (provenance) and, where labels are given, `metrics.csv`.

    Parameters
    ----------
    run
        Folder of a trained run.
    folder
        Instrument files, an NPZ or a .mat file.
    out
        Folder to write, whole or not at all; an earlier output is replaced.
    labels
        Table with columns `scan` and `label`; None: no metrics.
    options
        Keys of `ingest.IngestOptions`, for files that need them. By default, files are read as the
        run's own were (`ReadOptions.recorded`).
    figures
        Draw a figure for each scan.

    Raises
    ------
    UserError
        If the run or the labels are wrong, no scan can be read, scans are in a unit that the run
        does not take (`Run.takes`), or `out` is not free or lies in `folder`.
    """
    started = time.time()
    trained = load_run(run)
    meta, classes = trained.meta, trained.classes
    if not folder.exists():  # told before `out` is begun, perhaps in it
        raise UserError(f"{folder}: no such data folder or file; name that of the scans to judge")
    check_apart(out, folder, run, labels, option="--out")
    spec = {
        **ReadOptions.recorded(meta["ingest"]),
        "min_lines": 1,
        **(options or {}),
        "classes": classes,
    }
    size = {"lines": meta["scan_lines"], "pixels": meta["pixels"]}
    with replacing_folder(out, marker=RECORD, option="--out") as part:
        found = ingest(spec, folder, labels, part / "scans", mend_label=MEND_LABEL)
        manifest = read_manifest(part / "scans")
        _check_unit(manifest, folder, trained)
        convert(
            {"study": meta["study"], "classes": classes, **size}, part / "scans", part / "store.h5"
        )
        with Store(part / "store.h5") as store:
            left_out = _left_out(store, manifest)
            judged = np.flatnonzero(store.n_lines > 0)
            if not len(judged):
                raise UserError(
                    f"{folder}: no scan is long enough: {next(iter(left_out.values()))}"
                )
            seen = _seen(run, store, judged)
            table = _answers(trained, store, judged)
            scans = _scan_answers(table, store)
            _write_csv(scans, part / "scans.csv")
            _write_csv(_line_answers(table, store, manifest), part / "lines.csv")
            listed = pd.DataFrame(left_out.items(), columns=["scan_id", "reason"])
            _write_csv(listed, part / "left_out.csv")
            if figures:
                _draw(table, scans, store, manifest, part / "figures")
        if labels is not None:
            lines = [count for count in LINES if count <= meta["scan_lines"]]
            scored = metrics_for(table, classes, lines=lines, ece_bins=ECE_BINS, where=str(labels))
            _write_csv(scored, part / "metrics.csv")
        inputs = {"weights": run / WEIGHTS, "model": run / META, "store": part / "store.h5"}
        if labels is not None:
            inputs["labels"] = labels
        write_json(part / RECORD, provenance.record(spec, inputs=inputs, started=started))
    written = ("scans.csv", "lines.csv", "left_out.csv", "metrics.csv", "figures")
    return Applied(
        found=found,
        left_out=left_out,
        files=tuple(name for name in written if (out / name).exists()),
        absent=tuple(name for name in classes if name not in set(scans["label"])),
        lines=meta["scan_lines"],
        judged=len(judged),
        seen=seen,
    )


def _seen(run: Path, store: Store, judged: np.ndarray) -> int | None:
    """Return how many scans had a part in the run's weights; None if the run does not tell."""
    if not (run / SEEN).is_file():
        return None
    known = list(read_seen(run))
    hashes = np.stack([store.file_sha256[judged], store.scan_sha256[judged]])
    return int(np.isin(hashes, known).any(0).sum())


def _check_unit(manifest: pd.DataFrame, folder: Path, trained: Run) -> None:
    """Refuse scans of other physics than the run was trained on."""
    other = manifest[~manifest["unit"].map(trained.takes)]
    if len(other):
        first = other.iloc[0]
        raise UserError(
            f"{folder}: {first['file']}: channel {first['channel']!r} in {first['unit']!r}, but "
            f"the run was trained on {trained.quantity}; choose the "
            'channel with --spec \'{"channel": "NAME"}\''
        )


def _left_out(store: Store, manifest: pd.DataFrame) -> dict[str, str]:
    """Give a reason for each scan of which nothing is left at the store's size."""
    rows = manifest.set_index("scan_id")
    left_out = {}
    for scan_id in store.scan_id[store.n_lines == 0].tolist():
        lines, planned = rows.loc[scan_id, ["lines", "planned_lines"]]
        left_out[scan_id] = (
            f"aborted after {lines} of {planned} lines: less than one of the {store.lines} lines "
            "that the run looks at"
        )
    return left_out


def _answers(trained: Run, store: Store, scans: NDArray[np.int64]) -> pd.DataFrame:
    """Return every answer about scans of a store, as rows of `predictions.parquet`."""
    meta = trained.meta
    blocks = [scans[begin : begin + BLOCK] for begin in range(0, len(scans), BLOCK)]
    found = []
    for block in tqdm(blocks, desc="predict", unit="block"):
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


def _line_answers(table: pd.DataFrame, store: Store, manifest: pd.DataFrame) -> pd.DataFrame:
    """Return every answer with its class by name and its time in lines of the instrument too."""
    names = np.array([*store.classes, ""], dtype=object)
    planned = manifest.set_index("scan_id")["planned_lines"].astype(np.int64)
    planned_R = planned.loc[table["scan_id"]].to_numpy()
    # A line of the store is whole once the last line that it averages has been measured.
    measured_R = -(-table["lines_seen"].to_numpy() * planned_R // store.lines)
    named = table.assign(label=names[table["label"]])
    named.insert(list(named.columns).index("lines_seen") + 1, "measured_lines", measured_R)
    return named


def _draw(
    table: pd.DataFrame, scans: pd.DataFrame, store: Store, manifest: pd.DataFrame, folder: Path
) -> None:
    # As in the evaluation, windows count once they have ended.
    shown = table[table["final"]] if is_windowed(table) else table
    rows_of = dict(list(shown.groupby("scan_id")))
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
    frame.to_csv(path, index=False, float_format="%.6g", lineterminator="\n")
