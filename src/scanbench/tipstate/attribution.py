"""Which lines of a scan moved a model's answer, by several methods, and how to test what they say.

Everything here is about whole scans: their answers are the ones that the scan reading scores.

Shape suffixes: B scans, L scan lines, P pixels of a line, T windows of a scan, W lines of a window,
C classes, Y layers, H heads, S tokens, M orders of lines, K points of a curve.
"""

from __future__ import annotations

import math
from typing import cast

import numpy as np
import torch
from captum.attr import InputXGradient, IntegratedGradients, Saliency
from numpy.typing import NDArray
from torch import Tensor, nn

from scanbench.errors import UserError
from scanbench.runs import Run
from scanbench.tipstate.attention import ATTENTION, Attentive, line_attention

__all__ = [
    "GRADIENT",
    "STEPS",
    "ScanAnswer",
    "area",
    "fillings",
    "gradient_attributions",
    "line_steps",
    "log_odds",
    "perturbation_curves",
]

#: Methods for every differentiable model.
GRADIENT = ("saliency", "input-x-gradient", "integrated-gradients")
#: Trivial ones, in which no model takes part: how much a line differs from the one before, in what
#: the model is shown (normalised) and in the heights as they were measured.
STEPS = ("line-step", "height-step")

#: Scans that go through a model at once. A constant, so that the same scans give the same bytes.
BATCH = 32


class ScanAnswer(nn.Module):
    """The last answer of a run about whole scans, as a differentiable function of their heights.

    A model that was trained on windows answers with the mean of its windows' probabilities, as in
    the scan reading of the evaluation.

    Parameters
    ----------
    run
        A trained run; its model is put into evaluation mode.

    Raises
    ------
    UserError
        If the model was not trained by gradient descent, so that its derivative says little of it.
    """

    def __init__(self, run: Run) -> None:
        super().__init__()
        if hasattr(run.model, "fit"):
            raise UserError(
                f"experiment {run.meta.get('name', run.meta['model'])!r}: model "
                f"{run.meta['model']!r} is not trained by gradient descent and cannot be explained "
                "by gradients; leave it out of the explanation"
            )
        self.model = run.model.eval().requires_grad_(False)
        self.lines = int(run.meta["lines"])
        self.stride = int(run.meta["window"]["stride"]) if run.meta["window"] else self.lines

    def windows(self, x_BLP: Tensor) -> Tensor:
        """Return the samples that the model is asked about, [B, T, W, P]; a whole scan is one."""
        return x_BLP.unfold(1, self.lines, self.stride).transpose(2, 3)

    def forward(self, x_BLP: Tensor) -> Tensor:
        """Return the logarithms of the classes' probabilities, [B, C]."""
        x_BTWP = self.windows(x_BLP)
        sample_NWP = x_BTWP.flatten(0, 1)
        logits_NC = self.model(sample_NWP, _whole(sample_NWP))[:, -1]
        log_p_BTC = logits_NC.log_softmax(-1).unflatten(0, x_BTWP.shape[:2])
        return log_p_BTC.logsumexp(1) - math.log(x_BTWP.shape[1])

    @torch.no_grad()
    def log_probability(self, x_BLP: Tensor) -> Tensor:
        """Return `forward` of any number of scans, `BATCH` at a time."""
        return torch.cat([self(part_BLP) for part_BLP in x_BLP.split(BATCH)])

    @torch.no_grad()
    def line_attention(self, x_BLP: Tensor) -> dict[str, Tensor]:
        """Return what `line_attention` says of the model, [B, L]; nothing if it has no attention.

        Of a model that looks at windows, the mean over the windows; a line outside of a window
        gets nothing from it.
        """
        if not isinstance(self.model, Attentive):
            return {}
        x_BTWP = self.windows(x_BLP)
        found = {name: x_BLP.new_zeros(x_BLP.shape[:2]) for name in ATTENTION}
        for t in range(x_BTWP.shape[1]):
            window_BWP = x_BTWP[:, t]
            lines = slice(t * self.stride, t * self.stride + self.lines)
            by_line = line_attention(self.model, window_BWP, _whole(window_BWP))
            for name, value_BW in by_line.items():
                found[name][:, lines] += value_BW / x_BTWP.shape[1]
        return found


def _whole(x_BLP: Tensor) -> Tensor:
    return torch.full((len(x_BLP),), x_BLP.shape[1], device=x_BLP.device)


# ---------------------------------------------------------------------------------------------
# Gradients


def log_odds(log_p_BC: Tensor, class_B: Tensor) -> Tensor:
    """Return log(p / (1 − p)) of one class per scan, [B].

    What is explained. Unlike a logit it does not change when a constant is added to all logits,
    and unlike a probability it does not saturate.
    """
    others_BC = log_p_BC.scatter(1, class_B[:, None], -torch.inf)
    return log_p_BC.gather(1, class_B[:, None])[:, 0] - others_BC.logsumexp(1)


