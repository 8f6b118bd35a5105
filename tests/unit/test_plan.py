"""What the resolved configuration means for the workflow and for the report's first page."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from docutils.core import publish_doctree
from jinja2 import Environment, StrictUndefined
from snakemake.utils import update_config

from scanbench import plan
from scanbench.config import resolve
from scanbench.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
SCHEMA = yaml.safe_load((ROOT / "workflow/schemas/config.schema.yaml").read_text("utf-8"))
REPORT = (ROOT / "workflow/report/workflow.rst").read_text("utf-8")


def config(*overlays: str | Mapping[str, Any]) -> dict[str, Any]:
    """Resolve config.yaml with overlays: names of files in `config/`, or mappings."""
    found = yaml.safe_load((ROOT / "config.yaml").read_text("utf-8"))
    for overlay in overlays:
        named = isinstance(overlay, str)
        update_config(
            found,
            yaml.safe_load((ROOT / "config" / overlay).read_text("utf-8")) if named else overlay,
        )
    return dict(resolve(copy.deepcopy(found), SCHEMA))


def layers(overlay: str) -> tuple[str, ...]:
    """Give the overlays that one needs: that of a small size rests on the one of full size."""
    below = overlay.replace("-small.yaml", ".yaml")
    rests = below != overlay and (ROOT / "config" / below).is_file()
    return (below, overlay) if rests else (overlay,)


def first_page(resolved: Mapping[str, Any]) -> str:
    """Render the report's first page as Snakemake does; a name that is not there is an error."""
    environment = Environment(trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined)
    text = environment.from_string(REPORT).render(snakemake={"config": resolved})
    # Level 2: any warning about the markup is an error.
    return publish_doctree(text, settings_overrides={"halt_level": 2}).astext()


@pytest.mark.parametrize(
    "overlays",
    [
        (),
        *(layers(path.name) for path in sorted((ROOT / "config").glob("*.yaml"))),
    ],
    ids=lambda overlays: "+".join(overlays) or "config.yaml",
)
def test_the_first_page_names_every_comparison(overlays: tuple[str, ...]) -> None:
    resolved = config(*overlays)
    page = first_page(resolved)
    for name in plan.compared(resolved):
        assert page.count(f"({name}): ") == 1


def test_the_first_page_claims_held_out_groups_and_all_pairs_only_where_they_are() -> None:
    honest = first_page(config())
    assert "Whole groups (sessions of measurement) are held out" in honest
    assert "over all pairs." in honest
    assert "Leaky" not in honest

    leakage = first_page(config("leakage.yaml"))
    assert "In leakage-sessions whole groups" in leakage
    assert "In leakage-random, leakage-copies scans are divided at random" in leakage

    leaky = first_page(config({"targets": ["leakage-random"]}))
    assert "held out" not in leaky.split("How to read it")[0]

    ablation = first_page(config("ablations.yaml", {"targets": ["layers"]}))
    assert "over the pairs with the baseline." in ablation
    both = first_page(
        config(
            {"comparisons": {"leakage-sessions": {"baseline": "majority"}}, "targets": ["leakage"]}
        )
    )
    assert "over all pairs, in leakage-sessions over the pairs with the baseline." in both


@pytest.mark.parametrize(
    ("overlay", "people"),
    [
        ({}, True),
        # Weighted scores are no shares of responses: who named what cannot be told from them.
        ({"datasets": {"h-si100": {"labels": {"sheet": "Weighted_Score"}}}}, False),
        ({"comparisons": {"architectures": {"dataset": "simulated"}}}, False),
        ({"comparisons": {"architectures": {"split": "random"}}}, False),
    ],
)
def test_models_meet_people_only_where_the_sheet_tells_what_volunteers_named(
    overlay: dict[str, Any], people: bool
) -> None:
    assert plan.has_people(config(overlay), "architectures") is people


@pytest.mark.parametrize(
    ("end", "lines"), [(128, [1, 5, 40, 128]), (64, [1, 5, 40, 64]), (32, [1, 5, 32])]
)
def test_scores_by_line_end_with_the_scan(end: int, lines: list[int]) -> None:
    store = {"datasets": {"h-si100": {"store": {"lines": end, "pixels": 64}}}}
    resolved = config(store, {"evaluation": {"lines": [1, 5, 40, 128]}})
    assert json.loads(plan.evaluate_spec(resolved, "architectures"))["lines"] == lines


