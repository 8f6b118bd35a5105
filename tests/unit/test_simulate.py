"""The simulator obeys the physics it claims, and its labels are true."""

import csv
import filecmp
import math
from collections import Counter
from dataclasses import replace
from pathlib import Path

import nanonispy2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scanbench.errors import UserError
from scanbench.tipstate import CLASSES
from scanbench.tipstate.materials import (
    DIMER_SPACING,
    HERRINGBONE_PERIOD,
    MATERIALS,
    ROW_SPACING,
    SurfaceParameters,
    dimer_cell,
    herringbone,
    make_surface,
)
from scanbench.tipstate.scanning import levelled
from scanbench.tipstate.simulate import (
    ScanParameters,
    Spec,
    counts_of,
    draw_parameters,
    plan_scans,
    simulate,
    simulate_scan,
)
from scanbench.tipstate.surface import (
    Apex,
    constant_current_height,
    perfect_surface,
    tunnelling_current,
)
from scanbench.tipstate.tip import Resolution, cell_image, draw_tip, resolution

LAYER = MATERIALS["h-si100"].layer
SHARP, BLUNT = (Apex(radius=0.3),), (Apex(radius=30.0),)


def clean(**changes) -> SurfaceParameters:
    values = {
        "angle": 0.0,
        "separation": 3.3,
        "missing": 0.0,
        "dangling": 0.0,
        "adsorbates": 0.0,
        "charges": 0.0,
        "step": 0,
        "seed": 1,
    }
    return SurfaceParameters(**(values | changes))


def quiet(**changes) -> ScanParameters:
    """A scan of a perfect surface without any disturbance."""
    values = {
        "label": "atoms",
        "tip": SHARP,
        "state": "atoms",
        "surface": clean(),
        "lines": 64,
        "pixels": 64,
        "measured_lines": 64,
        "width": 60.0,
        "height": 60.0,
    }
    return ScanParameters(**(values | changes))


def scan(parameters: ScanParameters, seed: int = 0):
    return simulate_scan(parameters, np.random.default_rng(seed))


# --- surface and tunnelling ---------------------------------------------------------------------


def test_the_neighbourhood_sum_equals_a_sum_over_all_atoms():
    rng = np.random.default_rng(0)
    surface = make_surface(clean(missing=0.3, dangling=0.3, adsorbates=0.1, step=1), 40)
    tip = (Apex(radius=1), Apex(x=5, y=-2, height=-0.4, radius=3, decay=0.9))
    x, y, z = rng.uniform(-10, 10, 50), rng.uniform(-10, 10, 50), rng.uniform(5, 6, 50)
    atoms = [surface.adsorbates_N3]
    for lattice in surface.lattices:
        sites = (*lattice.sites(), lattice.heights_RDS)
        table = np.stack([np.broadcast_to(a, lattice.heights_RDS.shape).ravel() for a in sites], 1)
        atoms.append(table[np.isfinite(table[:, 2])])
    atoms_N3 = np.concatenate(atoms)
    expected = np.zeros(50)
    for apex in tip:
        centre = np.stack([x + apex.x, y + apex.y, z + apex.radius - apex.height], 1)
        distance = np.linalg.norm(centre[:, None] - atoms_N3[None], axis=2)
        expected += np.exp(-2 * apex.decay * (distance - apex.radius)).sum(1)
    np.testing.assert_allclose(tunnelling_current(surface, tip, x, y, z), expected, rtol=3e-3)


def test_the_corrugation_along_a_row_is_that_of_the_fourier_series():
    # exp(−2κr) has the transform 2π·2κ exp(−zq)(1 + zq)/q³ with q² = 4κ² + G²; along the row, where
    # only G = 2π/3.84 Å counts for a distant tip, ln I gives an amplitude of 2 I_G / I_0 / 2κ.
    decay, gap, radius = 1.1, 4.0, 4.0
    z, q0 = gap + radius, 2 * decay

    def term(reciprocal):
        q = math.hypot(q0, reciprocal)
        return math.exp(-z * q) * (1 + z * q) / q**3

    slope = q0 * z * q0 / (1 + z * q0)
    expected = 4 * term(2 * math.pi / DIMER_SPACING) / term(0) / slope
    image = cell_image((Apex(radius=radius, decay=decay),), gap, separation=ROW_SPACING / 2)
    assert np.ptp(image.mean(axis=1)) == pytest.approx(expected, rel=0.1)


