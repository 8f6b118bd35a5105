"""`efficientnet-rolling`: ImageNet's features of rolling windows, summed up over those so far.

Each window of lines goes through EfficientNet-Lite0 on its own. After each window, the mean and the
deviation of the features of all windows so far go into a linear classifier of that moment. Nothing
is tuned, so it is fitted at once. Shape suffixes: B batch (N: all scans), L lines, P pixels,
W lines of a window, T windows of a scan (= answers), F features, C classes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from scanbench.tipstate.models._efficientnet import EfficientNet
from scanbench.tipstate.models._linear import fit_linear, refit_linear
from scanbench.tipstate.models.efficientnet import (
    LARGEST,
    SMALLEST,
    TINY,
    enlarged,
    standardised,
)

#: Scans whose features are computed at once for a fit.
CHUNK = 16


@dataclass(frozen=True, kw_only=True)
class Options:
    """Hyper-parameters of `efficientnet-rolling`.

    Parameters
    ----------
    window
        Lines W of a window.
    stride
        Lines from the start of one window to the start of the next.
    magnification
        Lines and pixels are enlarged by this factor (bilinear).
    inverse_regularisation
        Of the linear classifiers (scikit-learn's `C`).
    """

    window: int = 20
    stride: int = 18
    magnification: int = 2
    inverse_regularisation: float = 0.001

    def __post_init__(self) -> None:
        for name in ("window", "stride", "magnification"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: {getattr(self, name)} is not possible, give at least 1")
        if not self.inverse_regularisation > 0:
            raise ValueError(
                f"inverse_regularisation: {self.inverse_regularisation} is not possible, "
                "give more than 0"
            )


def so_far(feature_BTF: Tensor) -> Tensor:
    """Return mean and deviation of the features of the windows up to each, [B, T, 2·F]."""
    count_T1 = torch.arange(1, feature_BTF.shape[1] + 1, device=feature_BTF.device)[:, None]
    mean_BTF = feature_BTF.cumsum(1) / count_T1
    square_BTF = feature_BTF.square().cumsum(1) / count_T1
    deviation_BTF = (square_BTF - mean_BTF.square()).clamp(min=0).sqrt()
    return torch.cat([mean_BTF, deviation_BTF], dim=2)


class Model(nn.Module):
    """Classify a scan after each of its windows, from the windows so far.

    Parameters
    ----------
    options
        Hyper-parameters.
    lines, pixels
        Shape of a scan.
    classes
        Number of classes.

    Raises
    ------
    ValueError
        If a window does not fit the scan, or is too small for the network.
    """

    mean_TF: Tensor
    scale_TF: Tensor
    coefficient_TCF: Tensor
    intercept_TC: Tensor

    answers_at_end = False
    standardises = True

    def __init__(self, options: Options, *, lines: int, pixels: int, classes: int) -> None:
        super().__init__()
        if options.window > lines:
            raise ValueError(
                f"window: {options.window} lines do not fit a scan of {lines} lines, give fewer"
            )
        if min(options.window, pixels) * options.magnification < SMALLEST:
            raise ValueError(
                f"magnification: windows of {options.window} lines × {pixels} pixels enlarged "
                f"{options.magnification} times are smaller than {SMALLEST}, give a larger factor"
            )
        self.options = options
        self.lines = lines
        self.encoder = EfficientNet().requires_grad_(False)
        answers, features = len(self.answer_lines()), 2 * EfficientNet.features
        self.register_buffer("mean_TF", torch.zeros(answers, features))
        self.register_buffer("scale_TF", torch.ones(answers, features))
        self.register_buffer("coefficient_TCF", torch.zeros(answers, classes, features))
        self.register_buffer("intercept_TC", torch.zeros(answers, classes))

    def answer_lines(self) -> list[int]:
        """Return the number of lines seen at each answer: the last line of each window."""
        return list(range(self.options.window, self.lines + 1, self.options.stride))

    def fit(
        self,
        x_NLP: np.ndarray,
        n_lines_N: np.ndarray,
        labels_N: np.ndarray,
        class_weights_C: np.ndarray,
        seed: int,
    ) -> None:
        """Take over ImageNet's weights, and fit one linear classifier for each answer.

        A scan teaches the answers at which it had been measured. An answer that too few scans reach
        to hold every class takes the classifier of the one before.
        """
        self.encoder.load_imagenet()
        for t, (reached, feature_NF) in enumerate(self._reached(x_NLP, n_lines_N)):
            if len(set(labels_N[reached])) < len(class_weights_C):
                for buffer in self.buffers(recurse=False):
                    buffer[t] = buffer[max(t - 1, 0)]
                continue
            self.mean_TF[t] = feature_NF.mean(0)
            self.scale_TF[t] = feature_NF.std(0, correction=0).clamp(min=TINY)
            self.coefficient_TCF[t], self.intercept_TC[t] = fit_linear(
                self._standardised(feature_NF, t),
                labels_N[reached],
                class_weights_C,
                inverse_regularisation=self.options.inverse_regularisation,
                max_iter=300,
            )

    def refit(
        self,
        x_NLP: np.ndarray,
        n_lines_N: np.ndarray,
        labels_N: np.ndarray,
        class_weights_C: np.ndarray,
        seed: int,
    ) -> None:
        """Fit the linear classifiers anew, each drawn to what it is; features are scaled as before.

        An answer that no scan reaches stays as it is.
        """
        for t, (reached, feature_NF) in enumerate(self._reached(x_NLP, n_lines_N)):
            if not len(reached):
                continue
            self.coefficient_TCF[t], self.intercept_TC[t] = refit_linear(
                self._standardised(feature_NF, t),
                labels_N[reached],
                class_weights_C,
                (self.coefficient_TCF[t], self.intercept_TC[t]),
                inverse_regularisation=self.options.inverse_regularisation,
                max_iter=300,
            )

    def _reached(
        self, x_NLP: np.ndarray, n_lines_N: np.ndarray
    ) -> Iterator[tuple[np.ndarray, Tensor]]:
        """Yield, for each answer, which scans reach it, and their features [N, 2·F] by then."""
        chunks = torch.from_numpy(x_NLP).split(CHUNK)
        with torch.no_grad():
            feature_NTF = torch.cat(
                [self._features(x_BLP) for x_BLP in tqdm(chunks, desc="features", leave=False)]
            )
        for t, line in enumerate(self.answer_lines()):
            reached = np.flatnonzero(n_lines_N >= line)
            yield reached, feature_NTF[reached, t]

    def _features(self, x_BLP: Tensor) -> Tensor:
        """Return the features of the windows up to each, [B, T, 2·F]."""
        x_BTWP = x_BLP.unfold(1, self.options.window, self.options.stride).transpose(2, 3)
        windows = x_BTWP.flatten(0, 1)
        whole = torch.full((len(windows),), self.options.window, device=x_BLP.device)
        image = enlarged(standardised(windows, whole), self.options.magnification)
        return so_far(self.encoder(image).unflatten(0, x_BTWP.shape[:2]))

    def _standardised(self, feature: Tensor, t: int | slice) -> Tensor:
        return ((feature - self.mean_TF[t]) / self.scale_TF[t]).clamp(-LARGEST, LARGEST)

    def forward(self, x_BLP: Tensor, n_lines_B: Tensor) -> Tensor:
        """Return logits [B, T, C], one answer for each window from the windows up to it.

        `n_lines_B` is not needed: windows with lines that were not measured come last, and no
        answer looks at a later window.
        """
        z_BTF = self._standardised(self._features(x_BLP), slice(None))
        return torch.einsum("btf,tcf->btc", z_BTF, self.coefficient_TCF) + self.intercept_TC
