"""The train stage: one model, one fold, one seed, on training and validation scans only.

Shape suffixes: N scans, B batch, L scan lines, P pixels of a line, T answers, C classes, O outputs
of the model (the classes first).
"""

from __future__ import annotations

import csv
import hashlib
import math
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassAUROC, MulticlassConfusionMatrix

from scanbench import provenance, sources, tuning
from scanbench.augment import Augmentation, augment
from scanbench.distillation import Distillation, Teacher, soft_loss
from scanbench.errors import UserError, did_you_mean
from scanbench.files import canonical_json, replacing, sha256_of, write_json
from scanbench.learning import (
    Learner,
    Settings,
    accelerator,
    device_name,
    fit,
    from_config,
    resolve_precision,
)
from scanbench.runs import (
    META,
    WEIGHTS,
    AnswerTimes,
    build_model,
    looks_ahead,
    operations,
    resolved_options,
    save_run,
)
from scanbench.split_file import read_split
from scanbench.start import (
    Foundation,
    check_alike,
    check_unseen,
    load_foundation,
    take_over,
    write_seen,
)
from scanbench.store import Store
from scanbench.windows import WindowReader

#: Scans of a part that fit are kept in memory; of a larger part, blocks of this size are. A
#: constant, since the order of a larger part's samples depends on it.
MEMORY_MB = 2048
HISTORY = (
    "epoch",
    "step",
    "lr",
    "train_loss",
    "train_accuracy",
    "val_loss",
    "val_accuracy",
    "val_balanced_accuracy",
    "val_auroc",
    "seconds",
)


class Batch(NamedTuple):
    """Samples of a batch: heights [B, L, P], measured lines [B], labels [B].

    And, where there is a teacher, its log-probabilities [B, T, C].
    """

    x_BLP: Tensor
    n_lines_B: Tensor
    label_B: Tensor
    teacher_BTC: Tensor | None = None


