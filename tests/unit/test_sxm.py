"""Nanonis files that we write say what we meant when the field's own reader opens them."""

from datetime import datetime
from pathlib import Path

import nanonispy2
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from scanbench.tipstate.sxm import Channel, Header, write_sxm

shapes = st.tuples(st.integers(1, 9), st.integers(1, 9))
lengths = st.floats(1e-10, 1e-5)


def header(**changes) -> Header:
    values = {
        "width_m": 1e-8,
        "height_m": 5e-9,
        "line_time_s": 0.2,
        "bias_v": -2.0,
        "setpoint_a": 2e-11,
    }
    return Header(**(values | changes))


def planes(shape):
    return arrays(np.float32, shape, elements=st.floats(width=32, allow_nan=True))


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), shape=shapes)
def test_every_plane_comes_back_bit_for_bit(tmp_path: Path, data, shape):
    z, z_back, i, i_back = (data.draw(planes(shape)) for _ in range(4))
    path = tmp_path / "scan.sxm"
    write_sxm(
        path,
        header(),
        {
            "Z": Channel(unit="m", forward_LP=z, backward_LP=z_back),
            "Current": Channel(unit="A", forward_LP=i, backward_LP=i_back),
        },
    )
    signals = nanonispy2.read.Scan(str(path)).signals
    np.testing.assert_array_equal(signals["Z"]["forward"], z)
    np.testing.assert_array_equal(signals["Z"]["backward"], z_back)
    np.testing.assert_array_equal(signals["Current"]["forward"], i)
    np.testing.assert_array_equal(signals["Current"]["backward"], i_back)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    width=lengths,
    height=lengths,
    line_time=st.floats(1e-3, 100),
    bias=st.floats(-10, 10),
    direction=st.sampled_from(["up", "down"]),
    started=st.datetimes(datetime(1990, 1, 1), datetime(2090, 1, 1)),
)
def test_the_header_gives_back_the_same_numbers(
    tmp_path: Path, width, height, line_time, bias, direction, started
):
    path = tmp_path / "scan.sxm"
    plane = np.zeros((3, 5), np.float32)
    write_sxm(
        path,
        header(
            width_m=width,
            height_m=height,
            line_time_s=line_time,
            bias_v=bias,
            slow_direction=direction,
            started=started,
            comment="two\nlines",
        ),
        {"Z": Channel(unit="m", forward_LP=plane, backward_LP=plane)},
    )
    read = nanonispy2.read.Scan(str(path)).header
    assert list(read["scan_pixels"]) == [5, 3]
    assert list(read["scan_range"]) == [width, height]
    assert list(read["scan_time"]) == [line_time, line_time]
    assert read["bias"] == bias
    assert read["scan_dir"] == direction
    assert read["rec_date"] == f"{started:%d.%m.%Y}"
    assert read["comment"] == "two\nlines"
    assert read["data_info"]["Unit"] == ("m",)


def test_the_backward_plane_starts_where_the_forward_one_ended(tmp_path: Path):
    ramp = np.arange(6, dtype=np.float32)[None]
    write_sxm(
        tmp_path / "scan.sxm",
        header(),
        {"Z": Channel(unit="m", forward_LP=ramp, backward_LP=ramp[:, ::-1])},
    )
    z = nanonispy2.read.Scan(str(tmp_path / "scan.sxm")).signals["Z"]
    assert z["forward"][0, -1] == z["backward"][0, 0] == 5


@pytest.mark.parametrize(
    ("changes", "shape", "message"),
    [
        ({"slow_direction": "left"}, (2, 3), "slow_direction"),
        ({"comment": ":BIAS:\n5"}, (2, 3), "comment"),
        ({}, (2, 4), "share one shape"),
    ],
)
def test_what_would_make_a_broken_file_is_refused(tmp_path: Path, changes, shape, message):
    with pytest.raises(ValueError, match=message):
        write_sxm(
            tmp_path / "scan.sxm",
            header(**changes),
            {"Z": Channel(unit="m", forward_LP=np.zeros((2, 3)), backward_LP=np.zeros(shape))},
        )
    assert not list(tmp_path.iterdir())
