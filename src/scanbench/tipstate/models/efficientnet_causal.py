"""`efficientnet-causal`: the first blocks of a network that knows ImageNet, line by line.

For a monitor of running scans. The first blocks of EfficientNet-Lite0 (see `_efficientnet`) look
along a line and back at earlier ones, never ahead, so each line is passed through them once, and
their last rows are all that they need of the past. What they say is a matter of texture: mean and
deviation of each channel over all that has been scanned (a pooling after L. Gatys, A. S. Ecker &
M. Bethge, arXiv 1505.07376, without the correlations) go into one linear classifier. An answer
after n lines is scaled by a factor and shifted by a bias that belong to n: few lines allow little
confidence.

Shape suffixes: B batch (N: all scans), L lines, P pixels, R rows and W columns of a stage, D its
channels, K columns of the kernel's rows, F features, C classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scanbench.tipstate.models._efficientnet import (
    BLOCKS,
    STEM_STRIDE,
    Block,
    Convolution,
    EfficientNet,
    first_blocks,
)
from scanbench.tipstate.models._linear import fit_linear
from scanbench.tipstate.models.efficientnet import LARGEST, TINY

#: Under the root of a variance whose typical size is 1: sums so far are exact to 1e-6 or so.
FLOOR = 1e-3
#: Scans whose features are computed at once in `initialise`.
CHUNK = 64

State = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class Options:
    """Hyper-parameters of `efficientnet-causal`.

    Parameters
    ----------
    pretrained
        Whether to start from ImageNet's weights, or from random ones.
    blocks
        How many of EfficientNet-Lite0's 16 blocks there are: 1, 2, 2, 3, … in each stage. What each
        stage ends with is read.
    frozen_stages
        The stem and so many stages keep the weights that they start with.
    dropout
        Rate before the linear classifier.
    probe_samples
        The linear classifier is fitted to so many training scans, drawn at random, or to all.
    inverse_regularisation
        Of the linear classifier's first fit (scikit-learn's `C`).
    """

    pretrained: bool = True
    blocks: int = 6
    frozen_stages: int = 1
    dropout: float = 0.2
    probe_samples: int = 4000
    inverse_regularisation: float = 0.01

    def __post_init__(self) -> None:
        if not 1 <= self.blocks <= BLOCKS:
            raise ValueError(f"blocks: {self.blocks} is not possible, give 1 to {BLOCKS}")
        stages = len(first_blocks(self.blocks))
        if not 0 <= self.frozen_stages <= stages:
            raise ValueError(
                f"frozen_stages: {self.frozen_stages} is not possible, give 0 to {stages}"
            )
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout: {self.dropout} is not possible, give 0 to below 1")
        if self.probe_samples < 1:
            raise ValueError(
                f"probe_samples: {self.probe_samples} is not possible, give at least 1"
            )
        if not self.inverse_regularisation > 0:
            raise ValueError(
                f"inverse_regularisation: {self.inverse_regularisation} is not possible, "
                "give more than 0"
            )


def so_far(moment_BRD: Tensor, period: int, lines: int) -> Tensor:
    """Return the mean of the rows known after each line, [B, L, D]; 0 where none is.

    Row r is known after (r + 1) · `period` lines.
    """
    rows_R1 = torch.arange(1, moment_BRD.shape[1] + 1, device=moment_BRD.device)[:, None]
    mean_BRD = F.pad(moment_BRD.cumsum(1) / rows_R1, (0, 0, 1, 0))
    return mean_BRD.repeat_interleave(period, 1)[:, 1 : lines + 1]


class Head(nn.Linear):
    """A linear classifier with a further bias for each number of lines.

    Parameters
    ----------
    features, classes, lines
        Their numbers.
    """

    def __init__(self, features: int, classes: int, lines: int) -> None:
        super().__init__(features, classes)
        self.shift_LC = nn.Parameter(torch.zeros(lines, classes))


class Model(nn.Module):
    """Classify a scan after each of its lines, by the texture of the lines so far.

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
        If a scan is too small for the stages.
    """

    centre_D: Tensor
    spread_D: Tensor
    mean_F: Tensor
    scale_F: Tensor
    period_D: Tensor

    answers_at_end = False

    def __init__(self, options: Options, *, lines: int, pixels: int, classes: int) -> None:
        super().__init__()
        stages = first_blocks(options.blocks)
        self.options = options
        self.lines, self.pixels = lines, pixels
        self.encoder = EfficientNet(options.blocks, causal=True)
        strides = np.array([stage.stride for stage in stages])
        #: Lines that a row of each stage stands for.
        self.periods: list[int] = (STEM_STRIDE * np.cumprod(strides)).tolist()
        if min(lines, pixels) < self.periods[-1]:
            raise ValueError(
                f"blocks: {options.blocks} blocks leave nothing of {lines} lines × {pixels} "
                f"pixels, less than {self.periods[-1]}; give fewer"
            )
        self.channels = [stage.channels for stage in stages]
        channels = sum(self.channels)
        self.register_buffer(
            "period_D",
            torch.tensor(
                [
                    period
                    for period, count in zip(self.periods, self.channels, strict=True)
                    for _ in range(count)
                ]
            ),
            persistent=False,
        )
        # Of each channel at the start; sums of what is near 0 and of size 1 keep their digits.
        self.register_buffer("centre_D", torch.zeros(channels))
        self.register_buffer("spread_D", torch.ones(channels))
        self.register_buffer("mean_F", torch.zeros(2 * channels))
        self.register_buffer("scale_F", torch.ones(2 * channels))
        self.dropout = nn.Dropout(options.dropout)
        self.gain_L = nn.Parameter(torch.ones(lines))
        self.head = Head(2 * channels, classes, lines)
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
        """Take over ImageNet's weights, and fit the linear classifier to the training scans.

        It learns from the last answer about each.
        """
        if self.options.pretrained:
            self.encoder.load_imagenet()
        drawn = np.random.default_rng(seed).permutation(len(x_NLP))[: self.options.probe_samples]
        moments = []
        with torch.no_grad():
            for k in np.array_split(drawn, -(-len(drawn) // CHUNK)):
                last_B = torch.from_numpy(n_lines_N[k]) - 1
                moment_BL2D = self._moments(torch.from_numpy(x_NLP[k]))
                moments.append(moment_BL2D[torch.arange(len(k)), last_B])
            mean_ND, square_ND = torch.cat(moments).unbind(1)
            self.centre_D.copy_(mean_ND.mean(0))
            variance_D = square_ND.mean(0) - self.centre_D.square()
            self.spread_D.copy_(variance_D.clamp(min=TINY).sqrt())
            # What the moments would have been of channels less their centre.
            square_ND = square_ND - self.centre_D * (2 * mean_ND - self.centre_D)
            feature_NF = self._texture(mean_ND - self.centre_D, square_ND)
            self.mean_F.copy_(feature_NF.mean(0))
            self.scale_F.copy_(feature_NF.std(0, correction=0).clamp(min=TINY))
            coefficient_CF, intercept_C = fit_linear(
                self._standardised(feature_NF),
                labels_N[drawn],
                class_weights_C,
                inverse_regularisation=self.options.inverse_regularisation,
                max_iter=300,
            )
            self.head.weight.copy_(coefficient_CF)
            self.head.bias.copy_(intercept_C)

    def _moments(self, x_BLP: Tensor) -> Tensor:
        """Return mean and mean square of the channels over the lines up to each, [B, L, 2, D]."""
        maps = zip(
            self.encoder.maps(x_BLP), self.periods, self.centre_D.split(self.channels), strict=True
        )
        found = [
            [
                so_far(moment_BDR.transpose(1, 2), period, x_BLP.shape[1])
                for moment_BDR in row_moments(map_BDRW, centre_D)
            ]
            for map_BDRW, period, centre_D in maps
        ]
        return torch.stack([torch.cat(of_stages, 2) for of_stages in zip(*found, strict=True)], 2)

    def _texture(self, mean_D: Tensor, square_D: Tensor) -> Tensor:
        """Return mean and deviation of the channels over their spread, [..., 2·D]."""
        mean_D, square_D = mean_D / self.spread_D, square_D / self.spread_D.square()
        deviation_D = ((square_D - mean_D.square()).clamp(min=0) + FLOOR).sqrt()
        return torch.cat([mean_D, deviation_D], -1)

    def _standardised(self, feature_F: Tensor) -> Tensor:
        return ((feature_F - self.mean_F) / self.scale_F).clamp(-LARGEST, LARGEST)

    def answer_lines(self) -> list[int]:
        """Return the number of lines seen at each answer: 1, 2, … lines."""
        return list(range(1, self.lines + 1))

    def forward(self, x_BLP: Tensor, n_lines_B: Tensor) -> Tensor:
        """Return logits [B, L, C], one answer for each line from the lines up to it.

        `n_lines_B` is not needed: lines that were not measured come last and are not seen by any
        answer at a measured line.
        """
        seen_L1 = torch.arange(1, self.lines + 1, device=x_BLP.device)[:, None]
        mean_BLD, square_BLD = self._moments(x_BLP).unbind(2)
        known_LD = seen_L1 >= self.period_D
        gain_L1 = self.gain_L[:, None]
        return self._answer(mean_BLD, square_BLD, known_LD, gain_L1, self.head.shift_LC)

    def _answer(
        self, mean_D: Tensor, square_D: Tensor, known_D: Tensor, gain: Tensor, shift_C: Tensor
    ) -> Tensor:
        """Return logits [..., C]; what no row is known of yet counts as average."""
        feature_F = self._standardised(self._texture(mean_D, square_D))
        feature_F = feature_F * torch.cat([known_D, known_D], -1)
        return (gain * self.head(self.dropout(feature_F)) + shift_C).float()

    def convolutions(self) -> Iterator[tuple[str, Convolution]]:
        """Yield the convolutions that look at more than one row, in the order of a pass."""
        for name, module in self.encoder.named_modules():
            if isinstance(module, Convolution) and module.kernel_size[0] > 1:
                yield name.replace(".", "_"), module

    def initial_state(self) -> State:
        """Return what `step` needs before the first line.

        Returns
        -------
        dict
            `seen`, int64 [1]: lines so far. `sums` [2, D] of mean and mean square of the rows of
            each stage. For each convolution that looks at several rows, the last of its inputs but
            for one: [1, channels, rows, W].
        """
        state = {
            "seen": torch.zeros(1, dtype=torch.int64),
            "sums": torch.zeros(2, len(self.centre_D)),
        }
        columns = self.pixels
        for name, convolution in self.convolutions():
            rows = convolution.kernel_size[0] - 1
            state[name] = torch.zeros(1, convolution.in_channels, rows, columns)
            columns //= convolution.stride[1]
        return state

    def step(self, line_P: Tensor, state: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, State]:
        """Answer after one more line: what `forward` in evaluation says there.

        Each line makes one row of every stage. All shapes are fixed and nothing branches, so that a
        step can be exported: a row that is not due by the strides is computed and left out.

        Parameters
        ----------
        line_P
            The next line, normalised.
        state
            From `initial_state` or the step before; not changed. It takes at most `lines` lines.

        Returns
        -------
        logits_C : Tensor
        answered : Tensor
            Whether the logits are an answer, bool [1]; always true.
        state : dict
        """
        line, seen = state["seen"], state["seen"] + 1
        after: State = {"seen": seen}
        names = {convolution: name for name, convolution in self.convolutions()}
        period = 1  # lines from one row to the next

        def rolled(convolution: Convolution, row_1D1W: Tensor) -> Tensor:
            nonlocal period
            name = names[convolution]
            rows_1DKW = torch.cat([state[name], row_1D1W], 2)
            # The newest rows where this one is due, else those of before.
            kept_K = torch.arange(convolution.kernel_size[0] - 1, device=seen.device)
            after[name] = rows_1DKW.index_select(2, kept_K + (seen % period == 0))
            period *= convolution.stride[0]
            return F.relu6(convolution.row(rows_1DKW))

        row_1D1W = rolled(self.encoder.stem, line_P[None, None, None])
        moments = []
        for stage, centre_D in zip(
            self.encoder.stages, self.centre_D.split(self.channels), strict=True
        ):
            for block in stage.children():
                assert isinstance(block, Block)
                wide = row_1D1W if block.expand is None else F.relu6(block.expand(row_1D1W))
                out = block.project(rolled(block.depthwise, wide))
                row_1D1W = out + row_1D1W if block.residual else out
            moments.append(torch.cat(row_moments(row_1D1W, centre_D), 2))
        rows_D = seen // self.period_D
        due_D = seen % self.period_D == 0
        after["sums"] = state["sums"] + torch.cat(moments, 1)[0].T * due_D
        mean_D, square_D = after["sums"] / rows_D.clamp(min=1)
        logits_C = self._answer(
            mean_D,
            square_D,
            rows_D > 0,
            self.gain_L.index_select(0, line),
            self.head.shift_LC.index_select(0, line)[0],
        )
        ordered = {name: after[name] for name in state}
        return logits_C, torch.ones_like(seen, dtype=torch.bool), ordered


def row_moments(map_BDRW: Tensor, centre_D: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and mean square over each row of channels less their centre, each [B, D, R]."""
    centred_BDRW = map_BDRW - centre_D[:, None, None]
    return centred_BDRW.mean(3), centred_BDRW.square().mean(3)
