"""Windows are slices of scans: all of them, each once, in bounded memory."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scans_folder import heights, write_scans

from scanbench.convert import convert
from scanbench.store import Store
from scanbench.windows import WindowIndex, WindowReader

LINES = 16


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """21 scans of 16 × 8, some of them partial, one without a whole line."""
    folder = tmp_path_factory.mktemp("windows")
    scans = heights(21, lines=32, pixels=8)
    for k, measured in {2: 17, 5: 9, 11: 1, 20: 30}.items():
        scans[k] = scans[k][:measured]
    write_scans(folder / "scans", scans, planned_lines=32)
    convert({"lines": LINES, "pixels": 8}, folder / "scans", folder / "store.h5")
    with Store(folder / "store.h5") as opened:
        yield opened


indices = st.builds(
    WindowIndex,
    n_lines=st.lists(st.integers(0, 40), max_size=12).map(np.array),
    window=st.none() | st.integers(1, 45),
    stride=st.integers(1, 12),
)


@given(index=indices)
def test_the_index_lists_every_window_within_the_measured_lines_once(index):
    expected = [
        (scan, first, index.window)
        for scan, n in enumerate(index.n_lines)
        for first in range(0, int(n) - (index.window or 0) + 1, index.stride)
        if index.window
    ]
    if index.window is None:
        expected = [(scan, 0, n) for scan, n in enumerate(index.n_lines) if n > 0]
    assert len(index) == len(expected)
    found = index.lookup(np.arange(len(index)))
    assert list(zip(*(part.tolist() for part in found), strict=True)) == expected


@given(n_lines=st.integers(0, 40), cut=st.integers(0, 40), window=st.integers(1, 20))
def test_a_partial_scan_has_the_first_windows_of_the_whole(n_lines, cut, window):
    whole = WindowIndex(np.array([n_lines]), window, 3)
    partial = WindowIndex(np.array([min(cut, n_lines)]), window, 3)
    first_of_whole = whole.lookup(np.arange(len(whole)))[1]
    first_of_partial = partial.lookup(np.arange(len(partial)))[1]
    np.testing.assert_array_equal(first_of_partial, first_of_whole[: len(partial)])


def test_the_index_holds_nothing_per_window():
    index = WindowIndex(np.full(1000, 10**9, np.int64), 20, 1)
    assert len(index) == 1000 * (10**9 - 19)
    assert index.lookup([len(index) - 1])[1] == [10**9 - 20]


def test_numbers_outside_and_senseless_windows_are_refused():
    index = WindowIndex(np.array([5]), 3)
    for wrong in (-1, 3):
        with pytest.raises(IndexError, match="from 0 to 2"):
            index.lookup([wrong])
    with pytest.raises(ValueError, match="window is 0"):
        WindowIndex(np.array([5]), 0)
    with pytest.raises(ValueError, match="stride is 0"):
        WindowIndex(np.array([5]), 3, 0)


@settings(deadline=None, max_examples=60)
@given(
    window=st.none() | st.integers(1, LINES),
    stride=st.integers(1, 5),
    batch_size=st.integers(1, 40),
    blocks=st.sampled_from([1, 2, 5, 20, 21, 100]),
    shuffle=st.booleans(),
    normalisation=st.sampled_from(["none", "line", "scan"]),
)
def test_an_epoch_gives_every_window_once_as_a_slice_of_its_scan(
    store, window, stride, batch_size, blocks, shuffle, normalisation
):
    scans = np.arange(len(store))[::-1]
    reader = WindowReader(
        store, scans, window=window, stride=stride, batch_size=batch_size, shuffle=shuffle,
        normalisation=normalisation, memory_mb=blocks * (4 * LINES * 8 + 16 * LINES) / 1e6,
    )  # fmt: skip
    batches = list(reader.epoch(3))
    assert len(batches) == len(reader)
    assert all(len(batch.x) == batch_size for batch in batches[:-1])
    x_NLP = store.read(np.arange(len(store)), normalisation)
    seen = []
    for batch in batches:
        assert batch.x.dtype == np.float32
        samples = zip(
            batch.x, batch.scan, batch.first_line, batch.n_lines, batch.label, strict=True
        )
        for x_WP, scan, first, n_lines, label in samples:
            np.testing.assert_array_equal(x_WP, x_NLP[scan, first : first + (window or LINES)])
            assert n_lines == (window or store.n_lines[scan])
            assert first + n_lines <= store.n_lines[scan]
            assert label == store.label[scan]
            seen.append((int(scan), int(first)))
    scan, first, _ = reader.index.lookup(np.arange(len(reader.index)))
    expected = list(zip(scans[scan].tolist(), first.tolist(), strict=True))
    if shuffle:
        assert sorted(seen) == sorted(expected)
    else:
        assert seen == expected


def order(reader: WindowReader, epoch: int) -> list[tuple[int, int]]:
    batches = list(reader.epoch(epoch))
    return [(int(s), int(f)) for b in batches for s, f in zip(b.scan, b.first_line, strict=True)]


@pytest.mark.parametrize("memory_mb", [1000, 0.01])
def test_the_order_is_a_function_of_seed_and_epoch(store, memory_mb):
    def reader(seed):
        return WindowReader(store, np.arange(21), window=4, seed=seed, memory_mb=memory_mb)

    assert order(reader(0), 1) == order(reader(0), 1)
    again = reader(0)
    order(again, 0)
    assert order(again, 1) == order(reader(0), 1)
    assert order(reader(0), 1) != order(reader(0), 2)
    assert order(reader(0), 1) != order(reader(1), 1)


def test_batches_do_not_share_memory_with_what_the_reader_keeps(store):
    reader = WindowReader(store, np.arange(4), batch_size=4)
    before = [batch.x.copy() for batch in reader.epoch(0)]
    for batch in reader.epoch(0):
        batch.x[:] = -7
    for a, b in zip(before, reader.epoch(0), strict=True):
        np.testing.assert_array_equal(a, b.x)


def test_no_scans_give_no_batches(store):
    reader = WindowReader(store, [], window=4)
    assert len(reader) == 0
    assert list(reader.epoch()) == []