@pytest.mark.parametrize("inside", [True, False])
@pytest.mark.parametrize("key", ["path", "labels"])
def test_nothing_of_the_user_lies_where_a_job_deletes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str, inside: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "results/data/mine/scans").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "results" / ("data" if inside else ""))
    overlay = {"datasets": {"mine": {key: "link/mine/scans/raw"}}}
    if not inside:
        config("own-folder.yaml", overlay)
        return
    with pytest.raises(UserError, match=rf"datasets\.mine\.{key}: link/mine/scans/raw lies in"):
        config("own-folder.yaml", overlay)


def test_a_teacher_is_the_run_of_the_same_data_split_fold_and_seed() -> None:
    resolved = config("h-si100-monitor.yaml")
    run = {"dataset": "h-si100", "split": "sessions", "experiment": "monitor", "fold": "3"}
    found = plan.rests_on(resolved, {**run, "seed": "7"})
    assert found == {"teacher": {**run, "experiment": "efficientnet", "fold": 3, "seed": 7}}
    assert plan.rests_on(resolved, {**run, "experiment": "monitor-alone", "seed": "7"}) == {}


def test_a_deployment_is_of_all_runs_of_its_experiment_beside_those_of_its_teacher() -> None:
    resolved = config("h-si100-monitor.yaml")
    assert plan.deployed(resolved) == ["monitor"]
    assert plan.deployed(config()) == []
    spec = json.loads(plan.deployment_spec(resolved, "monitor"))
    runs = [f"runs/h-si100/sessions/monitor/fold{fold}-seed0" for fold in range(3)]
    assert spec["runs"] == runs
    assert spec["teacher_runs"] == [run.replace("monitor", "efficientnet") for run in runs]
    alone = {
        "comparisons": {"monitors": {"experiments": ["monitor-alone", "efficientnet"]}},
        "deployments": {"monitor": {"experiment": "monitor-alone"}},
    }
    spec = json.loads(plan.deployment_spec(config("h-si100-monitor.yaml", alone), "monitor"))
    assert (spec["teacher"], spec["teacher_runs"]) == (None, [])


def training(resolved: Mapping[str, Any], experiment: str) -> dict[str, Any]:
    run = {"dataset": "h-si100", "split": "sessions", "experiment": experiment, "fold": 0}
    spec: dict[str, Any] = json.loads(plan.train_spec(resolved, {**run, "seed": 0}))
    return spec


def test_a_training_depends_on_no_key_that_has_no_effect_beside_the_others() -> None:
    plateau = {"plateau_factor", "plateau_patience"}
    on = training(config({"training": {"schedule": "plateau", "warmup_epochs": 1}}), "vit")
    assert on["training"].keys() >= plateau | {"warmup_start"}
    off = training(config({"training": {"schedule": "cosine", "warmup_epochs": 0}}), "vit")
    assert on["training"].keys() - off["training"].keys() == plateau | {"warmup_start"}


def test_how_a_training_runs_is_an_option_and_not_what_its_result_depends_on() -> None:
    run = {"experiment": "vit"}
    assert plan.train_options(config(), run) == []
    changed = config({"training": {"resume": False, "tensorboard": True}})
    assert plan.train_options(changed, run) == ["--restart", "--tensorboard"]
    assert training(changed, "vit") == training(config(), "vit")


def test_a_training_with_a_search_depends_on_no_value_that_the_search_sets() -> None:
    searched = training(config("tuned.yaml"), "vit")
    keys = {"learning_rate", "weight_decay"}
    assert training(config(), "vit")["training"].keys() - searched["training"].keys() == keys
    # A search may choose the schedule, so that no key of a schedule can be left out.
    search = {"experiments": {"vit": {"search": {"training.schedule": ["cosine", "plateau"]}}}}
    chosen = training(
        config("tuned.yaml", search, {"tuning": {"trials": 2}, "training": {"schedule": "cosine"}}),
        "vit",
    )
    assert "plateau_factor" in chosen["training"]
    assert "schedule" not in chosen["training"]
