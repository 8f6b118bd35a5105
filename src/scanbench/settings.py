"""How a model is trained: the `training` part of the configuration."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from scanbench.errors import UserError, did_you_mean


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How a model is trained; the `training` part of the config.

    Parameters
    ----------
    epochs
        At most so many passes over the training part; 0: none, the start is taken as it is.
    batch_size
        Samples per step, over all devices together.
    learning_rate, weight_decay, beta1, beta2
        Of AdamW (Loshchilov & Hutter 2019, arXiv 1711.05101). Biases, normalisations, embeddings
        and class tokens do not decay.
    warmup_epochs, warmup_start
        The learning rate rises linearly from `warmup_start` over so many epochs.
    schedule
        After the warm-up: `constant`; `cosine` to 0 at the last epoch; `plateau`: times
        `plateau_factor` when `monitor` has not improved for more than `plateau_patience` epochs.
    early_stopping_patience
        Stop when `monitor` has not improved for so many epochs; None: never.
    monitor
        The figure that decides which epoch was best; what ends in `loss` is better when smaller.
    gradient_clip
        Largest norm of the gradient; 0: no limit.
    class_weights, label_smoothing, answers
        Of the loss; see the study's task.
    precision
        `fp32`, `bf16` or `fp16` autocast; `auto`: bf16 on devices where it is fast, else fp32.
    devices
        Number of GPUs, or of processes where there is no GPU.
    num_threads
        Threads of one process on the CPU; the bytes of a result may depend on it.
    resume
        Keep a checkpoint of the last epoch, and go on from it if a run was killed.
    tensorboard
        Also write the history for TensorBoard.
    max_scans
        Draw at most so many scans in each epoch; None: all.
    fraction
        Learn from this share of the labelled scans only; see the study. An epoch has as many steps
        as without.
    frozen
        `backbone`: only the model's `head` learns. The rest keeps its weights and statistics and
        is in evaluation mode, without dropout. `none`: all of it learns.
    """

    epochs: int = 40
    batch_size: int = 32
    learning_rate: float = 1e-4
    weight_decay: float = 0.05
    beta1: float = 0.9
    beta2: float = 0.999
    warmup_epochs: int = 0
    warmup_start: float = 1e-6
    schedule: str = "plateau"
    plateau_factor: float = 0.5
    plateau_patience: int = 3
    early_stopping_patience: int | None = 10
    monitor: str = "val_auroc"
    gradient_clip: float = 1.0
    class_weights: bool = True
    label_smoothing: float = 0.0
    answers: str = "last"
    precision: str = "auto"
    devices: int = 1
    num_threads: int = 1
    resume: bool = True
    tensorboard: bool = False
    max_scans: int | None = None
    fraction: float = 1.0
    frozen: str = "none"

    def __post_init__(self) -> None:
        for key, allowed in {
            "schedule": ("constant", "cosine", "plateau"),
            "answers": ("last", "all"),
            "precision": ("auto", "fp32", "bf16", "fp16"),
            "frozen": ("none", "backbone"),
        }.items():
            value = getattr(self, key)
            if value not in allowed:
                raise UserError(f"training.{key}: {value!r}; {did_you_mean(value, allowed)}")
        for key in ("batch_size", "devices", "num_threads", "learning_rate"):
            if not getattr(self, key) > 0:
                raise UserError(f"training.{key}: {getattr(self, key)} must be more than 0")
        if self.epochs < 0:
            raise UserError(f"training.epochs: {self.epochs} must be 0 or more")
        if not 0 < self.fraction <= 1:
            raise UserError(f"training.fraction: {self.fraction} must be more than 0, at most 1")

    @property
    def falling(self) -> bool:
        """Whether the monitored figure is better when smaller."""
        return self.monitor.endswith("loss")


def from_config(kind: type, values: Mapping[str, Any], where: str) -> Any:
    """Return the dataclass `kind` with the values of a part of the config.

    Raises
    ------
    UserError
        If a key is not a field of `kind`.
    """
    known = [field.name for field in fields(kind)]
    for key in values:
        if key not in known:
            raise UserError(f"{where}.{key}: unknown key; {did_you_mean(key, known)}")
    return kind(**values)