def gradient_attributions(
    answer: ScanAnswer, x_BLP: Tensor, class_B: Tensor, steps: int
) -> tuple[dict[str, Tensor], Tensor]:
    """Return what each pixel did for the log-odds of a class, by the methods `GRADIENT`.

    `saliency` is the size of the gradient (Simonyan et al. 2014, arXiv 1312.6034) and has no sign.
    `input-x-gradient` (Shrikumar et al. 2016, arXiv 1605.01713) and `integrated-gradients`
    (Sundararajan et al. 2017, arXiv 1703.01365; from the scan of zeros, which after normalisation
    is one without relief, by Gauss-Legendre quadrature) are positive where a pixel spoke for the
    class.

    Parameters
    ----------
    answer
        Whose.
    x_BLP, class_B
        Normalised whole scans, and the class explained in each.
    steps
        Points of the quadrature.

    Returns
    -------
    by_pixel : dict
        Method → [B, L, P]. A line's attribution is the sum over its pixels.
    gap_B : Tensor
        What the quadrature missed: the sum of the integrated gradients less the change of the
        log-odds from the scan of zeros, which would be equal if it were exact.
    """

    def explained(x_BLP: Tensor, class_B: Tensor) -> Tensor:
        return log_odds(answer(x_BLP), class_B)

    # On a GPU the fused LSTM has a backward pass in training mode only.
    with torch.backends.cudnn.flags(enabled=False):
        by_pixel = {
            "saliency": Saliency(explained).attribute(
                x_BLP.clone().requires_grad_(), additional_forward_args=class_B
            ),
            "input-x-gradient": InputXGradient(explained).attribute(
                x_BLP.clone().requires_grad_(), additional_forward_args=class_B
            ),
        }
        integrated, gap_B = IntegratedGradients(explained).attribute(
            x_BLP,
            additional_forward_args=class_B,
            n_steps=steps,
            internal_batch_size=max(BATCH, len(x_BLP)),
            return_convergence_delta=True,
        )
    by_pixel["integrated-gradients"] = integrated
    return {name: value.detach().float() for name, value in by_pixel.items()}, gap_B.detach()


def line_steps(x_BLP: Tensor) -> Tensor:
    """Return the root-mean-square difference of each line from the one before, [B, L]; first: 0."""
    step_BL = x_BLP.diff(dim=1).square().mean(2).sqrt()
    return torch.cat([torch.zeros_like(step_BL[:, :1]), step_BL], dim=1)


# ---------------------------------------------------------------------------------------------
# Deletion and insertion


def fillings(x_BLP: Tensor, fill: str) -> Tensor:
    """Return what takes the place of a deleted line, [B, 1, P].

    `zero`: a line without relief; `mean-line`: the mean of the scan's lines, which keeps what all
    of them have in common.
    """
    mean_B1P = x_BLP.mean(1, keepdim=True)
    return mean_B1P if fill == "mean-line" else torch.zeros_like(mean_B1P)


def perturbation_curves(
    answer: ScanAnswer,
    x_LP: Tensor,
    fill_1P: Tensor,
    target: int,
    order_ML: NDArray[np.int64],
    points: int,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return a class's probability as lines are deleted, and as they are put in.

    Deletion and insertion of Petsiuk et al. 2018 (RISE, arXiv 1806.07421, section 4.3), with lines
    for pixels: a faithful order makes the probability fall soon under deletion, and rise soon under
    insertion.

    Parameters
    ----------
    answer
        Whose.
    x_LP, fill_1P
        A normalised scan, and what stands in place of a line that is not there.
    target
        The class.
    order_ML
        M orders of the lines, the most important first.
    points
        Equal steps from no line to all.

    Returns
    -------
    deletion, insertion : ndarray
        [M, points + 1]: after k / points of the lines, k from 0.
    """
    lines = len(x_LP)
    rank_ML = np.argsort(order_ML, axis=1)
    count_K = np.round(np.linspace(0, lines, points + 1)).astype(np.int64)
    done_MKL = torch.from_numpy(rank_ML[:, None, :] < count_K[None, :, None])
    present_NL = torch.cat([~done_MKL.flatten(0, 1), done_MKL.flatten(0, 1)])
    p_N = []
    for part_NL in present_NL.split(BATCH):
        changed_NLP = torch.where(part_NL[..., None].to(x_LP.device), x_LP, fill_1P)
        p_N.append(answer.log_probability(changed_NLP)[:, target].double().exp().cpu())
    deletion, insertion = torch.cat(p_N).unflatten(0, (2, len(order_ML), points + 1)).numpy()
    return deletion, insertion


def area(curve_MK: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the area under curves over shares of lines from 0 to 1 (trapezoids), [M]."""
    return cast(NDArray[np.float64], np.trapezoid(curve_MK, dx=1 / (curve_MK.shape[1] - 1), axis=1))
