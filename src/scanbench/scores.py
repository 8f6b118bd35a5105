"""Read the tables that evaluate wrote for a comparison, and other CSV files of the pipeline."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from scanbench.errors import UserError

#: The columns that each table of scores must have.
TABLE_COLUMNS = {
    "metrics": "experiment reading lines metric class value low high seeds groups scans rows",
    "progress": "experiment metric lines difference low high",
    "pairs": "experiment_a experiment_b reading metric difference low high p p_holm",
    "roc": "experiment class seed fpr tpr",
    "confusion": "experiment seed true predicted count",
    "calibration": "experiment bin_low bin_high confidence accuracy count",
    "groups": "experiment group scans metric value",
    "examples": "experiment scan_id label predicted p_label p_predicted kind",
    "stopping": "experiment patience threshold wrong_stops saved lines_spent",
    "stops": "experiment limit figure value low high",
}


def read_scores(folder: str | Path, table: str) -> pd.DataFrame:
    """Read a table of scores.

    Parameters
    ----------
    folder
        That evaluate wrote for a comparison.
    table
        A key of `TABLE_COLUMNS`.

    Raises
    ------
    UserError
        If it is missing or no such table.
    """
    return read_csv(Path(folder) / f"{table}.csv", TABLE_COLUMNS[table])


def macro_row(metrics: pd.DataFrame, experiment: str, metric: str, comparison: str) -> pd.Series:
    """Return the row of `metrics.csv` of an experiment's macro figure over whole scans.

    Raises
    ------
    UserError
        If there is not exactly one.
    """
    rows = metrics[
        (metrics["experiment"] == experiment)
        & (metrics["metric"] == metric)
        & (metrics["reading"] == "scan")
        & (metrics["class"] == "")
    ]
    if len(rows) != 1:
        raise UserError(
            f"comparison {comparison!r}: {len(rows)} rows of {metric} of {experiment!r}; "
            "evaluate again"
        )
    return rows.iloc[0]


def read_csv(path: Path, columns: str) -> pd.DataFrame:
    """Read a CSV file that must have these columns; names stay text, "NA" and "None" included."""
    try:
        frame = pd.read_csv(path, dtype=_TEXT, keep_default_na=False, na_values=_MAY_BE_EMPTY)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; run the stage before again") from None
    except (ValueError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not a table ({str(error).splitlines()[0]})") from None
    if missing := [c for c in columns.split() if c not in frame.columns]:
        raise UserError(f"{path}: column {missing[0]!r} is missing; run the stage before again")
    return frame


_TEXT = dict.fromkeys(
    (
        "class", "excluded", "experiment", "experiment_a", "experiment_b", "file", "group", "kind",
        "label", "predicted", "reason", "scan_id", "true",
    ),
    str,
)  # fmt: skip
_MAY_BE_EMPTY = {
    column: [""]
    for column in (
        "accuracy", "confidence", "difference", "height_m", "high", "lines", "low", "lr", "p",
        "p_holm", "train_accuracy", "train_loss", "val_accuracy", "val_auroc",
        "val_balanced_accuracy", "val_loss", "value", "width_m",
    )
}  # fmt: skip
