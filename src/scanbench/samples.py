"""What a model learns from: the training and the validation part, in batches.

Shape suffixes: N scans or samples, B batch, L scan lines, P pixels of a line, T answers, C classes.
"""

from __future__ import annotations

import hashlib
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from scanbench.errors import UserError, did_you_mean
from scanbench.runs import AnswerTimes
from scanbench.settings import Settings
from scanbench.store import Store
from scanbench.windows import WindowReader

#: Scans of a part that fit are kept in memory; of a larger part, blocks of this size are. A
#: constant, since the order of a larger part's samples depends on it.
MEMORY_MB = 2048


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


def training_samples(
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


def whole(reader: WindowReader) -> tuple[np.ndarray, ...]:
    """Return all samples of a part: heights [N, L, P], measured lines [N], labels [N]."""
    return tuple(
        torch.cat(parts).numpy()
        for parts in zip(*(batch[:3] for batch in SampleEpochs.all_of(reader)), strict=True)
    )
