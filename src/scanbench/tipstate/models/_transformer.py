"""Building blocks of the models that read a scan as a sequence of scan lines.

Shape suffixes: B batch, T tokens, S tokens attended to, D model width, H heads, K width of a head,
L scan lines, P pixels of a line, Y layers.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def check_transformer(*, d_model: int, heads: int, layers: int, ffn: int, dropout: float) -> None:
    """Refuse hyper-parameters that no transformer can have.

    Raises
    ------
    ValueError
        One line naming the option and the mend.
    """
    for name, value in {"d_model": d_model, "heads": heads, "layers": layers, "ffn": ffn}.items():
        if value < 1:
            raise ValueError(f"{name}: {value} is not possible, give at least 1")
    if d_model % heads:
        raise ValueError(
            f"d_model: {d_model} is not divisible by heads: {heads}, change one of them"
        )
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout: {dropout} is not possible, give a value from 0 to below 1")


class Attention(nn.Module):
    """Multi-head self-attention (Vaswani et al. 2017, arXiv 1706.03762, section 3.2).

    `project` and `attend` are separate, so that keys and values may also come from a cache of
    earlier tokens.

    Parameters
    ----------
    d_model, heads
        Width of a token and number of heads, which share it equally.
    """

    def __init__(self, d_model: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query_key_value = nn.Linear(d_model, 3 * d_model)
        self.output = nn.Linear(d_model, d_model)

    def project(self, x_BTD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the queries, keys and values of tokens, each [B, H, T, K]."""
        query, key, value = (
            part_BTD.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part_BTD in self.query_key_value(x_BTD).chunk(3, dim=-1)
        )
        return query, key, value

    def attend(
        self,
        query_BHTK: Tensor,
        key_BHSK: Tensor,
        value_BHSK: Tensor,
        mask: Tensor | None = None,
        causal: bool = False,
    ) -> Tensor:
        """Return what the queries read from the values, [B, T, D].

        `mask` is True where a query may look and is broadcast to [B, H, T, S].
        """
        if query_BHTK.device.type == "cpu":
            # The backward pass of bfloat16 attention is several times slower than the float32 one
            # on a CPU, so it stays in float32 under autocast.
            with torch.autocast("cpu", enabled=False):
                read_BHTK = F.scaled_dot_product_attention(
                    query_BHTK.float(), key_BHSK.float(), value_BHSK.float(), mask, 0.0, causal
                )
        else:
            read_BHTK = F.scaled_dot_product_attention(
                query_BHTK, key_BHSK, value_BHSK, mask, 0.0, causal
            )
        read_BTD = read_BHTK.transpose(1, 2).flatten(-2)
        return self.output(read_BTD)

    def weights(self, x_BTD: Tensor, mask: Tensor | None = None, causal: bool = False) -> Tensor:
        """Return how much each token reads from each in `forward`, [B, H, T, S]; rows sum to 1.

        For analysis: `forward` never holds these weights, which is why it is fast.
        """
        query_BHTK, key_BHSK, _ = self.project(x_BTD)
        score_BHTS = query_BHTK @ key_BHSK.transpose(-2, -1) / math.sqrt(query_BHTK.shape[-1])
        if causal:
            mask = torch.ones(score_BHTS.shape[-2:], dtype=torch.bool, device=x_BTD.device).tril()
        if mask is not None:
            score_BHTS = score_BHTS.masked_fill(~mask, -torch.inf)
        return score_BHTS.softmax(-1)

    def forward(self, x_BTD: Tensor, mask: Tensor | None = None, causal: bool = False) -> Tensor:
        """Let every token read from all tokens that `mask` or `causal` lets it see."""
        return self.attend(*self.project(x_BTD), mask=mask, causal=causal)


