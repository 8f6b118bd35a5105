import copy
import dataclasses
import json
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
from scanbench.settings import Settings
from scanbench.splits import DEFAULTS
from scanbench.tipstate import catalogue
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
        if part.get("additionalProperties") is not False
        and path != "/$defs/dataset"
        and "/x-where" not in path  # says where a key acts, and checks nothing
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


def with_overlays(*names: str) -> Any:
    """Return the configuration under overlays, merged as Snakemake does."""

    def merged(below: Any, above: Any) -> Any:
        if isinstance(below, dict) and isinstance(above, dict):
            return {k: merged(below.get(k), above.get(k, below.get(k))) for k in below | above}
        return above

    config = CONFIG
    for name in names:
        config = merged(config, yaml.safe_load((ROOT / "config" / name).read_text("utf-8")))
    return config


def layers(overlay: str) -> list[str]:
    """Give the overlays that one needs: that of a small size rests on the one of full size."""
    below = overlay.replace("-small.yaml", ".yaml")
    return sorted({below, overlay} if (ROOT / "config" / below).is_file() else {overlay}, key=len)


def test_an_ensemble_knows_whether_its_members_have_the_same_windows() -> None:
    config = copy.deepcopy(CONFIG)
    run = {"dataset": "h-si100", "fold": 0, "seed": 0, "experiment": "both"}
    for names, same in ((["vit", "cnn-scan"], True), (["vit", "causal-w20"], False)):
        config["ensembles"]["both"] = names
        spec = json.loads(plan.combine_spec(resolve(config, SCHEMA), run))
        assert spec["same_windows"] is same


@pytest.mark.parametrize("overlay", sorted(path.name for path in (ROOT / "config").glob("*.yaml")))
def test_every_overlay_resolves_with_the_configuration(overlay: str) -> None:
    config = with_overlays(*layers(overlay))
    assert resolve(config, SCHEMA)["targets"] == config["targets"]


ABLATIONS = ["ablations.yaml", "ablations-small.yaml"]


def leaves(value: Any, path: tuple[str, ...] = ()) -> dict[tuple[str, ...], Any]:
    """Return every value with the keys that lead to it."""
    if not isinstance(value, dict):
        return {path: value}
    return {k: v for key, item in value.items() for k, v in leaves(item, (*path, key)).items()}


def changed(experiment: dict, base: dict) -> set[tuple[str, ...]]:
    one, other = leaves(experiment), leaves(base)
    return {key for key in one.keys() | other.keys() if one.get(key) != other.get(key)}


@pytest.mark.parametrize("overlay", ABLATIONS)
def test_the_fixes_of_the_ladder_are_apart_and_make_vit_together(overlay: str) -> None:
    experiments = resolve(with_overlays(*layers(overlay)), SCHEMA)["experiments"]
    prefix, vit = experiments["vit-prefix"], experiments["vit"]
    names = ["weights", "normalisation", "rate", "outputs", "layers", "regularisation"]
    alone = [changed(experiments[f"fix-{name}"], prefix) for name in names]
    assert sum(map(len, alone)) == len(set().union(*alone))
    # The last of both models' layers, and the name, are all that is left of the difference.
    left = {("model",), ("options", "outputs"), ("options", "layers")}
    assert set().union(*alone) | left == changed(vit, prefix) | left
    before = experiments["fix-weights"]
    for name, fix in zip(names[1:-1], alone[1:-1], strict=True):
        step = experiments[f"to-{name}"]
        assert changed(step, before) == fix
        assert all(leaves(step)[key] == leaves(experiments[f"fix-{name}"])[key] for key in fix)
        before = step
    for part in ("normalisation", "window"):
        assert before[part] == vit[part]
    regularised = experiments["fix-regularisation"]
    assert (
        before["training"] | {"weight_decay": regularised["training"]["weight_decay"]}
        == (vit["training"])
    )
    assert regularised["augmentation"] == vit["augmentation"]
    assert before["options"]["outputs"] == 0
    defaults = catalogue.option_fields("vit")
    assert before["options"]["layers"] == vit["options"].get("layers", defaults["layers"][1])


