"""Adding a model is one file and one entry of the configuration."""

from __future__ import annotations

import pandas as pd
import pytest
from conftest import Project

pytestmark = pytest.mark.workflow

# As the README shows it.
MODEL = '''
"""`line-mean`: a linear model on the mean and the spread of every line."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class Options:
    """Hyper-parameters of `line-mean`.

    Parameters
    ----------
    hidden
        Width of the hidden layer.
    """

    hidden: int = 8


class Model(nn.Module):
    """Two statistics of each line, a hidden layer, an answer at the end of the scan."""

    def __init__(self, options: Options, *, lines: int, pixels: int, classes: int) -> None:
        super().__init__()
        self.lines = lines
        self.net = nn.Sequential(
            nn.Linear(2 * lines, options.hidden), nn.ReLU(), nn.Linear(options.hidden, classes)
        )

    def answer_lines(self) -> list[int]:
        return [self.lines]

    def forward(self, x_BLP: Tensor, n_lines_B: Tensor) -> Tensor:
        seen_BL = torch.arange(self.lines, device=x_BLP.device) < n_lines_B[:, None]
        features_BF = torch.cat([x_BLP.mean(2) * seen_BL, x_BLP.abs().mean(2) * seen_BL], dim=1)
        return self.net(features_BF)[:, None]
'''


def test_a_model_is_one_file_and_one_entry(finished: Project) -> None:
    path = finished.folder / "src/scanbench/tipstate/models/line_mean.py"
    config = {
        "experiments": {"line-mean": {"model": "line-mean", "options": {"hidden": 4}}},
        "comparisons": {
            "own": {
                "title": "With one more model",
                "dataset": "simulated",
                "split": "sessions",
                "seeds": [0],
                "experiments": ["majority", "line-mean"],
            }
        },
        "targets": ["own"],
    }
    try:
        path.write_text(MODEL, encoding="utf-8")
        planned = finished.planned(config=config)
        assert {job for job in planned if job[0] == "train"} == {
            ("train", "dataset=simulated, split=sessions, experiment=line-mean, fold=0, seed=0")
        }
        finished.snakemake("--cores", "2", config=config)
        metrics = pd.read_csv(finished.folder / "results/comparisons/own/scores/metrics.csv")
        assert set(metrics["experiment"]) == {"majority", "line-mean"}
    finally:
        path.unlink(missing_ok=True)
