import tracemalloc
import zlib

import numpy as np
import pytest
from instrument_files import createc, ramp, real

from scanbench.errors import UserError
from scanbench.tipstate.readers import ReadOptions, read


def planes(n=4, lines=6, pixels=5):
    return np.stack([ramp(lines, pixels) + 1000 * (k + 1) for k in range(n)])


def test_backward_lines_are_mirrored_from_the_screen_into_acquisition_order(tmp_path):
    path = tmp_path / "a.dat"
    path.write_bytes(createc(planes()))
    forward, backward = read(path)
    z = 0.5 * 3 * 1e-10  # Dacto[A]z, GainZ, ångström
    np.testing.assert_allclose(forward.heights_LP, planes()[0] * z, rtol=1e-6)
    np.testing.assert_allclose(backward.heights_LP, planes()[2][:, ::-1] * z, rtol=1e-6)


def test_quantities_are_in_si_units(tmp_path):
    path = tmp_path / "a.dat"
    path.write_bytes(createc(planes(2)))
    (scan,) = read(path, ReadOptions(channel="Current"))
    assert (scan.width_m, scan.height_m) == pytest.approx((1e-8, 2e-8))
    assert (scan.line_time_s, scan.bias_v, scan.current_a) == (0.25, 0.05, 8.8e-11)
    # 20 V over 2^20 steps, 10^9 V/A.
    np.testing.assert_allclose(scan.heights_LP, planes(2)[1] * 20 / 2**20 / 1e9, rtol=1e-6)
    assert (scan.channel, scan.unit) == ("Current", "A")


def test_lines_that_are_zero_in_every_plane_were_not_measured(tmp_path):
    stack = planes(2, 8)
    stack[:, 3:] = 0
    path = tmp_path / "a.dat"
    path.write_bytes(createc(stack))
    (scan,) = read(path)
    assert (scan.lines, scan.planned_lines) == (3, 8)


def test_a_bomb_is_not_unpacked_beyond_what_the_header_promises(tmp_path):
    path = tmp_path / "a.dat"
    head = createc(planes(2))[:16_384]
    path.write_bytes(head + zlib.compress(bytes(range(1, 60)) * 2**21, 9))
    tracemalloc.start()
    read(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**24


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"Experiment\tbias spectroscopy\r\n[DATA]\r\n", "not a Createc scan"),
        (b"[Paramco32]\r\nNum.X=4", "truncated inside its header"),
        (createc(planes())[:-20], "truncated|cannot be read"),
        (createc(planes(), **{"Num.Y / Num.Y": 7}), "truncated: unpacks to"),
        (createc(planes(), **{"Num.Y / Num.Y": 10**8}), "max_pixels"),
        (createc(planes(), **{"Num.X / Num.X": -3}), "states 6 lines of -3"),
        (createc(planes(), **{"GainZ / GainZ": "none"}), "lacks a number for GainZ"),
        (createc(planes(3)), "holds 3 planes"),
        (createc(np.ones((2, 4, 4))), "is constant"),
        (createc(np.full((2, 4, 4), np.inf)), "holds infinite values"),
        (createc(np.zeros((2, 4, 4))), "has shape"),
    ],
)
def test_broken_files_are_refused_in_one_line(tmp_path, content, message):
    path = tmp_path / "a.dat"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        read(path)
    assert str(error.value).startswith(f"{path}: ")
    assert "\n" not in str(error.value)


def test_a_real_scan_stopped_at_60_of_512_lines_is_partial():
    path = real("raw-spm", "SPMQT-Lab+Createc-to-Nanonis-file-conversion", "A250320.191933.dat")
    (scan,) = read(path)
    assert (scan.lines, scan.planned_lines, scan.pixels) == (60, 512, 512)


def test_no_real_line_begins_with_the_last_pixel_of_the_line_before():
    path = real("raw-spm", "SPMQT-Lab+ProbeFlow", "createc_terrace.dat")
    for scan in read(path):
        jump = np.abs(np.diff(scan.heights_LP[:, :4].astype(float), axis=1)).mean(axis=0)
        assert jump[0] < 3 * jump[1:].max()


def test_real_atomic_steps_have_the_height_of_a_metal():
    path = real("raw-spm", "SPMQT-Lab+ProbeFlow", "createc_terrace.dat")
    z = read(path)[0].heights_LP.astype(float)
    lines, pixels = np.mgrid[: z.shape[0], : z.shape[1]]
    slopes = [np.median(np.diff(z, axis=axis)) for axis in (0, 1)]
    level = np.sort((z - slopes[0] * lines - slopes[1] * pixels).ravel())
    counts, edges = np.histogram(level, 300)
    terraces = edges[:-1][counts > 4 * counts.mean()]
    steps = np.diff(terraces)
    assert 1.5e-10 < np.median(steps[steps > 1e-10]) < 2.6e-10