class Block(nn.Module):
    """Transformer layer with the normalisation first (Xiong et al. 2020, arXiv 2002.04745).

    In evaluation the same function as `torch.nn.TransformerEncoderLayer(norm_first=True,
    activation="gelu")`, with its attention open to cached keys and values.

    Parameters
    ----------
    d_model, heads, ffn
        Width of a token, number of heads, hidden width of the feed-forward network.
    dropout
        Rate after every dense layer but the projection to queries, keys and values, as in the
        vision transformer (Dosovitskiy et al. 2021, arXiv 2010.11929, appendix B.1).
    """

    def __init__(self, d_model: int, heads: int, ffn: int, dropout: float) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(d_model)
        self.attention = Attention(d_model, heads)
        self.ffn_norm = nn.LayerNorm(d_model)
        self.ffn = nn.Sequential(
            nn.Linear(d_model, ffn),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(ffn, d_model),
        )
        self.dropout = nn.Dropout(dropout)

    def forward(self, x_BTD: Tensor, mask: Tensor | None = None, causal: bool = False) -> Tensor:
        """Return the tokens after attention and the feed-forward network, [B, T, D]."""
        x_BTD = x_BTD + self.dropout(self.attention(self.attention_norm(x_BTD), mask, causal))
        return x_BTD + self.dropout(self.ffn(self.ffn_norm(x_BTD)))


def attention_of_layers(
    blocks: Iterable[nn.Module],
    token_BTD: Tensor,
    mask: Tensor | None = None,
    causal: bool = False,
) -> Tensor:
    """Return how much each token reads from each in every layer, [B, Y, H, T, S].

    Parameters
    ----------
    blocks
        The Y layers, each a `Block`.
    token_BTD
        What goes into the first of them.
    mask, causal
        As the layers get them.
    """
    weights = []
    for block in blocks:
        assert isinstance(block, Block)
        weights.append(block.attention.weights(block.attention_norm(token_BTD), mask, causal))
        token_BTD = block(token_BTD, mask, causal)
    return torch.stack(weights, dim=1)


class LineEncoder(nn.Module):
    """Vision transformer whose patches are whole scan lines.

    Each line is embedded linearly, a class token is put in front, learned positions are added, and
    what the class token has read after the last layer is the description of the scan (Dosovitskiy
    et al. 2021, arXiv 2010.11929, equations 1-4). Lines that were not measured are never read.

    Parameters
    ----------
    lines, pixels
        Shape of a scan.
    d_model, heads, layers, ffn, dropout
        As in `Block`.
    """

    def __init__(
        self,
        *,
        lines: int,
        pixels: int,
        d_model: int,
        heads: int,
        layers: int,
        ffn: int,
        dropout: float,
    ) -> None:
        super().__init__()
        self.embedding = nn.Linear(pixels, d_model)
        self.class_token = nn.Parameter(nn.init.trunc_normal_(torch.empty(d_model), std=0.02))
        self.positions = nn.Parameter(
            nn.init.trunc_normal_(torch.empty(1 + lines, d_model), std=0.02)
        )
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(Block(d_model, heads, ffn, dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(d_model)

    def _tokens(self, x_BLP: Tensor, n_lines_B: Tensor) -> tuple[Tensor, Tensor]:
        """Return the tokens [B, T, D] and which of them may be read [B, 1, 1, T]."""
        line_BLD = self.embedding(x_BLP)
        class_B1D = self.class_token.expand(len(line_BLD), 1, -1)
        token_BTD = self.dropout(torch.cat([class_B1D, line_BLD], dim=1) + self.positions)
        # Token 0 is the class token, token n is line n: with n lines measured, tokens 0 to n exist.
        exists_BT = torch.arange(token_BTD.shape[1], device=x_BLP.device) <= n_lines_B[:, None]
        return token_BTD, exists_BT[:, None, None, :]

    def attention(self, x_BLP: Tensor, n_lines_B: Tensor) -> Tensor:
        """Return how much each token reads from each in every layer, [B, Y, H, T, T]."""
        token_BTD, mask_B11T = self._tokens(x_BLP, n_lines_B)
        return attention_of_layers(self.blocks, token_BTD, mask_B11T)

    def forward(self, x_BLP: Tensor, n_lines_B: Tensor) -> Tensor:
        """Return the description of each scan, [B, D]."""
        token_BTD, mask_B11T = self._tokens(x_BLP, n_lines_B)
        for block in self.blocks:
            token_BTD = block(token_BTD, mask_B11T)
        return self.norm(token_BTD[:, 0])