@settings(max_examples=20, deadline=None)
@given(
    x=st.floats(-200, 200), y=st.floats(-200, 200), rows=st.integers(-9, 9), n=st.integers(-9, 9)
)
def test_the_perfect_surface_repeats_with_the_2x1_cell(x, y, rows, n):
    here, there = (
        constant_current_height(
            perfect_surface(dimer_cell(3.0)), SHARP, np.array([a]), np.array([b]), 4.0
        )
        for a, b in ((x, y), (x + rows * ROW_SPACING, y + n * DIMER_SPACING))
    )
    assert here == pytest.approx(there, abs=2e-3)


@settings(max_examples=20, deadline=None)
@given(
    sharp=st.floats(0, 8), more=st.floats(0.5, 8), gap=st.floats(3.4, 5), split=st.floats(3, 3.4)
)
def test_a_sharper_tip_resolves_more(sharp, more, gap, split):
    fine = resolution((Apex(radius=sharp),), gap, 0, split)
    coarse = resolution((Apex(radius=sharp + more),), gap, 0, split)
    assert fine.dimers > coarse.dimers
    assert fine.rows > coarse.rows
    assert fine.split >= coarse.split


@pytest.mark.parametrize(
    ("radius", "state"),
    [(0.2, "atoms"), (2.2, "asymmetry/dimer"), (5.0, "rows"), (30.0, "defect")],
)
def test_blunting_a_tip_loses_atoms_then_dimers_then_rows(radius, state):
    assert resolution((Apex(radius=radius),), 3.8, 0, 3.5).state == state


@pytest.mark.parametrize(("x", "height"), [(2.0, -0.3), (5.0, 0.0)])
def test_a_second_apex_fills_the_saddle_or_makes_one_atom_of_each_dimer_the_higher(x, height):
    double = (Apex(radius=0.2), Apex(radius=0.2, x=x, height=height))
    assert resolution(double[:1], 3.8, 0, 3.35).state == "atoms"
    assert resolution(double, 3.8, 0, 3.35).state == "asymmetry/dimer"


def test_equal_apexes_far_apart_draw_ghosts():
    assert resolution((*SHARP, Apex(radius=0.3, x=20)), 3.8).state == "defect"
    assert resolution((*SHARP, Apex(radius=0.3, x=20, height=-3)), 3.8, 0, 3.5).state == "atoms"


@pytest.mark.parametrize("state", CLASSES)
@settings(max_examples=5, deadline=None)
@given(seed=st.integers(0, 1000), angle=st.floats(0, 6))
def test_drawn_tips_are_in_the_state_asked_for(state, seed, angle):
    tip = draw_tip(state, 3.8, angle, 3.2, np.random.default_rng(seed))
    assert resolution(tip, 3.8, angle, 3.2).state == state


@pytest.mark.parametrize("state", CLASSES)
@settings(max_examples=3, deadline=None)
@given(seed=st.integers(0, 1000))
def test_tips_drawn_with_a_margin_are_not_near_a_threshold(state, seed):
    tip = draw_tip(state, 3.6, 0.0, 3.3, np.random.default_rng(seed), margin=1.5)
    found = resolution(tip, 3.6, 0.0, 3.3)
    assert found.state == state
    assert found.is_clear(1.5)


def test_a_tip_is_clear_up_to_its_distance_from_a_threshold():
    # Rows 2.5 pm: 1.67 times the threshold; dimers 0.5 pm: half of theirs.
    rows = Resolution(rows=0.025, dimers=0.005, split=0.0, balance=0.0, ghosts=0.0)
    assert rows.state == "rows"
    assert [rows.is_clear(margin) for margin in (1, 1.6, 1.7, 2.1)] == [True, True, False, False]


