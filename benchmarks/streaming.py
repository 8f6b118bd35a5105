"""Latency of one scan line: `python benchmarks/streaming.py [RUN …] [--scans N] [--results FILE]`.

CPU time of the thread per line (`time.thread_time`), one thread, batch 1, over all lines of random
scans. All ways of all models take turns, scan by scan, so that whatever else the machine
does meets all alike. `naive` passes all lines so far through the model again; its ratio to the
others is taken at the last lines, where it costs most.

Without RUN: models of 128 lines of 128 pixels with random weights, on which latency hardly depends.
`--results`: a `forms.csv` of a deployment, whose AUROC and balanced accuracy stand in the rows of
its experiment's runs. Memory: what a process of its own adds that loads a step and streams a scan.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
import pandas as pd
import torch
from torch import nn
from torch.nn import functional

from scanbench.deployment import PYTORCH
from scanbench.export import FORMS, in_form, onnx_step
from scanbench.exported import Exported
from scanbench.runs import build_model, load_run

LINES = PIXELS = 128
CLASSES = 4
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "causal, default (6 layers of 256)": ("causal", {}),
    "causal, small (2 layers of 64)": (
        "causal",
        {"d_model": 64, "layers": 2, "heads": 4, "ffn": 256},
    ),
    "lrcn, default": ("lrcn", {}),
    "efficientnet-causal, default": ("efficientnet-causal", {}),
}
#: Numbers written between two lines with `--cold`: more than the caches of a core hold.
SWEPT = 1_000_000
#: What a process needs to load a step and stream a scan, in MB over one that has imported the same.
MEMORY = """
import sys
import numpy as np, onnxruntime
def resident():
    words = open("/proc/self/status").read().split()
    return int(words[words.index("VmRSS:") + 1]) / 1024
before = resident()
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = options.inter_op_num_threads = 1
session = onnxruntime.InferenceSession(
    sys.argv[1], options, providers=["CPUExecutionProvider"]
)
types = {"tensor(float)": np.float32, "tensor(int64)": np.int64}
line, *state = session.get_inputs()
state = {node.name: np.zeros(node.shape, types[node.type]) for node in state}
for _ in range(int(sys.argv[2])):
    _, _, *after = session.run(None, {"line": np.zeros(line.shape, np.float32), **state})
    state = dict(zip(state, after, strict=True))