@pytest.mark.parametrize("overlay", ABLATIONS)
def test_no_two_experiments_of_an_ablation_are_the_same(overlay: str) -> None:
    config = resolve(with_overlays(*layers(overlay)), SCHEMA)
    for target in config["targets"]:
        wanted = config["comparisons"][target]["experiments"]
        whole = [plan.canonical_json(with_defaults(config["experiments"][n])) for n in wanted]
        assert len(set(whole)) == len(wanted), target


def with_defaults(experiment: dict) -> dict:
    fields = catalogue.option_fields(experiment["model"])
    return {**experiment, "options": {k: v for k, (_, v) in fields.items()} | experiment["options"]}


@pytest.mark.parametrize("overlay", ABLATIONS)
def test_windows_are_the_same_for_both_architectures(overlay: str) -> None:
    config = resolve(with_overlays(*layers(overlay)), SCHEMA)
    experiments = config["experiments"]
    for lines in (10, 20, 30, 40, 128):
        lrcn, causal = experiments[f"lrcn-alone-w{lines}"], experiments[f"causal-w{lines}"]
        assert lrcn["window"] == causal["window"]
        assert lrcn["options"]["window"] == lines
        assert lrcn["training"]["max_scans"] == causal["training"]["max_scans"]
        assert lrcn["training"]["answers"] == causal["training"]["answers"] == "last"
    shown = config["comparisons"]["equal-information"]["experiments"][1:]
    assert len({plan.canonical_json(experiments[name]["window"]) for name in shown}) == 1
    for name in config["comparisons"]["rolling"]["experiments"][:-1]:
        options = experiments[name]["options"]
        assert (128 - options["window"]) % options["stride"] == 0, "the last line must be seen"


