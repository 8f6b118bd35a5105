"""How much an answer of a transformer draws on each scan line.

Shape suffixes: B scans, L scan lines, P pixels of a line, Y layers, H heads, S tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from scanbench.runs import Run, by_whole_scan
from scanbench.store import FloatArray

#: What `line_attention` tells.
ATTENTION = ("attention", "rollout")
#: Digits of the weights that are kept for looking at.
DIGITS = 4


@runtime_checkable
class Attentive(Protocol):
    """A model that tells how much each of its tokens reads from each; see docs/formats.md."""

    def attention(self, x_BLP: Tensor, n_lines_B: Tensor) -> Tensor:
        """Return the weights of every layer and head, [B, Y, H, S, S]."""


def running_attention(run: Run) -> Callable[[FloatArray], list[float]] | None:
    """Return a function that tells how much the newest answer about a running scan draws on it.

    The function takes the lines so far, normalised as the run's are, [L, P], and returns the
    rollout of the answer that is given after them, a weight for each line. It passes all of them
    through the model once more: for looking at, not for speed. None if the model has no attention,
    was trained on windows, or is shown what changes with the lines that follow.

    Parameters
    ----------
    run
        From `load_run`.
    """
    model, meta = run.model, run.meta
    if not isinstance(model, Attentive):
        return None
    if meta["window"] or by_whole_scan(model, meta["normalisation"]):
        return None

    def weights(x_LP: FloatArray) -> list[float]:
        x_1LP = torch.zeros(1, meta["lines"], meta["pixels"])
        x_1LP[0, : len(x_LP)] = torch.from_numpy(x_LP)
        with torch.inference_mode():
            weight_1L = line_attention(model, x_1LP, torch.tensor([len(x_LP)]))["rollout"]
        weight_L = weight_1L[0, : len(x_LP)].double().numpy()
        found: list[float] = np.round(weight_L, DIGITS).tolist()
        return found

    return weights


def rollout(weight_BYSS: Tensor) -> Tensor:
    """Return how much each token of the last layer draws on each of the first, [B, S, S].

    Attention rollout (Abnar & Zuidema 2020, arXiv 2005.00928, section 3): a layer passes on half of
    what stood at a token before and half of what its attention read, A = (W + I) / 2, and layers
    are multiplied. Rows sum to 1; under a causal mask none draws on a later token.

    Parameters
    ----------
    weight_BYSS
        Attention of Y layers, first layer first, as the mean over heads.
    """
    tokens = weight_BYSS.shape[-1]
    identity_SS = torch.eye(tokens, device=weight_BYSS.device, dtype=weight_BYSS.dtype)
    drawn_BSS = identity_SS.expand(len(weight_BYSS), tokens, tokens)
    for layer_BSS in weight_BYSS.unbind(1):
        drawn_BSS = (layer_BSS + identity_SS) / 2 @ drawn_BSS
    return drawn_BSS


def line_attention(model: Attentive, x_BLP: Tensor, n_lines_B: Tensor) -> dict[str, Tensor]:
    """Return how much the last answer draws on each line, [B, L], by the methods `ATTENTION`.

    `attention` is the last layer's alone, as the mean over heads; `rollout` follows it through all
    layers. The answer is read from the token in front of the lines where there is one, else from
    that of the last measured line; lines that were not measured get 0.

    Parameters
    ----------
    model
        In evaluation mode.
    x_BLP, n_lines_B
        Samples and their measured lines.
    """
    weight_BYSS = model.attention(x_BLP, n_lines_B).mean(2)
    in_front = weight_BYSS.shape[-1] - x_BLP.shape[1]
    answer_B = torch.zeros_like(n_lines_B) if in_front else n_lines_B - 1
    row_B = torch.arange(len(x_BLP), device=x_BLP.device)
    return {
        "attention": weight_BYSS[row_B, -1, answer_B, in_front:],
        "rollout": rollout(weight_BYSS)[row_B, answer_B, in_front:],
    }
