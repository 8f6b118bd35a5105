import copy
import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

from scanbench import plan
from scanbench.augment import Augmentation
from scanbench.config import resolve
from scanbench.errors import UserError
from scanbench.learning import Settings
from scanbench.splits import DEFAULTS
from scanbench.tipstate.ingest import IngestOptions
from scanbench.tipstate.labels import ScoreSheet
from scanbench.tipstate.simulate import Spec

ROOT = Path(__file__).resolve().parents[2]
SCHEMA = yaml.safe_load((ROOT / "workflow/schemas/config.schema.yaml").read_text("utf-8"))
CONFIG = yaml.safe_load((ROOT / "config.yaml").read_text("utf-8"))


def objects(schema: Any, path: str = "") -> list[tuple[str, dict]]:
    """Find every part of the schema that describes a mapping with fixed keys."""
    found = []
    if isinstance(schema, dict):
        if "properties" in schema and "if" not in schema and not path.endswith("/if"):
            found.append((path, schema))
        for key, part in schema.items():
            found += objects(part, f"{path}/{key}")
    elif isinstance(schema, list):
        for index, part in enumerate(schema):
            found += objects(part, f"{path}/{index}")
    return found


def test_schema_is_valid() -> None:
    Draft202012Validator.check_schema(SCHEMA)


