"""`majority`: answers with the class shares of the training part, whatever the scan.

The trivial floor: a model that does not beat it has learned nothing. It always names the most
frequent class, so its balanced accuracy is 1/classes and its AUROC 1/2.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class Options:
    """Hyper-parameters of `majority`: there are none."""


class Model(nn.Module):
    """Give every scan the same probabilities.

    Parameters
    ----------
    options
        None to set.
    lines, pixels
        Shape of a scan.
    classes
        Number of classes.
    """

    log_share_C: Tensor

    def __init__(self, options: Options, *, lines: int, pixels: int, classes: int) -> None:
        super().__init__()
        self.lines = lines
        self.register_buffer("log_share_C", torch.zeros(classes))

    def fit(
        self,
        x_NLP: np.ndarray,
        n_lines_N: np.ndarray,
        labels_N: np.ndarray,
        class_weights_C: np.ndarray,
        seed: int,
    ) -> None:
        """Keep the class shares of the training scans; weights would make them all alike."""
        count_C = np.bincount(labels_N, minlength=len(self.log_share_C))
        # A class that was never seen gets the share of half a scan: its logarithm is finite.
        share_C = np.maximum(count_C, 0.5) / np.maximum(count_C, 0.5).sum()
        self.log_share_C.copy_(torch.from_numpy(np.log(share_C)))

    def answer_lines(self) -> list[int]:
        """Return the number of lines seen at the only answer."""
        return [self.lines]

    def forward(self, x_BLP: Tensor, n_lines_B: Tensor) -> Tensor:
        """Return the same logits for each scan, [B, 1, C]."""
        return self.log_share_C.expand(len(x_BLP), 1, -1)