@pytest.mark.parametrize(
    ("path", "value", "line"),
    [
        (("datasets", "simulated", "source"), "sxm", "is not one of"),
        (
            ("datasets", "h-si100", "labels", "ties"),
            "random",
            "config: datasets.h-si100.labels.ties",
        ),
        (("training", "epochs"), -1, "config: training.epochs: -1 is less than the minimum"),
        (
            ("experiments", "monitor", "teacher"),
            {"experiment": "efficientne"},
            "config: experiments.monitor.teacher.experiment: no experiment 'efficientne'; did you",
        ),
        (
            ("experiments", "monitor", "teacher"),
            {"experiment": "efficientnet-w20"},
            "'efficientnet-w20' is of windows; both must see whole scans",
        ),
        (
            ("experiments", "monitor", "teacher"),
            {"experiment": "monitor"},
            "config: experiments.monitor.teacher: a circle",
        ),
        (
            ("experiments", "efficientnet", "teacher"),
            {"experiment": "monitor"},
            "teacher: a circle",
        ),
        (
            ("experiments", "monitor", "teacher"),
            {"experiment": "causal-full", "answers": "all"},
            "'all' is of scans as measured, and augmentation.flip_slow",
        ),
        (
            ("experiments", "monitor", "teacher"),
            {"experiment": "efficientnet", "weight": 2},
            "config: experiments.monitor.teacher.weight: 2.0 is greater than the maximum",
        ),
        (
            ("deployments", "monitor", "comparison"),
            "monitor",
            "config: deployments.monitor.comparison: no comparison 'monitor'; did you",
        ),
        (
            ("deployments", "monitor", "experiment"),
            "vit",
            "config: deployments.monitor.experiment: 'vit' is not one of the experiments of",
        ),
        (
            ("deployments", "monitor", "experiment"),
            "efficientnet",
            "'efficientnet' is of windows, or normalised by lines not yet measured",
        ),
        (("deployments", "monitor", "forms"), ["fp8"], "'fp8' is not one of"),
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
        (
            ("side_by_side", "leakage", "comparisons"),
            ["leakage-session", "leakage-random"],
            "config: side_by_side.leakage.comparisons: no comparison 'leakage-session'; "
            "did you mean 'leakage-sessions'?",
        ),
        (
            ("comparisons", "leakage-random", "experiments"),
            ["vit"],
            "is an experiment of only one of 'leakage-sessions' and 'leakage-random'",
        ),
        (
            ("side_by_side", "simulated"),
            {"title": "x", "comparisons": ["leakage-sessions", "leakage-random"]},
            "config: side_by_side.simulated: one of comparisons has this name; give it another",
        ),
        (
            ("comparisons", "simulated", "experiments"),
            ["majority", "vit-no-defect"],
            "config: comparisons.simulated.experiments: 'vit-no-defect' withholds classes, so it "
            "cannot be scored beside experiments that name them; compare it in `anomalies`",
        ),
        (
            ("anomalies", "withheld-defect", "experiments"),
            ["vit-no-defect", "vit"],
            "config: anomalies.withheld-defect.experiments: 'vit' withholds no class",
        ),
        (
            ("experiments", "vit-no-defect", "withhold"),
            ["rows"],
            "'vit-no-defect' withholds rows, but 'features-no-defect' defect; compare like with",
        ),
        (
            ("anomalies", "withheld-defect", "split"),
            "random",
            "config: anomalies.withheld-defect.split: scheme 'random' of split 'random' has scans "
            "of one group on both sides",
        ),
        (
            ("explanations", "moved-lines", "comparison"),
            "leakage-copies",
            "config: explanations.moved-lines.comparison: scheme 'copies' of split 'copies' has",
        ),
        (
            ("explanations", "moved-lines", "experiments"),
            ["cnn-scan", "efficientnet"],
            "config: explanations.moved-lines.experiments: 'efficientnet' is not of comparison "
            "'architectures'; it has majority, features",
        ),
        (
            ("explanations", "moved-lines", "folds"),
            [5],
            "config: explanations.moved-lines.folds: 5 is not of comparison 'architectures'; it "
            "has 0, 1, 2, 3, 4",
        ),
        (
            ("experiments", "vit-no-defect", "start"),
            {"experiment": "vit", "dataset": "simulated"},
            "'vit-no-defect' starts from a run that may have seen defect; leave out `start` or",
        ),
        (("explanations", "moved-lines", "fill"), "ones", "config: explanations.moved-lines.fill"),
        (
            ("ensembles", "both"),
            ["vit", "cnn-scn"],
            "config: ensembles.both: no experiment 'cnn-scn'; did you mean 'cnn-scan'?",
        ),
        (
            ("ensembles", "vit"),
            ["cnn-scan", "causal-full"],
            "config: ensembles.vit: an experiment has this name; give it another",
        ),
        (("ensembles", "both"), ["vit"], "config: ensembles.both"),
        (
            ("evaluation", "stop_classes"),
            ["defekt"],
            "config: evaluation.stop_classes: no data set has a class 'defekt'; did you mean "
            "'defect'?",
        ),
        (
            ("experiments", "vit", "start"),
            {"experiment": "vit-2"},
            "config: experiments.vit.start.experiment: no experiment 'vit-2'; did you mean 'vit",
        ),
        (
            ("experiments", "vit", "start"),
            {"experiment": "vit", "dataset": "simulated"},
            "config: experiments.vit.start: a circle (vit → vit); let one of them stand on its own",
        ),
        (
            ("experiments", "vit", "start"),
            {"experiment": "vit-simulation", "dataset": "simulated"},
            "start: a circle (vit → vit-simulation → vit)",
        ),
        (
            ("experiments", "cnn-tuned", "start"),
            {"experiment": "cnn-scan", "dataset": "simulatd"},
            "config: experiments.cnn-tuned.start.dataset: no dataset 'simulatd'; did you mean",
        ),
        (
            ("experiments", "cnn-tuned", "start"),
            {"experiment": "cnn-scan", "dataset": "simulated", "split": "session"},
            "config: experiments.cnn-tuned.start.split: no split 'session'; did you mean",
        ),
        (
            ("experiments", "cnn-tuned", "start"),
            {"experiment": "cnn-scan", "dataset": "simulated", "fold": 5},
            "start.fold: 5 is no fold of split 'sessions', whose folds are 0 to 4",
        ),
        (
            ("experiments", "cnn-tuned", "start"),
            {"experiment": "cnn-scan", "dataset": "h-si100", "fold": 0},
            "config: experiments.cnn-tuned-0.01.start: that run is trained on 'h-si100' in split "
            "'sessions', fold 0, and may have seen what split 'sessions', fold 1 tests",
        ),
        (
            ("experiments", "cnn-scan", "start"),
            {"experiment": "vit", "dataset": "h-si100", "split": "random"},
            "in split 'random', fold 0, and may have seen what split 'sessions', fold 0 tests",
        ),
        (("experiments", "vit", "training"), {"epochs": 0}, "training.epochs: 0 rests on a start"),
        (
            ("experiments", "vit", "training"),
            {"frozen": "backbone"},
            "config: experiments.vit.training.frozen: backbone rests on a start, and there is none",
        ),
        (("training", "fraction"), 0, "config: training.fraction: 0"),
        (("training", "fraction"), 1.5, "config: training.fraction: 1.5 is greater than"),
        (
            ("curves", "labels", "comparison"),
            "label-eficiency",
            "config: curves.labels.comparison: no comparison 'label-eficiency'; did you mean",
        ),
        (
            ("curves", "labels", "comparison"),
            "architectures",
            "config: curves.labels.comparison: 'architectures' has no baseline to reach",
        ),
        (
            ("curves", "leakage"),
            CONFIG["curves"]["labels"],
            "config: curves.leakage: one of side_by_side has this name; give it another",
        ),
        (
            ("realism", "realism", "real"),
            "h-si10",
            "config: realism.realism.real: no data set 'h-si10'; did you mean 'h-si100'?",
        ),
        (
            ("realism", "realism", "simulated"),
            "h-si100",
            "config: realism.realism.simulated: data set 'h-si100' is not simulated",
        ),
        (
            ("realism", "simulated"),
            {"title": "x", "real": "h-si100", "simulated": "simulated"},
            "config: realism.simulated: one of comparisons has this name; give it another",
        ),
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
    # Explanations and anomaly comparisons are checked where they are targets.
    config["targets"] += ["moved-lines", "withheld-defect"]
    place = config
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    with pytest.raises(UserError) as error:
        resolve(config, SCHEMA)
    assert line in str(error.value)
    assert "\n" not in str(error.value)


def test_every_kind_that_is_withheld_must_exist_and_leave_two_to_learn() -> None:
    for withheld, line in (
        (["defects"], "config: experiments.{}.withhold: no class 'defects'; did you mean 'defect'"),
        (["defect", "rows", "atoms"], "config: experiments.{}.withhold: leaves fewer than two of"),
    ):
        config = copy.deepcopy(CONFIG) | {"targets": ["withheld-defect"]}
        names = config["anomalies"]["withheld-defect"]["experiments"]
        for name in names:
            config["experiments"][name]["withhold"] = withheld
        with pytest.raises(UserError) as error:
            resolve(config, SCHEMA)
        assert line.format(names[0]) in str(error.value)


def test_a_training_depends_on_what_is_withheld_and_not_on_nothing_being_so() -> None:
    config = resolve(CONFIG, SCHEMA)
    run = {"fold": 0, "seed": 0}
    assert '"withhold": ["defect"]' in plan.train_spec(
        config, run | {"experiment": "vit-no-defect"}
    )
    assert "withhold" not in plan.train_spec(config, run | {"experiment": "vit"})


def test_an_explanation_has_the_folds_and_seeds_of_its_comparison_unless_it_names_some() -> None:
    config = resolve(CONFIG, SCHEMA)
    runs = plan.explained_runs(config, "moved-lines")
    assert len(runs) == 5 * 5
    assert {run["seed"] for run in runs} == {0}
    assert {run["fold"] for run in plan.explained_runs(config, "tip-changes")} == {0}
    # Attributions do not depend on what is made of them.
    other = copy.deepcopy(CONFIG)
    other["explanations"]["moved-lines"]["tolerance"] = 5
    other = resolve(other, SCHEMA)
    assert plan.attribute_spec(other, "moved-lines") == plan.attribute_spec(config, "moved-lines")
    assert plan.explain_spec(other, "moved-lines") != plan.explain_spec(config, "moved-lines")


def on_simulated(experiment: str) -> dict[str, str]:
    """Return a start from a run on simulated scans."""
    return {"experiment": experiment, "dataset": "simulated"}


def asked(**changes: Any) -> dict[str, Any]:
    """Return the configuration with targets that start from simulation, changed by section."""
    config = copy.deepcopy(CONFIG)
    config["targets"] = ["sim-to-real", "labels"]
    for section, items in changes.items():
        for name, change in items.items():
            config[section][name] = {**config[section].get(name, {}), **change}
    return config


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        (
            {"experiments": {"cnn-simulation": {"options": {"dropout": 0.1}}}},
            "config: experiments.cnn-simulation.start: 'cnn-simulation' has options.dropout 0.1, "
            "but 'cnn-scan' on 'simulated' has 0.3; make them equal",
        ),
        (
            {"experiments": {"cnn-simulation": {"start": on_simulated("vit")}}},
            "'cnn-simulation' has model 'cnn-scan', but 'vit' on 'simulated' has 'vit'",
        ),
        (
            {"experiments": {"cnn-simulation": {"normalisation": "scan"}}},
            "has normalisation 'scan', but 'cnn-scan' on 'simulated' has 'line'",
        ),
        (
            {"datasets": {"simulated": {"store": {"lines": 64, "pixels": 128}}}},
            "has lines 128, but 'features' on 'simulated' has 64",
        ),
        (
            {"curves": {"labels": {"x": "training.fractio"}}},
            "config: curves.labels.series.from scratch: 'cnn-scan-0.01' has no number under "
            "'training.fractio'",
        ),
        (
            {"curves": {"labels": {"series": {"a": ["cnn-scan", "cnn-scan-0.05"]}}}},
            "curves.labels.series.a: training.fraction does not rise at 'cnn-scan-0.05'",
        ),
        (
            {"curves": {"labels": {"series": {"a": ["vit", "cnn-scan"]}}}},
            "curves.labels.series.a: 'vit' is no experiment of 'label-efficiency'",
        ),
        (
            {"curves": {"labels": {"x": "training.label_smoothing"}}},
            "from scratch: 0 has no place on a logarithmic axis; set scale: linear",
        ),
    ],
)
def test_a_start_or_a_curve_that_does_not_fit_is_one_line(changes: dict, line: str) -> None:
    with pytest.raises(UserError) as error:
        resolve(asked(**changes), SCHEMA)
    assert line in str(error.value)
    assert "\n" not in str(error.value)


