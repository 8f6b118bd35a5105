"""Whatever a broken file makes of a library, a reader gives scans or one clear line."""

import io

import gwyfile.objects as gwy
import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from instrument_files import createc, ramp, rhk
from PIL import Image

from scanbench.errors import UserError
from scanbench.tipstate.readers import FORMATS, ReadOptions, read_each
from scanbench.tipstate.readers.png import orange_map
from scanbench.tipstate.sxm import Channel, Header, write_sxm

OPTIONS = ReadOptions(label_names=("a", "b"), max_pixels=10_000, max_container_pixels=100_000)
IMAGES = np.stack([ramp(4, 5), 2 * ramp(4, 5)])


def build(suffix, path):
    """Return the bytes of a small good file."""
    if suffix == ".sxm":
        header = Header(width_m=1e-9, height_m=1e-9, line_time_s=1, bias_v=1, setpoint_a=1e-10)
        write_sxm(path, header, {"Z": Channel(unit="m", forward_LP=ramp(), backward_LP=ramp())})
    elif suffix == ".dat":
        path.write_bytes(createc(np.stack([ramp(), ramp()])))
    elif suffix == ".sm4":
        path.write_bytes(rhk([(1, 0, ramp())]))
    elif suffix == ".gwy":
        container = gwy.GwyContainer()
        container["/0/data"] = gwy.GwyDataField(ramp().astype(float), si_unit_xy="m")
        container.tofile(str(path))
    elif suffix == ".png":
        Image.fromarray(orange_map()[np.arange(40).reshape(5, 8)]).save(path)
    elif suffix == ".npz":
        np.savez(path, images=IMAGES, labels=np.array([0, 1]))
    elif suffix == ".mat":
        with h5py.File(path, "w") as file:
            file["x_raw"] = IMAGES.reshape(-1, 5)
            file["y"] = np.eye(2)
    return path.read_bytes()


SUFFIXES = sorted(suffix for suffix in FORMATS if not suffix.endswith("_mtrx"))


@pytest.mark.parametrize("suffix", SUFFIXES)
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_a_damaged_file_gives_finite_scans_or_one_clear_line(suffix, tmp_path, data):
    path = tmp_path / f"a{suffix}"
    content = bytearray(build(suffix, path))
    # Where the structure stands: past the header's padding in the one format that has it.
    limit = min(len(content), 4000)
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, limit - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.integers(1, len(content)) | st.just(len(content)))])
    scans, errors = [], []
    try:
        scans, errors = read_each(path, OPTIONS)
    except UserError as error:
        errors = [error]
    assert scans or errors
    for error in errors:
        assert str(error).startswith(f"{path}: ")
        assert "\n" not in str(error)
    for scan in scans:
        assert scan.heights_LP.dtype == np.float32
        assert scan.heights_LP.size <= OPTIONS.max_pixels
        assert not np.isinf(scan.heights_LP).any()
        assert 1 <= scan.lines <= scan.planned_lines


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_the_undamaged_files_are_read(suffix, tmp_path):
    build(suffix, tmp_path / f"a{suffix}")
    scans, refused = read_each(tmp_path / f"a{suffix}", OPTIONS)
    assert scans
    assert not refused


@pytest.mark.parametrize("suffix", sorted(FORMATS))
def test_an_empty_file_is_refused_in_every_format(suffix, tmp_path):
    (tmp_path / f"a{suffix}").touch()
    with pytest.raises(UserError, match="is empty"):
        read_each(tmp_path / f"a{suffix}")


def test_an_unknown_format_is_refused_with_those_that_are_known(tmp_path):
    (tmp_path / "a.tif").write_bytes(io.BytesIO(b"II*").getvalue())
    with pytest.raises(UserError, match=r"known are \.dat, \.gwy"):
        read_each(tmp_path / "a.tif")
