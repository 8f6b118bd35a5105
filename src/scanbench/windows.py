"""Windows of scan lines: an index that costs nothing per window, and shuffled batches of them.

Axes: scans *N*, lines *L*, pixels *P*, samples of a batch *B*, lines of a window *W*.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray

from scanbench.store import FloatArray, Normalisation, Store

IntArray = NDArray[np.int64]


@dataclass(frozen=True)
class WindowIndex:
    """All windows of a list of scans, without a list of windows.

    A scan's windows start at lines 0, stride, 2·stride, … as long as they end within its measured
    lines. None is moved to end at the last line: so a partial scan has exactly those windows of the
    whole scan that were measured.

    Parameters
    ----------
    n_lines
        Measured lines of each scan [N].
    window
        Lines of a window; None takes each scan with a measured line whole, as one sample.
    stride
        Lines from the start of one window to that of the next.
    """

    n_lines: NDArray[np.integer]
    window: int | None = None
    stride: int = 1

    def __post_init__(self) -> None:
        if self.window is not None and self.window < 1:
            raise ValueError(f"window is {self.window} lines; give at least 1")
        if self.stride < 1:
            raise ValueError(f"stride is {self.stride} lines; give at least 1")

    @cached_property
    def counts(self) -> IntArray:
        """Windows of each scan [N]."""
        n_lines = np.asarray(self.n_lines, np.int64)
        if self.window is None:
            return (n_lines > 0).astype(np.int64)
        return np.maximum((n_lines - self.window) // self.stride + 1, 0)

    @cached_property
    def ends(self) -> IntArray:
        """Windows of all scans up to and with each [N]."""
        return np.cumsum(self.counts)

    def __len__(self) -> int:
        """Return the number of windows."""
        return int(self.ends[-1]) if len(self.ends) else 0

    def lookup(self, windows: ArrayLike) -> tuple[IntArray, IntArray, IntArray]:
        """Return (scan, first line, lines) of windows by their number.

        Parameters
        ----------
        windows
            Numbers from 0 to `len(self) - 1`, of any shape.

        Returns
        -------
        tuple of ndarray
            Position of the scan in `n_lines`, first line, and lines, each of the same shape.

        Raises
        ------
        IndexError
            If a number is outside.
        """
        windows = np.asarray(windows, np.int64)
        if windows.size and (windows.min() < 0 or windows.max() >= len(self)):
            raise IndexError(f"window numbers run from 0 to {len(self) - 1}")
        scan = np.searchsorted(self.ends, windows, side="right")
        first = (windows - self.ends[scan] + self.counts[scan]) * self.stride
        if self.window is None:
            return scan, np.zeros_like(first), np.asarray(self.n_lines, np.int64)[scan]
        return scan, first, np.full_like(first, self.window)


@dataclass(frozen=True)
class Batch:
    """Samples for a model.

    Attributes
    ----------
    x
        Heights, normalised, float32 [B, W, P] (W is the store's lines for whole scans), 0 past
        `n_lines`.
    n_lines
        Measured lines of each sample [B].
    label
        Class index of each sample's scan [B].
    scan
        Position of each sample's scan in the store [B].
    first_line
        Line of the scan at which the sample starts [B].
    """

    x: FloatArray
    n_lines: IntArray
    label: IntArray
    scan: IntArray
    first_line: IntArray


class WindowReader:
    """Batches of windows (or whole scans) of some scans of a store.

    Scans are read a block at a time, each once an epoch, and windows are gathered from the block in
    memory. With shuffling, the order of scans is drawn first, then the order of the windows within
    each block; a block that holds every scan stays in memory, and its shuffle is a perfect one. So
    memory is bounded by `memory_mb` however many windows there are.

    Parameters
    ----------
    store
        Where the scans are.
    scans
        Their positions in the store [N].
    window, stride
        As in `WindowIndex`.
    normalisation
        As in `Store.read`.
    batch_size
        Samples of a batch; the last of an epoch may have fewer.
    shuffle
        Whether to shuffle; without, samples come in the order of `scans`, then of lines.
    seed
        The order is a function of (`seed`, epoch), the scans and the scans per block.
    label
        Class index of every scan of the store [M]; None takes the store's.
    memory_mb
        Budget in MB (10⁶ bytes) for a block: its heights and its windows' order.
    """

    def __init__(
        self,
        store: Store,
        scans: ArrayLike,
        *,
        window: int | None = None,
        stride: int = 1,
        normalisation: Normalisation = "line",
        batch_size: int = 32,
        shuffle: bool = True,
        seed: int = 0,
        memory_mb: float = 1024,
        label: ArrayLike | None = None,
    ) -> None:
        self.store = store
        self.label = np.asarray(store.label if label is None else label, np.int64)
        self.scans = np.asarray(scans, np.int64)
        self.index = WindowIndex(store.n_lines[self.scans], window, stride)
        self.normalisation = normalisation
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.seed = seed
        # Each window costs its place in the order and, while that is drawn, its number.
        most_windows = int(self.index.counts.max(initial=1))
        bytes_per_scan = 4 * store.lines * store.pixels + 16 * most_windows
        self.scans_per_block = max(1, int(memory_mb * 1e6 / bytes_per_scan))
        self._kept: FloatArray | None = None  # every scan, in the order of `scans`, if they fit

    def __len__(self) -> int:
        """Return the number of batches of an epoch."""
        return -(-len(self.index) // self.batch_size)

    def epoch(self, epoch: int = 0) -> Iterator[Batch]:
        """Yield the batches of an epoch: every window once."""
        rng = np.random.default_rng([self.seed, epoch])
        order = np.arange(len(self.scans))
        if self.shuffle:
            rng.shuffle(order)
        order = order[self.index.counts[order] > 0]
        rest: Batch | None = None
        buffer_NLP = self._buffer()
        for start in range(0, len(order), self.scans_per_block):
            block = np.sort(order[start : start + self.scans_per_block])
            if not self.shuffle:
                block = order[start : start + self.scans_per_block]
            x_NLP, position = self._read(block, buffer_NLP)
            index = WindowIndex(self.index.n_lines[block], self.index.window, self.index.stride)
            windows = np.arange(len(index))
            if self.shuffle:
                rng.shuffle(windows)
            # The last block's few windows come first, so that batches are full across blocks.
            taken = 0
            if rest is not None:
                taken = min(self.batch_size - len(rest.x), len(windows))
                rest = _joined(rest, self._gather(x_NLP, position, block, index, windows[:taken]))
                if len(rest.x) == self.batch_size:
                    yield rest
                    rest = None
            for begin in range(taken, len(windows), self.batch_size):
                batch = self._gather(
                    x_NLP, position, block, index, windows[begin : begin + self.batch_size]
                )
                if len(batch.x) == self.batch_size:
                    yield batch
                else:
                    rest = batch
        if rest is not None:
            yield rest

    def _buffer(self) -> FloatArray | None:
        """Return room for a block that is filled again and again; None if all scans are kept."""
        if len(self.scans) <= self.scans_per_block:
            return None
        return np.empty((self.scans_per_block, self.store.lines, self.store.pixels), np.float32)

    def _read(self, block: IntArray, buffer_NLP: FloatArray | None) -> tuple[FloatArray, IntArray]:
        """Return heights [M, L, P] and where in them each scan of the block stands."""
        if buffer_NLP is not None:
            x_NLP = buffer_NLP[: len(block)]
            self.store.read(self.scans[block], self.normalisation, out=x_NLP)
            return x_NLP, np.arange(len(block))
        if self._kept is None:
            self._kept = self.store.read(self.scans, self.normalisation)
        return self._kept, block

    def _gather(
        self,
        x_NLP: FloatArray,
        position: IntArray,
        block: IntArray,
        index: WindowIndex,
        windows: IntArray,
    ) -> Batch:
        scan_B, first_B, n_lines_B = index.lookup(windows)
        lines, pixels = x_NLP.shape[1:]
        # Rows of the block as one [N·L, P] table: taking whole rows copies at memory speed.
        row_B = position[scan_B] * lines + first_B
        row_BW = row_B[:, None] + np.arange(index.window or lines)
        scan_B = self.scans[block[scan_B]]
        return Batch(
            x=x_NLP.reshape(-1, pixels).take(row_BW, axis=0),
            n_lines=n_lines_B,
            label=self.label[scan_B],
            scan=scan_B,
            first_line=first_B,
        )


def _joined(a: Batch, b: Batch) -> Batch:
    return Batch(*(np.concatenate([getattr(a, f), getattr(b, f)]) for f in Batch.__annotations__))
