"""The training loop of every model of every study, on PyTorch Lightning.

A study hands in a model, its batches and a `Task`, which says what goes down (a loss) and what is
watched (figures such as the AUROC). The loop adds the optimiser, the course of the learning rate,
early stopping, the best weights, the history, mixed precision, several devices, and resuming
after a kill.

Resuming is exact because nothing that is random is carried from one epoch to the next: each epoch
seeds all generators from (seed, epoch, rank), so that a checkpoint at the end of an epoch holds all
there is to know.
"""

from __future__ import annotations

import hashlib
import io
import logging
import math
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Protocol

import lightning.pytorch as L
import numpy as np
import torch
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.plugins.io import TorchCheckpointIO
from torch import Generator, Tensor, nn
from torch.optim.lr_scheduler import ReduceLROnPlateau
from tqdm import tqdm

from scanbench import provenance
from scanbench.errors import UserError, did_you_mean, first_line
from scanbench.files import replacing

Batch = Any


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


class Journal(L.Callback):
    """Keep the history and the best weights of a run; both travel in its checkpoint.

    Attributes
    ----------
    rows
        One dict per epoch, with the columns of `history.csv`.
    best_epoch
        Epoch (from 1) with the best monitored figure; the earlier of equals.
    best_weights
        The model's state after that epoch, on the CPU.
    writes
        Whether this process is the one that writes results: with several devices, one does.
    """

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []
        self.best_epoch = 0
        self.best_weights: dict[str, Tensor] = {}
        self.writes = True
        # CPU seconds of other processes than this: before a resume, up to the checkpoint that it
        # goes on from, and beside it, on other devices.
        self._cpu_before = 0.0
        self._cpu_beside = 0.0

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint must hold."""
        return {
            "rows": self.rows,
            "best_epoch": self.best_epoch,
            "best_weights": self.best_weights,
            "cpu_seconds": self.cpu_seconds,
        }

    @property
    def cpu_seconds(self) -> float:
        """CPU time that the training has taken so far, over all its processes."""
        return self._cpu_before + self._cpu_beside + time.process_time()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up what a checkpoint held."""
        self.rows = state_dict["rows"]
        self.best_epoch = state_dict["best_epoch"]
        self.best_weights = state_dict["best_weights"]
        self._cpu_before = state_dict["cpu_seconds"]

    def on_train_start(self, trainer: L.Trainer, learner: L.LightningModule) -> None:
        """Do not go on with a run that had stopped early before it was killed."""
        self.writes = trainer.is_global_zero
        stopper = trainer.early_stopping_callback
        if isinstance(stopper, EarlyStopping) and stopper.wait_count >= stopper.patience:
            trainer.should_stop = True

    def on_train_epoch_start(self, trainer: L.Trainer, learner: L.LightningModule) -> None:
        """Start the clock."""
        self.started = time.perf_counter()

    def on_train_epoch_end(self, trainer: L.Trainer, learner: L.LightningModule) -> None:
        """Write the epoch's row, keep the weights if they are the best so far."""
        assert isinstance(learner, Learner)
        settings = learner.settings
        train = {f"train_{key}": value for key, value in learner.task.figures("train").items()}
        val = {
            key: float(value)
            for key, value in trainer.callback_metrics.items()
            if key.startswith("val_")
        }
        rate = float(trainer.optimizers[0].param_groups[0]["lr"])
        row = {"epoch": trainer.current_epoch + 1, "step": trainer.global_step, "lr": rate}
        row |= train | val | {"seconds": round(time.perf_counter() - self.started, 3)}
        self._check_finite(row, trainer)
        own = torch.tensor(time.process_time(), dtype=torch.float64, device=learner.device)
        self._cpu_beside = float(trainer.strategy.reduce(own.clone(), reduce_op="sum") - own)
        best = self.rows[self.best_epoch - 1][settings.monitor] if self.rows else None
        now = row[settings.monitor]
        assert not math.isnan(now), f"{settings.monitor} is not a number in epoch {row['epoch']}"
        if best is None or (now < best if settings.falling else now > best):
            self.best_epoch = trainer.current_epoch + 1
            self.best_weights = {
                key: value.detach().to("cpu", copy=True).contiguous()
                for key, value in learner.model.state_dict().items()
            }
        self.rows.append(row)
        if settings.schedule == "plateau" and trainer.current_epoch + 1 > settings.warmup_epochs:
            learner.plateau.step(now)
        if trainer.logger is not None:
            trainer.logger.log_metrics(row, step=trainer.current_epoch + 1)

    @staticmethod
    def _check_finite(row: Mapping[str, float], trainer: L.Trainer) -> None:
        for key in ("train_loss", "val_loss"):
            if not math.isfinite(row[key]):
                raise UserError(
                    f"training went astray in epoch {row['epoch']}: {key} is {row[key]}; lower "
                    f"training.learning_rate (the rate was {row['lr']:g}) or set "
                    f"training.precision to fp32 (it was {trainer.precision})"
                )


