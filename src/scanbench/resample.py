"""Resampling of scans that keeps them causal and keeps partial scans partial.

Every output pixel is the average of the input over the pixel's own footprint (area averaging): an
anti-aliasing filter when the image shrinks, and the identity at equal size. When the image grows,
pixels are repeated rather than interpolated, so that no line is built from a later one.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

FloatArray = NDArray[np.float32]


def resampled_lines(measured: int, planned: int, lines: int) -> int:
    """Return how many of `lines` output lines have their whole footprint measured.

    Parameters
    ----------
    measured
        Lines of the scan that were measured, at most `planned`.
    planned
        Lines the scan would have had.
    lines
        Lines of the whole scan after resampling.
    """
    assert 0 <= measured <= planned, f"{measured} of {planned} lines"
    return measured * lines // planned


@lru_cache(maxsize=64)
def area_weights(size_in: int, size_out: int) -> Any:
    """Return the sparse [size_out, size_in] matrix that averages over each output's footprint.

    Output `i` covers inputs from `i·size_in/size_out` to `(i+1)·size_in/size_out`; the weight of an
    input is the share of that interval which it fills. Rows sum to 1. Overlaps are counted in
    integers (units of 1/size_out of an input), so no rounding lets a line reach past its footprint.
    """
    edges = np.arange(size_out + 1, dtype=np.int64) * size_in
    out_index, in_index, weight = [], [], []
    for reach in range(-(-size_in // size_out) + 1):  # the inputs that one footprint can touch
        j = edges[:-1] // size_out + reach
        overlap = np.minimum(edges[1:], (j + 1) * size_out) - np.maximum(edges[:-1], j * size_out)
        touched = overlap > 0
        out_index.append(np.flatnonzero(touched))
        in_index.append(j[touched])
        weight.append(overlap[touched] / size_in)
    coordinates = (np.concatenate(out_index), np.concatenate(in_index))
    return sparse.csr_array((np.concatenate(weight), coordinates), shape=(size_out, size_in))


def resample(x_LP: FloatArray, planned_lines: int, lines: int, pixels: int) -> FloatArray:
    """Resample a scan to `lines` × `pixels`; a partial scan gives the lines it has measured.

    The factor along the slow axis is `lines / planned_lines`, so that line *i* of a partial scan is
    the same place on the surface, and the same numbers, as line *i* of the whole scan.

    Parameters
    ----------
    x_LP
        Heights in acquisition order, finite.
    planned_lines
        Lines of the whole scan (≥ the lines of `x_LP`).
    lines, pixels
        Size of a whole scan after resampling.

    Returns
    -------
    ndarray
        float32 [`resampled_lines(...)`, `pixels`].
    """
    measured, width = x_LP.shape
    kept = resampled_lines(measured, planned_lines, lines)
    if (planned_lines, width) == (lines, pixels):
        return x_LP[:kept].astype(np.float32, copy=False)
    # A sparse product adds each output's few inputs in order, whatever stands beyond them: results
    # do not depend on how many lines follow. float64, because heights often carry an offset that is
    # large against their corrugation.
    weights = area_weights(planned_lines, lines)
    if measured < planned_lines:
        weights = weights[:kept, :measured]
    rows_LP = weights @ x_LP.astype(np.float64)
    columns_PL = area_weights(width, pixels) @ np.ascontiguousarray(rows_LP.T)
    return np.ascontiguousarray(columns_PL.T, dtype=np.float32)


def fill_missing(x_LP: FloatArray) -> FloatArray:
    """Fill non-finite pixels by linear interpolation along their line.

    Ends of a line take the nearest finite pixel. A line without any takes the last line before it
    that has some; lines before the first measured one take that one (a model that reads a running
    scan is not asked before anything was measured).

    Parameters
    ----------
    x_LP
        Heights; NaN or infinite where missing.

    Returns
    -------
    ndarray
        `x_LP` itself if nothing is missing, else a filled copy.

    Raises
    ------
    ValueError
        If no pixel is finite.
    """
    if np.isfinite(x_LP.sum(dtype=np.float64)):  # one pass, no mask: nearly every scan ends here
        return x_LP
    finite_LP = np.isfinite(x_LP)
    measured = np.flatnonzero(finite_LP.any(axis=1))
    if not len(measured):
        raise ValueError("no finite pixel")
    filled = x_LP.copy()
    columns = np.arange(x_LP.shape[1])
    for line in measured[~finite_LP[measured].all(axis=1)]:
        known = finite_LP[line]
        filled[line] = np.interp(columns, columns[known], x_LP[line, known])
    source = np.searchsorted(measured, np.arange(len(x_LP)), side="right") - 1
    return filled[measured[np.maximum(source, 0)]]
