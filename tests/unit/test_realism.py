"""Distances between real and simulated scans are those of what differs, and of nothing else."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scans_folder import heights, write_scans

from scanbench.cli import main
from scanbench.convert import convert
from scanbench.errors import UserError
from scanbench.tipstate.realism import (
    Scans,
    distances,
    fast_spectra,
    halves,
    log_spectral_distance,
    quantiles,
    realism,
    slow_spectra,
)

LINES = 32


def some(n: int = 60, seed: int = 0, shift: float = 0.0, period: float = 8.0) -> Scans:
    """Waves along the fast axis in noise; features that tell nothing but the shift."""
    rng = np.random.default_rng(seed)
    wave_P = np.sin(2 * np.pi * np.arange(LINES) / period)
    x_NLP = wave_P + 0.1 * rng.normal(size=(n, LINES, LINES))
    x_NLP = (x_NLP - x_NLP.mean((1, 2), keepdims=True)) / x_NLP.std((1, 2), keepdims=True)
    return Scans(
        x_NLP.astype(np.float32),
        np.full(n, LINES),
        np.arange(n) % 2,
        np.array([f"s{k % 10}" for k in range(n)]),
        rng.normal(loc=shift, size=(n, 4)).astype(np.float32),
    )


def test_a_wave_is_a_peak_at_its_cycles_a_line_and_the_spectrum_sums_to_the_variance():
    scans = some()
    spectra_NK = fast_spectra(scans)
    assert set(spectra_NK.argmax(axis=1) + 1) == {LINES // 8}
    np.testing.assert_allclose(spectra_NK.sum(axis=1), 1.0, rtol=0.2)
    assert slow_spectra(scans).sum(axis=1).max() < 2  # the wave is each line's constant here
    np.testing.assert_allclose(quantiles(scans).mean(), 0.0, atol=0.01)


def test_lines_that_were_not_measured_count_for_nothing():
    whole = some(n=4)
    half = Scans(
        whole.x_NLP.copy(), np.full(4, LINES // 2), whole.label_N, whole.group_N, whole.feature_NF
    )
    half.x_NLP[:, LINES // 2 :] = 0
    other = Scans(half.x_NLP.copy(), half.n_lines_N, half.label_N, half.group_N, half.feature_NF)
    other.x_NLP[:, LINES // 2 :] = 99
    np.testing.assert_array_equal(fast_spectra(half), fast_spectra(other))
    np.testing.assert_array_equal(quantiles(half), quantiles(other))
    assert len(slow_spectra(half)) == 0


def test_spectra_of_ten_times_the_power_are_10_decibel_apart():
    spectra_NK = fast_spectra(some())
    assert log_spectral_distance(spectra_NK, 10 * spectra_NK) == pytest.approx(10, abs=1e-4)
    assert np.isnan(log_spectral_distance(spectra_NK, spectra_NK[:0]))


def test_equals_are_not_told_apart_and_unlike_scans_are():
    classes = ["atoms", "rows"]
    alike = distances(some(seed=1), some(seed=2), classes, "alike").set_index("class")
    apart = distances(some(), some(seed=2, shift=3.0, period=4.0), classes, "apart")
    apart = apart.set_index("class")
    assert list(alike.index) == ["all", *classes]
    assert alike["scans_a"].tolist() == [60, 30, 30]
    assert (alike["height_distance"] < 0.03).all()
    assert (alike["fast_distance_db"] < 1).all()
    assert abs(alike["discriminator_auroc"]["all"] - 0.5) < 0.25
    assert (apart["fast_distance_db"] > 3).all()
    assert (apart["discriminator_auroc"] > 0.95).all()


def test_halves_share_no_session():
    first, second = halves(some(), 0)
    assert not set(first.group_N) & set(second.group_N)
    assert len(first) + len(second) == 60
    assert abs(len(first) - len(second)) <= 6


def store(folder: Path, seed: int, lines: int = 40) -> Path:
    scans = write_scans(folder / "scans", heights(n=16, lines=40, pixels=40, seed=seed))
    out = folder / "store.h5"
    convert({"study": "tipstate", "lines": lines, "pixels": 40}, scans, out)
    return out


def test_the_folder_is_the_same_byte_for_byte_and_says_what_is_simulated(tmp_path):
    named = {side: {"title": side, "attribution": ""} for side in ("real", "simulated")}
    spec = {"title": "Both", "scans": 12, "seed": 0, **named}
    real, made = (store(tmp_path / name, seed) for seed, name in enumerate(("a", "b")))
    realism(spec, real, made, tmp_path / "one")
    given = ["realism", "--study", "tipstate", "--spec", json.dumps(spec)]
    main([*given, str(real), str(made), str(tmp_path / "two")])
    names = {path.name for path in (tmp_path / "one").iterdir()}
    assert names >= {"scans.svg", "spectra.svg", "realism.csv", "realism.md", "provenance.json"}
    for name in names - {"provenance.json"}:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    table = pd.read_csv(tmp_path / "one/realism.csv")
    assert set(table["of"]) == {"real and simulated", "two halves of the real sessions"}
    inputs = json.loads((tmp_path / "one/provenance.json").read_text())["inputs"]
    assert set(inputs) == {"real", "simulated"}

    small = store(tmp_path / "c", 3, lines=36)
    with pytest.raises(UserError, match="lines 36, but"):
        realism(spec, real, small, tmp_path / "three")
    assert not (tmp_path / "three").exists()
