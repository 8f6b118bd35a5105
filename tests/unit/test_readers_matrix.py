import shutil
import struct

import numpy as np
import pytest
from instrument_files import real

from scanbench.errors import UserError
from scanbench.tipstate.readers import ReadOptions, is_other_channel, read

FOLDER = ("raw-spm", "nano-bio+pyMTRX")
NAME = "2014Mar01-093225--7_100.Z_mtrx"
INDEX = "2014Mar01-093225_0001.mtrx"
LINES = PIXELS = 300


@pytest.fixture
def copy(tmp_path):
    for name in (NAME, INDEX):
        shutil.copy(real(*FOLDER, name), tmp_path / name)
        (tmp_path / name).chmod(0o644)
    return tmp_path / NAME


def raw_lines(path):
    """Return the file's own integers [lines of all four traces, pixels] in the order written."""
    raw = path.read_bytes()
    at = raw.index(b"ATAD")
    (size,) = struct.unpack_from("<I", raw, at + 4)
    return np.frombuffer(raw, "<i4", size // 4, at + 8).reshape(-1, PIXELS)


def abort(path, measured):
    """Make the file what the instrument leaves after `measured` lines (of all traces)."""
    raw = bytearray(path.read_bytes())
    at = raw.index(b"CSED") + 8
    struct.pack_into("<i", raw, at + 24, measured * PIXELS)
    at = raw.index(b"ATAD")
    struct.pack_into("<I", raw, at + 4, 4 * measured * PIXELS)
    path.write_bytes(raw[: at + 8 + 4 * measured * PIXELS])


def test_four_traces_come_in_the_order_in_which_the_instrument_wrote_them(copy):
    raw = raw_lines(copy).astype(float)
    scans = read(copy)
    assert [(s.direction, s.slow_direction, s.part) for s in scans] == [
        ("forward", "up", ""),
        ("backward", "up", ""),
        ("forward", "down", "down"),
        ("backward", "down", "down"),
    ]
    for scan, lines in zip(
        scans, (raw[:600:2], raw[1:600:2], raw[600::2], raw[601::2]), strict=True
    ):
        # Heights are a rising or falling straight line of the raw integers.
        assert abs(np.corrcoef(scan.heights_LP.ravel(), lines.ravel())[0, 1]) > 1 - 1e-9


def test_quantities_are_in_si_units(copy):
    scan = read(copy)[0]
    assert (scan.width_m, scan.height_m) == pytest.approx((1.4e-8, 1.4e-8))
    assert (scan.bias_v, scan.current_a) == pytest.approx((0.1, 1e-9))
    assert scan.line_time_s == pytest.approx(300 * 0.4e-3)
    assert (scan.channel, scan.unit, scan.planned_lines) == ("Z", "m", LINES)


def test_a_scan_aborted_on_its_way_up_has_two_partial_traces(copy):
    whole = read(copy)[0].heights_LP
    abort(copy, 2 * 70)
    scans = read(copy)
    assert [(s.lines, s.planned_lines, s.slow_direction) for s in scans] == [(70, 300, "up")] * 2
    np.testing.assert_array_equal(scans[0].heights_LP, whole[:70])


def test_a_scan_aborted_on_its_way_down_has_two_whole_and_two_partial_traces(copy):
    whole = read(copy)[2].heights_LP
    abort(copy, 2 * (300 + 40))
    scans = read(copy)
    assert [s.lines for s in scans] == [300, 300, 40, 40]
    np.testing.assert_array_equal(scans[2].heights_LP, whole[:40])


def test_an_orphan_is_refused_by_the_name_of_the_index_it_lacks(copy):
    copy.with_name(INDEX).unlink()
    with pytest.raises(UserError, match=f"lacks its index {INDEX}"):
        read(copy)


def test_a_file_that_its_index_does_not_list_is_refused(copy):
    renamed = copy.rename(copy.with_name("2014Mar01-093225--7_9999.Z_mtrx"))
    with pytest.raises(UserError, match="is not listed in its index"):
        read(renamed)


@pytest.mark.parametrize("keep", [11, 40, 1000, -4])
def test_a_truncated_file_is_one_clear_refusal(copy, keep):
    copy.write_bytes(copy.read_bytes()[:keep])
    with pytest.raises(UserError, match=r"7_100\.Z_mtrx: "):
        read(copy)


def test_a_truncated_index_is_one_clear_refusal(copy):
    index = copy.with_name(INDEX)
    index.write_bytes(index.read_bytes()[:5000])
    with pytest.raises(UserError, match=r"7_100\.Z_mtrx: is not listed"):
        read(copy)


def test_the_suffix_tells_the_channel(tmp_path):
    z, current = tmp_path / "a--1_1.Z_mtrx", tmp_path / "a--1_1.I_mtrx"
    assert [is_other_channel(path, ReadOptions()) for path in (z, current)] == [False, True]
    options = ReadOptions(channel="Current")
    assert [is_other_channel(path, options) for path in (z, current)] == [True, False]


@pytest.mark.parametrize("name", [NAME, INDEX])
def test_a_file_too_large_for_its_traces_is_refused_before_the_library_reads_it(
    copy, monkeypatch, name
):
    monkeypatch.setattr("scanbench.tipstate.readers.matrix.MtrxData", None)
    with copy.with_name(name).open("ab") as file:
        file.truncate(4 * 4 * 10**6 + 1)
    with pytest.raises(UserError, match=r"has 16000001 bytes, more than 4 scans of max_pixels"):
        read(copy, ReadOptions(max_pixels=10**6))
