"""The train stage: one model, one fold, one seed, on training and validation scans only.

Shape suffixes: N scans, T answers, C classes.
"""

from __future__ import annotations

import csv
import hashlib
import shutil
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from scanbench import provenance, sources, tuning
from scanbench.augment import Augmentation
from scanbench.classification import Classification
from scanbench.distillation import Teacher
from scanbench.errors import UserError
from scanbench.files import canonical_json, replacing, sha256_of, write_json
from scanbench.learner import Learner
from scanbench.learning import accelerator, device_name, fit, resolve_precision
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
from scanbench.samples import (
    SampleEpochs,
    Samples,
    trained_classes,
    training_parts,
    training_samples,
    whole,
)
from scanbench.settings import Settings, from_config
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
            samples = training_samples(
                data, parts, (classes, label_N), times, spec, settings, where
            )
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
        model.initialise(*whole(samples.train), samples.weights_C, spec["seed"])  # type: ignore[operator]
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
    fit(*whole(samples.train), samples.weights_C, seed)  # type: ignore[operator]
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
