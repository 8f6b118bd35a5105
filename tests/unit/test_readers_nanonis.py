import numpy as np
import pytest
from instrument_files import ramp, real

from scanbench.errors import UserError
from scanbench.tipstate.readers import ReadOptions, read, read_each
from scanbench.tipstate.sxm import Channel, Header, write_sxm


def write(path, z, current=None, **header):
    """Write forward `z` and, as the instrument would, a backward line from its far end."""
    channels = {"Z": Channel(unit="m", forward_LP=z, backward_LP=z[:, ::-1] + 1)}
    if current is not None:
        channels["Current"] = Channel(unit="A", forward_LP=current, backward_LP=current)
    settings = {
        "width_m": 4e-9,
        "height_m": 2e-9,
        "line_time_s": 0.25,
        "bias_v": -1.5,
        "setpoint_a": 5e-11,
    }
    write_sxm(path, Header(**(settings | header)), channels)
    return path


@pytest.mark.parametrize("slow", ["up", "down"])
def test_lines_and_pixels_come_in_acquisition_order_whichever_way_the_scan_ran(tmp_path, slow):
    z = ramp()
    forward, backward = read(write(tmp_path / "a.sxm", z, slow_direction=slow))
    np.testing.assert_array_equal(forward.heights_LP, z)
    np.testing.assert_array_equal(backward.heights_LP, z[:, ::-1] + 1)
    assert (forward.direction, backward.direction) == ("forward", "backward")
    assert forward.slow_direction == backward.slow_direction == slow


def test_quantities_are_in_si_units(tmp_path):
    scan = read(write(tmp_path / "a.sxm", ramp()))[0]
    assert (scan.width_m, scan.height_m, scan.line_time_s) == (4e-9, 2e-9, 0.25)
    assert (scan.bias_v, scan.current_a, scan.channel, scan.unit) == (-1.5, 5e-11, "Z", "m")


def test_an_aborted_scan_keeps_its_measured_lines_and_states_the_planned_ones(tmp_path):
    z = ramp(10, 4)
    z[6:] = np.nan
    z[5, 2:] = np.nan
    scan = read(write(tmp_path / "a.sxm", z))[0]
    assert (scan.lines, scan.planned_lines, scan.pixels) == (6, 10, 4)
    np.testing.assert_array_equal(scan.heights_LP, z[:6])


def test_a_constant_height_scan_is_refused_for_z_and_read_for_current(tmp_path):
    path = write(tmp_path / "a.sxm", np.ones((4, 4), np.float32), current=ramp(4, 4))
    with pytest.raises(UserError, match=r"a\.sxm: Z forward is constant.*Current"):
        read(path)
    scan = read(path, ReadOptions(channel="Current"))[0]
    assert (scan.channel, scan.unit) == ("Current", "A")
    np.testing.assert_array_equal(scan.heights_LP, ramp(4, 4))


def test_a_good_direction_is_kept_when_the_other_is_bad(tmp_path):
    path = tmp_path / "a.sxm"
    z = ramp()
    header = Header(width_m=1e-9, height_m=1e-9, line_time_s=1, bias_v=1, setpoint_a=1e-10)
    bad = np.full_like(z, np.nan)
    write_sxm(path, header, {"Z": Channel(unit="m", forward_LP=z, backward_LP=bad)})
    scans, refused = read_each(path)
    assert [scan.direction for scan in scans] == ["forward"]
    assert "Z backward holds no measured value" in str(refused[0])


def test_channels_kept_in_one_direction_only_are_read(tmp_path):
    path = write(tmp_path / "a.sxm", ramp())
    raw = path.read_bytes().replace(b"\tm\tboth\t", b"\tm\tforward\t")
    path.write_bytes(raw[: -4 * ramp().size])
    (scan,) = read(path)
    assert scan.direction == "forward"
    np.testing.assert_array_equal(scan.heights_LP, ramp())


def test_a_truncated_file_is_refused_by_name(tmp_path):
    path = write(tmp_path / "a.sxm", ramp())
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"a\.sxm: is truncated"):
        read(path)


def test_a_missing_channel_is_named_with_those_that_are_there(tmp_path):
    with pytest.raises(UserError, match="no channel Phase, only Z"):
        read(write(tmp_path / "a.sxm", ramp()), ReadOptions(channel="Phase"))


def test_a_size_beyond_the_bound_is_refused(tmp_path):
    with pytest.raises(UserError, match="more than max_pixels = 29"):
        read(write(tmp_path / "a.sxm", ramp()), ReadOptions(max_pixels=29))


def test_real_backward_lines_mirror_the_forward_ones():
    path = real("raw-spm", "FAIRmat-NFDI+pynxtools-stm", "STM_nanonis_generic_4_5.sxm")
    forward, backward = (scan.heights_LP for scan in read(path))
    assert np.corrcoef(forward.ravel(), backward[:, ::-1].ravel())[0, 1] > 0.95
    assert np.corrcoef(forward.ravel(), backward.ravel())[0, 1] < 0.6


def test_a_real_file_of_nothing_but_nan_is_refused():
    path = real("raw-spm", "alexriss+SpmImageTycoon.jl", "empty.sxm")
    with pytest.raises(UserError, match="holds no measured value, only NaN"):
        read(path)
