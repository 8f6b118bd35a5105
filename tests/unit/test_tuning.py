"""Settings are drawn without repeats, and validation figures alone choose among them."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from scanbench import plan
from scanbench.config import resolve
from scanbench.errors import UserError
from scanbench.tuning import choose, read_chosen, settings, size, with_setting

ROOT = Path(__file__).parents[2]
SCHEMA = yaml.safe_load((ROOT / "workflow/schemas/config.schema.yaml").read_text())
VALUES = st.lists(st.integers(0, 9), min_size=1, max_size=4, unique=True)


@given(
    search=st.dictionaries(st.text("abc", min_size=1), VALUES, min_size=1, max_size=3),
    trials=st.integers(1, 70),
    seed=st.integers(0, 99),
)
def test_settings_are_distinct_combinations(
    search: dict[str, list[int]], trials: int, seed: int
) -> None:
    found = settings(search, trials, seed)
    assert len(found) == min(trials, size(search))
    assert len({json.dumps(setting, sort_keys=True) for setting in found}) == len(found)
    assert all(setting[key] in search[key] for setting in found for key in search)
    assert found == settings(dict(reversed(search.items())), trials, seed)


def test_a_setting_changes_its_keys_alone() -> None:
    spec = {"training": {"epochs": 3, "learning_rate": 1.0}, "options": {"layers": 2}}
    changed = with_setting(spec, {"training.learning_rate": 0.1})
    assert changed == {**spec, "training": {"epochs": 3, "learning_rate": 0.1}}
    assert spec["training"]["learning_rate"] == 1.0


def trial(folder: Path, figures: list[float], seconds: float = 2.0) -> Path:
    folder.mkdir()
    rows = "".join(f"{k},{figure}\n" for k, figure in enumerate(figures, 1))
    (folder / "history.csv").write_text("epoch,val_loss\n" + rows)
    (folder / "train.json").write_text(json.dumps({"cpu_seconds": seconds}))
    return folder


def spec(*rates: float) -> dict[str, Any]:
    search = {"training.learning_rate": list(rates)}
    tried = [{"training.learning_rate": rate} for rate in rates]
    return {"search": search, "settings": tried, "monitor": "val_loss"}


def test_the_best_epoch_of_the_best_trial_decides(tmp_path: Path) -> None:
    folders = [
        trial(tmp_path / "trial0", [0.9, 0.8]),
        trial(tmp_path / "trial1", [0.7, math.nan]),
        trial(tmp_path / "trial2", [math.nan, math.nan]),
        trial(tmp_path / "trial3", [0.7, 0.75]),
    ]
    choose(spec(0.1, 0.2, 0.3, 0.4), folders, tmp_path / "chosen.json")
    chosen, spent = read_chosen(tmp_path / "chosen.json")
    assert chosen["setting"] == {"training.learning_rate": 0.2}  # the first of equals
    assert [tried["score"] for tried in chosen["trials"]] == [0.8, 0.7, None, 0.7]
    assert (chosen["score"], chosen["possible"], spent) == (0.7, 4, 8.0)


def test_no_finite_figure_is_refused(tmp_path: Path) -> None:
    folders = [trial(tmp_path / "trial0", [math.nan])]
    with pytest.raises(UserError, match="no trial has a finite val_loss"):
        choose(spec(0.1), folders, tmp_path / "chosen.json")


@pytest.mark.parametrize("text", ["", "[]", '{"setting": {"learning_rate": 1}}', '{"setting": 3}'])
def test_a_damaged_choice_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "chosen.json").write_text(text)
    with pytest.raises(UserError, match=r"chosen\.json: "):
        read_chosen(tmp_path / "chosen.json")


def test_a_damaged_trial_is_named(tmp_path: Path) -> None:
    folder = trial(tmp_path / "trial0", [0.5])
    (folder / "history.csv").write_text("epoch,val_auroc\n1,0.5\n")
    with pytest.raises(UserError, match=r"trial0/history\.csv: val_loss cannot be read"):
        choose(spec(0.1), [folder], tmp_path / "chosen.json")


def configured(experiments: dict[str, Any], trials: int = 2) -> dict[str, Any]:
    config = {
        "study": "tipstate",
        "targets": ["one"],
        "datasets": {"simulated": {"title": "s", "source": "simulate"}},
        "splits": {"sessions": {"scheme": "kfold"}},
        "tuning": {"trials": trials},
        "experiments": experiments,
        "comparisons": {
            "one": {
                "title": "one",
                "dataset": "simulated",
                "split": "sessions",
                "experiments": list(experiments),
                "seeds": [0],
            }
        },
    }
    return resolve(config, SCHEMA)


RATES = {"training.learning_rate": [1, 0.1, 0.01]}


@pytest.mark.parametrize(
    ("search", "message"),
    [
        ({"learning_rate": [1.0]}, "search.learning_rate: a search changes keys of training"),
        ({"training.learning_rates": [1.0]}, "training.learning_rates: unknown key"),
        ({"training.learning_rate": [-1.0]}, "training.learning_rate: -1.0 is less than"),
        ({"training.monitor": ["val_loss"]}, "it is no setting to choose"),
        ({"options.layer": [1, 2]}, "options.layer: unknown key"),
        ({"options.layers": [2]}, "1 settings are fewer than the 2 of tuning.trials"),
    ],
)
def test_a_search_that_cannot_be_is_refused(search: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as error:
        configured({"vit": {"model": "vit", "search": search}})
    assert message in str(error.value)


def test_unequal_effort_is_refused() -> None:
    experiments = {"vit": {"model": "vit", "search": RATES}, "cnn-scan": {"model": "cnn-scan"}}
    with pytest.raises(UserError, match="'cnn-scan' has no search, but others have"):
        configured(experiments)
    configured(experiments, trials=0)  # nothing is searched
    configured({**experiments, "cnn-scan": {"model": "cnn-scan", "search": {}}})


def test_trials_differ_from_the_training_in_their_setting_alone() -> None:
    config = configured({"vit": {"model": "vit", "search": RATES}})
    run = {"experiment": "vit", "fold": 1, "seed": 0}
    training = json.loads(plan.train_spec(config, run))
    assert len(plan.settings(config, run)) == 2
    for number, setting in enumerate(plan.settings(config, run)):
        found = json.loads(plan.trial_spec(config, {**run, "trial": number}))
        assert found == with_setting(training, setting)
        assert isinstance(setting["training.learning_rate"], float)
