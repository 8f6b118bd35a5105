"""`efficientnet-linear`: a linear classifier on ImageNet's features, nothing tuned.

The first step of `efficientnet` alone: minutes on one processor core, no learning rate, no epochs.
What tuning adds must show against it. Shape suffixes: N scans, L lines, P pixels, C classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from scanbench.tipstate.models import efficientnet
from scanbench.tipstate.models._efficientnet import STAGES
from scanbench.tipstate.models._linear import refit_linear


@dataclass(frozen=True, kw_only=True)
class Options:
    """Hyper-parameters of `efficientnet-linear`.

    Parameters
    ----------
    magnification, views, probe_samples, inverse_regularisation
        As in `efficientnet`.
    """

    magnification: int = 1
    views: int = 1
    probe_samples: int = 4000
    inverse_regularisation: float = 0.001

    def __post_init__(self) -> None:
        self.tuned()

    def tuned(self) -> efficientnet.Options:
        """Return them as options of `efficientnet`, whose checks hold here too."""
        return efficientnet.Options(
            frozen_stages=len(STAGES),
            dropout=0.0,
            magnification=self.magnification,
            views=self.views,
            probe_samples=self.probe_samples,
            inverse_regularisation=self.inverse_regularisation,
        )


class Model(efficientnet.Model):
    """Classify a scan, or a window of one, linearly by ImageNet's features.

    Parameters and errors as in `efficientnet.Model`.
    """

    def __init__(self, options: Options, *, lines: int, pixels: int, classes: int) -> None:
        super().__init__(options.tuned(), lines=lines, pixels=pixels, classes=classes)

    def fit(
        self,
        x_NLP: np.ndarray,
        n_lines_N: np.ndarray,
        labels_N: np.ndarray,
        class_weights_C: np.ndarray,
        seed: int,
    ) -> None:
        """Take over ImageNet's weights, and fit the linear classifier to the training samples."""
        self.initialise(x_NLP, n_lines_N, labels_N, class_weights_C, seed)

    def refit(
        self,
        x_NLP: np.ndarray,
        n_lines_N: np.ndarray,
        labels_N: np.ndarray,
        class_weights_C: np.ndarray,
        seed: int,
    ) -> None:
        """Fit the linear classifier anew, drawn to what it is; features are scaled as before."""
        drawn = self._drawn(len(x_NLP), seed)
        coefficient_CF, intercept_C = refit_linear(
            self._standardised(self._features(x_NLP[drawn], n_lines_N[drawn])),
            labels_N[drawn],
            class_weights_C,
            (self.head.weight.detach(), self.head.bias.detach()),
            inverse_regularisation=self.options.inverse_regularisation,
            max_iter=300,
        )
        self._set_head(coefficient_CF, intercept_C)
