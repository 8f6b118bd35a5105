"""What leaks between the parts of a split: shared groups, copies, and scans of the same place.

Near-duplicates are pairs of scans whose flattened, low-passed and partly whitened heights correlate
strongly at some shift. A lattice correlates with every other lattice of the same spacing and angle,
wherever it was measured; whitening (Knapp and Carter, "The generalized correlation method for
estimation of time delay", 1976) takes weight from the few strong frequencies of a lattice and gives
it to steps and defects, which tell one place from another. Some chance pairs remain: read the
number against that of a split by groups. What a split has more than that is leakage.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from scanbench.resample import area_weights
from scanbench.store import FloatArray, Store

IntArray = NDArray[np.int64]

PAIRS_OF_PARTS = (("train", "test"), ("train", "validation"), ("validation", "test"))
EXAMPLES = 5

_SIZE = 24  # lines and pixels of the low-passed scans
_WHITENING = 0.3  # 0: plain correlation, 1: phases alone; see docs/decisions/0034
_LEAST_LINES = _SIZE // 8  # an overlap of fewer lines proves nothing
_CHUNK = 1024  # scans that are correlated with as many others in one matrix product


def audit(
    store: Store,
    scans: IntArray,
    folds: Sequence[Mapping[str, IntArray]],
    threshold: float = 0.9,
) -> list[dict[str, Any]]:
    """Compare the parts of each fold with each other.

    Parameters
    ----------
    store
        Where the scans are.
    scans
        Positions in the store of all scans that stand in a part [n].
    folds
        For each fold, part → positions in `scans`.
    threshold
        Correlation from which two scans are near-duplicates.

    Returns
    -------
    list of dict
        One row for each fold and pair of parts: `fold`, `parts` (such as `train/test`),
        `shared_groups` (names), `shared_files` (number of source files with scans in both),
        `exact_duplicates` (pairs of equal scans), `near_duplicates` (pairs, exact ones included),
        `near_duplicate_scans` (scans of the second part with one in the first), `pairs` (pairs
        compared) and `examples` ([scan of the first part, of the second, correlation], strongest
        first).
    """
    i, j, correlation = near_duplicates(store, scans, threshold)
    scan_id, group = store.scan_id[scans], store.group[scans]
    file, content = store.file_sha256[scans], store.scan_sha256[scans]
    rows = []
    for number, fold in enumerate(folds):
        for first, second in PAIRS_OF_PARTS:
            a, b = fold[first], fold[second]
            in_a, in_b = np.zeros(len(scans), bool), np.zeros(len(scans), bool)
            in_a[a], in_b[b] = True, True
            forward, reverse = in_a[i] & in_b[j], in_b[i] & in_a[j]
            near_a = np.concatenate([i[forward], j[reverse]])
            near_b = np.concatenate([j[forward], i[reverse]])
            value = np.concatenate([correlation[forward], correlation[reverse]])
            strongest = np.lexsort((near_b, near_a, -value))[:EXAMPLES]
            rows.append(
                {
                    "fold": number,
                    "parts": f"{first}/{second}",
                    "shared_groups": np.intersect1d(group[a], group[b]).tolist(),
                    "shared_files": len(np.intersect1d(file[a], file[b])),
                    "exact_duplicates": _equal_pairs(content[a], content[b]),
                    "near_duplicates": len(value),
                    "near_duplicate_scans": len(np.unique(near_b)),
                    "pairs": len(a) * len(b),
                    "examples": [
                        [
                            str(scan_id[near_a[k]]),
                            str(scan_id[near_b[k]]),
                            round(float(value[k]), 3),
                        ]
                        for k in strongest
                    ],
                }
            )
    return rows


def _equal_pairs(a: NDArray[Any], b: NDArray[Any]) -> int:
    """Return how many pairs of an element of `a` and one of `b` are equal."""
    values_a, counts_a = np.unique(a, return_counts=True)
    values_b, counts_b = np.unique(b, return_counts=True)
    _, in_a, in_b = np.intersect1d(values_a, values_b, return_indices=True)
    return int((counts_a[in_a] * counts_b[in_b]).sum())


def near_duplicates(
    store: Store, scans: IntArray, threshold: float
) -> tuple[IntArray, IntArray, NDArray[np.float32]]:
    """Find all pairs of scans that correlate at some shift.

    Parameters
    ----------
    store
        Where the scans are.
    scans
        Positions in the store [n].
    threshold
        Least correlation.

    Returns
    -------
    tuple of ndarray
        First and second scan of each pair (positions in `scans`, the first the smaller), and their
        correlation.
    """
    low_NHW, lines_N = low_passed(store, scans)
    found: list[tuple[IntArray, IntArray, FloatArray]] = []
    # Chunks of equally many measured lines, so that one overlap holds for all of a product.
    chunks = [
        (int(lines), members[start : start + _CHUNK])
        for lines in np.unique(lines_N)
        for members in [np.flatnonzero(lines_N == lines)]
        for start in range(0, len(members), _CHUNK)
        if lines >= _LEAST_LINES
    ]
    pairs = [(a, b) for k, a in enumerate(chunks) for b in chunks[k:]]
    for (lines_a, a), (lines_b, b) in tqdm(pairs, desc="audit", unit="block", mininterval=0.5):
        itself = a is b
        best_AB = correlation_over_shifts(low_NHW[a], low_NHW[b], lines_a, lines_b, itself)
        if itself:
            best_AB = np.maximum(best_AB, best_AB.T)
            best_AB[np.tril_indices(len(a))] = -np.inf  # each pair once, and no scan with itself
        in_a, in_b = np.nonzero(best_AB >= threshold)
        found.append((a[in_a], b[in_b], best_AB[in_a, in_b]))
    if not found:
        return np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float32)
    one, other, value = (np.concatenate(part) for part in zip(*found, strict=True))
    return np.minimum(one, other), np.maximum(one, other), value


def low_passed(store: Store, scans: IntArray) -> tuple[FloatArray, IntArray]:
    """Return small versions of scans, each line without its mean and slope, partly whitened.

    The slope is removed because scans are tilted: two planes correlate perfectly.

    Returns
    -------
    tuple of ndarray
        float32 [n, H, W] of mean square 1 over the measured lines, 0 past them; and the measured
        lines [n] at this size. H and W are 24, or the store's size if that is smaller.
    """
    height, width = min(_SIZE, store.lines), min(_SIZE, store.pixels)
    down_HL = area_weights(store.lines, height).toarray().astype(np.float32)
    down_WP = area_weights(store.pixels, width).toarray().astype(np.float32)
    slope_P = np.linspace(-1, 1, store.pixels, dtype=np.float32)
    slope_P /= np.linalg.norm(slope_P)
    lines_N = store.n_lines[scans].astype(np.int64) * height // store.lines
    low_NHW = np.zeros((len(scans), height, width), np.float32)
    for start in range(0, len(scans), 256):
        block = slice(start, start + 256)
        x_BLP = store.read(scans[block], "scan")
        x_BLP -= x_BLP.mean(axis=2, keepdims=True)
        x_BLP -= (x_BLP @ slope_P)[..., None] * slope_P
        low_NHW[block] = down_HL @ x_BLP @ down_WP.T
    low_NHW[np.arange(height) >= lines_N[:, None]] = 0
    for lines in np.unique(lines_N[lines_N > 0]):
        members = lines_N == lines
        low_NHW[members, :lines] = _whitened(low_NHW[members, :lines])
    square_N = np.einsum("nhw,nhw->n", low_NHW, low_NHW)
    low_NHW *= np.sqrt(np.maximum(lines_N, 1) * width / np.maximum(square_N, 1e-12))[:, None, None]
    return low_NHW, lines_N


def _whitened(x_NHW: FloatArray) -> FloatArray:
    """Divide each Fourier amplitude by its own power `_WHITENING`, which keeps the phases."""
    spectrum_NHF = np.fft.rfft2(x_NHW)
    amplitude_NHF = np.abs(spectrum_NHF)
    # Frequencies that are not there at all (flattening removes some) stay out.
    floor_N11 = 1e-3 * amplitude_NHF.max(axis=(1, 2), keepdims=True) + np.finfo(np.float32).tiny
    spectrum_NHF /= np.maximum(amplitude_NHF, floor_N11) ** _WHITENING
    return np.fft.irfft2(spectrum_NHF, x_NHW.shape[1:]).astype(np.float32)


def correlation_over_shifts(
    a_AHW: FloatArray, b_BHW: FloatArray, lines_a: int, lines_b: int, half: bool = False
) -> FloatArray:
    """Return each pair's largest normalised cross-correlation over shifts.

    At each shift, both are cropped to where they overlap, and mean and norm are taken over that
    crop; so the result is exact, and a matrix product gives it for all pairs at once. Shifts go up
    to a quarter of the size on either axis, as long as half the lines of the shorter scan overlap.

    Parameters
    ----------
    a_AHW, b_BHW
        Scans.
    lines_a, lines_b
        Their measured lines.
    half
        Whether to try one of each pair of opposite shifts only, which is enough with `a` for `b`
        and the maximum with the transpose.

    Returns
    -------
    ndarray
        float32 [A, B], at least −1; −1 where no shift leaves enough overlap.
    """
    best_AB = np.full((len(a_AHW), len(b_BHW)), -1, np.float32)
    _, height, width = a_AHW.shape
    for rows_a, rows_b, columns_a, columns_b in _overlaps(height, width, lines_a, lines_b, half):
        a_AK = _unit(a_AHW[:, rows_a, columns_a])
        b_BK = _unit(b_BHW[:, rows_b, columns_b])
        np.maximum(best_AB, a_AK @ b_BK.T, out=best_AB)
    return best_AB


def _overlaps(
    height: int, width: int, lines_a: int, lines_b: int, half: bool
) -> Iterator[tuple[slice, slice, slice, slice]]:
    """Yield the overlapping rows of a and b, and columns of a and b, of each shift."""
    least = max(-(-min(lines_a, lines_b) // 2), 1)
    for dy in range(0 if half else -(height // 4), height // 4 + 1):
        top_a, top_b = max(dy, 0), max(-dy, 0)
        lines = min(lines_a - top_a, lines_b - top_b)
        if lines < least:
            continue
        for dx in range(0 if half and dy == 0 else -(width // 4), width // 4 + 1):
            left_a, left_b, columns = max(dx, 0), max(-dx, 0), width - abs(dx)
            yield (
                slice(top_a, top_a + lines),
                slice(top_b, top_b + lines),
                slice(left_a, left_a + columns),
                slice(left_b, left_b + columns),
            )


def _unit(x_NHW: FloatArray) -> FloatArray:
    """Return crops as rows of mean 0 and norm 1; a crop without structure becomes 0."""
    x_NK = x_NHW.reshape(len(x_NHW), -1)
    x_NK = x_NK - x_NK.mean(axis=1, keepdims=True)
    norm_N1 = np.linalg.norm(x_NK, axis=1, keepdims=True)
    plain = norm_N1 < 1e-3 * np.sqrt(x_NK.shape[1])  # against a mean square of 1 of the whole scan
    return np.where(plain, np.float32(0), x_NK / np.where(plain, np.float32(1), norm_N1))
