"""Read tables of this package's own stages from Parquet files, whatever the files hold."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq

from scanbench.errors import UserError, first_line

#: Rows that a table may have. A column of equal values takes no room in a file, however long it is.
MOST_ROWS = 2**27


def read_parquet(
    path: str | Path, mend: str, *, columns: Sequence[str] | None = None, where: str = ""
) -> pd.DataFrame:
    """Read a table.

    Parameters
    ----------
    path
        The Parquet file.
    mend
        Ends each message: what to do about it.
    columns
        Those to read; None: all.
    where
        Begins each message; default: the path.

    Raises
    ------
    UserError
        If the file is missing, damaged, or has more than `MOST_ROWS` rows.
    """
    where = where or str(path)
    try:
        with pq.ParquetFile(path) as file:
            if file.metadata.num_rows > MOST_ROWS:
                raise UserError(f"{where}: has {file.metadata.num_rows} rows; {mend}")
        return pd.read_parquet(path, columns=None if columns is None else list(columns))
    except FileNotFoundError:
        raise UserError(f"{where}: no such file; {mend}") from None
    except (UserError, MemoryError):
        raise
    # pyarrow and pandas raise whatever a broken file makes of them.
    except Exception as error:
        raise UserError(f"{where}: no Parquet file ({first_line(error)}); {mend}") from error