def test_what_counts_is_what_shows_beside_the_rows():
    faint = {"split": 0.0, "balance": 0.0, "ghosts": 0.0}
    assert Resolution(rows=0.3, dimers=0.05, **faint).state == "rows"
    assert Resolution(rows=0.1, dimers=0.05, **faint).state == "asymmetry/dimer"
    assert Resolution(rows=0.1, dimers=0.05, split=0.02, balance=1, ghosts=0).state == "atoms"
    assert Resolution(rows=0.2, dimers=0.08, split=0.02, balance=1, ghosts=0).state == (
        "asymmetry/dimer"
    )


@pytest.mark.parametrize("layers", [1, 2])
def test_a_step_is_as_high_as_its_layers_and_turns_the_rows_if_single(layers):
    surface = make_surface(clean(step=layers), 150)
    x, y = np.meshgrid(np.linspace(-60, 60, 121), np.linspace(-60, 60, 121))
    heights = constant_current_height(surface, BLUNT, x, y, 4.0)
    assert np.median(heights[heights > -0.3 * LAYER]) == pytest.approx(0, abs=0.05)
    assert heights.min() == pytest.approx(-layers * LAYER, abs=0.15)
    turned = surface.lattices[1].angle - surface.lattices[0].angle
    assert turned == pytest.approx(math.pi / 2 if layers == 1 else 0)


def test_missing_dimers_are_dark_and_dangling_bonds_and_adsorbates_bright():
    def extremes(**density):
        x, y = np.meshgrid(np.linspace(-30, 30, 61), np.linspace(-30, 30, 61))
        heights = constant_current_height(make_surface(clean(**density), 60), SHARP, x, y, 4.0)
        return heights.min(), heights.max()

    low, high = extremes()
    assert extremes(missing=0.1)[0] < low - 0.3
    assert extremes(dangling=0.1)[1] > high + 0.6
    assert extremes(adsorbates=0.1)[1] > high + 0.4


def test_a_charge_shifts_the_picture_by_a_gaussian_whatever_the_tip():
    surface = make_surface(clean(charges=0.2), 60)
    assert len(surface.charges_N4) > 5
    x, y, rise, width = surface.charges_N4[0]
    alone = replace(surface, charges_N4=surface.charges_N4[:1])
    assert alone.band_bending(x, y) == pytest.approx(rise)
    assert alone.band_bending(x + width, y) == pytest.approx(rise * math.exp(-0.5))
    assert make_surface(clean(), 60).band_bending(0.0, 0.0) == 0


def test_gold_has_a_herringbone_of_63_angstrom_and_graphite_a_triangular_lattice():
    # Barth et al., Phys. Rev. B 42, 9307 (1990): 22 atoms, 6.3 nm; ridges 20 pm high.
    assert pytest.approx(63.4, abs=0.1) == HERRINGBONE_PERIOD
    across = np.linspace(0, HERRINGBONE_PERIOD / math.cos(math.radians(30)), 400)
    profile = herringbone(across, 40.0)
    assert profile[0] == pytest.approx(profile[-1], abs=1e-6)
    assert np.ptp(profile) == pytest.approx(0.2, rel=0.05)
    assert ((profile > np.roll(profile, 1)) & (profile >= np.roll(profile, -1))).sum() == 2
    for name, spacing in (("au111", 2.884), ("graphite", 2.46)):
        cell = MATERIALS[name].cell(0.0)
        x, y = np.meshgrid(np.linspace(-2, 2, 81), np.linspace(-2, 2, 81))
        heights = constant_current_height(perfect_surface(cell), (Apex(radius=0.0),), x, y, 3.2)
        turn = math.radians(60)
        u, v = spacing * math.cos(turn), spacing * math.sin(turn)
        shifted = constant_current_height(
            perfect_surface(cell), (Apex(radius=0.0),), x + u, y + v, 3.2
        )
        np.testing.assert_allclose(heights, shifted, atol=3e-3)
        assert np.ptp(heights) > 0.01


