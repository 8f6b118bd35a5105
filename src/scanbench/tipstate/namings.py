"""What the volunteers of a score sheet named.

A sheet tells of each column what share of a scan's volunteers named it. So it tells how many
named a column, but not who: what a volunteer named is known where there was one, or where all
agreed. Two columns of one class, each named once, came from one volunteer or from two, so the
number that named the class has a lower and an upper bound (`Namings`); who named what together is
filled in from scans with one response (`completions`).

Shape suffixes: N scans, K columns of the sheet, C classes.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from scanbench.errors import UserError
from scanbench.metrics import Floats, Ints

#: Ways of naming that no scan with one response shows have this many scans, for `completions`.
UNSEEN = 0.5


@dataclass(frozen=True, kw_only=True)
class Namings:
    """How many volunteers named each class of each scan, as far as the sheet tells.

    Attributes
    ----------
    scan_id_N, group_N
        Which scans.
    responses_N
        Volunteers that answered.
    count_NK
        Volunteers that named each column of the sheet.
    class_K
        Class of each column.
    label_N
        Merged label; −1: none.
    """

    scan_id_N: NDArray[np.object_]
    group_N: NDArray[np.object_]
    responses_N: Ints
    count_NK: Ints
    class_K: tuple[int, ...]
    label_N: Ints

    @property
    def fewest_NC(self) -> Ints:
        """Least number of volunteers that named each class: those of its most named column."""
        return np.stack([own_NI.max(axis=1) for own_NI in self._of_classes()], axis=1)

    @property
    def most_NC(self) -> Ints:
        """Largest number that may have named each class: no volunteer named two of its columns."""
        sums_NC = np.stack([own_NI.sum(axis=1) for own_NI in self._of_classes()], axis=1)
        return np.minimum(sums_NC, self.responses_N[:, None])

    def __getitem__(self, rows: NDArray[Any]) -> Namings:
        """Return some of the scans."""
        names = ("scan_id_N", "group_N", "responses_N", "count_NK", "label_N")
        return Namings(class_K=self.class_K, **{name: getattr(self, name)[rows] for name in names})

    def __len__(self) -> int:
        """Return the number of scans."""
        return len(self.scan_id_N)

    def _of_classes(self) -> list[Ints]:
        class_K = np.array(self.class_K)
        return [self.count_NK[:, class_K == c] for c in range(class_K.max() + 1)]


def namings(
    manifest: pd.DataFrame, merge: Mapping[str, Sequence[str]], classes: Sequence[str]
) -> Namings:
    """Return the counts behind the mean scores of a manifest.

    Parameters
    ----------
    manifest
        `manifest.csv` of a data set with a score sheet (`Mean_Score`).
    merge
        Class → columns of the sheet.
    classes
        Class names; a label is an index into them.

    Raises
    ------
    UserError
        If the manifest has no scores or responses, or a score is no share of its responses.
    """
    columns = [column for name in classes for column in merge.get(name, ())]
    for column in ("responses", *(f"score_{name}" for name in columns)):
        if column not in manifest:
            raise UserError(
                f"manifest: column {column!r} is missing: agreement needs a data set with a score "
                "sheet"
            )
    rows = manifest[manifest["responses"].fillna(0) >= 1]
    if rows.empty or not columns:
        raise UserError("manifest: no scan has a response: agreement needs a score sheet")
    responses_N = rows["responses"].to_numpy(np.int64)
    exact_NK = (
        rows[[f"score_{name}" for name in columns]].to_numpy(np.float64) * responses_N[:, None]
    )
    count_NK = np.round(exact_NK)
    if (odd_N := (np.abs(exact_NK - count_NK) > 0.01).any(axis=1)).any():
        raise UserError(
            f"manifest: scores of {rows['scan_id'].to_numpy()[odd_N][0]} are no shares of its "
            "responses: agreement needs `labels.sheet: Mean_Score`"
        )
    used = rows["excluded"].fillna("") == ""
    place = {name: i for i, name in enumerate(classes)}
    return Namings(
        scan_id_N=rows["scan_id"].to_numpy(object),
        group_N=rows["group"].to_numpy(object),
        responses_N=responses_N,
        count_NK=count_NK.astype(np.int64),
        class_K=tuple(place[name] for name in classes for _ in merge.get(name, ())),
        label_N=np.asarray(rows["label"].where(used).map(place).fillna(-1), dtype=np.int64),
    )


def prior_of_namings(own: Namings) -> Floats:
    """Return how likely a volunteer is to name each set of columns: [2^K], from single responses.

    Bit k of a set's number stands for column k.
    """
    bits_K = 1 << np.arange(own.count_NK.shape[1])
    single = own.count_NK[own.responses_N == 1] @ bits_K
    seen = np.bincount(single, minlength=int(bits_K.sum()) + 1) + UNSEEN
    return np.asarray(seen / seen.sum())


def completions(
    count_K: Sequence[int], responses: int, prior: Floats
) -> tuple[list[tuple[int, ...]], Floats]:
    """Return every way in which volunteers can have named columns so often, and how likely it is.

    Volunteers are exchangeable, and given the counts they are taken to have named sets of columns
    independently, each as likely as among single responses.

    Parameters
    ----------
    count_K
        Volunteers that named each column.
    responses
        Volunteers.
    prior
        From `prior_of_namings`.

    Returns
    -------
    ways : list
        For each way the set (bits) of each volunteer.
    weight : ndarray
        Of each way; sums to 1.
    """
    choices = [list(itertools.combinations(range(responses), int(count))) for count in count_K]
    found: dict[tuple[int, ...], float] = {}
    for way in itertools.product(*choices):
        sets = [0] * responses
        for k, who in enumerate(way):
            for volunteer in who:
                sets[volunteer] |= 1 << k
        # Every order of the same sets comes up, so adding them up counts each as often as it is.
        key = tuple(sorted(sets))
        found[key] = found.get(key, 0.0) + math.prod(float(prior[s]) for s in sets)
    weight = np.array(list(found.values()))
    return list(found), weight / weight.sum()


def masks(class_K: Sequence[int]) -> list[int]:
    """Return the bits of the columns of each class."""
    return [sum(1 << k for k, of in enumerate(class_K) if of == c) for c in range(max(class_K) + 1)]