def test_a_search_changes_no_options_of_what_starts_and_tries_nothing_where_nothing_learns() -> (
    None
):
    search: dict[str, list[float]] = {"training.learning_rate": [1.0e-3, 1.0e-4]}
    few = {
        f"{name}-{share}": {"search": {}}
        for name in ("cnn-scan", "cnn-tuned")
        for share in ("0.01", "0.05", "0.2")
    }
    config = asked(experiments={"cnn-scan": {"search": search}, **few})
    config |= {"targets": ["labels"], "tuning": {"trials": 2}}
    resolved = resolve(config, SCHEMA)
    run = {"dataset": "h-si100", "split": "sessions", "fold": 0, "seed": 0}
    assert len(plan.settings(resolved, {**run, "experiment": "cnn-tuned"})) == 2
    assert plan.settings(resolved, {**run, "experiment": "cnn-simulation"}) == []
    search["options.dropout"] = [0.1, 0.3]
    with pytest.raises(
        UserError, match=r"search: 'cnn-tuned-0\.01' starts from 'cnn-scan' and must"
    ):
        resolve(config, SCHEMA)


def test_few_labels_are_not_tuned_on_more() -> None:
    search = {"training.learning_rate": [1.0e-3, 1.0e-4]}
    config = asked(experiments={"cnn-scan": {"search": search}})
    config |= {"targets": ["labels"], "tuning": {"trials": 2}}
    with pytest.raises(UserError, match=r"cnn-scan-0\.01\.search: trials would see labels beyond"):
        resolve(config, SCHEMA)


