"""How any model learns: its optimiser, and the course of the learning rate.

A study hands in a model, its batches and a `Task`, which says what goes down (a loss) and what is
watched (figures such as the AUROC).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import lightning.pytorch as L
import numpy as np
import torch
from torch import Generator, Tensor, nn
from torch.optim.lr_scheduler import ReduceLROnPlateau

from scanbench.settings import Settings

Batch = Any


class Task(Protocol):
    """What a study wants of its model. An `nn.Module`, so that it moves with the model."""

    def step(self, model: nn.Module, batch: Batch, stage: str) -> Tensor:
        """Return the loss of a batch, a scalar, and note what `figures` needs.

        `stage` is `train` or `val`.
        """

    def augment(self, batch: Batch, generator: Generator) -> Batch:
        """Return a training batch changed at random, with all draws from `generator`."""

    def figures(self, stage: str) -> dict[str, float]:
        """Return the epoch's figures, over all devices, and forget them; `loss` is one of them."""


class Epochs(Protocol):
    """The batches of one part of the data, in an order that is a function of the epoch."""

    def __len__(self) -> int:
        """Return the number of batches of an epoch."""

    def epoch(self, epoch: int) -> Iterator[Batch]:
        """Give the batches of an epoch. With several devices, each process gets its share."""


@dataclass(frozen=True)
class Loader:
    """The batches of whatever epoch it is when they are asked for."""

    epochs: Epochs
    current: Callable[[], int]

    def __len__(self) -> int:
        """Return the number of batches of an epoch."""
        return len(self.epochs)

    def __iter__(self) -> Iterator[Batch]:
        """Give the batches of the current epoch.

        A generator, which asks for the epoch only when the first batch is fetched: Lightning makes
        the iterator of a resumed run before it has counted up to the epoch to come.
        """
        yield from self.epochs.epoch(self.current())


class Learner(L.LightningModule):
    """A model, what it shall learn, and how its weights move.

    Parameters
    ----------
    model, task, settings
        What to train, on what loss, and how.
    steps
        Optimiser steps in an epoch.
    seed
        Of dropout and augmentation, together with the epoch and the process's rank.
    """

    def __init__(
        self, model: nn.Module, task: Task, settings: Settings, *, steps: int, seed: int
    ) -> None:
        super().__init__()
        self.model, self.task, self.settings = model, task, settings
        self.steps, self.seed = steps, seed
        self.frozen = backbone(model) if settings.frozen == "backbone" else []
        for module in self.frozen:
            module.requires_grad_(False)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return AdamW on two groups of parameters, with and without decay."""
        settings = self.settings
        optimizer = torch.optim.AdamW(
            parameter_groups(self.model, settings.weight_decay),
            lr=settings.learning_rate,
            betas=(settings.beta1, settings.beta2),
        )
        self.plateau = ReduceLROnPlateau(
            optimizer,
            mode="min" if settings.falling else "max",
            factor=settings.plateau_factor,
            patience=settings.plateau_patience,
        )
        return optimizer

    def on_train_epoch_start(self) -> None:
        """Seed all generators from (seed, epoch, rank)."""
        word = np.random.SeedSequence([self.seed, self.current_epoch, self.global_rank])
        state = int(word.generate_state(1, np.uint64)[0] >> np.uint64(1))
        torch.manual_seed(state)
        self.generator = Generator(self.device).manual_seed(state)
        for module in self.frozen:
            module.eval()

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Set the learning rate of this step; once a plateau schedule has warmed up, it rules."""
        rate = learning_rate(self.global_step, self.steps, self.settings)
        if rate is not None:
            for group in self.optimizers().param_groups:  # type: ignore[union-attr]
                group["lr"] = rate

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the loss of an augmented batch."""
        return self.task.step(self.model, self.task.augment(batch, self.generator), "train")

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Note the figures of a batch."""
        self.task.step(self.model, batch, "val")

    def on_validation_epoch_end(self) -> None:
        """Hand the validation's figures to the callbacks.

        Every process has validated on everything, but batch normalisations may have seen other
        batches in each: the first one's figures count, so that all decide alike.
        """
        figures = self.trainer.strategy.broadcast(self.task.figures("val"))
        self.log_dict({f"val_{key}": value for key, value in figures.items()})

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the plateau schedule's memory."""
        checkpoint["plateau"] = self.plateau.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the plateau schedule's memory until there is a schedule."""
        self.restored_plateau = checkpoint["plateau"]

    def on_train_start(self) -> None:
        """Give the plateau schedule its memory back."""
        if hasattr(self, "restored_plateau"):
            self.plateau.load_state_dict(self.restored_plateau)


def backbone(model: nn.Module) -> list[nn.Module]:
    """Return the parts of a model but for its `head`.

    Raises
    ------
    AssertionError
        If the model has no head, or a parameter that is in no part.
    """
    assert isinstance(model.head, nn.Module), f"{type(model).__module__}: has no head"
    own = [name for name, _ in model.named_parameters(recurse=False)]
    assert not own, f"{type(model).__module__}: {own} are in no part that could be frozen"
    return [part for part in model.children() if part is not model.head]


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Divide parameters into those that decay and those that do not.

    The weights of linear, convolutional, recurrent and attention layers decay: matrices that are
    called weights. Biases, normalisations, embeddings, positions and class tokens do not.
    """
    decayed: list[nn.Parameter] = []
    free: list[nn.Parameter] = []
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            matrix = (
                "weight" in name and parameter.ndim > 1 and not isinstance(module, nn.Embedding)
            )
            (decayed if matrix else free).append(parameter)
    return [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": free, "weight_decay": 0.0},
    ]


def learning_rate(step: int, steps: int, settings: Settings) -> float | None:
    """Return the learning rate at an optimiser step, or None where a plateau schedule rules.

    Parameters
    ----------
    step
        Steps made before this one.
    steps
        Steps in an epoch.
    settings
        Its `learning_rate`, `warmup_epochs`, `warmup_start`, `schedule` and `epochs` count.
    """
    warmup = settings.warmup_epochs * steps
    peak = settings.learning_rate
    if step < warmup:
        return settings.warmup_start + (peak - settings.warmup_start) * step / warmup
    if settings.schedule == "cosine":
        # The first step after the last would stand at 0.
        share = (step - warmup) / max(settings.epochs * steps - warmup, 1)
        return peak * 0.5 * (1 + math.cos(math.pi * share))
    if settings.schedule == "plateau" and step > warmup:
        return None
    return peak
