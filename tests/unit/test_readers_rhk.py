"""No real `.sm4` file is at hand: these are built after the layout that sm4file documents."""

import numpy as np
import pytest
from instrument_files import ramp, rhk

from scanbench.errors import UserError
from scanbench.tipstate.readers import ReadOptions, read

TOPOGRAPHY, CURRENT = 1, 2
RIGHT, LEFT = 0, 1
#: Of the heights, in the files built here.
OFFSET = 5e-10


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "a.sm4"
    z = ramp()
    path.write_bytes(
        rhk([(TOPOGRAPHY, RIGHT, z), (TOPOGRAPHY, LEFT, 2 * z), (CURRENT, RIGHT, 3 * z)])
    )
    return path


def test_pages_are_read_by_type_and_left_scans_are_mirrored(path):
    forward, backward = read(path)
    np.testing.assert_allclose(forward.heights_LP, OFFSET + ramp() * 1e-12, rtol=1e-6)
    np.testing.assert_allclose(backward.heights_LP, OFFSET + 2 * ramp()[:, ::-1] * 1e-12, rtol=1e-6)
    assert (forward.direction, backward.direction) == ("forward", "backward")
    (current,) = read(path, ReadOptions(channel="Current"))
    np.testing.assert_allclose(current.heights_LP, OFFSET + 3 * ramp() * 1e-12, rtol=1e-6)


def test_quantities_are_in_si_units(path):
    scan = read(path)[0]
    assert (scan.width_m, scan.height_m) == pytest.approx((5e-10, 12e-10))
    assert (scan.line_time_s, scan.bias_v, scan.current_a) == pytest.approx((5e-3, -0.5, 2e-10))
    assert scan.unit == "m"


def test_an_aborted_scan_ends_where_the_file_says(tmp_path):
    path = tmp_path / "a.sm4"
    path.write_bytes(rhk([(TOPOGRAPHY, RIGHT, ramp())], completed="4"))
    (scan,) = read(path)
    assert (scan.lines, scan.planned_lines) == (4, 6)


def test_a_file_without_the_channel_says_what_it_has(tmp_path):
    path = tmp_path / "a.sm4"
    path.write_bytes(rhk([(CURRENT, RIGHT, ramp())]))
    with pytest.raises(UserError, match="no page for channel Z, only RHK_PAGE_CURRENT"):
        read(path)


def test_a_truncated_file_is_one_clear_refusal(path):
    for size in (1, 30, 100, path.stat().st_size - 3):
        broken = path.with_name(f"{size}.sm4")
        broken.write_bytes(path.read_bytes()[:size])
        with pytest.raises(UserError, match=rf"{size}\.sm4: "):
            read(broken)


def test_a_file_too_large_for_its_pages_is_refused_before_the_library_reads_it(path, monkeypatch):
    monkeypatch.setattr("scanbench.tipstate.readers.rhk.Sm4FileAll", None)
    with path.open("ab") as file:
        file.truncate(4 * 16 * 1000 + 1)
    with pytest.raises(UserError, match="has 64001 bytes, more than 16 scans of max_pixels = 1000"):
        read(path, ReadOptions(max_pixels=1000))