def plain(value: Any) -> Any:
    """Return a default as YAML would hold it."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, tuple | list) else value


def own_defaults(kind: Any) -> dict[str, Any]:
    return {field.name: plain(getattr(kind(), field.name)) for field in dataclasses.fields(kind)}


@pytest.mark.parametrize(
    ("part", "defaults", "elsewhere"),
    [
        ("simulate", own_defaults(Spec), set()),
        # Classes and score sheet have keys of their own beside `ingest`.
        ("ingest", own_defaults(IngestOptions), {"classes", "labels"}),
        ("scoreSheet", own_defaults(ScoreSheet), set()),
        ("training", own_defaults(Settings), set()),
        ("augmentation", own_defaults(Augmentation), set()),
        ("split", DEFAULTS, {"scheme"}),
    ],
)
def test_the_schema_has_the_defaults_of_what_it_feeds(
    part: str, defaults: dict, elsewhere: set
) -> None:
    schema = {
        key: rule["default"]
        for key, rule in SCHEMA["$defs"][part]["properties"].items()
        if "default" in rule
    }
    assert schema == {key: value for key, value in defaults.items() if key not in elsewhere}


def test_unknown_keys_are_refused_at_every_level() -> None:
    # `dataset` only chooses by `source`; the branch it chooses is strict.
    loose = [
        path
        for path, part in objects(SCHEMA)
        if part.get("additionalProperties") is not False and path != "/$defs/dataset"
    ]
    assert loose == []


def test_resolving_twice_changes_nothing() -> None:
    once = resolve(CONFIG, SCHEMA)
    assert resolve(once, SCHEMA) == once


def test_resolving_leaves_its_input_alone() -> None:
    before = copy.deepcopy(CONFIG)
    resolve(CONFIG, SCHEMA)
    assert before == CONFIG


def test_an_experiment_takes_what_it_leaves_out_from_the_top_level() -> None:
    resolved = resolve(CONFIG, SCHEMA)
    vit = resolved["experiments"]["vit"]
    assert vit["training"] == resolved["training"]
    assert vit["normalisation"] == "line"
    assert resolved["experiments"]["vit-prefix"]["normalisation"] == "none"
    assert resolved["experiments"]["vit-prefix"]["training"]["class_weights"] is False


def test_an_experiment_takes_what_it_leaves_out_from_its_base() -> None:
    config = copy.deepcopy(CONFIG)
    config["experiments"] |= {
        "wide": {"base": "causal-w20", "options": {"d_model": 512}},
        "slow": {"base": "wide", "training": {"learning_rate": 1.0e-5}, "window": {"lines": 24}},
        "whole": {"base": "slow", "window": None},
    }
    experiments = resolve(config, SCHEMA)["experiments"]
    base, wide, slow, whole = (experiments[n] for n in ("causal-w20", "wide", "slow", "whole"))
    assert wide == {**base, "options": {"d_model": 512}}
    assert slow["window"] == {"lines": 24, "stride": base["window"]["stride"]}
    assert slow["training"] == {**base["training"], "learning_rate": 1.0e-5}
    assert slow["options"] == wide["options"]
    assert whole == {**slow, "window": None}
    # What a run depends on is what it is made of, not where that was written.
    assert "base" not in wide


def test_a_base_that_is_changed_changes_what_rests_on_it() -> None:
    config = copy.deepcopy(CONFIG)
    config["experiments"]["deep"] = {"base": "vit", "options": {"layers": 12}}
    config["experiments"]["vit"]["training"] = {"epochs": 3}
    assert resolve(config, SCHEMA)["experiments"]["deep"]["training"]["epochs"] == 3


def test_whole_numbers_and_key_order_do_not_change_a_spec() -> None:
    other = copy.deepcopy(CONFIG)
    other["training"] = dict(reversed(other["training"].items()))
    other["training"]["weight_decay"] = 0
    same = copy.deepcopy(CONFIG)
    same["training"]["weight_decay"] = 0.0
    run = plan.runs(resolve(same, SCHEMA), "architectures")[40]
    assert plan.train_spec(resolve(other, SCHEMA), run) == plan.train_spec(
        resolve(same, SCHEMA), run
    )


def test_swapped_values_change_a_spec() -> None:
    one, two = copy.deepcopy(CONFIG), copy.deepcopy(CONFIG)
    one["experiments"]["lrcn-w20"]["options"] = {"window": 20, "stride": 4}
    two["experiments"]["lrcn-w20"]["options"] = {"window": 4, "stride": 20}
    run = {"experiment": "lrcn-w20", "fold": 0, "seed": 0}
    assert plan.train_spec(resolve(one, SCHEMA), run) != plan.train_spec(resolve(two, SCHEMA), run)


def test_runs_are_every_experiment_fold_and_seed_once() -> None:
    resolved = resolve(CONFIG, SCHEMA)
    wanted = CONFIG["comparisons"]["architectures"]
    runs = [tuple(run.values()) for run in plan.runs(resolved, "architectures")]
    assert len(runs) == len(set(runs)) == len(wanted["experiments"]) * 5 * len(wanted["seeds"])


@pytest.mark.parametrize("overlay", sorted((ROOT / "config").glob("*.yaml")), ids=lambda p: p.stem)
def test_every_overlay_resolves_with_the_configuration(overlay: Path) -> None:
    def merged(below: Any, above: Any) -> Any:
        if isinstance(below, dict) and isinstance(above, dict):
            return {k: merged(below.get(k), above.get(k, below.get(k))) for k in below | above}
        return above

    config = merged(CONFIG, yaml.safe_load(overlay.read_text("utf-8")))
    assert resolve(config, SCHEMA)["targets"] == config["targets"]


@pytest.mark.parametrize(
    ("path", "value", "line"),
    [
        (("datasets", "simulated", "source"), "sxm", "is not one of"),
        (
            ("datasets", "h-si100", "labels", "ties"),
            "random",
            "config: datasets.h-si100.labels.ties",
        ),
        (("training", "epochs"), 0, "config: training.epochs: 0 is less than the minimum"),
        (("experiments", "vit", "options"), {"layers": "6"}, "'6' is not of type int"),
        (("comparisons", "architectures", "split"), "session", "did you mean 'sessions'?"),
        (("comparisons", "architectures", "seeds"), [0, 0], "non-unique"),
        (
            ("comparisons", "architectures", "baseline"),
            "vit-prefx",
            "config: comparisons.architectures.baseline: 'vit-prefx' is not one of its "
            "experiments; did you mean 'vit-prefix'?",
        ),
        (
            ("experiments", "vit"),
            {"base": "casual-full"},
            "config: experiments.vit.base: no experiment 'casual-full'; "
            "did you mean 'causal-full'?",
        ),
        (
            ("experiments", "vit"),
            {"base": "vit"},
            "config: experiments.vit.base: a circle (vit → vit); let one of them stand on its own",
        ),
        (("experiments", "vit"), {"base": 3}, "config: experiments.vit"),
        (("experiments", "vit"), {"options": {}}, "'model' is a required property; add it"),
        (("study",), "tipstat", "config: study"),
        (
            ("datasets", "simulated", "simulate", "shares", "atom"),
            0.5,
            "config: datasets.simulated.simulate.shares.atom: no class 'atom'; "
            "did you mean 'atoms'?",
        ),
        (
            ("datasets", "h-si100", "labels", "merge", "row"),
            ["Rows"],
            "config: datasets.h-si100.labels.merge.row: no class 'row'; did you mean 'rows'?",
        ),
        (
            ("training", "learning_rate"),
            math.nan,
            "config: training.learning_rate: nan is not a finite number",
        ),
        (
            ("datasets", "simulated", "simulate", "noise_pm"),
            [0.5, math.inf],
            "config: datasets.simulated.simulate.noise_pm.1: inf is not a finite number",
        ),
        (
            ("experiments", "vit", "options"),
            {"dropout": -math.inf},
            "config: experiments.vit.options.dropout: -inf is not a finite number",
        ),
        (
            ("experiments", "causal-w20", "window"),
            {"lines": 118, "stride": 4},
            "leave the last 2 of the 128 lines of a scan (datasets.*.store.lines) unread; "
            "strides that fit: 1, 2, 5, 10",
        ),
        (
            ("experiments", "causal-w20", "window"),
            {"lines": 129},
            "129 lines do not fit into the 128 lines",
        ),
    ],
)
def test_a_mistake_is_one_line_that_names_the_key(path: tuple, value: Any, line: str) -> None:
    config = copy.deepcopy(CONFIG)
    place = config
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    with pytest.raises(UserError) as error:
        resolve(config, SCHEMA)
    assert line in str(error.value)
    assert "\n" not in str(error.value)
