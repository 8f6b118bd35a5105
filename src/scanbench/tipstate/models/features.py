"""`features`: logistic regression on statistics of scan lines.

What a careful person would try before a network: some thirty numbers for each line, summed up
over the lines that were measured, and a linear classifier on them. Shape suffixes: B batch, L scan
lines, P pixels of a line, K statistics, F features, C classes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scanbench.tipstate.models._linear import fit_linear

#: Below this, a share of power is none.
TINY = 1e-6
#: Below this, the standard deviation of a feature means a constant: what normalisation made equal
#: differs by rounding, which must not be blown up. All features are pure numbers of order one.
STEADY = 1e-3
#: Below this, the roughness of a line means that it is constant: far below what an instrument
#: resolves in any unit that scans come in (ångström, picoampere, volt, level).
FLAT = 1e-12
#: A statistic is summed up by its mean, deviation and these quantiles over lines; 1: the maximum.
QUANTILES = (0.1, 0.5, 0.9, 1.0)
#: Scans whose features are computed at once in `fit`.
CHUNK = 256


@dataclass(frozen=True, kw_only=True)
class Options:
    """Hyper-parameters of `features`.

    Parameters
    ----------
    lags
        Autocorrelations of a line are taken at lags of 1 to so many pixels.
    bands
        Bands of a line's power spectrum, equally wide in the logarithm of frequency.
    max_shift
        A line is compared with the one before at shifts of up to so many pixels either way.
    inverse_regularisation
        Of the logistic regression (scikit-learn's `C`): smaller is a stronger L2 penalty.
    """

    lags: int = 12
    bands: int = 8
    max_shift: int = 3
    inverse_regularisation: float = 0.03

    def __post_init__(self) -> None:
        for name, value in {"lags": self.lags, "bands": self.bands}.items():
            if value < 1:
                raise ValueError(f"{name}: {value} is not possible, give at least 1")
        if self.max_shift < 0:
            raise ValueError(f"max_shift: {self.max_shift} is not possible, give 0 or more")
        if not self.inverse_regularisation > 0:
            raise ValueError(
                f"inverse_regularisation: {self.inverse_regularisation} is not possible, "
                "give more than 0"
            )


def line_statistics(x_BLP: Tensor, lags: int, bands: int) -> Tensor:
    """Return what each line shows on its own, [B, L, 5 + lags + bands].

    In this order, where z is the line with mean 0 and standard deviation 1:

    - logarithm of the roughness (the standard deviation);
    - skewness ⟨z³⟩ and excess kurtosis ⟨z⁴⟩ − 3: bumps, dips, spikes;
    - mean and largest |z[p+1] − z[p]|: blur makes both small, noise makes both large;
    - autocorrelation at lags 1 … `lags`: the period and sharpness of the lattice;
    - logarithm of the share of the power in each band of the spectrum.
    """
    pixels = x_BLP.shape[2]
    centred_BLP = x_BLP - x_BLP.mean(2, keepdim=True)
    rough_BL1 = centred_BLP.square().mean(2, keepdim=True).sqrt()
    z_BLP = centred_BLP / rough_BL1.clamp(min=FLAT)
    step_BLP = z_BLP.diff(dim=2).abs()
    moments = [
        rough_BL1.clamp(min=FLAT).log(),
        z_BLP.pow(3).mean(2, keepdim=True),
        z_BLP.pow(4).mean(2, keepdim=True) - 3,
        step_BLP.mean(2, keepdim=True),
        step_BLP.amax(2, keepdim=True),
    ]
    correlations = [
        (z_BLP[..., : pixels - lag] * z_BLP[..., lag:]).mean(2, keepdim=True)
        if lag < pixels
        else torch.zeros_like(rough_BL1)
        for lag in range(1, lags + 1)
    ]
    power_BLP = torch.fft.rfft(z_BLP).abs().square()[..., 1:]
    power_BLP = power_BLP / power_BLP.sum(2, keepdim=True).clamp(min=TINY)
    edges = np.geomspace(1, power_BLP.shape[2] + 1, bands + 1) - 1
    shares = [
        # Narrow bands of a short spectrum hold at least one frequency, which they may share.
        power_BLP[..., low : max(high, low + 1)].sum(2, keepdim=True).add(TINY).log()
        for low, high in ((int(edges[i]), int(edges[i + 1])) for i in range(bands))
    ]
    return torch.cat([*moments, *correlations, *shares], dim=2)


def step_statistics(x_BLP: Tensor, max_shift: int) -> Tensor:
    """Return how each line but the first differs from the one before, [B, L − 1, 4].

    - the best correlation of the two lines over shifts of up to `max_shift` pixels;
    - the size of that shift in pixels: drift, or a jump of the tip;
    - the root-mean-square difference at shift 0, in units of the earlier line's roughness;
    - the jump of the mean height, in the same units.
    """
    mean_BL1 = x_BLP.mean(2, keepdim=True)
    rough_BL1 = (x_BLP - mean_BL1).square().mean(2, keepdim=True).sqrt().clamp(min=FLAT)
    z_BLP = (x_BLP - mean_BL1) / rough_BL1
    before_BLP, after_BLP = z_BLP[:, :-1], z_BLP[:, 1:]
    shifts = range(-max_shift, max_shift + 1)
    padded_BLP = F.pad(after_BLP, (max_shift, max_shift))
    pixels = x_BLP.shape[2]
    at_shift_BLS = torch.stack(
        [
            (before_BLP * padded_BLP[..., max_shift + s : max_shift + s + pixels]).mean(2)
            for s in shifts
        ],
        dim=2,
    )
    best_BL, index_BL = at_shift_BLS.max(dim=2)
    size_BL = (index_BL - max_shift).abs().to(x_BLP.dtype)
    difference_BL = (x_BLP.diff(dim=1).square().mean(2)).sqrt() / rough_BL1[:, :-1, 0]
    jump_BL = (mean_BL1.diff(dim=1).abs() / rough_BL1[:, :-1]).squeeze(2)
    # Roughness is near 0 on a flat line: the logarithm keeps such a ratio in bounds.
    return torch.stack([best_BL, size_BL, difference_BL.log1p(), jump_BL.log1p()], dim=2)


def summarise(s_BLK: Tensor, n_B: Tensor) -> Tensor:
    """Return mean, deviation and quantiles over the first `n_B` lines, [B, K · (2 + quantiles)].

    Quantiles are the nearest rank. Where no line counts, all are 0.
    """
    if s_BLK.shape[1] == 0:  # a single line has no step
        s_BLK = s_BLK.new_zeros(len(s_BLK), 1, s_BLK.shape[2])
    exists_BL1 = torch.arange(s_BLK.shape[1], device=s_BLK.device)[:, None] < n_B[:, None, None]
    s_BLK = s_BLK.where(exists_BL1, 0.0)
    n_B1 = n_B.clamp(min=1)[:, None]
    mean_BK = s_BLK.sum(1) / n_B1
    spread_BLK = (s_BLK - mean_BK[:, None]).where(exists_BL1, 0.0)
    std_BK = (spread_BLK.square().sum(1) / n_B1).sqrt()
    sorted_BLK = s_BLK.masked_fill(~exists_BL1, math.inf).sort(dim=1).values
    quantiles = []
    for q in QUANTILES:
        rank_B = (q * (n_B.clamp(min=1) - 1)).round().long()
        value_BK = sorted_BLK.gather(1, rank_B[:, None, None].expand(-1, 1, s_BLK.shape[2]))[:, 0]
        quantiles.append(value_BK.where(n_B[:, None] > 0, 0.0))
    return torch.cat([mean_BK, std_BK, *quantiles], dim=1)


class Model(nn.Module):
    """Classify a scan from the statistics of its lines.

    Parameters
    ----------
    options
        Hyper-parameters.
    lines, pixels
        Shape of a scan.
    classes
        Number of classes.
    """

    mean_F: Tensor
    scale_F: Tensor
    coefficient_CF: Tensor
    intercept_C: Tensor

    def __init__(self, options: Options, *, lines: int, pixels: int, classes: int) -> None:
        super().__init__()
        self.options = options
        self.lines = lines
        features = (5 + options.lags + options.bands + 4) * (2 + len(QUANTILES))
        self.register_buffer("mean_F", torch.zeros(features))
        self.register_buffer("scale_F", torch.ones(features))
        self.register_buffer("coefficient_CF", torch.zeros(classes, features))
        self.register_buffer("intercept_C", torch.zeros(classes))

    def fit(
        self,
        x_NLP: np.ndarray,
        n_lines_N: np.ndarray,
        labels_N: np.ndarray,
        class_weights_C: np.ndarray,
        seed: int,
    ) -> None:
        """Standardise the features and fit the regression; the same input gives the same result."""
        feature_NF = torch.cat(
            [
                self.features(
                    torch.from_numpy(x_NLP[i : i + CHUNK]),
                    torch.from_numpy(n_lines_N[i : i + CHUNK]),
                )
                for i in range(0, len(x_NLP), CHUNK)
            ]
        ).double()
        mean_F, scale_F = feature_NF.mean(0), feature_NF.std(0, correction=0)
        scale_F[scale_F < STEADY] = 1.0
        coefficient_CF, intercept_C = fit_linear(
            (feature_NF - mean_F) / scale_F,
            labels_N,
            class_weights_C,
            inverse_regularisation=self.options.inverse_regularisation,
            max_iter=2000,
        )
        self.mean_F.copy_(mean_F)
        self.scale_F.copy_(scale_F)
        self.coefficient_CF.copy_(coefficient_CF)
        self.intercept_C.copy_(intercept_C)

    def features(self, x_BLP: Tensor, n_lines_B: Tensor) -> Tensor:
        """Return the features of scans whose first `n_lines_B` lines were measured, [B, F]."""
        own_BF = summarise(line_statistics(x_BLP, self.options.lags, self.options.bands), n_lines_B)
        step_BF = summarise(step_statistics(x_BLP, self.options.max_shift), n_lines_B - 1)
        return torch.cat([own_BF, step_BF], dim=1)

    def answer_lines(self) -> list[int]:
        """Return the number of lines seen at the only answer."""
        return [self.lines]

    def forward(self, x_BLP: Tensor, n_lines_B: Tensor) -> Tensor:
        """Return logits [B, 1, C] of scans whose first `n_lines_B` lines were measured."""
        z_BF = (self.features(x_BLP, n_lines_B) - self.mean_F) / self.scale_F
        return (z_BF @ self.coefficient_CF.T + self.intercept_C)[:, None]