def test_few_labels_do_not_rest_on_more_of_the_same_data() -> None:
    few = {"cnn-scan-0.05": {"start": {"experiment": "cnn-scan"}}}
    with pytest.raises(
        UserError, match=r"cnn-scan-0\.05: rests on 'cnn-scan', which knows 1 of the labels"
    ):
        resolve(asked(experiments=few), SCHEMA)


def test_a_value_that_an_experiment_sets_is_not_searched() -> None:
    """Else the row of an ablation would have another value than its name says."""
    search = {"training.learning_rate": [1.0e-3, 1.0e-4]}
    config = copy.deepcopy(CONFIG)
    config["experiments"]["vit"]["search"] = search
    config["experiments"]["slow"] = {"base": "vit", "training": {"learning_rate": 1.0e-5}}
    config["comparisons"]["one"] = {
        **config["comparisons"]["architectures"],
        "experiments": ["vit", "slow"],
    }
    config |= {"targets": ["one"], "tuning": {"trials": 2}}
    with pytest.raises(UserError, match=r"experiments\.slow: sets training\.learning_rate itself"):
        resolve(config, SCHEMA)
    config["experiments"]["slow"]["search"] = {}
    assert resolve(config, SCHEMA)["experiments"]["slow"]["search"] == {}


def test_an_ensemble_is_not_deployed() -> None:
    config = copy.deepcopy(CONFIG)
    own = {"comparison": "pretrained", "experiment": "efficientnet-both"}
    config["deployments"]["both"] = own
    with pytest.raises(UserError, match=r"deployments\.both\.experiment: .* is an ensemble"):
        resolve(config, SCHEMA)


