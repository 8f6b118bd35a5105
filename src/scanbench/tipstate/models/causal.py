"""`causal`: a causal transformer over scan lines, answering after every line.

Shape suffixes: B batch, L lines, P pixels, N = B·L lines of all scans of a batch, F features and
Q columns of the tokenizer, D model width, C classes. In a step: Y layers, H heads, S lines kept,
K width of a head, T = 1 token.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from scanbench.tipstate.models._transformer import Block, attention_of_layers, check_transformer

State = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class Options:
    """Hyper-parameters of `causal`.

    Whether the loss is taken at every line (a per-token head) or at the last line only (a
    last-token head) is a setting of the training: the network is the same.

    Parameters
    ----------
    tokenizer_depth
        Convolutions along a line: 32, 64, 128 channels, and 128 for each further one.
    first_kernel, kernel
        Width in pixels (odd) of the first convolution, which has stride 2, and of the others.
    pooling
        How a line's features become one token: `avg` or `max` over the line.
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
    attention_window
        Lines that a layer may look back upon, its own line included; 0 means all earlier lines.
        Layers add up: an answer depends on the last `layers` · (`attention_window` − 1) + 1 lines.
    """

    tokenizer_depth: int = 3
    first_kernel: int = 7
    kernel: int = 3
    pooling: str = "avg"
    d_model: int = 256
    layers: int = 6
    heads: int = 8
    ffn: int = 1024
    dropout: float = 0.1
    attention_window: int = 0

    def __post_init__(self) -> None:
        check_transformer(
            d_model=self.d_model,
            heads=self.heads,
            layers=self.layers,
            ffn=self.ffn,
            dropout=self.dropout,
        )
        if self.d_model % 2:
            raise ValueError(f"d_model: {self.d_model} is odd, sinusoidal positions need it even")
        if self.tokenizer_depth < 1:
            raise ValueError(
                f"tokenizer_depth: {self.tokenizer_depth} is not possible, give 1 or more"
            )
        for name, width in {"first_kernel": self.first_kernel, "kernel": self.kernel}.items():
            if width < 1 or width % 2 == 0:
                raise ValueError(f"{name}: {width} is not possible, give an odd width")
        if self.pooling not in ("avg", "max"):
            raise ValueError(f"pooling: {self.pooling!r} is unknown, give 'avg' or 'max'")
        if self.attention_window < 0:
            raise ValueError(
                f"attention_window: {self.attention_window} is not possible, give 0 or more"
            )


def sinusoidal_positions(length: int, width: int) -> Tensor:
    """Return the positional encoding of Vaswani et al. 2017 (section 3.5), [length, width].

    Sines stand in the even columns and cosines in the odd ones.
    """
    position_L1 = torch.arange(length)[:, None]
    frequency = torch.exp(torch.arange(0, width, 2) * (-math.log(10_000.0) / width))
    angle = position_L1 * frequency
    return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(-2)


class Tokenizer(nn.Module):
    """Turn each scan line into one token, by a convolutional network along the line."""

    def __init__(self, options: Options) -> None:
        super().__init__()
        depth = options.tokenizer_depth
        channels = ([1, 32, 64] + [128] * depth)[: depth + 1]
        widths = [options.first_kernel] + [options.kernel] * (depth - 1)
        strides = [2] + [1] * (depth - 1)
        layers: list[nn.Module] = []
        for before, after, width, stride in zip(
            channels[:-1], channels[1:], widths, strides, strict=True
        ):
            layers += [nn.Conv1d(before, after, width, stride, padding=width // 2), nn.ReLU()]
        self.convolutions = nn.Sequential(*layers)
        self.pooling = options.pooling
        self.dense = nn.Linear(channels[-1], options.d_model)

    def forward(self, x_BLP: Tensor) -> Tensor:
        """Return one token for each line, [B, L, D]."""
        feature_NFQ = self.convolutions(x_BLP.flatten(0, 1)[:, None])
        pooled_NF = feature_NFQ.amax(-1) if self.pooling == "max" else feature_NFQ.mean(-1)
        return self.dense(pooled_NF).unflatten(0, x_BLP.shape[:2])


class Model(nn.Module):
    """Classify a scan after each of its lines, from the lines so far.

    Parameters
    ----------
    options
        Hyper-parameters.
    lines, pixels
        Shape of a scan.
    classes
        Number of classes.
    """

    positions_LD: Tensor
    mask_LL: Tensor | None

    def __init__(self, options: Options, *, lines: int, pixels: int, classes: int) -> None:
        super().__init__()
        self.lines = lines
        self.options = options
        self.tokenizer = Tokenizer(options)
        self.register_buffer(
            "positions_LD", sinusoidal_positions(lines, options.d_model), persistent=False
        )
        window = options.attention_window
        band_LL = torch.ones(lines, lines, dtype=torch.bool).tril().triu(1 - window)
        self.register_buffer("mask_LL", band_LL if window else None, persistent=False)
        self.dropout = nn.Dropout(options.dropout)
        self.blocks = nn.ModuleList(
            Block(options.d_model, options.heads, options.ffn, options.dropout)
            for _ in range(options.layers)
        )
        self.norm = nn.LayerNorm(options.d_model)
        self.head = nn.Linear(options.d_model, classes)

    answers_at_end = False

    def answer_lines(self) -> list[int]:
        """Return the number of lines seen at each answer: 1, 2, … lines."""
        return list(range(1, self.lines + 1))

    def _tokens(self, x_BLP: Tensor) -> Tensor:
        """Return one token for each line, with its position, [B, L, D]."""
        return self.dropout(self.tokenizer(x_BLP) + self.positions_LD)

    def attention(self, x_BLP: Tensor, n_lines_B: Tensor) -> Tensor:
        """Return how much each line reads from each, [B, layers, heads, L, L]: none from a later.

        The answer at a line is read from its own token. `n_lines_B` is not needed, as in `forward`.
        """
        return attention_of_layers(
            self.blocks, self._tokens(x_BLP), self.mask_LL, causal=self.mask_LL is None
        )

    def forward(self, x_BLP: Tensor, n_lines_B: Tensor) -> Tensor:
        """Return logits [B, L, C], one answer for each line from the lines up to it.

        `n_lines_B` is not needed: lines that were not measured come last and are not seen by any
        answer at a measured line.
        """
        token_BLD = self._tokens(x_BLP)
        for block in self.blocks:
            token_BLD = block(token_BLD, self.mask_LL, causal=self.mask_LL is None)
        return self.head(self.norm(token_BLD)).float()

    @property
    def reach(self) -> int:
        """Lines that a layer looks at, the newest included."""
        return min(self.options.attention_window or self.lines, self.lines)

    def initial_state(self) -> State:
        """Return what `step` needs before the first line.

        Returns
        -------
        dict
            `seen`, int64 [1]: lines so far. `keys` and `values` [Y, H, S, K] of the last
            S = `reach` − 1 lines, the newest last; what lies before the first line is never read.
        """
        heads, width = self.options.heads, self.options.d_model // self.options.heads
        cache = torch.zeros(self.options.layers, heads, self.reach - 1, width)
        return {
            "seen": torch.zeros(1, dtype=torch.int64),
            "keys": cache,
            "values": cache.clone(),
        }

    def step(self, line_P: Tensor, state: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, State]:
        """Answer after one more line: what `forward` in evaluation says there.

        Keys and values of earlier lines come from the state, so that a line costs one token. All
        shapes are fixed and nothing branches, so that a step can be exported.

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
        seen = state["seen"]
        position_1D = self.positions_LD.index_select(0, seen)
        token_BTD = self.tokenizer(line_P[None, None]) + position_1D
        # Of the lines kept, the newest last, so many have been measured.
        exists_S = torch.arange(self.reach, device=seen.device) >= self.reach - 1 - seen
        keys, values = [], []
        for k, block in enumerate(self.blocks):
            assert isinstance(block, Block)
            query, key, value = block.attention.project(block.attention_norm(token_BTD))
            key = torch.cat([state["keys"][k, None], key], dim=2)
            value = torch.cat([state["values"][k, None], value], dim=2)
            keys.append(key[0, :, 1:])
            values.append(value[0, :, 1:])
            token_BTD = token_BTD + block.attention.attend(query, key, value, exists_S[None])
            token_BTD = token_BTD + block.ffn(block.ffn_norm(token_BTD))
        logits_C = self.head(self.norm(token_BTD)).float()[0, 0]
        after = {"seen": seen + 1, "keys": torch.stack(keys), "values": torch.stack(values)}
        return logits_C, torch.ones_like(seen, dtype=torch.bool), after
