"""The store: what convert writes, what Store reads, what verify finds."""

import json
import pickle
import shutil
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scans_folder import heights, write_scans

from scanbench.convert import convert
from scanbench.errors import UserError
from scanbench.files import sha256_of
from scanbench.resample import area_weights, fill_missing, resample, resampled_lines
from scanbench.store import Store, line_statistics, verify

SPEC = {"study": "tipstate", "classes": ["atoms", "rows"], "lines": 16, "pixels": 16}


@pytest.fixture
def store(tmp_path: Path) -> Path:
    convert(SPEC, write_scans(tmp_path / "scans", heights()), tmp_path / "store.h5")
    return tmp_path / "store.h5"


finite = st.floats(-1e3, 1e3, width=32)
scan_shapes = st.tuples(st.integers(1, 40), st.integers(1, 40))


# --------------------------------------------------------------------------------- resampling


@given(size_in=st.integers(1, 200), size_out=st.integers(1, 200))
def test_weights_of_an_output_sum_to_one_and_stay_in_its_footprint(size_in, size_out):
    weights = area_weights(size_in, size_out).toarray()
    np.testing.assert_allclose(weights.sum(axis=1), 1, rtol=1e-12)
    np.testing.assert_allclose(weights.sum(axis=0), size_out / size_in, rtol=1e-12)
    i, j = np.nonzero(weights)
    assert (weights >= 0).all()
    assert (j * size_out < (i + 1) * size_in).all()
    assert ((j + 1) * size_out > i * size_in).all()


@given(x=arrays(np.float32, scan_shapes, elements=finite))
def test_resampling_to_the_same_size_changes_nothing(x):
    np.testing.assert_array_equal(resample(x, x.shape[0], *x.shape), x)


@given(shape=scan_shapes, lines=st.integers(1, 40), pixels=st.integers(1, 40), value=finite)
def test_resampling_keeps_constants(shape, lines, pixels, value):
    out = resample(np.full(shape, value, np.float32), shape[0], lines, pixels)
    assert out.shape == (lines, pixels)
    assert (out == np.float32(value)).all()


@given(
    x=arrays(np.float32, scan_shapes, elements=finite),
    lines=st.integers(1, 40),
    pixels=st.integers(1, 40),
    data=st.data(),
)
def test_a_partial_scan_is_the_beginning_of_the_whole_one(x, lines, pixels, data):
    cut = data.draw(st.integers(1, len(x)))
    whole = resample(x, len(x), lines, pixels)
    partial = resample(x[:cut], len(x), lines, pixels)
    assert len(partial) == resampled_lines(cut, len(x), lines) == cut * lines // len(x)
    np.testing.assert_array_equal(partial, whole[: len(partial)])


def test_shrinking_averages_over_areas():
    x = np.arange(64, dtype=np.float32).reshape(8, 8)
    expected = x.reshape(4, 2, 2, 4).mean(axis=(1, 3))
    np.testing.assert_allclose(resample(x, 8, 4, 2), expected)


def test_shrinking_does_not_alias():
    stripes = np.tile(np.array([1, -1], np.float32), (60, 30))  # the finest pattern there can be
    assert np.abs(resample(stripes, 60, 20, 20)).max() < 0.5
    assert np.abs(resample(stripes, 60, 15, 15)).max() < 1e-6


@given(
    x=arrays(
        np.float32,
        st.tuples(st.integers(1, 8), st.integers(1, 12)),
        elements=st.one_of(finite, st.just(np.nan), st.just(np.inf)),
    )
)
def test_filling_leaves_what_was_measured_and_nothing_missing(x):
    measured = np.isfinite(x)
    if not measured.any():
        with pytest.raises(ValueError, match="no finite pixel"):
            fill_missing(x)
        return
    filled = fill_missing(x)
    assert np.isfinite(filled).all()
    np.testing.assert_array_equal(filled[measured], x[measured])
    assert filled.min() >= x[measured].min()
    assert filled.max() <= x[measured].max()


def test_missing_pixels_are_interpolated_along_the_line_and_missing_lines_repeat_the_last():
    nan = np.nan
    x = np.array([[nan, nan, nan], [1, nan, 3], [nan, nan, nan], [nan, 5, nan]], np.float32)
    np.testing.assert_array_equal(fill_missing(x), [[1, 2, 3], [1, 2, 3], [1, 2, 3], [5, 5, 5]])


@given(
    x=arrays(np.float32, (9, 6), elements=st.one_of(finite, st.just(np.nan))),
    cut=st.integers(1, 9),
)
def test_filling_never_looks_at_later_lines(x, cut):
    if np.isfinite(x[:cut]).any():
        np.testing.assert_array_equal(fill_missing(x[:cut]), fill_missing(x)[:cut])