print(resident() - before)
"""
#: Tensors of models that hold something for each line.
PER_LINE = ("positions_LD", "gain_L", "shift_LC")
Push = Callable[[np.ndarray], object]


@dataclass(frozen=True, kw_only=True)
class Way:
    """One row of the table: how a model is fed, and what starts it on a scan."""

    title: str
    how: str
    start: Callable[[], Push]
    lines: int
    pixels: int
    form: str = ""
    memory_mb: float = float("nan")


def naive(model: nn.Module) -> Push:
    seen: list[np.ndarray] = []

    def push(line_P: np.ndarray) -> None:
        seen.append(line_P)
        n_lines = len(seen)
        # The LRCN needs a window of lines at least.
        first = model.answer_lines()[0]  # type: ignore[operator]
        x_LP = torch.from_numpy(np.stack(seen))
        if n_lines < first:
            return
        # A prefix costs what its own lines cost, where the model has something for each of all.
        # Strides need a few lines at least.
        rows = max(n_lines, getattr(model, "periods", [1])[-1])
        x_BLP = functional.pad(x_LP, (0, 0, 0, rows - n_lines))[None]
        kept = []
        for name, value in (*model.named_buffers(), *model.named_parameters()):
            owner, _, leaf = name.rpartition(".")
            if leaf in PER_LINE:
                kept.append((model.get_submodule(owner), leaf, value))
                setattr(model.get_submodule(owner), leaf, part(value, rows))
        lines, model.lines = model.lines, rows  # type: ignore[assignment]
        model(x_BLP, torch.tensor([n_lines]))
        model.lines = lines
        for module, leaf, value in kept:
            setattr(module, leaf, value)

    return push


def part(value: torch.Tensor, lines: int) -> torch.Tensor:
    cut = value[:lines]
    return nn.Parameter(cut) if isinstance(value, nn.Parameter) else cut


def cached(model: nn.Module, step: Callable[..., Any] | None = None) -> Push:
    state = model.initial_state()  # type: ignore[operator]
    call: Callable[..., Any] = step or model.step  # type: ignore[assignment]

    def push(line_P: np.ndarray) -> None:
        nonlocal state
        _, _, state = call(torch.from_numpy(line_P), state)

    return push


def exported(step: Exported) -> Push:
    step.reset()
    return step.push


def memory_mb(path: Path, lines: int) -> float:
    command = [sys.executable, "-c", MEMORY, str(path), str(lines)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def ways(title: str, model: nn.Module, lines: int, pixels: int, *, compiled: bool) -> list[Way]:
    own: dict[str, Any] = {"title": title, "lines": lines, "pixels": pixels}
    found = [
        Way(how="naive, eager", start=lambda: naive(model), form=PYTORCH, **own),
        Way(how="cached, eager", start=lambda: cached(model), form=PYTORCH, **own),
    ]
    if compiled:
        step = torch.compile(model.step)  # type: ignore[call-overload]
        found.append(
            Way(how="cached, compiled", start=lambda: cached(model, step), form=PYTORCH, **own)
        )
    proto = onnx_step(model, pixels)
    for form in FORMS:
        with TemporaryDirectory() as folder:
            path = Path(folder, "step.onnx")
            step_of_run = in_form(proto, form)
            # What `scanbench export` notes; a model with random weights has no run to tell of.
            onnx.helper.set_model_props(step_of_run, {"scanbench": "{}", "form": form})
            onnx.save_model(step_of_run, path)
            step_of_form = Exported(path)
            found.append(
                Way(
                    how=f"cached, ONNX {form}",
                    start=lambda step=step_of_form: exported(step),  # type: ignore[misc]
                    form=form,
                    memory_mb=memory_mb(path, lines),
                    **own,
                )
            )
    return found


def measured(rows: list[Way], scans: int, *, cold: bool) -> list[np.ndarray]:
    """Return CPU milliseconds per line of each way, [scans, lines], after a scan to warm up."""
    rng = np.random.default_rng(0)
    sweep = np.zeros(SWEPT, np.float32)
    result: list[list[np.ndarray]] = [[] for _ in rows]
    for scan in range(scans + 1):
        for k, way in enumerate(rows):
            # The naive way takes its time, and once is enough to tell.
            if scan > 1 and way.how.startswith("naive"):
                continue
            push = way.start()
            x_LP = rng.normal(size=(way.lines, way.pixels)).astype(np.float32)
            taken = np.empty(way.lines)
            for line, line_P in enumerate(x_LP):
                if cold:
                    sweep += 1
                before = time.thread_time()
                push(line_P)
                taken[line] = time.thread_time() - before
            result[k].append(1e3 * taken)
    return [np.stack(taken[1:]) for taken in result]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="*", type=Path, help="folders of trained runs")
    parser.add_argument("--scans", type=int, default=5, help="scans per row; default: 5")
    parser.add_argument("--results", type=Path, help="forms.csv of a deployment of the runs")
    parser.add_argument("--compiled", action="store_true", help="also torch.compile: minutes")
    parser.add_argument("--cold", action="store_true", help="empty the caches before every line")
    given = parser.parse_args()
    torch.set_num_threads(1)
    models: dict[str, tuple[nn.Module, int, int]] = {}
    for folder in given.runs:
        run = load_run(folder)
        models[str(run.meta["name"])] = (run.model, run.meta["lines"], run.meta["pixels"])
    for title, (name, options) in MODELS.items() if not given.runs else ():
        torch.manual_seed(0)
        sizes = {"lines": LINES, "pixels": PIXELS, "classes": CLASSES}
        models[title] = (build_model("tipstate", name, options, **sizes).eval(), LINES, PIXELS)
    rows = [
        way
        for title, (model, lines, pixels) in models.items()
        for way in ways(title, model, lines, pixels, compiled=given.compiled)
    ]
    with torch.inference_mode():
        times = measured(rows, given.scans, cold=given.cold)
    scores = pd.read_csv(given.results) if given.results else None
    columns = ["Model", "How", "p50 / ms", "p99 / ms", "max / ms", "at the end / ms"]
    columns += ["faster than naive", "memory / MB", "AUROC", "balanced accuracy"]
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    at_end: dict[str, float] = {}
    for way, ms in zip(rows, times, strict=True):
        # The LRCN answers at every fourth line only: the last four are one answer's work.
        last = float(np.median(ms[:, -4:]))
        naively = way.how.startswith("naive")
        at_end.update({way.title: last} if naively else {})
        p50, p99 = np.percentile(ms, [50, 99])
        cells = [way.title, way.how, f"{p50:.2f}", f"{p99:.2f}", f"{ms.max():.2f}", f"{last:.2f}"]
        cells.append("" if naively else f"{at_end[way.title] / last:.0f}×")
        cells.append("" if np.isnan(way.memory_mb) else f"{way.memory_mb:.1f}")
        cells += [score(scores, way.form, metric) for metric in ("auroc", "balanced_accuracy")]
        print(f"| {' | '.join(cells)} |")


def score(scores: pd.DataFrame | None, form: str, metric: str) -> str:
    if scores is None:
        return ""
    at = (scores["form"] == form) & (scores["metric"] == metric) & (scores["reading"] == "scan")
    return f"{scores.loc[at, 'value'].iloc[0]:.4f}" if at.any() else ""


if __name__ == "__main__":
    main()
