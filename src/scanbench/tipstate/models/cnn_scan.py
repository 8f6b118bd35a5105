"""`cnn-scan`: a plain VGG-like network that looks at the whole scan and answers at its end.

Shape suffixes: B batch, L scan lines, P pixels of a line, F features, C classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True, kw_only=True)
class Options:
    """Hyper-parameters of `cnn-scan`.

    Parameters
    ----------
    widths
        Channels of each stage; a stage ends with a 2×2 max-pool.
    convolutions
        3×3 convolutions per stage, each followed by batch normalisation and ReLU.
    dropout
        Rate before the last layer.
    """

    widths: tuple[int, ...] = (32, 64, 128, 128)
    convolutions: int = 1
    dropout: float = 0.3

    def __post_init__(self) -> None:
        if not self.widths or min(self.widths) < 1:
            raise ValueError(f"widths: {self.widths} is not possible, give channels per stage")
        if self.convolutions < 1:
            raise ValueError(f"convolutions: {self.convolutions} is not possible, give at least 1")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout: {self.dropout} is not possible, give 0 to below 1")


class Model(nn.Module):
    """Classify a scan by a stack of 3×3 convolutions (Simonyan & Zisserman 2015, arXiv 1409.1556).

    Lines that were not measured are held at zero after every layer, as if the image ended there and
    were padded, and the average before the last layer runs over measured lines only. So a partial
    scan gets the answer that a network built for its size would give.

    Parameters
    ----------
    options
        Hyper-parameters.
    lines, pixels
        Shape of a scan.
    classes
        Number of classes.
    """

    def __init__(self, options: Options, *, lines: int, pixels: int, classes: int) -> None:
        super().__init__()
        self.lines = lines
        self.convolutions = nn.ModuleList()
        self.norms = nn.ModuleList()
        width = 1
        for after in options.widths:
            for _ in range(options.convolutions):
                # The normalisation that follows has a bias of its own.
                self.convolutions.append(nn.Conv2d(width, after, 3, padding=1, bias=False))
                self.norms.append(nn.BatchNorm2d(after))
                width = after
        self.per_stage = options.convolutions
        self.dropout = nn.Dropout(options.dropout)
        self.head = nn.Linear(width, classes)
        for module in self.convolutions:
            assert isinstance(module, nn.Conv2d)
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def answer_lines(self) -> list[int]:
        """Return the number of lines seen at the only answer."""
        return [self.lines]

    def forward(self, x_BLP: Tensor, n_lines_B: Tensor) -> Tensor:
        """Return logits [B, 1, C] of scans whose first `n_lines_B` lines were measured."""
        # A channel axis at the end, viewed as the second, is the channels-last memory format.
        x_BFLP = x_BLP[..., None].permute(0, 3, 1, 2)
        n_rows_B = n_lines_B
        partial = bool((n_lines_B < x_BLP.shape[1]).any())  # masks cost time, whole scans need none
        if partial:
            x_BFLP = x_BFLP.masked_fill(_unmeasured(x_BFLP, n_rows_B), 0.0)
        for depth, (convolution, norm) in enumerate(
            zip(self.convolutions, self.norms, strict=True)
        ):
            x_BFLP = convolution(x_BFLP)
            if (depth + 1) % self.per_stage == 0:
                # Pooled before the normalisation, which then has a quarter of the work.
                if partial:
                    x_BFLP = x_BFLP.masked_fill(_unmeasured(x_BFLP, n_rows_B), -torch.inf)
                x_BFLP = F.max_pool2d(x_BFLP, 2, ceil_mode=True)
                n_rows_B = (n_rows_B + 1) // 2
                if partial:
                    x_BFLP = x_BFLP.masked_fill(_unmeasured(x_BFLP, n_rows_B), 0.0)
            x_BFLP = F.relu(norm(x_BFLP))
            if partial:
                x_BFLP = x_BFLP.masked_fill(_unmeasured(x_BFLP, n_rows_B), 0.0)
        mean_BF = x_BFLP.mean(3).sum(2) / n_rows_B.clamp(min=1)[:, None]
        return self.head(self.dropout(mean_BF)).float()[:, None]


def _unmeasured(x_BFLP: Tensor, n_rows_B: Tensor) -> Tensor:
    """Return a mask of the rows that hold no measured line, [B, 1, rows, 1]."""
    row_L = torch.arange(x_BFLP.shape[2], device=x_BFLP.device)
    return (row_L >= n_rows_B[:, None])[:, None, :, None]
