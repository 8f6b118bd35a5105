import struct
import zlib

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from instrument_files import real
from PIL import Image

from scanbench.errors import UserError
from scanbench.tipstate.readers import ReadOptions, read
from scanbench.tipstate.readers.png import orange_map

LEVELS = np.arange(240, dtype=np.uint8).reshape(12, 20)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30)
@given(arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(2, 9))))
def test_the_colour_map_is_inverted_exactly(tmp_path, levels):
    if levels.min() == levels.max():
        levels[0, 0] ^= 1
    path = tmp_path / "a.png"
    Image.fromarray(orange_map()[levels]).save(path)
    (scan,) = read(path)
    np.testing.assert_array_equal(scan.heights_LP, levels / np.float32(255))
    assert scan.unit == "level"


def test_the_map_runs_from_black_over_orange_to_white_and_its_sum_orders_it():
    colours = orange_map().astype(int)
    assert colours[0].tolist() == [0, 0, 0]
    assert colours[128].tolist() == [255, 128, 0]
    assert colours[255].tolist() == [255, 255, 255]
    assert (np.diff(colours.sum(axis=1)) > 0).all()


def test_a_palette_and_its_rgb_image_are_the_same_scan(tmp_path):
    rgb = Image.fromarray(orange_map()[LEVELS])
    rgb.save(tmp_path / "rgb.png")
    # A palette in another order than the levels: indices are not levels.
    palette = Image.fromarray(255 - LEVELS, "L").convert("P")
    palette.putpalette(orange_map()[::-1].ravel().tolist())
    palette.save(tmp_path / "palette.png")
    a, b = (read(tmp_path / name)[0].heights_LP for name in ("rgb.png", "palette.png"))
    np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("colour", [(10, 200, 30), (128, 128, 128), (255, 128, 1)])
def test_a_colour_that_is_not_of_the_map_is_refused_by_name(tmp_path, colour):
    rgb = orange_map()[LEVELS]
    rgb[3, 4] = colour
    Image.fromarray(rgb).save(tmp_path / "a.png")
    with pytest.raises(UserError) as error:
        read(tmp_path / "a.png")
    assert f"holds the colour {colour}, which is not of the orange map" in str(error.value)


def test_grey_images_are_read_in_8_and_16_bits_when_asked_for(tmp_path):
    Image.fromarray(LEVELS).save(tmp_path / "a.png")
    Image.fromarray(LEVELS.astype(np.uint16) * 257).save(tmp_path / "b.png")
    options = ReadOptions(colormap="grey")
    for name in ("a.png", "b.png"):
        scan = read(tmp_path / name, options)[0]
        np.testing.assert_allclose(scan.heights_LP, LEVELS / 255, rtol=1e-6)
    with pytest.raises(UserError, match="mode L, which the colour map orange never makes"):
        read(tmp_path / "a.png")


def test_an_image_with_fewer_rows_than_pixels_is_an_aborted_scan_unless_told_otherwise(tmp_path):
    Image.fromarray(orange_map()[LEVELS]).save(tmp_path / "a.png")
    assert read(tmp_path / "a.png")[0].planned_lines == 20
    assert read(tmp_path / "a.png", ReadOptions(frame="image"))[0].planned_lines == 12


def test_the_row_measured_first_is_told_by_an_option(tmp_path):
    Image.fromarray(orange_map()[LEVELS]).save(tmp_path / "a.png")
    top = read(tmp_path / "a.png")[0]
    bottom = read(tmp_path / "a.png", ReadOptions(first_row="bottom"))[0]
    np.testing.assert_array_equal(top.heights_LP, bottom.heights_LP[::-1])
    assert (top.slow_direction, bottom.slow_direction) == ("down", "up")


def test_transparent_constant_truncated_and_foreign_images_are_refused(tmp_path):
    path = tmp_path / "a.png"
    Image.fromarray(orange_map()[LEVELS]).convert("RGBA").save(path)
    with pytest.raises(UserError, match="mode RGBA"):
        read(path)
    Image.fromarray(orange_map()[np.full((4, 4), 9)]).save(path)
    with pytest.raises(UserError, match="is constant"):
        read(path)
    Image.fromarray(orange_map()[LEVELS]).save(path)
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(UserError, match="cannot be read"):
        read(path)
    Image.fromarray(orange_map()[LEVELS]).save(path, format="JPEG")
    with pytest.raises(UserError, match="cannot be read"):
        read(path)


def test_a_bomb_is_refused_by_its_header_before_it_is_unpacked(tmp_path):
    def chunk(kind, data):
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">2I5B", 60_000, 60_000, 8, 2, 0, 0, 0)
    content = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header)
    content += chunk(b"IDAT", zlib.compress(bytes(10**6))) + chunk(b"IEND", b"")
    path = tmp_path / "a.png"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"cannot be read|max_pixels"):
        read(path)


def test_real_images_invert_to_255_levels():
    folder = real("h-si100", "Images (Flat)")
    for path in sorted(folder.glob("*.png"))[::500]:
        levels = np.unique(np.rint(read(path)[0].heights_LP * 255))
        assert levels[0] == 0
        assert levels[-1] == 254
