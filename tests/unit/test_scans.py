import zipfile

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from scanbench import scans
from scanbench.errors import UserError
from scanbench.files import replacing_folder
from scanbench.scans import ScansWriter, iterate_heights, read_manifest


def write(folder, heights, **columns):
    with replacing_folder(folder, marker=".") as part, ScansWriter(part) as writer:
        rows = [
            {
                "scan_id": f"s{i}",
                "group": "g",
                "file": f"s{i}.sxm",
                "sha256": "0" * 64,
                "planned_lines": len(x),
                "channel": "Z",
                "unit": "m",
                "direction": "forward",
                "slow_direction": "up",
                **columns,
                **writer.add(x),
            }
            for i, x in enumerate(heights)
        ]
        writer.finish(rows, [("bad.sxm", "is empty")], [("bad.sxm", "refused", "is empty")])
    return folder


@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25, deadline=None
)
@given(
    st.lists(
        arrays(np.float32, st.tuples(st.integers(1, 5), st.integers(2, 5))), min_size=1, max_size=7
    )
)
def test_heights_come_back_bit_for_bit_in_their_order(tmp_path, heights):
    folder = write(tmp_path / "scans", heights)
    back = list(iterate_heights(folder, read_manifest(folder)))
    assert [x.tobytes() for x in back] == [x.tobytes() for x in heights]
    assert [x.shape for x in back] == [x.shape for x in heights]


def test_shards_hold_at_most_so_many_scans_and_open_with_numpy(tmp_path, monkeypatch):
    monkeypatch.setattr(scans, "SCANS_PER_SHARD", 3)
    heights = [np.full((2, 2), i, np.float32) for i in range(7)]
    folder = write(tmp_path / "scans", heights)
    shards = sorted(folder.glob("shard-*.npz"))
    assert [len(np.load(path, allow_pickle=False).files) for path in shards] == [3, 3, 1]
    back = list(iterate_heights(folder, read_manifest(folder)))
    np.testing.assert_array_equal(back, heights)


def test_the_same_scans_give_the_same_bytes(tmp_path):
    heights = [np.arange(6, dtype=np.float32).reshape(2, 3)]
    a, b = write(tmp_path / "a", heights), write(tmp_path / "b", heights)
    assert {p.name: p.read_bytes() for p in a.iterdir()} == {
        p.name: p.read_bytes() for p in b.iterdir()
    }


def test_the_manifest_keeps_types_and_tells_missing_from_zero(tmp_path):
    heights = [np.eye(2, dtype=np.float32)]
    folder = write(
        tmp_path / "a",
        heights,
        label="rows",
        bias_v=1e-3,
        change_line=0,
        score_Rows=0.1 + 0.2,
    )
    row = read_manifest(folder).iloc[0]
    assert (row["lines"], row["pixels"], row["planned_lines"]) == (2, 2, 2)
    assert (row["bias_v"], row["change_line"], row["score_Rows"]) == (1e-3, 0, 0.1 + 0.2)
    assert (row["label"], row["excluded"]) == ("rows", "")
    table = read_manifest(write(tmp_path / "b", heights))
    assert table["change_line"].isna().all()
    assert table["bias_v"].isna().all()


def test_text_that_looks_like_a_number_or_nothing_stays_text(tmp_path):
    folder = write(tmp_path / "a", [np.eye(2, dtype=np.float32)], group="007", label="nan")
    row = read_manifest(folder).iloc[0]
    assert (row["group"], row["label"]) == ("007", "nan")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("scan_id,group", "scan_id,session", "columns missing: group; unknown: session"),
        (",2,2,2,", ",two,2,2,", "column lines is not all numbers"),
        (",2,2,2,", ",,2,2,", "column lines is not all numbers"),
        ("\ns1,", "\ns0,", "scan_id s0 stands in it twice"),
    ],
)
def test_a_damaged_manifest_is_refused_in_one_line(tmp_path, old, new, message):
    folder = write(tmp_path / "scans", [np.eye(2, dtype=np.float32)] * 2)
    path = folder / "manifest.csv"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(UserError, match=message) as error:
        read_manifest(folder)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", [b"", b"a,b\n1,2,3,4\n5\n6,7,8,9,10\n", b"\xff\xfe\x00"])
def test_a_manifest_that_is_no_table_is_refused_in_one_line(tmp_path, content):
    (tmp_path / "manifest.csv").write_bytes(content)
    with pytest.raises(UserError, match=r"manifest\.csv: is no CSV table") as error:
        read_manifest(tmp_path)
    assert "\n" not in str(error.value)


def test_a_folder_without_manifest_says_so(tmp_path):
    with pytest.raises(UserError, match="no such manifest"):
        read_manifest(tmp_path)


def test_a_damaged_shard_is_refused_by_name(tmp_path):
    folder = write(tmp_path / "scans", [np.eye(2, dtype=np.float32)])
    shard = folder / "shard-00000.npz"
    content = shard.read_bytes()
    flipped = bytearray(content)
    flipped[content.index(np.eye(2, dtype=np.float32).tobytes())] ^= 1
    for broken in (bytes(flipped), content[:100], b""):
        shard.write_bytes(broken)
        with pytest.raises(UserError, match=r"shard-00000\.npz: broken shard"):
            list(iterate_heights(folder, read_manifest(folder)))
    shard.unlink()
    with pytest.raises(UserError, match="broken shard"):
        list(iterate_heights(folder, read_manifest(folder)))


@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150, deadline=None
)
@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_any_flipped_bit_of_a_shard_is_refused_or_harmless(tmp_path, place, bit):
    heights = [np.arange(k, k + 6, dtype=np.float32).reshape(2, 3) for k in range(2)]
    folder = write(tmp_path / "scans", heights)
    shard = folder / "shard-00000.npz"
    content = bytearray(shard.read_bytes())
    content[int(place * len(content))] ^= 1 << bit
    shard.write_bytes(content)
    try:
        back = list(iterate_heights(folder, read_manifest(folder)))
    except UserError:
        return
    np.testing.assert_array_equal(back, heights)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("order", ["C", "F"])
def test_shards_that_numpy_wrote_are_read_too(tmp_path, save, order):
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    folder = write(tmp_path / "scans", [x])
    save(folder / "shard-00000.npz", **{"scan-000000": np.asarray(x, order=order)})
    np.testing.assert_array_equal(next(iterate_heights(folder, read_manifest(folder))), x)


def test_a_pickle_in_a_shard_is_refused(tmp_path):
    folder = write(tmp_path / "scans", [np.eye(2, dtype=np.float32)])
    np.savez(folder / "shard-00000.npz", **{"scan-000000": np.array([[{}]], dtype=object)})
    with pytest.raises(UserError, match="broken shard"):
        list(iterate_heights(folder, read_manifest(folder)))


def test_a_manifest_cannot_reach_out_of_its_folder(tmp_path):
    folder = write(tmp_path / "scans", [np.eye(2, dtype=np.float32)])
    manifest = read_manifest(folder).assign(shard="../other.npz")
    with pytest.raises(UserError, match="is not a file name"):
        list(iterate_heights(folder, manifest))


def test_shards_are_not_compressed_and_carry_no_time(tmp_path):
    folder = write(tmp_path / "scans", [np.eye(2, dtype=np.float32)])
    with zipfile.ZipFile(folder / "shard-00000.npz") as archive:
        (entry,) = archive.infolist()
    assert entry.compress_type == zipfile.ZIP_STORED
    assert entry.date_time == (1980, 1, 1, 0, 0, 0)