class WholeCheckpoints(TorchCheckpointIO):
    """Checkpoints that are written whole or not at all, in the file system where they stay.

    A checkpoint begins with its own SHA-256, so that a damaged one is not trained on with.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | os.PathLike[str], storage_options: Any = None
    ) -> None:
        """Write a checkpoint; an `OSError` names the file."""
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        content = buffer.getbuffer()
        try:
            with replacing(Path(path)) as part, part.open("wb") as file:
                file.write(hashlib.sha256(content).hexdigest().encode())
                file.write(content)
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(path)) from None

    def load_checkpoint(
        self, path: str | os.PathLike[str], map_location: Any = "cpu", weights_only: Any = True
    ) -> dict[str, Any]:
        """Read a checkpoint; nothing is ever unpickled.

        Raises
        ------
        UserError
            If it is not what was written.
        """
        content = Path(path).read_bytes()
        told, content = content[:64], content[64:]
        if hashlib.sha256(content).hexdigest().encode() != told:
            raise UserError(
                f"{path}: does not match its own SHA-256: the checkpoint is damaged; remove it, "
                "and the training begins anew"
            )
        try:
            checkpoint: dict[str, Any] = torch.load(
                io.BytesIO(content), map_location=map_location, weights_only=True
            )
        except Exception as error:  # of as many kinds as there are things that a file can hold
            raise UserError(
                f"{path}: is no checkpoint ({first_line(error)}); remove it, and the training "
                "begins anew"
            ) from None
        return checkpoint


class Progress(L.Callback):
    """Show epoch, loss and monitored figure on stderr: a bar on a terminal, else a line per epoch.

    Parameters
    ----------
    title
        What is trained.
    journal
        Where the figures are read.
    """

    def __init__(self, title: str, journal: Journal) -> None:
        self.title, self.journal = title, journal
        self.bar: tqdm | None = None

    def on_train_start(self, trainer: L.Trainer, learner: L.LightningModule) -> None:
        """Open the bar."""
        if trainer.is_global_zero and sys.stderr.isatty():
            steps = int(trainer.num_training_batches)
            total = (trainer.max_epochs or 0) * steps
            self.bar = tqdm(total=total, initial=trainer.global_step, desc=self.title, unit="step")

    def on_train_batch_end(self, trainer: L.Trainer, *_: object) -> None:
        """Move the bar by one step."""
        if self.bar is not None:
            self.bar.update()

    def on_train_epoch_end(self, trainer: L.Trainer, learner: L.LightningModule) -> None:
        """Tell the epoch's figures."""
        assert isinstance(learner, Learner)
        if not trainer.is_global_zero:
            return
        row, monitor = self.journal.rows[-1], learner.settings.monitor
        text = f"epoch {row['epoch']}/{trainer.max_epochs} loss {row['train_loss']:.4f}"
        text += f" {monitor} {row[monitor]:.4f} (best: epoch {self.journal.best_epoch})"
        if self.bar is not None:
            self.bar.set_postfix_str(text)
        else:
            print(f"{self.title}: {text} {row['seconds']:.1f} s", file=sys.stderr, flush=True)

    def on_train_end(self, trainer: L.Trainer, learner: L.LightningModule) -> None:
        """Close the bar."""
        if self.bar is not None:
            self.bar.close()

    def on_exception(self, *_: object) -> None:
        """Close the bar."""
        if self.bar is not None:
            self.bar.close()


