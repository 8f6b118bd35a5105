"""The audit finds what leaks: groups, copies, and the same place measured again."""

import numpy as np
import pytest
from scans_folder import write_scans
from scipy.ndimage import gaussian_filter

from scanbench.audit import audit, correlation_over_shifts, low_passed, near_duplicates
from scanbench.convert import convert
from scanbench.store import Store

SIZE = 64


def surface(seed: int, size: int = 2 * SIZE) -> np.ndarray:
    """Structure of some pixels' size, as terraces and defects have."""
    noise = np.random.default_rng(seed).normal(size=(size, size))
    smooth = gaussian_filter(noise, 4)
    return smooth / smooth.std()


def scan_at(place: np.ndarray, y: int, x: int, seed: int, noise: float = 0.15) -> np.ndarray:
    """Measure a piece of a surface: tilted, with noise and offset, in metres."""
    rng = np.random.default_rng(seed)
    z = place[y : y + SIZE, x : x + SIZE] + noise * rng.normal(size=(SIZE, SIZE))
    z = z + 0.1 * np.arange(SIZE) * rng.normal() + 0.1 * np.arange(SIZE)[:, None] * rng.normal()
    return (1e-10 * z - 2e-7).astype("f4")


def store_of(folder, scans, **columns):
    write_scans(folder / "scans", scans, **columns)
    convert({"lines": SIZE, "pixels": SIZE}, folder / "scans", folder / "store.h5")
    return Store(folder / "store.h5")


def pairs(found) -> set[tuple[int, int]]:
    return set(zip(found[0].tolist(), found[1].tolist(), strict=True))


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """0, 1, 2: one place, drifted; 3: 0 again, aborted; 4: 0 copied; 5-9: other places."""
    place = surface(0)
    scans = [scan_at(place, 20, 20, 1), scan_at(place, 26, 15, 2), scan_at(place, 12, 24, 3)]
    scans += [scan_at(place, 20, 20, 4)[: SIZE // 2], scans[0]]
    scans += [scan_at(surface(k), 20, 20, k) for k in range(5, 10)]
    with store_of(
        tmp_path_factory.mktemp("audit"), scans, planned_lines=SIZE,
        group=["a", "a", "b", "b", "c", "c", "d", "d", "e", "e"],
        sha256=["f0", "f0", "f1", "f2", "f2", "f3", "f4", "f5", "f6", "f7"],
    ) as opened:  # fmt: skip
        yield opened


def test_scans_of_one_place_are_found_through_shift_tilt_noise_and_abortion(store):
    found = near_duplicates(store, np.arange(10), 0.85)
    assert pairs(found) == {(a, b) for a in range(5) for b in range(a + 1, 5)}
    correlation = dict(
        zip(zip(*(k.tolist() for k in found[:2]), strict=True), found[2], strict=True)
    )
    assert correlation[0, 4] == pytest.approx(1, abs=1e-4)


def test_near_duplicates_do_not_depend_on_the_order_of_the_scans(store):
    shuffled = np.random.default_rng(0).permutation(10)
    found = near_duplicates(store, shuffled, 0.85)
    named = {tuple(sorted((int(shuffled[a]), int(shuffled[b])))) for a, b in pairs(found)}
    assert named == pairs(near_duplicates(store, np.arange(10), 0.85))


def test_tilt_alone_is_no_resemblance(tmp_path):
    rng = np.random.default_rng(1)
    plane = np.add.outer(np.arange(SIZE), 3.0 * np.arange(SIZE))
    scans = [(plane + rng.normal(size=plane.shape)).astype("f4") for _ in range(4)]
    with store_of(tmp_path, scans) as store:
        assert not pairs(near_duplicates(store, np.arange(4), 0.5))


def test_scans_without_structure_or_lines_resemble_nothing(tmp_path):
    flat = np.zeros((SIZE, SIZE), np.float32)
    flat[0, 0] = 1e-12
    scans = [flat, flat[:1], scan_at(surface(0), 0, 0, 0)[:2]]
    with store_of(tmp_path, scans, planned_lines=SIZE) as store:
        low_NHW, lines_N = low_passed(store, np.arange(3))
        assert np.isfinite(low_NHW).all()
        assert lines_N.tolist() == [24, 0, 0]
        assert not pairs(near_duplicates(store, np.arange(3), 0.5))


@pytest.mark.parametrize(("lines_a", "lines_b"), [(12, 12), (12, 7), (5, 12), (6, 7)])
def test_correlation_equals_pearsons_over_every_overlap(lines_a, lines_b):
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 3, 12, 10)).astype("f4")
    a[:, lines_a:], b[:, lines_b:] = 0, 0
    expected = np.full((3, 3), -1.0)
    for i in range(3):
        for j in range(3):
            for dy in range(-3, 4):
                for dx in range(-2, 3):
                    at = [
                        (y, x, y - dy, x - dx)
                        for y in range(lines_a)
                        for x in range(10)
                        if 0 <= y - dy < lines_b and 0 <= x - dx < 10
                    ]
                    rows = {y for y, *_ in at}
                    if 2 * len(rows) < min(lines_a, lines_b):
                        continue
                    y, x, v, u = np.array(at).T
                    r = np.corrcoef(a[i, y, x], b[j, v, u])[0, 1]
                    expected[i, j] = max(expected[i, j], r)
    found = correlation_over_shifts(a, b, lines_a, lines_b)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    np.testing.assert_allclose(correlation_over_shifts(b, a, lines_b, lines_a), found.T, atol=1e-6)
    if lines_a == lines_b:
        half = correlation_over_shifts(a, a, lines_a, lines_a, half=True)
        both = correlation_over_shifts(a, a, lines_a, lines_a)
        np.testing.assert_allclose(np.maximum(half, half.T), both, atol=1e-6)


def test_each_pair_of_parts_is_reported(store):
    fold = {
        "train": np.array([0, 1, 5, 6]),
        "validation": np.array([4, 7]),
        "test": np.array([2, 3, 8, 9]),
    }
    rows = {row["parts"]: row for row in audit(store, np.arange(10), [fold], threshold=0.85)}
    leaky = rows["train/test"]
    assert leaky["shared_groups"] == []
    assert leaky["near_duplicates"] == 4
    assert leaky["near_duplicate_scans"] == 2
    assert leaky["exact_duplicates"] == 0
    assert leaky["pairs"] == 16
    assert {(a, b) for a, b, _ in leaky["examples"]} == {
        ("scan000", "scan002"), ("scan000", "scan003"),
        ("scan001", "scan002"), ("scan001", "scan003"),
    }  # fmt: skip
    values = [value for *_, value in leaky["examples"]]
    assert values == sorted(values, reverse=True)
    copied = rows["train/validation"]
    assert copied["shared_groups"] == ["c", "d"]
    assert copied["exact_duplicates"] == 1
    assert copied["examples"][0] == ["scan000", "scan004", 1.0]
    assert rows["validation/test"]["shared_files"] == 1
    assert rows["validation/test"]["exact_duplicates"] == 0


def test_unrelated_parts_report_nothing(store):
    fold = {"train": np.array([5, 6]), "validation": np.array([8]), "test": np.array([0, 1])}
    for row in audit(store, np.arange(10), [fold]):
        assert row["near_duplicates"] == row["exact_duplicates"] == row["shared_files"] == 0
        assert row["shared_groups"] == row["examples"] == []
