"""`vit-prefix`: the line transformer as first published, before its mistakes were fixed.

It differs from `vit` in two things that are the model's own, its depth and its outputs. The other
mistakes (constant learning rate, no class weights, no normalisation) are settings of the training.
The source names no width for the feed-forward network; 4 · `d_model` is the convention.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from scanbench.tipstate.models._transformer import LineEncoder, check_transformer


@dataclass(frozen=True, kw_only=True)
class Options:
    """Hyper-parameters of `vit-prefix`.

    Parameters
    ----------
    d_model
        Width of a token.
    layers
        Number of transformer layers.
    heads
        Attention heads of a layer; must divide `d_model`.
    ffn
        Hidden width of the feed-forward network of a layer.
    dropout
        Rate for embeddings and after the dense layers of a block.
    outputs
        Units of the last layer; 0 means one for each class. The original had 6 for 4 classes.
    """

    d_model: int = 256
    layers: int = 4
    heads: int = 8
    ffn: int = 1024
    dropout: float = 0.1
    outputs: int = 0

    def __post_init__(self) -> None:
        check_transformer(
            d_model=self.d_model,
            heads=self.heads,
            layers=self.layers,
            ffn=self.ffn,
            dropout=self.dropout,
        )
        if self.outputs < 0:
            raise ValueError(f"outputs: {self.outputs} is not possible, give 0 or more")


class Model(nn.Module):
    """Classify a scan from all of its measured lines, with room for outputs that mean nothing.

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
        If there are fewer outputs than classes.
    """

    def __init__(self, options: Options, *, lines: int, pixels: int, classes: int) -> None:
        super().__init__()
        outputs = options.outputs or classes
        if outputs < classes:
            raise ValueError(
                f"outputs: {outputs} are fewer than the {classes} classes, give 0 or {classes}"
            )
        self.lines = lines
        self.classes = classes
        self.encoder = LineEncoder(
            lines=lines,
            pixels=pixels,
            d_model=options.d_model,
            heads=options.heads,
            layers=options.layers,
            ffn=options.ffn,
            dropout=options.dropout,
        )
        self.head = nn.Linear(options.d_model, outputs)

    def answer_lines(self) -> list[int]:
        """Return the number of lines seen at the only answer."""
        return [self.lines]

    def attention(self, x_BLP: Tensor, n_lines_B: Tensor) -> Tensor:
        """Return how much each token reads from each, [B, layers, heads, 1 + L, 1 + L].

        Token 0 is the class token, from which the answer is read; token n is line n.
        """
        return self.encoder.attention(x_BLP, n_lines_B)

    def forward(self, x_BLP: Tensor, n_lines_B: Tensor) -> Tensor:
        """Return logits of scans whose first `n_lines_B` lines were measured.

        Returns
        -------
        Tensor
            [B, 1, C]. In training mode [B, 1, outputs]: units past the classes stand in the
            softmax of the loss, as in the original, and must learn to stay silent. In evaluation
            they are cut off, so that the probabilities are those given that one of the classes is
            right.
        """
        logits_B1O = self.head(self.encoder(x_BLP, n_lines_B)).float()[:, None]
        return logits_B1O if self.training else logits_B1O[..., : self.classes]
