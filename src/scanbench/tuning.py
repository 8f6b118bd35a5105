"""The same tuning effort for every experiment, and validation scans alone to choose by.

An experiment names the values that may be tried (`search`), the configuration how many settings
(`tuning.trials`). Random search (Bergstra & Bengio 2012, JMLR 13, 281) draws as many for each
experiment; every fold chooses its own, as its test scans may be training scans of another fold.
"""

from __future__ import annotations

import copy
import csv
import math
import random
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from scanbench import provenance
from scanbench.errors import UserError
from scanbench.files import read_json, write_json

#: Parts of an experiment in which a search may change values.
PARTS = ("training", "options", "augmentation")

#: Keys of `training` that no search may change: what is chosen by, and how it is computed.
FIXED = frozenset(
    {
        *("monitor", "precision", "devices", "num_threads", "resume", "tensorboard"),
        *("max_scans", "fraction", "frozen"),
    }
)

#: Keys of `training` that change what a loss means, so that losses under them do not compare.
OF_THE_LOSS = frozenset({"label_smoothing", "answers", "class_weights"})

#: Provenance of `choose`, beside the file with the chosen setting.
RECORD = "choose.json"

Setting = dict[str, Any]


def settings(search: Mapping[str, Sequence[Any]], trials: int, seed: int) -> list[Setting]:
    """Return the settings to try: key → value, all different, drawn at random.

    Parameters
    ----------
    search
        Key with its part, such as `training.learning_rate` → values to try.
    trials
        Settings wanted. There are as many as combinations of values, if these are fewer.
    seed
        Of the draw.
    """
    keys = sorted(search)
    possible = size(search)
    drawn = random.Random(seed).sample(range(possible), min(trials, possible))
    found = []
    for number in drawn:
        setting = {}
        for key in keys:
            number, place = divmod(number, len(search[key]))
            setting[key] = search[key][place]
        found.append(setting)
    return found


def size(search: Mapping[str, Sequence[Any]]) -> int:
    """Return how many settings a search could try."""
    return math.prod(len(values) for values in search.values())


def with_setting(experiment: Mapping[str, Any], setting: Setting) -> dict[str, Any]:
    """Return an experiment, or the spec of a training, with the values of a setting."""
    changed = copy.deepcopy(dict(experiment))
    for key, value in setting.items():
        part, _, name = key.partition(".")
        changed[part][name] = value
    return changed


def choose(spec: Mapping[str, Any], trials: Sequence[Path], out: Path) -> None:
    """Choose the setting with the best validation figure, and write it with all that were tried.

    Parameters
    ----------
    spec
        `search`, `settings` (one for each trial), `monitor`.
    trials
        Folders of the trials: `history.csv` and `train.json`.
    out
        The JSON file to write: `setting`, `monitor`, `search`, `possible`, and `trials`, with
        `setting` and `score` of each. Provenance and the CPU seconds of all trials go into
        `choose.json` beside it.

    Raises
    ------
    UserError
        If the record of a trial is damaged, or no trial has a finite figure.
    """
    started = time.time()
    monitor = spec["monitor"]
    better = min if monitor == "val_loss" else max
    tried = [
        {"setting": setting, "score": _score(folder / "history.csv", monitor, better)}
        for setting, folder in zip(spec["settings"], trials, strict=True)
    ]
    finite = [trial for trial in tried if trial["score"] is not None]
    if not finite:
        raise UserError(f"{out.parent}: no trial has a finite {monitor}; search other values")
    best = better(finite, key=lambda trial: trial["score"])  # the first of equals
    inputs = {
        f"{folder.name}/{name}": folder / name
        for folder in trials
        for name in ("history.csv", "train.json")
    }
    spent = sum(_cpu_seconds(folder / "train.json") for folder in trials)
    record = provenance.record(spec, inputs=inputs, started=started)
    write_json(out.with_name(RECORD), {**record, "trials_cpu_seconds": spent})
    write_json(
        out,
        {
            "setting": best["setting"],
            "score": best["score"],
            "monitor": monitor,
            "search": spec["search"],
            "possible": size(spec["search"]),
            "trials": tried,
        },
    )


def _score(path: Path, monitor: str, better: Callable[..., float]) -> float | None:
    try:
        with path.open(encoding="utf-8", newline="") as file:
            figures = [float(row[monitor]) for row in csv.DictReader(file)]
    except (OSError, KeyError, TypeError, ValueError, csv.Error) as error:
        raise UserError(
            f"{path}: {monitor} cannot be read ({error}); run the trial again"
        ) from None
    return better((figure for figure in figures if math.isfinite(figure)), default=None)


def _cpu_seconds(path: Path) -> float:
    try:
        return float(read_json(path, "run the trial again")["cpu_seconds"])
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error}); run the trial again") from None


def read_chosen(path: Path) -> tuple[dict[str, Any], float]:
    """Return what `choose` wrote, and the CPU seconds that the trials took.

    Raises
    ------
    UserError
        If a file is missing or damaged.
    """
    record = path.with_name(RECORD)
    try:
        chosen = read_json(path, "choose again")
        setting = chosen["setting"]
        if not isinstance(setting, dict) or any("." not in key for key in setting):
            raise ValueError("setting is not one of a search")
        spent = float(read_json(record, "choose again")["trials_cpu_seconds"])
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error}); choose again") from None
    return chosen, spent
