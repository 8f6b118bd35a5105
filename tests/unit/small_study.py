"""A small data set for tests of training and prediction: a store, a split and a spec."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from scanbench.convert import convert
from scanbench.files import sha256_of

CLASSES = ("atoms", "defect", "rows")
LINES = PIXELS = 16


def heights(label: int, lines: int, rng: np.random.Generator) -> np.ndarray:
    """Return [lines, PIXELS] whose period along the line tells the class."""
    phase = rng.uniform(0, 2 * np.pi, size=(lines, 1))
    wave = np.sin(2 * np.pi * (2 * label + 1) * np.arange(PIXELS) / PIXELS + phase)
    return (wave + 0.3 * rng.normal(size=(lines, PIXELS))).astype(np.float32)


def make(
    folder: Path, groups: int = 6, scans_per_group: int = 9, *, changes: bool = False
) -> tuple[Path, Path]:
    """Write a store, heights in metres, and its split in two folds; every fifth scan is partial.

    With `changes`, the scans of class `defect` say that their tip changed at line 7.
    """
    rng = np.random.default_rng(0)
    scans = folder / "scans"
    scans.mkdir(parents=True)
    rows, arrays = [], {}
    for k in range(groups * scans_per_group):
        label = int(rng.permuted(np.array([0, 1, 2, 2]))[0]) if k % 3 else k // 3 % 3
        lines = int(rng.integers(5, LINES)) if k % 5 == 4 else LINES
        arrays[f"scan{k}"] = 1e-10 * heights(label, lines, rng)
        rows.append(
            {
                "scan_id": f"scan{k:03}",
                "group": f"session{k // scans_per_group}",
                "file": f"scan{k:03}.sxm",
                "sha256": f"{k:064x}",
                "shard": "shard-00000.npz",
                "key": f"scan{k}",
                "lines": lines,
                "pixels": PIXELS,
                "planned_lines": LINES,
                "width_m": 1e-8,
                "height_m": 1e-8,
                "line_time_s": 0.1,
                "bias_v": -2.0,
                "current_a": 5e-11,
                "channel": "Z",
                "unit": "m",
                "direction": "forward",
                "slow_direction": "up",
                "label": CLASSES[label],
                "excluded": "",
                "responses": "",
                "change_line": 7 if changes and CLASSES[label] == "defect" and lines > 7 else "",
            }
        )
    np.savez(scans / "shard-00000.npz", **arrays)  # type: ignore[arg-type]
    pd.DataFrame(rows).to_csv(scans / "manifest.csv", index=False)
    store, split = folder / "store.h5", folder / "split.json"
    convert({"study": "tipstate", "lines": LINES, "pixels": PIXELS}, scans, store)
    third = groups // 3 * scans_per_group
    names = [str(row["scan_id"]) for row in rows]
    parts = [names[:third], names[third : 2 * third], names[2 * third :]]
    document = {
        "schema_version": 1,
        "store_sha256": sha256_of(store),
        "config": {},
        "seed": 0,
        "classes": list(CLASSES),
        "folds": [
            {"test": parts[k], "validation": parts[k - 1], "train": parts[k - 2]} for k in (0, 1)
        ],
        "audit": [],
        "counts": [],
    }
    split.write_text(json.dumps(document), encoding="utf-8")
    return store, split


def spec(model: str = "cnn-scan", **changes: Any) -> dict[str, Any]:
    """Return what the train stage gets; `training` and `augmentation` are merged."""
    training = {
        "epochs": 3,
        "batch_size": 8,
        "learning_rate": 3e-3,
        "monitor": "val_loss",
        "precision": "fp32",  # that of predictions, on processors with bf16 too
    }
    augmentation = {"flip_fast": 0.5, "noise": 0.1}
    small: dict[str, dict[str, Any]] = {
        "cnn-scan": {"widths": [8, 16]},
        "causal": {"d_model": 32, "layers": 1, "heads": 2, "ffn": 32},
        "vit": {"d_model": 32, "layers": 1, "heads": 2, "ffn": 32},
        "vit-prefix": {"d_model": 32, "layers": 1, "heads": 2, "ffn": 32, "outputs": 5},
        "efficientnet": {"magnification": 3, "views": 1, "frozen_stages": 0},
        "efficientnet-causal": {"frozen_stages": 0},
        "efficientnet-linear": {"magnification": 3},
        "efficientnet-rolling": {"window": 8, "stride": 4, "magnification": 5},
        "lrcn": {"window": 10, "stride": 2, "channels": [4, 8, 8], "hidden": 16},
    }
    return {
        "study": "tipstate",
        "name": model,
        "model": model,
        "options": small.get(model, {}),
        "normalisation": "line",
        "window": None,
        "fold": 0,
        "seed": 0,
        **changes,
        "training": training | changes.get("training", {}),
        "augmentation": augmentation | changes.get("augmentation", {}),
    }


def ids(split: Path, part: str, fold: int = 0) -> list[str]:
    """Return the scan ids of a part."""
    return json.loads(split.read_text())["folds"][fold][part]
