"""Latency of one scan line: `python benchmarks/streaming.py [--scans N]`.

CPU time of the thread per line (`time.thread_time`), one thread, batch 1, over all lines of scans
of 128 × 128. Weights are random: latency does not depend on them. `naive` passes all lines so far
through the model again; its ratio to the others is taken at line 128, where it costs most.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np
import onnxruntime
import torch
from torch import nn

from scanbench.export import onnx_step, quantised
from scanbench.tipstate.models import build

LINES = PIXELS = 128
CLASSES = 4
MODELS = {
    "causal, default (6 layers of 256)": ("causal", {}),
    "causal, small (2 layers of 64)": (
        "causal",
        {"d_model": 64, "layers": 2, "heads": 4, "ffn": 256},
    ),
    "lrcn, default": ("lrcn", {}),
}
Push = Callable[[np.ndarray], None]


def naive(model: nn.Module) -> Push:
    seen: list[np.ndarray] = []

    def push(line_P: np.ndarray) -> None:
        seen.append(line_P)
        n_lines = len(seen)
        # The LRCN needs a window of lines at least.
        first = model.answer_lines()[0]  # type: ignore[operator]
        x_LP = torch.from_numpy(np.stack(seen))
        if n_lines >= first:
            n_lines_B = torch.tensor([n_lines])
            if hasattr(model, "positions_LD"):  # a prefix costs what its own lines cost
                whole_LD = model.positions_LD
                model.positions_LD = whole_LD[:n_lines]
                model(x_LP[None], n_lines_B)
                model.positions_LD = whole_LD
            else:
                model(x_LP[None], n_lines_B)

    return push


def cached(model: nn.Module) -> Push:
    state = model.initial_state()  # type: ignore[operator]

    def push(line_P: np.ndarray) -> None:
        nonlocal state
        _, _, state = model.step(torch.from_numpy(line_P), state)  # type: ignore[operator]

    return push


def exported(session: onnxruntime.InferenceSession, model: nn.Module) -> Push:
    state = {name: value.numpy() for name, value in model.initial_state().items()}  # type: ignore[operator]

    def push(line_P: np.ndarray) -> None:
        nonlocal state
        _, _, *after = session.run(None, {"line": line_P, **state})
        state = dict(zip(state, after, strict=True))

    return push


def session_of(proto: object) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(
        proto.SerializeToString(),  # type: ignore[attr-defined]
        options,
        providers=["CPUExecutionProvider"],
    )


def measured(start: Callable[[], Push], scans: int) -> np.ndarray:
    """Return CPU milliseconds per line, [scans, LINES], after a scan to warm up."""
    rng = np.random.default_rng(0)
    result = np.empty((scans + 1, LINES))
    for scan in range(scans + 1):
        push = start()
        for line, line_P in enumerate(rng.normal(size=(LINES, PIXELS)).astype(np.float32)):
            before = time.thread_time()
            push(line_P)
            result[scan, line] = time.thread_time() - before
    return 1e3 * result[1:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scans", type=int, default=5, help="scans per row; default: 5")
    scans = parser.parse_args().scans
    torch.set_num_threads(1)
    print(
        "| Model | How | p50 / ms | p99 / ms | max / ms | at line 128 / ms | faster than naive |\n"
        "|---|---|---|---|---|---|---|"
    )
    for title, (name, options) in MODELS.items():
        torch.manual_seed(0)
        model = build(name, options, LINES, PIXELS, CLASSES).eval()
        proto = onnx_step(model, PIXELS)
        full, small = session_of(proto), session_of(quantised(proto))
        ways: dict[str, Callable[[], Push]] = {
            "naive, eager": lambda model=model: naive(model),
            "cached, eager": lambda model=model: cached(model),
            "cached, ONNX fp32": lambda s=full, model=model: exported(s, model),
            "cached, ONNX INT8": lambda s=small, model=model: exported(s, model),
        }
        at_end: dict[str, float] = {}
        for way, start in ways.items():
            with torch.inference_mode():
                ms = measured(start, 1 if way.startswith("naive") else scans)
            p50, p99 = np.percentile(ms, [50, 99])
            # The LRCN answers at every fourth line only: the last four are one answer's work.
            at_end[way] = float(np.median(ms[:, -4:]))
            ratio = at_end["naive, eager"] / at_end[way]
            faster = "" if way.startswith("naive") else f"{ratio:.0f}×"
            print(
                f"| {title} | {way} | {p50:.2f} | {p99:.2f} | {ms.max():.2f} | "
                f"{at_end[way]:.2f} | {faster} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