def accelerator(settings: Settings) -> str:
    """Return `cuda` where there is a GPU, else `cpu`.

    Raises
    ------
    UserError
        If there are fewer GPUs than `training.devices` asks for.
    """
    if not torch.cuda.is_available():
        return "cpu"
    if settings.devices > torch.cuda.device_count():
        raise UserError(
            f"training.devices: {settings.devices} GPUs asked for, but this machine has "
            f"{torch.cuda.device_count()}; lower it"
        )
    return "cuda"


def device_name(settings: Settings) -> str:
    """Return the name of the GPU or processor that a model is trained on."""
    if accelerator(settings) == "cuda":
        return f"{settings.devices} × {torch.cuda.get_device_name()}"
    return provenance.processor()


def resolve_precision(wanted: str, device: str) -> str:
    """Return the precision to train in: `fp32`, `bf16` or `fp16`.

    `auto` is bf16 where the device multiplies bf16 matrices in hardware, else fp32: emulated bf16
    is many times slower than fp32.

    Raises
    ------
    UserError
        If fp16 is wanted without a GPU: its gradients need a scaling that only GPUs have.
    """
    if wanted == "fp16" and device != "cuda":
        raise UserError("training.precision: fp16 needs a GPU; set it to auto, fp32 or bf16")
    if wanted != "auto":
        return wanted
    if device == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    fast = torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
    return "bf16" if fast else "fp32"


PRECISIONS = {"fp32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}


def fit(
    learner: Learner,
    train: Epochs,
    validation: Epochs,
    *,
    title: str,
    checkpoint: Path | None = None,
    tensorboard: Path | None = None,
) -> Journal:
    """Train until the last epoch or until it has long not improved.

    Parameters
    ----------
    learner
        What to train; left with the last weights, the best are in the journal.
    train, validation
        Batches of the two parts.
    title
        What progress is shown for.
    checkpoint
        File to keep the state after each epoch in, and to go on from if it exists; None: neither.
    tensorboard
        Folder to write TensorBoard's files into; None: do not.

    Raises
    ------
    UserError
        If the loss is no longer finite, or if a device that the settings ask for is not there.
    """
    settings = learner.settings
    device = accelerator(settings)
    journal = Journal()
    callbacks: list[L.Callback] = [journal, Progress(title, journal)]
    if settings.early_stopping_patience is not None:
        callbacks.append(
            EarlyStopping(
                settings.monitor,
                mode="min" if settings.falling else "max",
                patience=settings.early_stopping_patience,
                check_finite=False,  # the journal does, with a message
            )
        )
    if checkpoint is not None:
        callbacks.append(
            ModelCheckpoint(
                checkpoint.parent,
                checkpoint.stem,
                enable_version_counter=False,
                save_on_train_epoch_end=True,
            )
        )
    with quiet():
        trainer = L.Trainer(
            accelerator=device,
            devices=settings.devices,
            strategy="ddp" if settings.devices > 1 else "auto",
            # Processes are ours to start, also inside a batch system's job.
            plugins=[LightningEnvironment(), WholeCheckpoints()],
            precision=PRECISIONS[resolve_precision(settings.precision, device)],  # type: ignore[arg-type]
            max_epochs=settings.epochs,
            gradient_clip_val=settings.gradient_clip or None,
            callbacks=callbacks,
            logger=tensorboard is not None
            and TensorBoardLogger(tensorboard.parent, tensorboard.name, version=""),
            enable_checkpointing=checkpoint is not None,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            sync_batchnorm=device == "cuda" and settings.devices > 1,
            use_distributed_sampler=False,  # each process's share is the batches' business
            deterministic="warn",
        )
        # Only a read of memory that nothing wrote would need it filled, at a cost in every layer.
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
        resume = checkpoint is not None and checkpoint.exists()
        trainer.fit(
            learner,
            Loader(train, lambda: trainer.current_epoch),
            Loader(validation, lambda: 0),
            ckpt_path=checkpoint if resume else None,
            weights_only=True,
        )
    return journal


@contextmanager
def quiet() -> Iterator[None]:
    """Silence Lightning's tips and its warnings about choices that are made here on purpose."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"lightning\..*")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