@pytest.mark.parametrize("surface", ["au111", "graphite"])
def test_other_surfaces_are_simulated_with_the_same_tips(surface):
    spec = Spec(scans=4, sessions=1, pixels=(32,), surface=surface, seed=1)
    silicon = replace(spec, surface="h-si100")
    for plan in plan_scans(spec):
        mine, other = draw_parameters(spec, plan), draw_parameters(silicon, plan)
        assert mine.surface.material == surface
        assert (mine.tip, mine.state) == (other.tip, other.state)
        z = simulate_scan(mine, np.random.default_rng(0)).forward_LP
        assert np.isfinite(z[: mine.measured_lines]).all()


# --- scans --------------------------------------------------------------------------------------


@pytest.mark.parametrize("angle", [0.0, 0.4, math.pi / 2])
def test_the_lattice_periods_are_found_in_the_scan_within_a_bin(angle):
    p = quiet(
        surface=clean(angle=angle),
        lines=128,
        pixels=128,
        measured_lines=128,
        width=120.0,
        height=120.0,
    )
    image = scan(p).forward_LP[::-1].astype(float)  # scanned downwards
    window = np.hanning(128)
    power = np.abs(np.fft.fft2((image - image.mean()) * window * window[:, None])) ** 2
    bins = np.fft.fftfreq(128) * 128
    fx, fy = np.meshgrid(bins, bins)

    def peak(direction, period):
        wanted = 120 / period * np.array([math.cos(direction), math.sin(direction)])
        near = np.hypot(fx - wanted[0], fy - wanted[1])
        local = np.where(near < 4, power, 0)
        found = np.unravel_index(local.argmax(), local.shape)
        assert power[found] > 50 * np.median(power)
        return near[found]

    assert peak(angle, ROW_SPACING) <= 1
    assert peak(angle + math.pi / 2, DIMER_SPACING) <= 1


@settings(max_examples=15, deadline=None)
@given(line=st.integers(0, 31), pixel=st.integers(0, 31))
def test_a_tip_change_touches_nothing_that_was_scanned_before(line, pixel):
    p = quiet(lines=32, pixels=32, measured_lines=32)
    before = scan(p)
    after = scan(
        replace(
            p,
            label="defect",
            new_tip=BLUNT,
            new_state="defect",
            change_line=line,
            change_pixel=pixel,
            length_change=0.4,
        )
    )
    np.testing.assert_array_equal(after.forward_LP[:line], before.forward_LP[:line])
    np.testing.assert_array_equal(after.backward_LP[:line], before.backward_LP[:line])
    np.testing.assert_array_equal(after.forward_LP[line, :pixel], before.forward_LP[line, :pixel])
    later = np.concatenate([after.backward_LP[line:], after.forward_LP[line + 1 :]])
    unchanged = np.concatenate([before.backward_LP[line:], before.forward_LP[line + 1 :]])
    assert (later != unchanged).mean() > 0.95
    assert list(after.state_L) == ["atoms"] * line + ["defect"] * (32 - line)


def test_without_disturbance_backward_is_forward_in_reverse():
    p = quiet(surface=clean(dangling=0.1))
    ideal = scan(p)
    np.testing.assert_array_equal(ideal.backward_LP, ideal.forward_LP[:, ::-1])
    np.testing.assert_allclose(ideal.forward_current_LP, p.setpoint, rtol=0.2)


def test_a_lagging_feedback_trails_behind_and_the_current_shows_it():
    p = quiet(surface=clean(adsorbates=0.05, seed=3))
    ideal, lagging = scan(p), scan(replace(p, feedback_time=2 * p.line_time / p.pixels))

    def shift(image, other):
        return max(range(-5, 6), key=lambda k: (np.roll(image, k, 1) * other)[:, 8:-8].sum())

    def level(image):
        return image - image.mean()

    forward, backward = level(lagging.forward_LP), level(lagging.backward_LP)
    assert shift(level(ideal.forward_LP), forward) > 0
    assert shift(backward[:, ::-1], forward) > 0  # on screen the two are displaced
    error = ideal.forward_LP - lagging.forward_LP
    rises = error > 0.1e-10
    assert lagging.forward_current_LP[rises].min() > 1.1 * p.setpoint


