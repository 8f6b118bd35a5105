"""Adding a model is one file and one entry of the configuration."""

from __future__ import annotations

import re

import pandas as pd
import pytest
from conftest import ROOT, Project

pytestmark = pytest.mark.workflow


def readme_model() -> tuple[str, str, str]:
    """Return the file that the README tells to add, its source, and its configuration."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    section = text.split("## Add a model\n")[1].split("\n## ")[0]
    path = re.search(r"`(src/\S+\.py)`", section)
    source = re.search(r"```python\n(.*?)```", section, re.DOTALL)
    overlay = re.search(r"```yaml\n(.*?)```", section, re.DOTALL)
    assert path is not None
    assert source is not None
    assert overlay is not None
    return path[1], source[1], overlay[1]


def test_a_model_is_one_file_and_one_entry(finished: Project) -> None:
    name, source, overlay = readme_model()
    path = finished.folder / name
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
        path.write_text(source, encoding="utf-8")
        planned = finished.planned(config=config)
        assert {job for job in planned if job[0] == "train"} == {
            ("train", "dataset=simulated, split=sessions, experiment=line-mean, fold=0, seed=0")
        }
        (finished.folder / "my-model.yaml").write_text(overlay, encoding="utf-8")
        done = finished.run(
            *("snakemake", "--dry-run", "--configfile"),
            *("config.yaml", "config/quick.yaml", "my-model.yaml"),
        )
        assert "experiment=line-mean, fold=0, seed=1" in done.stdout
        finished.snakemake("--cores", "2", config=config)
        metrics = pd.read_csv(finished.folder / "results/comparisons/own/scores/metrics.csv")
        assert set(metrics["experiment"]) == {"majority", "line-mean"}
    finally:
        path.unlink(missing_ok=True)