# --------------------------------------------------------------------------------- convert, read


def test_the_store_holds_what_the_manifest_says(tmp_path):
    scans = heights(6)
    scans[2] = scans[2][:13]
    excluded = ["", "", "", "tie", "", ""]
    label = ["atoms", "rows", "rows", "rows", "", "atoms"]
    change = ["", "", "", "", "12", "0"]
    folder = write_scans(
        tmp_path / "scans", scans, planned_lines=24, excluded=excluded, label=label,
        change_line=change,
    )  # fmt: skip
    convert(SPEC, folder, tmp_path / "store.h5")
    with Store(tmp_path / "store.h5") as store:
        assert (len(store), store.lines, store.pixels) == (6, 16, 16)
        assert store.classes == ["atoms", "rows"]
        assert (store.study, store.unit) == ("tipstate", "m")
        assert store.n_lines.tolist() == [16, 16, 13 * 16 // 24, 16, 16, 16]
        assert store.label.tolist() == [0, 1, 1, -1, -1, 0]
        assert store.change_line.tolist() == [-1, -1, -1, -1, 8, 0]
        assert store.scan_id.tolist() == [f"scan{k:03d}" for k in range(6)]
        assert store.group.tolist()[:4] == ["session0", "session0", "session1", "session1"]
        assert store.excluded.tolist() == excluded
        assert store.index_of(["scan004", "scan001"]).tolist() == [4, 1]
        x = store.read(range(6))
        for k, scan in enumerate(scans):
            expected = resample(scan, 24, 16, 16)
            np.testing.assert_array_equal(x[k, : len(expected)], expected)
            assert not x[k, len(expected) :].any()
    with h5py.File(tmp_path / "store.h5") as file:
        inputs = json.loads(file.attrs["inputs"])
        assert inputs == {"manifest.csv": sha256_of(folder / "manifest.csv")}
        assert file.attrs["manifest_sha256"].decode() == inputs["manifest.csv"]
        assert file["scans"].chunks == (1, 16, 16)
    assert verify(tmp_path / "store.h5") == []


def test_the_same_scans_give_the_same_bytes(tmp_path):
    folder = write_scans(tmp_path / "scans", heights())
    convert(SPEC, folder, tmp_path / "a.h5")
    convert(SPEC, shutil.copytree(folder, tmp_path / "moved"), tmp_path / "b.h5")
    assert (tmp_path / "a.h5").read_bytes() == (tmp_path / "b.h5").read_bytes()


def test_a_scan_cut_short_converts_to_the_beginning_of_the_whole(tmp_path):
    whole = heights(5, lines=30)
    whole[3][4, 2:9] = np.nan
    cut = [x[: 5 + 6 * k] for k, x in enumerate(whole)]
    for name, scans in (("whole", whole), ("cut", cut)):
        folder = write_scans(tmp_path / name, scans, planned_lines=30)
        convert(SPEC, folder, tmp_path / f"{name}.h5")
    with Store(tmp_path / "whole.h5") as a, Store(tmp_path / "cut.h5") as b:
        for normalisation in ("none", "line"):
            x, y = a.read(range(5), normalisation), b.read(range(5), normalisation)
            for k, n in enumerate(b.n_lines):
                assert n == len(cut[k]) * 16 // 30
                np.testing.assert_array_equal(y[k, :n], x[k, :n])
                assert not y[k, n:].any()


@given(
    x=arrays(
        np.float32,
        st.tuples(st.integers(1, 4), st.integers(1, 12), st.integers(1, 9)),
        elements=st.floats(-(2.0**99), 2.0**99, width=32),
    ),
    data=st.data(),
)
def test_normalised_heights_are_finite_and_standard_whatever_the_heights(x, data):
    n_lines = np.array(
        data.draw(st.lists(st.integers(0, x.shape[1]), min_size=len(x), max_size=len(x)))
    )
    x = x * (np.arange(x.shape[1]) < n_lines[:, None])[..., None]
    statistics = line_statistics(x, n_lines)
    for k, n in enumerate(n_lines):
        lines = (x[k, :n] - statistics["line_mean"][k, :n, None]) / statistics["line_std"][
            k, :n, None
        ]
        scan = (x[k, :n] - statistics["scan_mean"][k]) / statistics["scan_std"][k]
        assert np.isfinite(lines).all()
        assert np.isfinite(scan).all()
        assert (statistics["line_std"][k, n:] == 1).all()
        assert (statistics["line_mean"][k, n:] == 0).all()
        # A deviation well above rounding is brought to 1.
        std = x[k, :n].astype(float).std(axis=1)
        clear = (std > 1e-3 * np.abs(x[k, :n]).max(axis=1, initial=0)) & (std > 1e-30)
        np.testing.assert_allclose(lines[clear].std(axis=1), 1, rtol=1e-3)


def test_normalisation_ignores_offset_and_scale(tmp_path):
    rng = np.random.default_rng(3)
    x = rng.normal(size=(24, 20)).astype(np.float32)
    folder = write_scans(tmp_path / "scans", [x, 8 * x, x + 16, x - 4])
    convert(SPEC, folder, tmp_path / "store.h5")
    with Store(tmp_path / "store.h5") as store:
        for normalisation in ("line", "scan"):
            y = store.read(range(4), normalisation)
            np.testing.assert_allclose(y, np.broadcast_to(y[0], y.shape), atol=2e-5)
        line = store.read(range(4), "line")
        np.testing.assert_allclose(line.mean(axis=2), 0, atol=1e-5)
        np.testing.assert_allclose(line.std(axis=2), 1, atol=1e-5)


@pytest.mark.parametrize(("unit", "size"), [("m", 1e-10), ("A", 1e-12), ("V", 1.0), ("level", 1.0)])
def test_without_normalisation_heights_are_told_in_a_natural_unit(tmp_path, unit, size):
    x = np.random.default_rng(4).normal(size=(3, 16, 16))
    folder = write_scans(tmp_path / "scans", list((size * x).astype(np.float32)))
    manifest = pd.read_csv(folder / "manifest.csv", keep_default_na=False)
    manifest.assign(unit=unit).to_csv(folder / "manifest.csv", index=False)
    convert(SPEC, folder, tmp_path / "store.h5")
    with Store(tmp_path / "store.h5") as store:
        np.testing.assert_allclose(store.read(range(3), "none"), x, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(store.read(range(3)), size * x, rtol=1e-5, atol=1e-5 * size)


def test_constant_lines_become_zeros(tmp_path):
    x = heights(2)
    x[0][3:6] = -2e-7  # constant but for its float32 rounding after resampling
    folder = write_scans(tmp_path / "scans", x)
    convert({**SPEC, "lines": 24}, folder, tmp_path / "store.h5")
    with Store(tmp_path / "store.h5") as store:
        assert (store.statistics["line_std"][0, 3:6] == 1).all()
        assert np.abs(store.read([0], "line")[0, 3:6]).max() < 1e-12


def test_reading_gives_the_scans_asked_for_in_their_order(store):
    with Store(store) as opened:
        everything = opened.read(range(7), "scan")
        wanted = [6, 2, 3, 4, 0, 0, 1]
        np.testing.assert_array_equal(opened.read(wanted, "scan"), everything[wanted])
        assert opened.read([]).shape == (0, 16, 16)


def test_an_opened_store_can_be_sent_to_another_process(store):
    with Store(store) as opened:
        np.testing.assert_array_equal(
            pickle.loads(pickle.dumps(opened)).read([1]), opened.read([1])
        )


# --------------------------------------------------------------------------------- verify


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_verify_finds_any_flipped_byte_of_the_scans(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "flip.h5"
    if not path.exists():
        convert(SPEC, write_scans(path.parent / "flip", heights()), path)
    with h5py.File(path) as file:
        chunk = file["scans"].id.get_chunk_info(data.draw(st.integers(0, 6)))
    damaged = bytearray(path.read_bytes())
    damaged[chunk.byte_offset + data.draw(st.integers(0, chunk.size - 1))] ^= data.draw(
        st.integers(1, 255)
    )
    (path.parent / "damaged.h5").write_bytes(damaged)
    assert verify(path.parent / "damaged.h5")


@pytest.mark.parametrize(
    ("name", "value", "problem"),
    [
        ("label", 2, "label: 2"),
        ("n_lines", 17, "n_lines: 17"),
        ("change_line", 16, "change_line: 16"),
        ("line_std", 7.0, "line_std: scan scan003"),
        ("scan_mean", 7.0, "scan_mean: scan scan003"),
        ("scan_id", b"scan002", "'scan002' stands 2 times"),
        ("scans", 1.0, "scan scan003 does not match its scan_sha256"),
        ("scans", np.nan, "not finite"),
        ("excluded", b"t", "is excluded"),
    ],
)
def test_verify_names_a_wrong_value(store, name, value, problem):
    with h5py.File(store, "r+") as file:
        file[name][3] = value
    assert any(problem in line for line in verify(store)), verify(store)


def test_verify_finds_a_missing_dataset(store):
    with h5py.File(store, "r+") as file:
        del file["line_mean"]
    (problem,) = verify(store)
    assert "line_mean is missing" in problem


# --------------------------------------------------------------------------------- hostile input


def damage_not_hdf5(path):
    path.write_text("scan,label\n")


def damage_truncated(path):
    path.write_bytes(path.read_bytes()[:-700])


def damage_incomplete(path):
    with h5py.File(path, "r+") as file:
        del file.attrs["complete"]


def damage_schema(path):
    with h5py.File(path, "r+") as file:
        file.attrs["schema_version"] = 99


def damage_other_hdf5(path):
    with h5py.File(path, "w") as file:
        file["x"] = 1


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (Path.unlink, "no such file"),
        (damage_not_hdf5, "not an HDF5 file"),
        (damage_truncated, "truncated"),
        (damage_incomplete, "not written to its end"),
        (damage_schema, "schema_version 99"),
        (damage_other_hdf5, "not a scan store"),
    ],
)
def test_a_store_that_is_none_is_refused_in_one_line(store, damage, says):
    damage(store)
    with pytest.raises(UserError, match=says) as caught:
        Store(store)
    assert "\n" not in str(caught.value)
    assert str(store) in str(caught.value)


def test_an_unknown_normalisation_or_scan_is_refused(store):
    with Store(store) as opened:
        with pytest.raises(UserError, match="did you mean 'line'"):
            opened.read([0], "lines")
        with pytest.raises(UserError, match="no scan 'scan999'"):
            opened.index_of(["scan000", "scan999"])


@pytest.mark.parametrize(
    ("columns", "says"),
    [
        ({"scan_id": ["a", "b", "a"]}, "scan_id a stands in it twice"),
        ({"label": ["atoms", "row", ""]}, "label 'row' is no class; did you mean 'rows'"),
        (
            {"unit": ["m", "level", "m"]},
            r"several units \(m: 2, such as \S+, level: 1, such as \S+\); ingest",
        ),
        ({"lines": ["24", "x", "24"]}, "column lines is not all numbers"),
        ({"planned_lines": ["24", "23", "24"]}, "scan scan001 needs lines"),
        ({"shard": ["../s.npz"] * 3}, "shard '../s.npz' is not in this folder"),
        ({"pixels": [20, 21, 20]}, r"has shape \(24, 20\)"),
    ],
)
def test_a_wrong_manifest_is_refused(tmp_path, columns, says):
    folder = write_scans(tmp_path / "scans", heights(3))
    table = pd.read_csv(folder / "manifest.csv", dtype=str, keep_default_na=False)
    table.assign(**columns).to_csv(folder / "manifest.csv", index=False)
    with pytest.raises(UserError, match=says):
        convert(SPEC, folder, tmp_path / "store.h5")
    assert not (tmp_path / "store.h5").exists()


@pytest.mark.parametrize(
    ("shard", "says"),
    [
        ({"scan-000000": np.full((24, 20), np.nan, np.float32)}, "no finite pixel"),
        ({"scan-000000": np.full((24, 20), 3e38, np.float32)}, "beyond"),
        ({"scan-000000": np.full((24, 20), None)}, "broken shard"),
        ({"other": np.zeros((24, 20), np.float32)}, "broken shard"),
        ({"scan-000000": np.zeros((24, 20, 1), np.float32)}, r"\(24, 20, 1\)"),
    ],
)
def test_a_wrong_shard_is_refused(tmp_path, shard, says):
    folder = write_scans(tmp_path / "scans", heights(1))
    np.savez(folder / "shard-00000.npz", **shard)
    with pytest.raises(UserError, match=says):
        convert(SPEC, folder, tmp_path / "store.h5")


def test_a_truncated_shard_is_refused(tmp_path):
    folder = write_scans(tmp_path / "scans", heights(1))
    shard = folder / "shard-00000.npz"
    shard.write_bytes(shard.read_bytes()[:500])
    with pytest.raises(UserError, match=r"shard-00000\.npz: broken shard"):
        convert(SPEC, folder, tmp_path / "store.h5")


def test_a_folder_without_scans_is_refused(tmp_path):
    with pytest.raises(UserError, match="run ingest first"):
        convert(SPEC, tmp_path, tmp_path / "store.h5")
    write_scans(tmp_path, heights(1))
    manifest = tmp_path / "manifest.csv"
    manifest.write_text(manifest.read_text().splitlines()[0] + "\n")
    with pytest.raises(UserError, match="lists no scan"):
        convert(SPEC, tmp_path, tmp_path / "store.h5")
    with pytest.raises(UserError, match="unknown key 'line'; did you mean 'lines'"):
        convert({"line": 3}, tmp_path, tmp_path / "store.h5")


def test_scans_of_any_text_keep_their_names(tmp_path):
    names = ["NA", "007", "Überstruktur √3×√3"]
    folder = write_scans(tmp_path / "scans", heights(3), scan_id=names, group=names)
    convert(SPEC, folder, tmp_path / "store.h5")
    with Store(tmp_path / "store.h5") as store:
        assert store.scan_id.tolist() == names
        assert store.group.tolist() == names
