"""A run with random weights, and items of a source, for tests of streaming."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from scanbench.runs import Run, build_model, load_run, save_run
from scanbench.streaming import Item, Line, ScanInfo

CLASSES = ["atoms", "rows", "defect"]
LINES = PIXELS = 16
OPTIONS: dict[str, dict[str, Any]] = {
    "causal": {"d_model": 16, "layers": 2, "heads": 2, "ffn": 16},
    "lrcn": {"window": 10, "stride": 2, "channels": [2, 3, 4], "hidden": 8},
    "vit": {"d_model": 16, "layers": 1, "heads": 2, "ffn": 16},
    "cnn-scan": {"widths": [4, 8]},
    "features": {},
    "efficientnet": {},
}


def make_run(folder: Path, model: str = "causal", **changes: Any) -> Run:
    """Write a run with random weights; `changes` are of `model.json`."""
    window = changes.get("window")
    lines = window["lines"] if window else changes.get("lines", LINES)
    shape = {"lines": lines, "pixels": changes.get("pixels", PIXELS)}
    options = {**OPTIONS[model], **changes.pop("options", {})}
    torch.manual_seed(0)
    network = build_model("tipstate", model, options, **shape, classes=len(CLASSES))
    # Random buffers, too: those of a model with `fit` start as zeros.
    weights = {
        name: torch.randn(value.shape) * 0.1 if hasattr(network, "fit") else value * 2
        for name, value in network.state_dict().items()
    }
    meta = {
        "study": "tipstate",
        "name": model,
        "model": model,
        "options": options,
        **shape,
        "scan_lines": LINES,
        "classes": CLASSES,
        "normalisation": "line",
        "window": None,
        "training": {"num_threads": 1},
        "prior": [1 / 3] * 3,
        "fold": 0,
        "seed": 0,
        "store_sha256": "0" * 64,
        "split_sha256": "0" * 64,
        "unit": "m",
        "channel": "Z",
        "ingest": {},
        **changes,
    }
    folder.mkdir(parents=True, exist_ok=True)
    save_run(folder, weights, meta)
    return load_run(folder)


def heights(lines: int = LINES, pixels: int = PIXELS, seed: int = 0) -> np.ndarray:
    """Return random heights in metres, with an offset as instruments have."""
    rng = np.random.default_rng(seed)
    return (1e-7 + 1e-10 * rng.normal(size=(lines, pixels))).astype(np.float32)


def items(x_LP: np.ndarray, planned: int | None = None) -> list[Item]:
    """Return what a source gives about a scan."""
    planned = planned or len(x_LP)
    info = ScanInfo(name="scan", planned_lines=planned, pixels=x_LP.shape[1], unit="m")
    return [info, *(Line(number, x_P) for number, x_P in enumerate(x_LP))]
