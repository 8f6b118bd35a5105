"""`hybrid`: line statistics for a scan's first lines, the causal transformer from then on.

A transformer has little to attend to in the first lines; what they are like one by one is told by
their statistics. So the answers after 1, 2, … lines before the changeover are those of as many
`features` classifiers, each for its number of lines, and all later ones those of `causal`.

Both parts learn from the same training scans under the same class weights, and both from the
cross-entropy, so that their probabilities mean the same: those of a class if classes were as
frequent as the weights make them. The classifiers are fitted once, before the first epoch, and
stand still; only the transformer is trained by gradient descent.

Shape suffixes: B batch, L lines, P pixels, C classes, T answers by statistics, F features.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from scanbench.tipstate.models import causal, features

State = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class Options(causal.Options, features.Options):
    """Hyper-parameters of `hybrid`.

    Parameters
    ----------
    changeover
        First line whose answer is the transformer's.
    lags, bands, max_shift, inverse_regularisation
        As of `features`.
    tokenizer_depth, first_kernel, kernel, pooling, d_model, layers, heads, ffn, dropout
        As of `causal`.
    attention_window
        As of `causal`. Lines before the changeover are tokens like any others.
    """

    changeover: int = 10

    def __post_init__(self) -> None:
        causal.Options.__post_init__(self)
        features.Options.__post_init__(self)
        if self.changeover < 2:
            raise ValueError(f"changeover: {self.changeover} is not possible, give at least 2")


class Model(nn.Module):
    """Classify a scan after each of its lines: by statistics at first, then by a transformer.

    Parameters
    ----------
    options
        Hyper-parameters.
    lines, pixels
        Shape of a scan.
    classes
        Number of classes.
    """

    first_TP: Tensor
    answers_at_end = False

    def __init__(self, options: Options, *, lines: int, pixels: int, classes: int) -> None:
        super().__init__()
        if options.changeover > lines:
            raise ValueError(
                f"changeover: {options.changeover} is past the last of {lines} lines, give fewer"
            )
        self.lines = lines
        self.early = nn.ModuleList(
            features.Model(options, lines=count, pixels=pixels, classes=classes)
            for count in range(1, options.changeover)
        )
        self.late = causal.Model(options, lines=lines, pixels=pixels, classes=classes)
        self.register_buffer("first_TP", torch.zeros(len(self.early), pixels), persistent=False)

    def answer_lines(self) -> list[int]:
        """Return the number of lines seen at each answer: 1, 2, … lines."""
        return self.late.answer_lines()

    def initialise(
        self,
        x_NLP: np.ndarray,
        n_lines_N: np.ndarray,
        labels_N: np.ndarray,
        class_weights_C: np.ndarray,
        seed: int,
    ) -> None:
        """Fit the classifier of each number of lines; a shorter scan counts with those it has."""
        for model in self.early:
            assert isinstance(model, features.Model)
            count = model.lines
            known_N = np.minimum(n_lines_N, count)
            model.fit(x_NLP[:, :count].copy(), known_N, labels_N, class_weights_C, seed)

    def forward(self, x_BLP: Tensor, n_lines_B: Tensor) -> Tensor:
        """Return logits [B, L, C], one answer for each line from the lines up to it."""
        late_BLC = self.late(x_BLP, n_lines_B)
        early = []
        for count, model in enumerate(self.early, start=1):
            with torch.no_grad(), torch.autocast(x_BLP.device.type, enabled=False):
                early.append(model(x_BLP[:, :count].float(), torch.full_like(n_lines_B, count)))
        return torch.cat([*early, late_BLC[:, len(early) :]], dim=1)

    def attention(self, x_BLP: Tensor, n_lines_B: Tensor) -> Tensor:
        """Return how much each line reads from each in the transformer, as `causal` has it."""
        return self.late.attention(x_BLP, n_lines_B)

    def initial_state(self) -> State:
        """Return what `step` needs before the first line.

        Returns
        -------
        dict
            `first`, [T, P]: the lines before the changeover, and the state of `causal`.
        """
        return {"first": torch.zeros_like(self.first_TP), **self.late.initial_state()}

    def step(self, line_P: Tensor, state: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, State]:
        """Answer after one more line: what `forward` in evaluation says there.

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
        place_T = torch.arange(len(self.early), device=seen.device)
        first_TP = torch.where((place_T == seen)[:, None], line_P, state["first"])
        late_C, answered, after = self.late.step(line_P, state)
        early_C = self._early_logits(first_TP, seen)
        logits_C = torch.where(seen < len(self.early), early_C, late_C)
        return logits_C, answered, {"first": first_TP, **after}

    def _early_logits(self, first_TP: Tensor, seen: Tensor) -> Tensor:
        """Return what the classifier of `seen` + 1 lines says; of the last one if there is none.

        The features of the first lines are the same function for every classifier, so that they
        are computed once and the classifier is chosen by its place.
        """
        place = seen.clamp(max=len(self.early) - 1)
        mean_F, scale_F, coefficient_CF, intercept_C = (
            torch.stack([getattr(model, name) for model in self.early]).index_select(0, place)[0]
            for name in ("mean_F", "scale_F", "coefficient_CF", "intercept_C")
        )
        model = self.early[-1]
        assert isinstance(model, features.Model)
        feature_F = model.features(first_TP[None], place + 1)[0]
        return ((feature_F - mean_F) / scale_F) @ coefficient_CF.T + intercept_C