def test_a_chain_of_starts_must_not_come_by_another_fold_of_what_is_tested() -> None:
    """Through simulated scans, a run would begin with what a test scan of its own has taught."""
    chain = {
        "between": {"base": "cnn-scan", "start": {"experiment": "cnn-scan", "dataset": "h-si100"}},
        "cnn-tuned": {"start": {"experiment": "between", "dataset": "simulated"}},
    }
    with pytest.raises(UserError, match=r"experiments\.between\.start: .* fold 1 tests"):
        resolve(asked(experiments=chain), SCHEMA)


def test_a_run_rests_on_one_of_its_seed_and_on_its_own_data_of_its_fold() -> None:
    config = resolve(
        asked(
            experiments={
                "again": {"base": "cnn-scan", "start": {"experiment": "cnn-scan"}},
                "tuned": {"base": "cnn-scan", "start": {**on_simulated("again"), "fold": 2}},
            }
        ),
        SCHEMA,
    )
    run = {"dataset": "h-si100", "split": "random", "fold": "3", "seed": "1"}
    own = {**run, "experiment": "cnn-scan", "fold": 3, "seed": 1}
    assert plan.below(config, {**run, "experiment": "again"}) == [own]
    there = {"dataset": "simulated", "split": "sessions", "fold": 2, "seed": 1}
    assert plan.below(config, {**run, "experiment": "tuned"}) == [
        {**there, "experiment": "again"},
        {**there, "experiment": "cnn-scan"},
    ]
    assert plan.rests_on(config, {**run, "experiment": "cnn-scan"}) == {}
    assert json.loads(plan.train_spec(config, {**run, "experiment": "again"}))["start"] == own
