"""A small scans folder with any manifest."""

from pathlib import Path

import numpy as np
import pandas as pd

from scanbench.files import replacing_folder
from scanbench.scans import ScansWriter


def write_scans(folder: Path, scans: list[np.ndarray], **columns: object) -> Path:
    """Write scans; a column is one value for all of them or a list."""
    n = len(scans)
    table = {
        "scan_id": [f"scan{k:03d}" for k in range(n)],
        "group": [f"session{k // 2}" for k in range(n)],
        "file": [f"scan{k:03d}.sxm" for k in range(n)],
        "sha256": [f"{k:064x}" for k in range(n)],
        "planned_lines": [len(x) for x in scans],
        "channel": "Z",
        "unit": "m",
        "direction": "forward",
        "slow_direction": "up",
        "label": [("atoms", "rows")[k % 2] for k in range(n)],
        "excluded": "",
        **columns,
    }
    rows = pd.DataFrame(table).to_dict("records")
    with replacing_folder(folder, marker=".") as part, ScansWriter(part) as writer:
        rows = [{**row, **writer.add(x)} for row, x in zip(rows, scans, strict=True)]
        writer.finish(rows, [], [])
    return folder


def heights(n: int = 7, lines: int = 24, pixels: int = 20, seed: int = 0) -> list[np.ndarray]:
    """Noise of atomic height on the offset that a piezo has."""
    rng = np.random.default_rng(seed)
    return [(-2e-7 + 1e-10 * rng.normal(size=(lines, pixels))).astype("f4") for _ in range(n)]