def test_drift_moves_the_picture_and_slow_direction_mirrors_it():
    p = quiet(surface=clean(dangling=0.05))
    down, up = scan(p), scan(replace(p, slow_direction="up"))
    np.testing.assert_allclose(down.forward_LP, up.forward_LP[::-1], atol=1e-14)
    duration = 2 * p.line_time * p.lines
    drifting = scan(replace(p, slow_direction="up", drift=(0.0, -p.height / duration)))
    spread = np.ptp(drifting.forward_LP, axis=0)  # the frame moves back as fast as it scans
    assert spread.max() < 0.1 * np.ptp(up.forward_LP)


def test_noise_has_the_strength_it_is_given():
    p = quiet(tip=(Apex(radius=60.0),), lines=128, pixels=128, measured_lines=128)
    white = scan(replace(p, noise=0.05)).forward_LP * 1e10
    assert white.std() == pytest.approx(0.05 * math.hypot(1, 0.3), rel=0.05)
    pink = scan(replace(p, flicker=0.05)).forward_LP * 1e10
    power = np.abs(np.fft.rfft(pink - pink.mean(), axis=1)) ** 2
    assert power[:, 1:5].mean() > 5 * power[:, -20:].mean()
    offsets = scan(replace(p, line_offset=0.05)).forward_LP * 1e10
    assert offsets.mean(1).std() > 10 * offsets.std(1).mean()
    tilted = scan(replace(p, tilt=(0.01, 0.02))).forward_LP * 1e10
    assert np.ptp(tilted[0]) == pytest.approx(0.01 * p.width, rel=0.03)
    assert np.ptp(tilted[:, 0]) == pytest.approx(0.02 * p.height, rel=0.03)


def test_a_scan_broken_off_is_nan_from_there_on_and_the_same_before():
    whole, broken = scan(quiet()), scan(quiet(measured_lines=20))
    np.testing.assert_array_equal(whole.forward_LP[:20], broken.forward_LP[:20])
    assert np.isnan(broken.backward_current_LP[20:]).all()
    assert np.isfinite(whole.forward_LP).all()


def test_levelled_lines_have_neither_mean_nor_slope_and_keep_the_rest():
    tilted = scan(quiet(tilt=(0.05, 0.02), measured_lines=50)).forward_LP
    flat = levelled(tilted)
    x_P = np.linspace(-1, 1, 64)
    np.testing.assert_allclose(flat[:50].mean(axis=1), 0, atol=1e-16)
    np.testing.assert_allclose(flat[:50] @ x_P, 0, atol=1e-15)
    np.testing.assert_allclose(levelled(flat)[:50], flat[:50], atol=1e-16)
    np.testing.assert_allclose(levelled(scan(quiet()).forward_LP)[:50], flat[:50], atol=1e-13)
    assert np.isnan(flat[50:]).all()


def test_a_feedback_overshoots_a_step_by_what_it_is_told():
    # The tip becomes longer by 0.5 Å at once.
    flat = (Apex(radius=60.0),)
    p = quiet(tip=flat, new_tip=flat, new_state="defect", change_line=4, length_change=0.5)
    ringing = scan(replace(p, feedback_time=4 * p.line_time / p.pixels, overshoot=0.3))
    heights = ringing.forward_LP * 1e10
    assert heights[:4].max() == pytest.approx(0, abs=2e-3)
    assert heights.max() == pytest.approx(0.5 * 1.3, rel=0.02)
    assert heights[-1].mean() == pytest.approx(0.5, abs=2e-3)
    assert scan(replace(p, feedback_time=1e-9, overshoot=0.3)).forward_LP == pytest.approx(
        scan(p).forward_LP, abs=1e-14
    )


