"""Several trained experiments as one: the geometric mean of their probabilities.

Members are combined where evaluation sees them, in their tables of held-out predictions, fold by
fold and seed by seed, so that an ensemble is held out from whatever its members are held out from.
The geometric mean is the logarithmic opinion pool (Heskes 1998, NeurIPS 10, 266), whose expected
log loss is never above the mean of its members'.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from scanbench import provenance
from scanbench.errors import UserError
from scanbench.files import replacing, write_json
from scanbench.metrics import log_probability
from scanbench.parquet import read_parquet
from scanbench.predictions import COLUMNS, is_windowed, read_table, windows_so_far

SAMPLE = ["scan_id", "first_line"]


def pooled(tables: Mapping[str, pd.DataFrame], *, same_windows: bool = True) -> pd.DataFrame:
    """Return the answers of an ensemble.

    Whenever a member answers, the ensemble does: with the newest answers of all members that have
    answered about this sample, so that it looks no further than they did. A member that has not
    answered yet has no part: one that answers at the scan's end joins there.

    Beside members with other windows, one that looks at windows says of a running scan what
    evaluation reads of it: the mean over the windows that have ended.

    Parameters
    ----------
    tables
        Member → its table of predictions, of one fold and seed, checked.
    same_windows
        Whether all members look at the same samples of a scan, be they windows or whole scans.

    Returns
    -------
    pandas.DataFrame
        Columns and order of rows as in a table of predictions; independent of the members' order.

    Raises
    ------
    UserError
        If the members have not answered about the same scans, or about the same samples of them
        where they should have, or have other classes.
    """
    first_name, first = next(iter(tables.items()))
    columns = [column for column in first.columns if column.startswith("p_")]
    for name, table in tables.items():
        if [column for column in table.columns if column.startswith("p_")] != columns:
            raise UserError(f"ensemble: {name!r} has other classes than {first_name!r}")
        if odd := sorted(set(table["scan_id"]) ^ set(first["scan_id"])):
            raise UserError(
                f"ensemble: of {name!r} and {first_name!r} only one answers about scan {odd[0]!r}: "
                "predict again, with the same split for both"
            )
    if not same_windows:
        tables = {name: _of_running_scans(table, columns) for name, table in tables.items()}
    for name, table in tables.items():
        if not _samples(table).equals(_samples(tables[first_name])):
            raise UserError(
                f"ensemble: {name!r} and {first_name!r} answer about different samples of a scan, "
                "but have the same windows: predict again"
            )
    logs = pd.concat(
        [_logarithms(tables[name], columns) for name in sorted(tables)],
        axis="columns",
        keys=sorted(tables),
    ).sort_index()
    newest = logs.groupby(level=SAMPLE).ffill()
    mean_RC = newest.T.groupby(level=1, sort=False).mean().T[columns].to_numpy()
    p_RC = np.exp(mean_RC - mean_RC.max(axis=1, keepdims=True))
    p_RC /= p_RC.sum(axis=1, keepdims=True)
    rows = logs.index.to_frame(index=False)
    facts = ["group", "label", "fold", "seed"]
    rows = rows.merge(first.drop_duplicates("scan_id")[["scan_id", *facts]], on="scan_id")
    rows["final"] = ~rows.duplicated(SAMPLE, keep="last")
    return rows[list(COLUMNS)].assign(**dict(zip(columns, p_RC.astype(np.float32).T, strict=True)))


def _of_running_scans(table: pd.DataFrame, columns: list[str]) -> pd.DataFrame:
    """Return a table whose samples are scans from their first line, whatever they were."""
    if not is_windowed(table):
        return table
    rows = windows_so_far(table[table["final"]], columns)
    return rows.assign(first_line=0, final=~rows.duplicated("scan_id", keep="last"))


def _logarithms(table: pd.DataFrame, columns: list[str]) -> pd.DataFrame:
    return (
        table.set_index([*SAMPLE, "lines_seen"])[columns].astype(np.float64).apply(log_probability)
    )


def _samples(table: pd.DataFrame) -> pd.MultiIndex:
    return pd.MultiIndex.from_frame(table[SAMPLE]).unique().sort_values()


def combine(
    spec: Mapping[str, Any], members: Mapping[str, Path], classes: Sequence[str], out: Path
) -> None:
    """Write the predictions of an ensemble's run, and its provenance beside the table.

    Parameters
    ----------
    spec
        `name` of the ensemble, `fold`, `seed` and `same_windows` (see `pooled`).
    members
        Member → its table of predictions of that fold and seed.
    classes
        Class names.
    out
        The Parquet file to write. Provenance goes into `predict.json` beside `predictions.parquet`,
        into `NAME.json` beside any other.

    Raises
    ------
    UserError
        If a table is missing or malformed, or the members do not fit together.
    """
    started = time.time()
    found = [read_parquet(path, "run predict again") for path in members.values()]
    if all(table.empty for table in found):
        # Where every scan of the tested groups has a label, nothing was asked of those without.
        table = found[0]
    else:
        tables = {name: read_table(path, classes, f"{path}") for name, path in members.items()}
        table = pooled(tables, same_windows=spec["same_windows"])
    record = provenance.record(spec, inputs=members, started=started)
    name = "predict.json" if out.stem == "predictions" else f"{out.stem}.json"
    write_json(out.with_name(name), record)
    with replacing(out) as part:  # last, as in `predict`
        table.to_parquet(part, compression="zstd", index=False)
