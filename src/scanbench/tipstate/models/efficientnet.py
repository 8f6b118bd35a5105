"""`efficientnet`: a network that knows ImageNet, tuned to scans.

A few thousand labelled scans are too few to learn from nothing what an edge, a stripe or a blur is.
The features of EfficientNet-Lite0 (see `_efficientnet`) are good at that from the start: a linear
classifier on them is fitted first, then the later stages are tuned together with it, which spoils
the features less than tuning under a random head (A. Kumar et al., "Fine-Tuning can Distort
Pretrained Features and Underperform Out-of-Distribution", ICLR 2022, arXiv 2202.10054).

On whole scans, or on windows of lines alone. Shape suffixes: B batch, L lines, P pixels,
F features, C classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scanbench.store import CONSTANT
from scanbench.tipstate.models._efficientnet import STAGES, EfficientNet
from scanbench.tipstate.models._linear import fit_linear

#: Standardised features beyond this are taken for this: a scan unlike all others stays answerable.
LARGEST = 6.0
#: Images smaller than this leave the last stage nothing to convolve.
SMALLEST = 33
#: Scans whose features are computed at once in `initialise`.
CHUNK = 64
TINY = 1e-6


@dataclass(frozen=True, kw_only=True)
class Options:
    """Hyper-parameters of `efficientnet`.

    Parameters
    ----------
    pretrained
        Whether to start from ImageNet's weights, or from random ones.
    frozen_stages
        The stem and so many of the 7 stages keep the weights that they start with; 7: all do.
    magnification
        Lines and pixels are enlarged by this factor (bilinear): a window of 20 lines needs 2.
    dropout
        Rate before the linear classifier.
    views
        Answers are means over so many views of a scan: 1 as it is, 2 also mirrored along the fast
        axis, 4 also with the slow axis reversed.
    probe_samples
        The linear classifier is fitted to so many training samples, drawn at random, or to all.
    inverse_regularisation
        Of the linear classifier's first fit (scikit-learn's `C`).
    """

    pretrained: bool = True
    frozen_stages: int = 3
    magnification: int = 1
    dropout: float = 0.3
    views: int = 4
    probe_samples: int = 4000
    inverse_regularisation: float = 0.001

    def __post_init__(self) -> None:
        if not 0 <= self.frozen_stages <= len(STAGES):
            raise ValueError(
                f"frozen_stages: {self.frozen_stages} is not possible, give 0 to {len(STAGES)}"
            )
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout: {self.dropout} is not possible, give 0 to below 1")
        if self.views not in (1, 2, 4):
            raise ValueError(f"views: {self.views} is not possible, give 1, 2 or 4")
        for name in ("magnification", "probe_samples"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: {getattr(self, name)} is not possible, give at least 1")
        if not self.inverse_regularisation > 0:
            raise ValueError(
                f"inverse_regularisation: {self.inverse_regularisation} is not possible, "
                "give more than 0"
            )


def standardised(x_BLP: Tensor, n_lines_B: Tensor) -> Tensor:
    """Return scans with mean 0 and deviation 1 over their measured lines, 0 past them.

    Whatever their unit and offset: a scan in metres gives what the normalised one gives. A scan
    that is constant up to the rounding of float32 becomes 0.
    """
    measured_BL1 = (torch.arange(x_BLP.shape[1], device=x_BLP.device) < n_lines_B[:, None])[
        ..., None
    ]
    pixels_B11 = (n_lines_B.clamp(min=1) * x_BLP.shape[2])[:, None, None]
    largest_B11 = x_BLP.where(measured_BL1, 0.0).abs().amax((1, 2), keepdim=True)
    # From the first pixel on: a large offset would cost the mean its digits.
    x_BLP = (x_BLP - x_BLP[:, :1, :1]) / largest_B11.clamp(min=torch.finfo(x_BLP.dtype).tiny)
    mean_B11 = x_BLP.where(measured_BL1, 0.0).sum((1, 2), keepdim=True) / pixels_B11
    centred_BLP = (x_BLP - mean_B11).where(measured_BL1, 0.0)
    std_B11 = (centred_BLP.square().sum((1, 2), keepdim=True) / pixels_B11).sqrt()
    return centred_BLP / std_B11.where(std_B11 > CONSTANT, torch.inf)


def enlarged(x_BLP: Tensor, factor: int) -> Tensor:
    """Return scans with `factor` times as many lines and pixels, interpolated between them."""
    if factor == 1:
        return x_BLP
    return F.interpolate(x_BLP[:, None], scale_factor=float(factor), mode="bilinear")[:, 0]


class Model(nn.Module):
    """Classify a scan, or a window of one, by what ImageNet taught a network to see.

    Parameters
    ----------
    options
        Hyper-parameters.
    lines, pixels
        Shape of a sample.
    classes
        Number of classes.

    Raises
    ------
    ValueError
        If a sample is too small for the network.
    """

    mean_F: Tensor
    scale_F: Tensor

    standardises = True

    def __init__(self, options: Options, *, lines: int, pixels: int, classes: int) -> None:
        super().__init__()
        if min(lines, pixels) * options.magnification < SMALLEST:
            raise ValueError(
                f"magnification: {lines} lines × {pixels} pixels enlarged {options.magnification} "
                f"times are smaller than {SMALLEST}, give a larger factor"
            )
        self.options = options
        self.lines = lines
        self.encoder = EfficientNet()
        self.register_buffer("mean_F", torch.zeros(EfficientNet.features))
        self.register_buffer("scale_F", torch.ones(EfficientNet.features))
        self.dropout = nn.Dropout(options.dropout)
        self.head = nn.Linear(EfficientNet.features, classes)
        if options.frozen_stages:
            self.encoder.stem.requires_grad_(False)
        for stage in self.encoder.stages[: options.frozen_stages]:
            stage.requires_grad_(False)

    def initialise(
        self,
        x_NLP: np.ndarray,
        n_lines_N: np.ndarray,
        labels_N: np.ndarray,
        class_weights_C: np.ndarray,
        seed: int,
    ) -> None:
        """Take over ImageNet's weights, and fit the linear classifier to the training samples."""
        if self.options.pretrained:
            self.encoder.load_imagenet()
        drawn = self._drawn(len(x_NLP), seed)
        feature_NF = self._features(x_NLP[drawn], n_lines_N[drawn])
        self.mean_F.copy_(feature_NF.mean(0))
        self.scale_F.copy_(feature_NF.std(0, correction=0).clamp(min=TINY))
        coefficient_CF, intercept_C = fit_linear(
            self._standardised(feature_NF),
            labels_N[drawn],
            class_weights_C,
            inverse_regularisation=self.options.inverse_regularisation,
            max_iter=300,
        )
        self._set_head(coefficient_CF, intercept_C)

    def _set_head(self, coefficient_CF: Tensor, intercept_C: Tensor) -> None:
        with torch.no_grad():
            self.head.weight.copy_(coefficient_CF)
            self.head.bias.copy_(intercept_C)

    def _drawn(self, samples: int, seed: int) -> np.ndarray:
        """Return which samples the linear classifier is fitted to."""
        return np.random.default_rng(seed).permutation(samples)[: self.options.probe_samples]

    def _features(self, x_NLP: np.ndarray, n_lines_N: np.ndarray) -> Tensor:
        """Return the features [N, F] of scans as they are."""
        chunks = np.array_split(np.arange(len(x_NLP)), -(-len(x_NLP) // CHUNK))
        with torch.no_grad():
            images = (
                self._image(torch.from_numpy(x_NLP[k]), torch.from_numpy(n_lines_N[k]))
                for k in chunks
            )
            return torch.cat([self.encoder(image) for image in images])

    def _image(self, x_BLP: Tensor, n_lines_B: Tensor) -> Tensor:
        """Return what the network looks at."""
        return enlarged(standardised(x_BLP, n_lines_B), self.options.magnification)

    def _standardised(self, feature_BF: Tensor) -> Tensor:
        return ((feature_BF - self.mean_F) / self.scale_F).clamp(-LARGEST, LARGEST)

    def answer_lines(self) -> list[int]:
        """Return the number of lines seen at the only answer."""
        return [self.lines]

    def forward(self, x_BLP: Tensor, n_lines_B: Tensor) -> Tensor:
        """Return logits [B, 1, C] of scans whose first `n_lines_B` lines were measured.

        In training of the scan as it is; else the mean over the views.
        """
        x_BLP = self._image(x_BLP, n_lines_B)
        views = [x_BLP]
        if not self.training:
            if self.options.views > 1:
                views.append(x_BLP.flip(2))
            if self.options.views > 2:
                views += [view.flip(1) for view in views]
        logits = [self.head(self.dropout(self._standardised(self.encoder(view)))) for view in views]
        return torch.stack(logits).mean(0)[:, None].float()
