"""`vit`: a vision transformer whose patches are scan lines, answering at the end of the scan."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from scanbench.tipstate.models._transformer import LineEncoder, check_transformer


@dataclass(frozen=True, kw_only=True)
class Options:
    """Hyper-parameters of `vit`.

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
    """

    d_model: int = 256
    layers: int = 6
    heads: int = 8
    ffn: int = 1024
    dropout: float = 0.1

    def __post_init__(self) -> None:
        check_transformer(
            d_model=self.d_model,
            heads=self.heads,
            layers=self.layers,
            ffn=self.ffn,
            dropout=self.dropout,
        )


class Model(nn.Module):
    """Classify a scan from all of its measured lines.

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
        self.encoder = LineEncoder(
            lines=lines,
            pixels=pixels,
            d_model=options.d_model,
            heads=options.heads,
            layers=options.layers,
            ffn=options.ffn,
            dropout=options.dropout,
        )
        self.head = nn.Linear(options.d_model, classes)

    def answer_lines(self) -> list[int]:
        """Return the number of lines seen at the only answer."""
        return [self.lines]

    def attention(self, x_BLP: Tensor, n_lines_B: Tensor) -> Tensor:
        """Return how much each token reads from each, [B, layers, heads, 1 + L, 1 + L].

        Token 0 is the class token, from which the answer is read; token n is line n.
        """
        return self.encoder.attention(x_BLP, n_lines_B)

    def forward(self, x_BLP: Tensor, n_lines_B: Tensor) -> Tensor:
        """Return logits [B, 1, C] of scans whose first `n_lines_B` lines were measured."""
        return self.head(self.encoder(x_BLP, n_lines_B)).float()[:, None]