def test_chatter_only_lifts_the_tip_and_only_on_its_lines():
    p = quiet(chatter=3.0, chatter_height=0.5, chatter_pixels=2, chatter_from=10, chatter_to=20)
    extra = scan(p).forward_LP - scan(quiet()).forward_LP
    assert (extra >= 0).all()
    assert (extra[10:20].max(axis=1) > 0).mean() > 0.5
    assert not extra[:10].any()
    assert not extra[20:].any()


def test_a_lost_contact_is_a_defect_on_the_lines_where_the_tip_is_away():
    lost, whole = scan(quiet(crashes=2, crash_height=30.0, crash_pixels=150)), scan(quiet())
    away = lost.state_L == "defect"
    assert 0 < away.sum() < 40
    for direction in ("forward_LP", "backward_LP"):
        same = getattr(lost, direction) == getattr(whole, direction)
        assert same[~away].all()
    assert np.abs(lost.forward_LP - whole.forward_LP).max() == pytest.approx(30e-10, rel=1e-3)


def test_an_unstable_tip_is_a_defect_on_the_lines_where_it_flickers():
    p = quiet(label="defect", new_tip=BLUNT, new_state="rows", unstable=True)
    flickering, first, second = scan(p), scan(quiet()), scan(quiet(tip=BLUNT))
    assert set(flickering.state_L) == {"atoms", "rows", "defect"}
    for state, same in (("atoms", first), ("rows", second)):
        lines = flickering.state_L == state
        np.testing.assert_array_equal(flickering.forward_LP[lines], same.forward_LP[lines])


# --- data sets ----------------------------------------------------------------------------------

SMALL = {"scans": 12, "sessions": 3, "pixels": [32], "lines": [24], "seed": 7, "aborted_share": 0.4}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("simulated") / "data"
    simulate(SMALL, out)
    return out


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_folder_holds_what_its_tables_say(dataset):
    labels, truth = table(dataset / "labels.csv"), table(dataset / "truth.csv")
    rows = {row["scan"]: row for row in table(dataset / "parameters.csv")}
    assert len(labels) == len(rows) == 12
    for row in labels:
        scan_file = dataset / row["group"] / f"{row['scan']}.sxm"
        file = nanonispy2.read.Scan(str(scan_file))
        parameters = rows[row["scan"]]
        measured = np.isfinite(file.signals["Z"]["forward"]).all(1)
        states = [line["state"] for line in truth if line["scan"] == row["scan"]]
        assert measured.sum() == len(states) == int(parameters["measured_lines"])
        assert measured[: len(states)].all()
        assert file.header["scan_range"][0] == pytest.approx(float(parameters["width"]) * 1e-10)
        assert file.header["scan_dir"] == parameters["slow_direction"]
        if row["change_line"]:
            assert states[int(row["change_line"]) - 1] != states[int(row["change_line"])]
        elif parameters["unstable"] == "False":
            assert set(states) == {row["label"]}


def test_neither_order_nor_number_of_workers_changes_a_byte(dataset, tmp_path):
    simulate(SMALL | {"workers": 2}, tmp_path / "again")
    names = [str(p.relative_to(dataset)) for p in dataset.rglob("*") if p.is_file()]
    assert len(names) == 15
    _, mismatch, errors = filecmp.cmpfiles(dataset, tmp_path / "again", names, shallow=False)
    assert not mismatch
    assert not errors
    spec = Spec.from_dict(SMALL)
    plans = plan_scans(spec)
    backwards = [draw_parameters(spec, plan) for plan in reversed(plans)][::-1]
    assert backwards == [draw_parameters(spec, plan) for plan in plans]


@settings(max_examples=50)
@given(
    scans=st.integers(1, 500),
    sessions=st.integers(1, 20),
    shares=st.lists(st.floats(0.02, 1), min_size=4, max_size=4),
)
def test_shares_are_met_and_every_session_is_a_mixture(scans, sessions, shares):
    spec = Spec(
        scans=scans, sessions=min(scans, sessions), shares=dict(zip(CLASSES, shares, strict=True))
    )
    plans, counts = plan_scans(spec), counts_of(spec)
    assert Counter(plan.label for plan in plans) == Counter(counts)
    assert sum(counts.values()) == scans
    for name, share in spec.shares.items():
        assert abs(counts[name] - scans * share / sum(shares)) <= 3
        assert counts[name] >= 1 or scans < 4
        in_session = Counter(plan.session for plan in plans if plan.label == name)
        spread = [in_session[session] for session in range(spec.sessions)]
        assert max(spread) - min(spread) <= 1


