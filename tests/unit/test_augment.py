"""What augmentation may and may not do to a scan."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Generator, Tensor

from scanbench.augment import Augmentation, augment

B, L, P = 6, 9, 11

strengths = st.builds(
    Augmentation,
    flip_fast=st.sampled_from([0.0, 0.5, 1.0]),
    flip_slow=st.sampled_from([0.0, 0.5, 1.0]),
    shift_pixels=st.integers(0, 30),
    zoom=st.sampled_from([0.0, 0.5]),
    contrast=st.sampled_from([0.0, 0.3]),
    noise=st.sampled_from([0.0, 0.2]),
    line_dropout=st.sampled_from([0.0, 0.5]),
)


def scans(seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = Generator().manual_seed(seed)
    n_lines_B = torch.randint(1, L + 1, (B,), generator=generator)
    x_BLP = torch.randn(B, L, P, generator=generator)
    return x_BLP * (torch.arange(L) < n_lines_B[:, None])[..., None], n_lines_B


def run(options: Augmentation, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    x_BLP, n_lines_B = scans()
    before = x_BLP.clone()
    after = augment(x_BLP, n_lines_B, options, Generator().manual_seed(seed))
    assert torch.equal(x_BLP, before), "the input was changed"
    return before, n_lines_B, after


@settings(max_examples=60, deadline=None)
@given(options=strengths, seed=st.integers(0, 100))
def test_lines_that_were_not_measured_stay_zero_and_the_draw_is_repeatable(
    options: Augmentation, seed: int
) -> None:
    before, n_lines_B, after = run(options, seed)
    assert after.shape == before.shape
    assert after.dtype == before.dtype
    assert not after[torch.arange(L) >= n_lines_B[:, None]].any()
    assert torch.equal(after, run(options, seed)[2])


def test_at_the_defaults_nothing_changes() -> None:
    before, _, after = run(Augmentation())
    assert torch.equal(before, after)


def test_a_certain_flip_along_the_lines_mirrors_every_scan() -> None:
    before, _, after = run(Augmentation(flip_fast=1.0))
    assert torch.equal(after, before.flip(2))


def test_a_certain_flip_of_the_slow_axis_reverses_the_measured_lines() -> None:
    before, n_lines_B, after = run(Augmentation(flip_slow=1.0))
    for x_LP, y_LP, n in zip(before, after, n_lines_B, strict=True):
        assert torch.equal(y_LP[:n], x_LP[:n].flip(0))


def test_a_shift_moves_a_scan_as_a_whole_and_mirrors_at_the_edge() -> None:
    before, _, after = run(Augmentation(shift_pixels=3))
    mirrored = torch.cat([before[..., 1:4].flip(2), before, before[..., -4:-1].flip(2)], dim=2)
    shifts = []
    for x_LP, y_LP in zip(mirrored, after, strict=True):
        found = [s for s in range(7) if torch.equal(x_LP[:, s : s + P], y_LP)]
        assert found, "no shift of at most 3 pixels gives this"
        shifts.append(found[0])
    assert len(set(shifts)) > 1, "each scan draws its own shift"


def test_contrast_is_one_factor_for_each_scan() -> None:
    before, _, after = run(Augmentation(contrast=0.4))
    factor_B = []
    for x_LP, y_LP in zip(before, after, strict=True):
        ratio = (y_LP / x_LP)[x_LP != 0]
        torch.testing.assert_close(ratio, ratio[:1].expand_as(ratio))
        factor_B.append(float(ratio[0]))
    assert 0.6 <= min(factor_B) < max(factor_B) <= 1.4


def test_noise_has_the_given_deviation() -> None:
    x_BLP, n_lines_B = torch.zeros(8, 64, 64), torch.full((8,), 64)
    noise = augment(x_BLP, n_lines_B, Augmentation(noise=0.25), Generator().manual_seed(0))
    assert float(noise.std()) == pytest.approx(0.25, rel=0.02)
    assert float(noise.mean()) == pytest.approx(0, abs=0.01)


def test_line_dropout_blanks_whole_lines_at_the_given_rate() -> None:
    x_BLP, n_lines_B = torch.ones(64, 64, 8), torch.full((64,), 64)
    kept = augment(x_BLP, n_lines_B, Augmentation(line_dropout=0.3), Generator().manual_seed(0))
    assert torch.equal(kept.amin(2), kept.amax(2)), "a line is blanked whole or not at all"
    assert float(1 - kept.mean()) == pytest.approx(0.3, abs=0.03)


def test_a_zoom_changes_the_period_of_a_lattice_and_invents_no_heights() -> None:
    generator = Generator().manual_seed(3)
    period = 8.0
    x_BLP = torch.sin(2 * torch.pi * torch.arange(128) / period).expand(64, 32, 128)
    n_lines_B = torch.full((64,), 32)
    after = augment(x_BLP, n_lines_B, Augmentation(zoom=0.5), generator)
    assert after.abs().max() <= 1.0
    # Zero crossings of the first line count half periods.
    crossings_B = (after[:, 0, 1:] * after[:, 0, :-1] < 0).sum(1)
    found_B = 2 * 128 / crossings_B
    assert found_B.min() >= period / 1.5 - 1
    assert found_B.max() <= period * 1.5 + 1
    assert found_B.max() / found_B.min() > 1.5
    # All lines of a scan are enlarged about the same point.
    assert torch.allclose(after, after[:, :1].expand_as(after), atol=1e-6)


def test_a_zoom_of_a_partial_scan_takes_from_measured_lines_alone() -> None:
    x_BLP = torch.ones(32, 20, 40)
    n_lines_B = torch.arange(1, 33).clamp(max=20)
    x_BLP = x_BLP * (torch.arange(20) < n_lines_B[:, None])[..., None]
    after = augment(x_BLP, n_lines_B, Augmentation(zoom=1.0), Generator().manual_seed(0))
    assert torch.equal(after, x_BLP)
