"""The training loop of every model of every study, on PyTorch Lightning.

It adds to a `learner` early stopping, the best weights, the history, mixed precision, several
devices, and resuming after a kill.

Resuming is exact because nothing that is random is carried from one epoch to the next: each epoch
seeds all generators from (seed, epoch, rank), so that a checkpoint at the end of an epoch holds all
there is to know.
"""

from __future__ import annotations

import logging
import math
import sys
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import torch
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor
from tqdm import tqdm

from scanbench import provenance
from scanbench.checkpoints import WholeCheckpoints
from scanbench.errors import UserError
from scanbench.learner import Epochs, Learner, Loader
from scanbench.settings import Settings


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
