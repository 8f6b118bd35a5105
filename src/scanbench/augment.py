"""Random changes of training scans that leave their class as it is.

They act on whole batches of normalised scans, on whatever device the batch is, and draw from a
generator that is handed in. Lines that were not measured stay 0.
Shape suffixes: B batch, L scan lines, P pixels of a line.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Generator, Tensor


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """Which changes are made, and how strong they are; at the defaults, none.

    Parameters
    ----------
    flip_fast
        Probability that a scan is mirrored along its lines.
    flip_slow
        Probability that its measured lines come in reverse order.
    shift_pixels
        A scan is shifted along its lines by up to so many pixels either way; what enters at the
        edge is the mirror image of what is beside it.
    zoom
        A scan is enlarged, about a point drawn at random, by a factor between 1 / (1 + zoom) and
        1 + zoom, evenly on a logarithmic scale; what is missing at an edge is the mirror image of
        what is beside it. The period of a lattice in pixels is a choice of the operator.
    contrast
        Heights are multiplied by a factor between 1 − contrast and 1 + contrast.
    noise
        Standard deviation of white Gaussian noise, in the units of the normalised scans.
    line_dropout
        Probability of each line to be blanked (set to 0).
    """

    flip_fast: float = 0.0
    flip_slow: float = 0.0
    shift_pixels: int = 0
    zoom: float = 0.0
    contrast: float = 0.0
    noise: float = 0.0
    line_dropout: float = 0.0


def augment(
    x_BLP: Tensor, n_lines_B: Tensor, options: Augmentation, generator: Generator
) -> Tensor:
    """Return changed copies of scans; each scan and each line draws on its own.

    Parameters
    ----------
    x_BLP
        Normalised scans, 0 past `n_lines_B`.
    n_lines_B
        Lines of each scan that were measured.
    options
        What to change. A change whose strength is 0 draws no random numbers.
    generator
        Source of all random numbers, on the device of `x_BLP`.
    """
    batch, lines, pixels = x_BLP.shape
    device = x_BLP.device

    def uniform(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator, device=device)

    line_L = torch.arange(lines, device=device)
    measured_BL = line_L < n_lines_B[:, None]
    if options.flip_fast:
        mirrored_B11 = uniform(batch, 1, 1) < options.flip_fast
        x_BLP = torch.where(mirrored_B11, x_BLP.flip(2), x_BLP)
    if options.flip_slow:
        reversed_B1 = uniform(batch, 1) < options.flip_slow
        source_BL = torch.where(reversed_B1 & measured_BL, n_lines_B[:, None] - 1 - line_L, line_L)
        x_BLP = x_BLP.gather(1, source_BL[..., None].expand_as(x_BLP))
    if options.shift_pixels:
        reach = min(options.shift_pixels, pixels - 1)
        shift_B1 = ((2 * uniform(batch, 1) - 1) * (reach + 0.5)).round().clamp(-reach, reach).long()
        source_BP = (torch.arange(pixels, device=device) + shift_B1).abs()
        source_BP = (pixels - 1) - ((pixels - 1) - source_BP).abs()
        x_BLP = x_BLP.gather(2, source_BP[:, None].expand_as(x_BLP))
    if options.zoom:
        scale_B1 = (1 + options.zoom) ** (2 * uniform(batch, 1) - 1)
        last_B1 = n_lines_B[:, None].clamp(min=1) - 1.0
        source_BL = _zoomed(line_L, last_B1, scale_B1, uniform(batch, 1))
        x_BLP = _read(x_BLP, source_BL) * measured_BL[..., None]
        pixel_P = torch.arange(pixels, device=device)
        source_BP = _zoomed(
            pixel_P, torch.full_like(last_B1, pixels - 1), scale_B1, uniform(batch, 1)
        )
        x_BLP = _read(x_BLP.transpose(1, 2), source_BP).transpose(1, 2)
    if options.contrast:
        x_BLP = x_BLP * (1 + options.contrast * (2 * uniform(batch, 1, 1) - 1))
    if options.noise:
        draw_BLP = torch.randn(x_BLP.shape, generator=generator, device=device)
        x_BLP = (x_BLP + options.noise * draw_BLP) * measured_BL[..., None]
    if options.line_dropout:
        x_BLP = x_BLP * (uniform(batch, lines, 1) >= options.line_dropout)
    return x_BLP


def _zoomed(place_L: Tensor, last_B1: Tensor, scale_B1: Tensor, draw_B1: Tensor) -> Tensor:
    """Return from where in a scan each place of its enlarged copy is taken, [B, L], mirrored."""
    shift_B1 = (2 * draw_B1 - 1) * (1 - 1 / scale_B1).abs() * last_B1 / 2
    source_BL = last_B1 / 2 + shift_B1 + (place_L - last_B1 / 2) / scale_B1
    source_BL = source_BL.abs()
    return (last_B1 - (last_B1 - source_BL).abs()).clamp(min=0)


def _read(x_BLP: Tensor, source_BL: Tensor) -> Tensor:
    """Return the lines at fractional places, each interpolated between its two neighbours."""
    low_BL = source_BL.long()
    high_BL = (low_BL + 1).clamp(max=x_BLP.shape[1] - 1)
    share_BL1 = (source_BL - low_BL)[..., None]
    low, high = (x_BLP.gather(1, k[..., None].expand_as(x_BLP)) for k in (low_BL, high_BL))
    return low + share_BL1 * (high - low)