class SampleEpochs:
    """The batches of a part for the training loop.

    Parameters
    ----------
    reader
        Gives the part's samples.
    steps
        Batches of an epoch; None: all. Where samples are shuffled, what is left out differs from
        epoch to epoch. If there are fewer, they are gone through again, in another order.
    shared
        Whether several processes divide each batch between them, or each gets all.
    teacher_NTC
        What a teacher says of each scan of the part, in the order of `reader.scans`.
    """

    def __init__(
        self,
        reader: WindowReader,
        *,
        steps: int | None,
        shared: bool,
        teacher_NTC: np.ndarray | None = None,
    ) -> None:
        self.reader, self.shared, self.teacher_NTC = reader, shared, teacher_NTC
        self.place = {scan: place for place, scan in enumerate(reader.scans.tolist())}
        self.each = len(reader) if steps is None else training_steps(reader, None)
        self.steps = self.each if steps is None else steps

    @classmethod
    def all_of(cls, reader: WindowReader) -> Iterator[Batch]:
        """Give all samples of a part, in batches."""
        return cls(reader, steps=None, shared=False).epoch(0)

    def __len__(self) -> int:
        """Return the number of batches of an epoch."""
        return self.steps

    def epoch(self, epoch: int) -> Iterator[Batch]:
        """Give the batches of an epoch, or this process's share of each."""
        rank, world = 0, 1
        if self.shared and torch.distributed.is_available() and torch.distributed.is_initialized():
            rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
        passes = -(-self.steps // self.each)
        batches = (
            batch
            for k in range(passes)
            for batch in islice(self.reader.epoch(epoch * passes + k), self.each)
        )
        for batch in islice(batches, self.steps):
            # Each process needs a sample: where there are too few, some are repeated.
            own = np.resize(np.arange(len(batch.x)), max(len(batch.x), world))[rank::world]
            arrays = [batch.x, batch.n_lines, batch.label]
            if self.teacher_NTC is not None:
                arrays.append(self.teacher_NTC[[self.place[scan] for scan in batch.scan.tolist()]])
            whole = Batch(*map(torch.from_numpy, arrays))
            yield Batch(*(t[own] for t in whole if t is not None)) if world > 1 else whole


def training_steps(reader: WindowReader, max_scans: int | None) -> int:
    """Return the batches of a training epoch.

    A last batch that is not full is left out, unless it is the only one: a few samples make a noisy
    step, and a batch normalisation cannot do with one.
    """
    samples = len(reader.index)
    if max_scans is not None:
        # As many samples as so many scans have on average.
        samples = min(samples, math.ceil(samples * max_scans / len(reader.scans)))
    return max(samples // reader.batch_size, 1)


class Classification(nn.Module):
    """Cross-entropy of a model's answers, and the figures at its last one.

    The loss of a sample is that of its last valid answer, or the mean over its valid answers. The
    loss of a batch is the mean over its samples, weighted by the weights of their classes.

    Parameters
    ----------
    times
        When the model answers.
    class_weights_C
        Weight of each class in the loss.
    settings
        `answers` and `label_smoothing` count.
    augmentation
        How training samples are changed.
    distillation
        How much the answers of a teacher count in the loss of batches that have them.
    """

    class_weights_C: Tensor

    def __init__(
        self,
        times: AnswerTimes,
        class_weights_C: np.ndarray,
        settings: Settings,
        augmentation: Augmentation,
        distillation: Distillation | None = None,
    ) -> None:
        super().__init__()
        self.times = times
        self.settings, self.augmentation = settings, augmentation
        self.distillation = distillation
        self.register_buffer("class_weights_C", torch.tensor(class_weights_C, dtype=torch.float32))
        # A NaN must show, not be left out; and validation is each process's own.
        self.train_loss = MeanMetric(nan_strategy="disable")
        self.val_loss = MeanMetric(nan_strategy="disable", sync_on_compute=False)
        self.train_accuracy = MeanMetric(nan_strategy="disable")
        classes = len(class_weights_C)
        self.confusion = MulticlassConfusionMatrix(
            classes, validate_args=False, sync_on_compute=False
        )
        self.auroc = MulticlassAUROC(
            classes, average="none", validate_args=False, sync_on_compute=False
        )

    def augment(self, batch: Batch, generator: Generator) -> Batch:
        """Return a training batch changed at random."""
        x_BLP = augment(batch.x_BLP, batch.n_lines_B, self.augmentation, generator)
        return batch._replace(x_BLP=x_BLP)

    def step(self, model: nn.Module, batch: Batch, stage: str) -> Tensor:
        """Return the loss of a batch, and note the figures."""
        logits_BTO = model(batch.x_BLP, batch.n_lines_B)
        valid_BT = self.times.valid(batch.n_lines_B)
        last_B = valid_BT.sum(1) - 1
        final_BO = logits_BTO[torch.arange(len(last_B), device=last_B.device), last_B]
        loss_BT = self._losses(logits_BTO, batch)
        if self.settings.answers == "last":
            loss_B = loss_BT[torch.arange(len(last_B), device=last_B.device), last_B]
        else:
            loss_B = loss_BT.where(valid_BT, 0.0).sum(1) / valid_BT.sum(1)
        weight_B = self.class_weights_C[batch.label_B]
        with torch.no_grad():
            loss = self.train_loss if stage == "train" else self.val_loss
            loss.update(loss_B, weight_B)
            if stage == "train":
                self.train_accuracy.update((final_BO.argmax(1) == batch.label_B).float())
            else:
                self.confusion.update(final_BO, batch.label_B)
                self.auroc.update(final_BO.softmax(1), batch.label_B)
        return (weight_B * loss_B).sum() / weight_B.sum()

    def _losses(self, logits_BTO: Tensor, batch: Batch) -> Tensor:
        """Return the unweighted loss of each answer, [B, T], also of those that are not valid."""
        loss_BT = F.cross_entropy(
            logits_BTO.transpose(1, 2),
            batch.label_B[:, None].expand(logits_BTO.shape[:2]),
            reduction="none",
            label_smoothing=self.settings.label_smoothing,
        )
        how = self.distillation
        if how is None or batch.teacher_BTC is None:
            return loss_BT
        soft_BT = soft_loss(logits_BTO, batch.teacher_BTC, how.temperature)
        return (1 - how.weight) * loss_BT + how.weight * soft_BT

    def figures(self, stage: str) -> dict[str, float]:
        """Return loss and accuracy and, of the validation, balanced accuracy and macro AUROC.

        Classes without a validation scan do not count in the last two.
        """
        loss = self.train_loss if stage == "train" else self.val_loss
        figures = {"loss": float(loss.compute())}
        loss.reset()
        if stage == "train":
            figures["accuracy"] = float(self.train_accuracy.compute())
            self.train_accuracy.reset()
            return figures
        confusion_CC = self.confusion.compute().double()
        self.confusion.reset()
        count_C, right_C = confusion_CC.sum(1), confusion_CC.diag()
        present_C = count_C > 0
        figures["accuracy"] = float(right_C.sum() / count_C.sum())
        figures["balanced_accuracy"] = float((right_C[present_C] / count_C[present_C]).mean())
        auroc_C = self.auroc.compute()
        # With one class only there is nothing to rank.
        figures["auroc"] = float(auroc_C[present_C].mean()) if present_C.sum() > 1 else math.nan
        self.auroc.reset()
        return figures


def share_of(data: Store, scans: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """Return a share of scans, drawn by class: what a training on few labels knows.

    A smaller share is part of every larger one of the same seed, and which scans are drawn does not
    depend on the others of the part.

    Parameters
    ----------
    data, scans
        The store, and the positions of labelled scans in it.
    fraction
        Share of the scans of each class, rounded up: no class is lost.
    seed
        Of the draw.
    """
    if fraction == 1:
        return scans
    order = np.array(
        [hashlib.sha256(f"{seed} {name}".encode()).hexdigest() for name in data.scan_id[scans]]
    )
    drawn = []
    for label in np.unique(data.label[scans]):
        own = np.flatnonzero(data.label[scans] == label)
        # Rounding keeps 0.07 × 100, which is a little more than 7 in binary, from being 8.
        wanted = math.ceil(round(fraction * len(own), 6))
        drawn.append(own[np.argsort(order[own])][:wanted])
    return scans[np.sort(np.concatenate(drawn))]


def class_counts(reader: WindowReader, classes: int) -> np.ndarray:
    """Return how many samples of each class a part has [C]; a scan may give several, or none."""
    samples = np.repeat(reader.label[reader.scans], reader.index.counts)
    return np.bincount(samples, minlength=classes)


def trained_classes(
    classes: Sequence[str], withheld: Sequence[str], label_N: np.ndarray
) -> tuple[list[str], np.ndarray]:
    """Return the classes that a model is trained on, and what scans are called among them.

    Parameters
    ----------
    classes
        Of the store.
    withheld
        Those that the model shall never see.
    label_N
        Class of each scan, as an index into `classes`; −1: none.

    Returns
    -------
    kept : list of str
        In the order of `classes`.
    label_N : ndarray of int64
        Index into `kept`; −1: no label, or one that is withheld.

    Raises
    ------
    UserError
        If a withheld class does not exist, or fewer than two are kept.
    """
    for name in withheld:
        if name not in classes:
            raise UserError(f"withhold: no class {name!r}; {did_you_mean(name, classes)}")
    kept = [name for name in classes if name not in withheld]
    if len(kept) < 2:
        raise UserError(
            f"withhold: {', '.join(withheld)}: leaves fewer than two classes to learn; withhold "
            "fewer"
        )
    # The place past the last class is where −1 points to.
    new_C = np.array([kept.index(name) if name in kept else -1 for name in classes] + [-1])
    return kept, new_C[label_N].astype(np.int64)


def class_weights(count_C: np.ndarray, classes: list[str], where: str) -> np.ndarray:
    """Return n/(k·n_c) for each class c of k: rare classes count as much as frequent ones.

    Raises
    ------
    UserError
        If a class is absent.
    """
    for name, count in zip(classes, count_C, strict=True):
        if count == 0:
            raise UserError(
                f"{where}: no training sample of class {name!r}, so it cannot be learned; split "
                "again with fewer folds or another seed, choose a model that needs fewer lines, "
                "or leave the class out of the labels"
            )
    return count_C.sum() / (len(classes) * count_C)


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What came out of a training: history, best epoch (from 1), its weights, and how.

    `count_C` and `weights_C` are the number and the weight in the loss of the training samples of
    each class. `cpu_seconds` are those of all processes that took part, also of those before a
    resume.
    """

    count_C: np.ndarray
    weights_C: np.ndarray
    rows: list[dict[str, float]]
    best_epoch: int
    weights: Mapping[str, Tensor]
    device: str
    precision: str
    cpu_seconds: float


def train(
    spec: Mapping[str, Any],
    store: Path,
    split: Path,
    out: Path,
    start: Path | None = None,
    *,
    teacher: Path | None = None,
    chosen: Path | None = None,
) -> None:
    """Train one model on one fold with one seed, and write the run.

    Writes `weights.safetensors`, `model.json`, `history.csv`, `seen.txt` and `train.json` into
    `out`. If the process is killed, the same call goes on from the last epoch and ends with the
    same weights.

    Parameters
    ----------
    spec
        `study`, `name`, `model`, `options`, `normalisation`, `window` (None or `lines` and
        `stride`), `training` (see `Settings`), `augmentation` (see `Augmentation`), `fold`, `seed`;
        `withhold`, if there is any: classes whose scans are in neither part; `teacher`, if there is
        one (see `Distillation`).
    store, split
        The data set and its division. Test scans are never read.
    out
        Folder of the run.
    start
        Folder of a run to begin with the weights of; with 0 epochs they are taken as they are.
    teacher
        Folder of a run of the same data set, split, fold and seed to learn the soft answers of.
    chosen
        What `tuning.choose` wrote: its setting goes over that of `spec`.

    Raises
    ------
    UserError
        If an input or a setting is wrong, the start or the teacher does not fit or has seen a scan
        that this fold tests, or the loss is no longer finite.
    """
    started = time.time()
    found, search_cpu_seconds = tuning.read_chosen(chosen) if chosen else (None, 0.0)
    if found:
        spec = tuning.with_setting(spec, found["setting"])
    settings: Settings = from_config(Settings, spec["training"], "training")
    augmentation: Augmentation = from_config(Augmentation, spec["augmentation"], "augmentation")
    torch.set_num_threads(settings.num_threads)
    out = Path(out)
    with Store(store) as data:
        where = f"{split}: fold {spec['fold']}"
        document = read_split(split, data)
        withheld = list(spec.get("withhold", ()))
        classes, label_N = trained_classes(data.classes, withheld, data.label)
        if withheld and start is not None:
            raise UserError(
                f"experiments.{spec['name']}.start: what it starts from may have seen what it "
                "withholds; leave out `start` or `withhold`"
            )
        parts = {
            part: scans[label_N[scans] >= 0]
            for part, scans in training_parts(data, split, document, spec["fold"]).items()
        }
        lines = spec["window"]["lines"] if spec["window"] else data.lines
        torch.manual_seed(spec["seed"])
        try:
            model = build_model(
                spec["study"],
                spec["model"],
                spec["options"],
                lines=lines,
                pixels=data.pixels,
                classes=len(classes),
            )
        except UserError as error:
            raise UserError(f"experiments.{spec['name']}.{error}") from None
        if looks_ahead(model, lines, spec["normalisation"], windowed=bool(spec["window"])):
            raise UserError(
                f"experiments.{spec['name']}.normalisation: scan looks at lines not yet measured, "
                "and this model answers before the end; set it to line"
            )
        foundation = None
        if start is not None:
            foundation = load_foundation(start)
            check_unseen(foundation, data, split, document, spec["fold"])
            check_alike(foundation, _shape(spec, data, lines))
            take_over(model, foundation, data.classes)
        elif settings.frozen != "none":
            raise UserError(
                f"training.frozen: {settings.frozen} keeps what a start has learned, and there is "
                "none; name one, or set it to none"
            )
        taught_by = None
        if teacher is not None:
            student = {
                **{key: spec[key] for key in ("name", "window", "fold", "seed")},
                "augmentation": augmentation,
                "store_sha256": data.sha256,
                "split_sha256": sha256_of(split),
                "classes": classes,
            }
            taught_by = Teacher.of(spec["teacher"], teacher, student)
        below = [foundation] if foundation else []
        below += [taught_by.foundation] if taught_by else []
        checkpoints = out.parent / ".checkpoints" / _key(spec, data, split, model, below)
        seen = np.array([], np.int64)
        if settings.epochs == 0:
            trained = _as_it_is(foundation, data.classes)
        else:
            times = AnswerTimes.of(model, lines)
            samples = _samples(data, parts, (classes, label_N), times, spec, settings, where)
            how = taught_by.how if taught_by else None
            task = Classification(times, samples.weights_C, settings, augmentation, how)
            begun = foundation is not None
            if taught_by and hasattr(model, "fit"):
                raise UserError(
                    f"experiments.{spec['name']}.teacher: {spec['model']} is fitted at once, and a "
                    "teacher speaks in the steps of a training; choose another model, or no teacher"
                )
            taught_NTC = (
                taught_by.answers(data, samples.train.scans, times.lines) if taught_by else None
            )
            learned = _learned(
                model, task, samples, taught_NTC, spec, out, checkpoints, begun=begun
            )
            if learned is None:
                return
            trained, seen = learned, samples.scans
        prior_C = trained.count_C * trained.weights_C
        meta = {
            **{key: spec[key] for key in ("study", "name", "model", "normalisation", "window")},
            **{key: spec[key] for key in ("fold", "seed")},
            "training": asdict(settings),
            "augmentation": asdict(augmentation),
            "options": resolved_options(spec["study"], spec["model"], spec["options"]),
            "lines": lines,
            "pixels": data.pixels,
            "scan_lines": data.lines,
            "unit": data.unit,
            "channel": data.channel,
            "ingest": data.ingest,
            "store_sha256": data.sha256,
            "split_sha256": sha256_of(split),
            "classes": classes,
            **({"withheld": withheld} if withheld else {}),
            "class_counts": trained.count_C.tolist(),
            "class_weights": trained.weights_C.tolist(),
            "prior": (prior_C / prior_C.sum()).tolist(),
            "start": foundation and _told(foundation.run.meta),
            "teacher": taught_by
            and {**_told(taught_by.foundation.run.meta), **asdict(taught_by.how)},
            "best_epoch": trained.best_epoch,
            "precision": trained.precision,
            "parameters": fitted_numbers(model),
            "operations": operations(model, lines, data.pixels),
            "tuning": found,
        }
        write_seen(out, data, seen, below)
    with (
        replacing(out / "history.csv") as path,
        path.open("w", encoding="utf-8", newline="") as file,
    ):
        writer = csv.DictWriter(file, HISTORY, lineterminator="\n")
        writer.writeheader()
        writer.writerows(trained.rows)
    inputs = {"store": store, "split": split} | ({"chosen": chosen} if chosen else {})
    for role, folder in (("start", start), ("teacher", teacher)):
        if folder is not None:
            inputs |= {f"{role}_weights": folder / WEIGHTS, f"{role}_model": folder / META}
    record = provenance.record(
        spec,
        inputs=inputs,
        started=started,
        seed=spec["seed"],
        device=trained.device,
        cpu_seconds=trained.cpu_seconds,
    )
    write_json(out / "train.json", {**record, "search_cpu_seconds": search_cpu_seconds})
    save_run(out, trained.weights, meta)
    shutil.rmtree(checkpoints, ignore_errors=True)
    with suppress(OSError):  # other runs may have theirs there
        checkpoints.parent.rmdir()


@dataclass(frozen=True, kw_only=True)
class Samples:
    """What a model learns from.

    Attributes
    ----------
    train, validation
        The parts.
    steps
        Of an epoch.
    count_C, weights_C
        Training samples of each class, and the weight of each in the loss.
    """

    train: WindowReader
    validation: WindowReader
    steps: int
    count_C: np.ndarray
    weights_C: np.ndarray

    @property
    def scans(self) -> np.ndarray:
        """Where in the store the scans of both parts stand."""
        return np.concatenate([self.train.scans, self.validation.scans])


def _samples(
    data: Store,
    parts: Mapping[str, np.ndarray],
    labels: tuple[list[str], np.ndarray],
    times: AnswerTimes,
    spec: Mapping[str, Any],
    settings: Settings,
    where: str,
) -> Samples:
    """Return the samples of scans that are long enough, or of a share of these.

    `labels`: the classes trained on, and that of each scan of the store, from `trained_classes`.
    With a share of the labels an epoch has as many steps as with all of them: few labels shall not
    mean few steps.
    """
    classes, label_N = labels
    readers = {}
    steps = 0
    for part, scans in parts.items():
        usable = scans[data.n_lines[scans] >= times.fewest]
        reader = _reader(data, usable, label_N, spec, settings, shuffle=part == "train")
        if not len(reader.index):
            raise UserError(
                f"{where}: no {part} scan is long enough for {spec['model']}, which first "
                f"answers after {times.fewest} lines; choose a smaller window"
            )
        if part == "train":
            steps = training_steps(reader, settings.max_scans)
        if settings.fraction < 1:
            few = share_of(data, usable, settings.fraction, spec["seed"])
            reader = _reader(data, few, label_N, spec, settings, shuffle=part == "train")
        readers[part] = reader
    count_C = class_counts(readers["train"], len(classes))
    weights_C = class_weights(count_C, classes, where)
    if not settings.class_weights:
        weights_C = np.ones(len(classes))
    validation_C = class_counts(readers["validation"], len(classes))
    check_validation(validation_C, classes, settings, where)
    return Samples(**readers, steps=steps, count_C=count_C, weights_C=weights_C)


def _learned(
    model: nn.Module,
    task: Classification,
    samples: Samples,
    taught_NTC: np.ndarray | None,
    spec: Mapping[str, Any],
    out: Path,
    checkpoints: Path,
    *,
    begun: bool,
) -> Trained | None:
    """Train a model; None in a process that is not to write.

    `taught_NTC`: what a teacher says of the training scans. `begun`: it has the weights of another
    run already.
    """
    settings = task.settings
    if hasattr(model, "fit"):
        if begun and not hasattr(model, "refit"):
            raise UserError(
                f"experiments.{spec['name']}.start: {spec['model']} is fitted at once, which "
                "forgets how it began; set training.epochs to 0 to take the start as it is"
            )
        return _fit_at_once(model, task, samples, spec["seed"], begun=begun)
    fresh = not begun and not (checkpoints / "last.ckpt").exists()
    if fresh and hasattr(model, "initialise"):
        model.initialise(*_whole(samples.train), samples.weights_C, spec["seed"])  # type: ignore[operator]
    learner = Learner(model, task, settings, steps=samples.steps, seed=spec["seed"])
    journal = fit(
        learner,
        SampleEpochs(samples.train, steps=samples.steps, shared=True, teacher_NTC=taught_NTC),
        SampleEpochs(samples.validation, steps=None, shared=False),
        title=f"{spec['name']} fold {spec['fold']} seed {spec['seed']}",
        checkpoint=checkpoints / "last.ckpt" if settings.resume else None,
        tensorboard=out.parent / "tensorboard" / out.name if settings.tensorboard else None,
    )
    if not journal.writes:
        return None
    return Trained(
        count_C=samples.count_C,
        weights_C=samples.weights_C,
        rows=journal.rows,
        best_epoch=journal.best_epoch,
        weights=journal.best_weights,
        device=device_name(settings),
        precision=resolve_precision(settings.precision, accelerator(settings)),
        cpu_seconds=journal.cpu_seconds,
    )


def _as_it_is(foundation: Foundation | None, classes: list[str]) -> Trained:
    """Return the start without any training: no label of the data has a part in it.

    Raises
    ------
    UserError
        If there is no start, or its classes are others, so that its answers mean nothing here.
    """
    if foundation is None:
        raise UserError("training.epochs: 0 takes a start as it is; name one, or give more epochs")
    run = foundation.run
    if run.classes != classes:
        raise UserError(
            f"{foundation.folder}: has classes {', '.join(run.classes)}, not "
            f"{', '.join(classes)}; train for at least 1 epoch, or start from a run that has them"
        )
    return Trained(
        count_C=np.array(run.meta["class_counts"]),
        weights_C=np.array(run.meta["class_weights"]),
        rows=[],
        best_epoch=0,
        weights=run.model.state_dict(),
        device=provenance.processor(),
        precision=run.meta["precision"],
        cpu_seconds=time.process_time(),
    )


def _shape(spec: Mapping[str, Any], data: Store, lines: int) -> dict[str, Any]:
    """Return what `model.json` of a run must hold for its weights to fit."""
    shape = {
        **{key: spec[key] for key in ("study", "model", "normalisation")},
        "options": resolved_options(spec["study"], spec["model"], spec["options"]),
        "lines": lines,
        "pixels": data.pixels,
    }
    # Every other normalisation takes the unit out.
    return shape | ({"unit": data.unit} if spec["normalisation"] == "none" else {})


def _told(meta: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a run tells about the one that it started from."""
    return {key: meta[key] for key in ("name", "fold", "seed", "store_sha256", "weights_sha256")}


def fitted_numbers(model: nn.Module) -> int:
    """Return how many numbers training finds: parameters, and what `fit` keeps in buffers.

    A part of a model that has a `fit` of its own counts like a model that has one.
    """
    fitted: set[Tensor] = {p for p in model.parameters() if p.requires_grad}
    for module in model.modules():
        fitted.update(module.buffers() if hasattr(module, "fit") else ())
    return sum(tensor.numel() for tensor in fitted)


def training_parts(
    data: Store, split: str | Path, document: Mapping[str, Any], fold: int
) -> dict[str, np.ndarray]:
    """Return where the scans of the training and validation parts stand in the store.

    Raises
    ------
    UserError
        If the split has no such fold, or a part of it is empty.
    """
    folds = document["folds"]
    if not 0 <= fold < len(folds):
        raise UserError(f"{split}: there is no fold {fold}, the folds are 0 to {len(folds) - 1}")
    test = set(folds[fold]["test"])
    parts = {}
    for part in ("train", "validation"):
        ids = folds[fold][part]
        if not ids:
            raise UserError(f"{split}: fold {fold}: the {part} part is empty; split again")
        assert test.isdisjoint(ids), f"a test scan stands in the {part} part"
        parts[part] = data.index_of(ids)
        assert (data.label[parts[part]] >= 0).all(), f"a scan of the {part} part has no label"
    return parts


def check_validation(
    count_C: np.ndarray, classes: list[str], settings: Settings, where: str
) -> None:
    """Check that the monitored figure tells epochs apart, and say on stderr what it leaves out.

    Raises
    ------
    UserError
        If the figure does not exist, or is the same whatever the model answers.
    """
    monitor, known = settings.monitor, ("val_auroc", "val_balanced_accuracy", "val_loss")
    if monitor not in known:
        raise UserError(f"training.monitor: {monitor!r} is unknown; {did_you_mean(monitor, known)}")
    absent = [name for name, count in zip(classes, count_C, strict=True) if not count]
    if monitor != "val_loss" and len(classes) - len(absent) < 2:
        raise UserError(
            f"{where}: all validation samples are of one class, so {monitor} tells nothing; split "
            "again, or set training.monitor to val_loss"
        )
    if absent:
        print(
            f"{where}: no validation sample of class {', '.join(absent)}: the figures of the "
            "validation, and so the choice of the best epoch, are of the other classes",
            file=sys.stderr,
        )


def _reader(
    data: Store,
    scans: np.ndarray,
    label_N: np.ndarray,
    spec: Mapping[str, Any],
    settings: Settings,
    *,
    shuffle: bool,
) -> WindowReader:
    window = spec["window"] or {"lines": None, "stride": 1}
    return WindowReader(
        data,
        scans,
        window=window["lines"],
        stride=window["stride"],
        normalisation=spec["normalisation"],
        batch_size=settings.batch_size,
        shuffle=shuffle,
        seed=spec["seed"],
        memory_mb=MEMORY_MB,
        label=label_N,
    )


def _key(
    spec: Mapping[str, Any],
    data: Store,
    split: str | Path,
    model: nn.Module,
    below: Sequence[Foundation],
) -> str:
    """Return a name for all that the weights depend on: no other run's state is taken up."""
    files = sources.closure(__name__, type(model).__module__)
    parts = [canonical_json(spec), data.sha256, sha256_of(split), torch.__version__]
    parts += [found.run.meta["weights_sha256"] for found in below]
    parts += map(sha256_of, files)
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def _whole(reader: WindowReader) -> tuple[np.ndarray, ...]:
    """Return all samples of a part: heights [N, L, P], measured lines [N], labels [N]."""
    return tuple(
        torch.cat(parts).numpy()
        for parts in zip(*(batch[:3] for batch in SampleEpochs.all_of(reader)), strict=True)
    )


def _fit_at_once(
    model: nn.Module,
    task: Classification,
    samples: Samples,
    seed: int,
    *,
    begun: bool,
) -> Trained:
    """Fit a model that is not trained by gradient descent; its history has one row.

    Its training figures are of as many batches as the validation part has, drawn at random.
    """
    started = time.perf_counter()
    fit = model.refit if begun else model.fit
    fit(*_whole(samples.train), samples.weights_C, seed)  # type: ignore[operator]
    row: dict[str, float] = {"epoch": 1, "step": 1, "lr": 0.0}
    model.eval()
    with torch.inference_mode():
        for stage, reader in (("train", samples.train), ("val", samples.validation)):
            for batch in islice(SampleEpochs.all_of(reader), len(samples.validation)):
                task.step(model, batch, stage)
            row |= {f"{stage}_{key}": value for key, value in task.figures(stage).items()}
    row["seconds"] = round(time.perf_counter() - started, 3)
    return Trained(
        count_C=samples.count_C,
        weights_C=samples.weights_C,
        rows=[row],
        best_epoch=1,
        weights=model.state_dict(),
        device=provenance.processor(),
        precision="fp32",
        cpu_seconds=time.process_time(),
    )
