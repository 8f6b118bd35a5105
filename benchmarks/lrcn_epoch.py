"""What a training epoch costs: the LRCN against the plain way, and the transformers beside it.

    python benchmarks/lrcn_epoch.py [--scans 32] [--repeats 2]

One epoch is forward, backward and AdamW step over simulated scans of 128×128, on one thread of the
CPU, counted in CPU time and as the median of repeats that take turns. The plain way is float32,
every window cut out and passed through the convolutions on its own, channels first in memory. Both
ways start from the same weights and see the same batches and dropout, so their losses must agree.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from scanbench.convert import convert
from scanbench.store import Store
from scanbench.tipstate.ingest import ingest
from scanbench.tipstate.models import build, lrcn
from scanbench.tipstate.simulate import simulate

LINES = PIXELS = 128
CLASSES = ("atoms", "asymmetry/dimer", "rows", "defect")
BATCH = 16
SMALLER = {"d_model": 128, "layers": 4}
# The order of float32 sums differs between the ways, and training enlarges the difference.
TOLERANCE = 1e-3


class PlainLRCN(lrcn.Model):
    """The LRCN as one would first write it."""

    def window_features(self, x_BLP: Tensor) -> Tensor:
        """Pass every window through the convolutions on its own, channels first in memory."""
        x_BTPW = x_BLP.unfold(1, self.options.window, self.options.stride)
        x_N1WP = x_BTPW.transpose(2, 3).flatten(0, 1)[:, None].contiguous()
        feature_BTFQ = self.cnn(x_N1WP).mean(2).unflatten(0, x_BTPW.shape[:2])
        return lrcn.columns_to_features(feature_BTFQ.transpose(1, 2))


@dataclass
class Contender:
    """A model and what its epochs cost and gave."""

    name: str
    model: nn.Module
    seconds: list[float]
    losses: list[float]


def simulated_scans(count: int) -> tuple[Tensor, Tensor]:
    """Return simulated scans, normalised line by line [N, L, P], and their labels [N]."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        spec = {"scans": count, "sessions": 4, "pixels": [PIXELS], "aborted_share": 0.0}
        simulate(spec, folder / "raw")
        ingest({"classes": list(CLASSES)}, folder / "raw", folder / "raw/labels.csv", folder / "in")
        convert({"classes": list(CLASSES)}, folder / "in", folder / "store.h5")
        with Store(folder / "store.h5") as store:
            x_NLP = torch.from_numpy(store.read(range(len(store)), "line"))
            return x_NLP, torch.from_numpy(store.label).long()


def epoch(model: nn.Module, x_NLP: Tensor, label_N: Tensor) -> list[float]:
    """Train for one epoch and return the loss of each step."""
    torch.manual_seed(0)  # the same dropout for every contender of the same shapes
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3)
    losses = []
    for x_BLP, label_B in zip(x_NLP.split(BATCH), label_N.split(BATCH), strict=True):
        logits_BTC = model(x_BLP, torch.full(label_B.shape, LINES))
        label_BT = label_B[:, None].expand(logits_BTC.shape[:2])
        loss = F.cross_entropy(logits_BTC.flatten(0, 1), label_BT.flatten())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    return losses


def contenders() -> list[Contender]:
    """Return the plain LRCN, ours, and the transformers at full and at smaller size."""
    shape = {"lines": LINES, "pixels": PIXELS, "classes": len(CLASSES)}
    models: dict[str, nn.Module] = {
        "lrcn, plain": PlainLRCN(lrcn.Options(), **shape),
        "lrcn": build("lrcn", {}, *shape.values()),
    }
    for name in ("vit-prefix", "vit", "causal"):
        models[name] = build(name, {}, *shape.values())
        models[f"{name}, d_model 128, 4 layers"] = build(name, SMALLER, *shape.values())
    models["lrcn, plain"].load_state_dict(models["lrcn"].state_dict())
    return [Contender(name, model, [], []) for name, model in models.items()]


def main() -> None:
    """Time the epochs and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scans", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    x_NLP, label_N = simulated_scans(arguments.scans)
    field = contenders()
    start = [{k: v.clone() for k, v in item.model.state_dict().items()} for item in field]
    for item in field:
        epoch(item.model, x_NLP[:BATCH], label_N[:BATCH])  # one step to warm up
    with tqdm(total=arguments.repeats * len(field), desc="epochs") as bar:
        for _ in range(arguments.repeats):
            for item, weights in zip(field, start, strict=True):
                item.model.load_state_dict(weights)
                began = time.thread_time()
                item.losses = epoch(item.model, x_NLP, label_N)
                item.seconds.append(time.thread_time() - began)
                bar.update()

    per_thousand = [statistics.median(item.seconds) * 1000 / len(x_NLP) for item in field]
    print("| model | parameters | CPU s per epoch of 1,000 scans | times faster than plain |")
    print("|---|--:|--:|--:|")
    for item, seconds in zip(field, per_thousand, strict=True):
        size = sum(parameter.numel() for parameter in item.model.parameters())
        ratio = f"{per_thousand[0] / seconds:.1f}" if item.name == "lrcn" else ""
        print(f"| {item.name} | {size:,} | {seconds:.0f} | {ratio} |")
    plain, ours = field[0].losses, field[1].losses
    difference = max(abs(a - b) for a, b in zip(plain, ours, strict=True))
    print(
        f"\n{len(x_NLP)} scans, {arguments.repeats} repeats, one thread. Loss of the LRCN over"
        f" {len(ours)} steps: {ours[0]:.4f} to {ours[-1]:.4f}; the two ways differ by at most"
        f" {difference:.1e}."
    )
    assert difference < TOLERANCE, "the two ways must give the same losses"


if __name__ == "__main__":
    main()
