import gwyfile.objects as gwy
import numpy as np
import pytest
from instrument_files import ramp, real

from scanbench.errors import UserError
from scanbench.tipstate.readers import ReadOptions, read


def write(path, *fields):
    container = gwy.GwyContainer()
    for n, (title, unit, data) in enumerate(fields):
        container[f"/{n}/data"] = gwy.GwyDataField(
            data.astype(float), xreal=3e-9, yreal=2e-9, si_unit_xy="m", si_unit_z=unit
        )
        container[f"/{n}/data/title"] = title
    container.tofile(str(path))
    return path


def test_height_fields_are_told_from_currents_and_backward_ones_are_mirrored(tmp_path):
    z = ramp()
    path = write(
        tmp_path / "a.gwy",
        ("Z (Forward)", "m", z),
        ("Current (Forward)", "A", 2 * z),
        ("Z (Backward)", "m", 3 * z),
    )
    forward, backward = read(path)
    np.testing.assert_array_equal(forward.heights_LP, z)
    np.testing.assert_array_equal(backward.heights_LP, 3 * z[:, ::-1])
    assert (forward.direction, backward.direction) == ("forward", "backward")
    assert (forward.width_m, forward.height_m, forward.unit) == (3e-9, 2e-9, "m")
    (current,) = read(path, ReadOptions(channel="Current"))
    np.testing.assert_array_equal(current.heights_LP, 2 * z)


def test_two_fields_of_one_direction_are_told_apart(tmp_path):
    path = write(tmp_path / "a.gwy", ("Z", "m", ramp()), ("Z", "m", 2 * ramp()))
    assert [scan.part for scan in read(path)] == ["", "1"]


def test_no_field_of_the_channel_names_those_that_are_there(tmp_path):
    path = write(tmp_path / "a.gwy", ("Phase", "deg", ramp()), ("Amplitude", "V", ramp()))
    with pytest.raises(UserError, match="no channel Z, only 'Phase', 'Amplitude'"):
        read(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"GWYO" + bytes(50), r"Gwyddion 1\.x file \(GWYO\)"),
        (b"nothing of this kind", "not a Gwyddion file"),
        (b"GWYP", "cannot be read|holds no data field"),
    ],
)
def test_other_files_are_refused_in_one_line(tmp_path, content, message):
    path = tmp_path / "a.gwy"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        read(path)


@pytest.mark.parametrize("share", [0.2, 0.9, 0.999])
def test_truncated_files_are_refused_in_one_line(tmp_path, share):
    path = write(tmp_path / "a.gwy", ("Z", "m", ramp(20, 20)))
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(UserError, match=r"a\.gwy: "):
        read(path)


def test_the_only_field_of_a_real_file_is_read_whatever_its_title():
    (scan,) = read(real("raw-spm", "tuxu+gwyfile", "test.gwy"))
    assert (scan.lines, scan.pixels, scan.channel, scan.width_m) == (128, 128, "Test", None)
