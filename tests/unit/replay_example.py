"""A recorded stream of two scans, for tests of replaying."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from streaming_example import LINES, PIXELS, heights, make_run

from scanbench.cli import main
from scanbench.streaming import Item, Line, ScanInfo
from scanbench.tipstate.line_sources import EVENTS, RECORDING, to_json

NAMES = ("first", "second")
#: Advice changes within a scan of random heights and weights.
SPEC = {"stop": ["defect"], "recondition": ["rows"], "threshold": 0.7, "patience": 2}


def source(names: tuple[str, str] = NAMES) -> list[Item]:
    """Return two scans at twice the run's size: one with faults, one upwards and aborted."""
    x_LP = heights(2 * LINES, 2 * PIXELS)
    x_LP[9, 4:6] = np.nan
    x_LP[20:22] = np.nan
    size: dict[str, Any] = {"planned_lines": 2 * LINES, "pixels": 2 * PIXELS, "unit": "m"}
    other = heights(2 * LINES, 2 * PIXELS, seed=1)[: LINES + 3]
    return [
        ScanInfo(name=names[0], **size),
        *(Line(number, x_P) for number, x_P in enumerate(x_LP)),
        ScanInfo(name=names[1], width_m=4e-8, height_m=2e-8, slow_direction="up", **size),
        *(Line(number, x_P) for number, x_P in enumerate(other)),
    ]


def record(folder: Path, names: tuple[str, str] = NAMES, **changes: Any) -> Path:
    """Write a recording of `source` by `scanbench stream`; `changes` are of the policy."""
    (folder / "source").mkdir(parents=True)
    text = "".join(to_json(item) + "\n" for item in source(names))
    (folder / "source" / RECORDING).write_text(text, encoding="utf-8")
    make_run(folder / "run", options={"dropout": 0.0}, name="monitor", fold=2, seed=1)
    options = ["--spec", json.dumps({**SPEC, **changes}), "--record", str(folder / "recording")]
    options += ["--attention"]
    assert main(["stream", str(folder / "run"), str(folder / "source"), *options]) == 0
    return folder / "recording"


def events(recording: Path) -> list[list[dict[str, Any]]]:
    """Return the events of each scan of a recording."""
    scans: list[list[dict[str, Any]]] = []
    for text in (recording / EVENTS).read_text(encoding="utf-8").splitlines():
        event = json.loads(text)
        if event["event"] == "scan":
            scans.append([])
        scans[-1].append(event)
    return scans