def test_repeats_share_tip_and_surface_with_their_first_scan_and_stay_in_its_session():
    spec = Spec(scans=60, sessions=4, pixels=(32,), repeat_share=0.8)
    plans = plan_scans(spec)
    repeats = [plan for plan in plans if plan.twin != plan.scan]
    assert len(repeats) > 20
    for plan in repeats[:5]:
        first = plans[plan.twin]
        assert (first.session, first.label) == (plan.session, plan.label)
        this, that = draw_parameters(spec, plan), draw_parameters(spec, first)
        assert (this.tip, this.surface) == (that.tip, that.surface)
        assert this.centre != that.centre


def test_scans_of_a_session_share_orientation_and_size():
    spec = Spec(scans=24, sessions=3, pixels=(64, 128), repeat_share=0.0)
    plans = plan_scans(spec)
    for session in range(3):
        drawn = [draw_parameters(spec, plan) for plan in plans if plan.session == session]
        turned = [p.surface.angle % (math.pi / 2) * 4 for p in drawn]  # rows or a quarter turn
        assert abs(np.mean(np.exp(1j * np.array(turned)))) > 0.95
        assert len({(p.pixels, p.lines, p.drift, p.line_time) for p in drawn}) == 1


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        (
            {"gap_angstrom": [9, 9], "scans": 4, "sessions": 1},
            "gap_angstrom: no tip in state 'atoms'",
        ),
        ({"scan": 5}, "unknown key 'scan'"),
        ({"scans": 0}, "scans: 0"),
        ({"scans": 3, "sessions": 4}, "sessions: 4"),
        ({"scans": "many"}, "scans: 'many'"),
        ({"scans": 2.5}, "scans: 2.5"),
        ({"shares": {"atoms": 1}}, "shares"),
        ({"shares": "atoms"}, "shares: 'atoms'"),
        ({"noise_pm": [5, 1]}, "noise_pm"),
        ({"noise_pm": [1]}, "noise_pm"),
        ({"width_nm": "wide"}, "width_nm: 'wide'"),
        ({"pixels": [4]}, "pixels"),
        ({"aborted_share": 1.5}, "aborted_share: 1.5"),
        ({"tilt_deg": math.nan}, "tilt_deg: nan"),
        ({"margin": 0.9}, "margin: 0.9"),
        ({"surface": "cu111"}, "surface: 'cu111'"),
        ({"surface": "au111", "gap_angstrom": [2.0, 3.0]}, "gap_angstrom"),
        ({"levelled": 1}, "levelled: 1 must be true or false"),
    ],
)
def test_a_wrong_spec_is_one_clear_line_and_leaves_nothing_behind(spec, words, tmp_path):
    with pytest.raises(UserError, match=words) as error:
        simulate(spec, tmp_path / "out")
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("drop", [0.0, 7.05, 30.0])
def test_over_a_deep_terrace_the_current_is_that_of_the_same_surface_raised(drop):
    tip = (Apex(radius=0.5),)
    x_N, y_N = np.linspace(0, 20, 50), np.zeros(50)
    flat = perfect_surface(MATERIALS["au111"].cell(0.0))
    heights = flat.lattices[0].heights_RDS - np.float32(drop)
    lowered = replace(flat, lattices=(replace(flat.lattices[0], heights_RDS=heights),))
    expected = tunnelling_current(flat, tip, x_N, y_N, np.full(50, 4.0))
    found = tunnelling_current(lowered, tip, x_N, y_N, np.full(50, 4.0 - drop))
    assert found == pytest.approx(expected, rel=1e-4)
