"""The configuration: defaults filled in, every key checked, one clear line for each mistake.

The schema (`workflow/schemas/config.schema.yaml`) says what a key may hold; this module adds what a
schema cannot say: what an experiment takes from its base, that the names a comparison uses exist,
that a model has the options it is given, that windows reach the last line, that a comparison's
experiments are tuned alike, that numbers are finite.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Iterator, Mapping
from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError

from scanbench import plan, tuning
from scanbench.errors import UserError, did_you_mean

Schema = Mapping[str, Any]
Config = dict[str, Any]


def resolve(config: Mapping[str, Any], schema: Schema) -> Config:
    """Return the configuration with every default filled in, or refuse it.

    Whole numbers become floats where the schema says `number`, so that 3 and 3.0 are one value and
    do not rerun anything.

    Parameters
    ----------
    config
        As read from YAML.
    schema
        The JSON schema of the configuration.

    Raises
    ------
    UserError
        Naming the first wrong key, its value and the mend.
    """
    _check_finite(config, ())
    filled = _checked(_with_bases(config), schema, schema, ())
    for name, experiment in filled["experiments"].items():
        where = ("experiments", name)
        for part in ("training", "augmentation"):
            merged = {**filled[part], **experiment[part]}
            experiment[part] = _checked(merged, schema["$defs"][part], schema, (*where, part))
        experiment.setdefault("normalisation", filled["normalisation"])
        experiment["options"] = _options(filled["study"], experiment, where)
        if "search" in experiment:
            experiment["search"] = _search(filled, schema, name)
    _check_classes(filled)
    _check_references(filled)
    if filled["tuning"]["trials"]:
        _check_own_values(config, filled)
    _check_curves(filled)
    _check_starts(filled)
    _check_explanations(filled)
    _check_anomalies(filled)
    _check_teachers(filled)
    _check_deployments(filled)
    return filled


def _check_finite(value: Any, where: tuple[str, ...]) -> None:
    """Refuse NaN and infinity, which pass every comparison of the schema or fail none."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            _check_finite(item, (*where, str(key)))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            _check_finite(item, (*where, str(index)))
    elif isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"config: {'.'.join(where)}: {value} is not a finite number; give one")


def _with_bases(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the configuration with each experiment's `base` replaced by what it takes from there.

    What is not as the schema has it is left for the schema to refuse.
    """
    experiments = config.get("experiments")
    if not isinstance(experiments, Mapping):
        return config

    def whole(name: str, above: tuple[str, ...]) -> Any:
        experiment = experiments[name]
        if not isinstance(experiment, Mapping) or not isinstance(experiment.get("base"), str):
            return experiment
        base, where = experiment["base"], f"config: experiments.{name}.base"
        if base not in experiments:
            raise UserError(f"{where}: no experiment {base!r}; {did_you_mean(base, experiments)}")
        chain = (*above, name)
        if base in chain:
            circle = " → ".join((*chain[chain.index(base) :], base))
            raise UserError(f"{where}: a circle ({circle}); let one of them stand on its own")
        own = {key: value for key, value in experiment.items() if key != "base"}
        merged = _over(whole(base, chain), own)
        if "search" in own:  # another search, or none, not one more key of the base's
            merged["search"] = own["search"]
        return merged

    return {**config, "experiments": {name: whole(name, ()) for name in experiments}}


def _check_own_values(config: Mapping[str, Any], resolved: Config) -> None:
    """Refuse a search over a value that the experiment itself sets: its name would be a lie."""
    compared = {
        run["experiment"]
        for comparison in plan.compared(resolved)
        for run in plan.trained(resolved, comparison)
    }
    for name in sorted(compared):
        given = config["experiments"][name]
        for key in resolved["experiments"][name].get("search", {}):
            part, _, option = key.partition(".")
            if option in (given.get(part) or {}) and "search" not in given:
                raise UserError(
                    f"config: experiments.{name}: sets {key} itself, and has a search over it from "
                    "its base; give it a `search` without that key, or `search: {}`"
                )


def _over(below: Any, above: Any) -> Any:
    """Return mappings merged, as overlays are; anything else from `above`."""
    if not isinstance(below, Mapping) or not isinstance(above, Mapping):
        return above
    keys = {**below, **above}
    return {key: _over(below.get(key), above.get(key, below.get(key))) for key in keys}


def _checked(value: Any, part: Schema, schema: Schema, where: tuple[str, ...]) -> Any:
    """Fill defaults into `value` and validate it against `part` of the schema."""
    filled = _fill(value, part, schema)
    validator = Draft202012Validator({**part, "$defs": schema["$defs"]})
    errors = sorted(validator.iter_errors(filled), key=lambda error: list(map(str, error.path)))
    if errors:
        raise UserError(_line(errors[0], where))
    return filled


def _fill(value: Any, part: Schema, schema: Schema) -> Any:
    """Return a copy of `value` with defaults filled in and numbers in their schema type."""
    if "$ref" in part:
        value = _fill(value, schema["$defs"][part["$ref"].rsplit("/", 1)[1]], schema)
    for branch in part.get("allOf", ()):
        if Draft202012Validator(branch["if"]).is_valid(value):
            value = _fill(value, branch["then"], schema)
    if isinstance(value, Mapping):
        known = part.get("properties", {})
        other = part.get("additionalProperties")
        filled = {key: rule["default"] for key, rule in known.items() if "default" in rule}
        filled |= value
        return {
            key: _fill(item, known.get(key, other if isinstance(other, Mapping) else {}), schema)
            for key, item in filled.items()
        }
    if isinstance(value, list):
        return [_fill(item, part.get("items", {}), schema) for item in value]
    if part.get("type") == "number" and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    return value


def _line(error: ValidationError, where: tuple[str, ...]) -> str:
    path = ".".join(map(str, (*where, *error.path)))
    part, value = error.schema, error.instance
    if (
        error.validator == "additionalProperties"
        and isinstance(part, Mapping)
        and isinstance(value, Mapping)
    ):
        known = part.get("properties", {})
        unknown = next(key for key in value if key not in known)
        key = f"{path}.{unknown}" if path else str(unknown)
        return f"config: {key}: unknown key; {did_you_mean(unknown, known)}"
    if error.validator == "required":
        return f"config: {path or 'top level'}: {error.message}; add it"
    if error.validator == "type" and isinstance(error.instance, str) and _is_number(error.instance):
        return (
            f"config: {path}: {error.instance!r} is text in YAML; "
            f"write {float(error.instance)!r} (a number has a digit, a dot and a sign: 1.0e-3)"
        )
    return f"config: {path}: {error.message}"


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _options(study: str, experiment: Config, where: tuple[str, ...]) -> Config:
    """Check a model's options against the fields of its `Options`, without importing torch."""
    catalogue = importlib.import_module(f"scanbench.{study}.catalogue")
    path = ".".join(where)
    if experiment["model"] not in catalogue.names():
        hint = did_you_mean(experiment["model"], catalogue.names())
        raise UserError(f"config: {path}.model: no model {experiment['model']!r}; {hint}")
    fields = catalogue.option_fields(experiment["model"])
    checked = {}
    for key, value in experiment["options"].items():
        if key not in fields:
            hint = did_you_mean(key, fields) if fields else "this model has no options"
            raise UserError(f"config: {path}.options.{key}: unknown key; {hint}")
        kind, _ = fields[key]
        checked[key] = _option(value, kind, f"config: {path}.options.{key}")
    return checked


def _option(value: Any, kind: str, where: str) -> Any:
    """Return `value` as plain builtin of the annotated type `kind`, or refuse it."""
    if kind.startswith("tuple"):
        if not isinstance(value, list):
            raise UserError(f"{where}: {value!r} is not a list")
        element = kind.removeprefix("tuple[").split(",")[0].rstrip("]")
        return [_option(item, element, where) for item in value]
    if kind.startswith("Literal") or kind == "str":
        if not isinstance(value, str):
            raise UserError(f"{where}: {value!r} is not text")
        return value
    if kind == "bool" and isinstance(value, bool):
        return value
    if kind in ("int", "float") and isinstance(value, int) and not isinstance(value, bool):
        return float(value) if kind == "float" else value
    if kind == "float" and isinstance(value, float):
        return value
    raise UserError(f"{where}: {value!r} is not of type {kind}")


def _search(config: Config, schema: Schema, name: str) -> dict[str, list[Any]]:
    """Return the values that a search tries, each checked as if it stood in the experiment."""
    experiment = config["experiments"][name]
    checked: dict[str, list[Any]] = {}
    for key, values in experiment["search"].items():
        part, _, option = key.partition(".")
        at = ("experiments", name, "search", key)
        where = f"config: {'.'.join(at)}"
        if part not in tuning.PARTS or not option:
            raise UserError(
                f"{where}: a search changes keys of {', '.join(tuning.PARTS)}; write "
                "training.learning_rate, for one"
            )
        chosen_by = experiment["training"]["monitor"]
        if part == "training" and (
            option in tuning.FIXED
            or (option in tuning.OF_THE_LOSS and chosen_by == "val_loss")
            or (option == "epochs" and config["tuning"]["epochs"] is not None)
        ):
            why = {
                "epochs": "tuning.epochs sets it for every trial",
                **dict.fromkeys(tuning.OF_THE_LOSS, f"{chosen_by}, which chooses, changes with it"),
            }.get(option, "it is no setting to choose")
            raise UserError(f"{where}: {why}; leave it out")
        changed = [{**experiment[part], option: value} for value in values]
        if part == "options":
            tried = [_options(config["study"], {**experiment, part: c}, at[:2]) for c in changed]
        else:
            tried = [_checked(c, schema["$defs"][part], schema, (*at[:2], part)) for c in changed]
        checked[key] = [values[option] for values in tried]
    trials, possible = config["tuning"]["trials"], tuning.size(checked)
    if checked and possible < trials:
        raise UserError(
            f"config: experiments.{name}.search: {possible} settings are fewer than the {trials} "
            "of tuning.trials that every experiment gets; add values"
        )
    return checked


def _check_classes(config: Config) -> None:
    """Check tables that have a class for their key."""
    for name, dataset in config["datasets"].items():
        classes = plan.classes(config, name)
        for part, key in (("simulate", "shares"), ("labels", "merge")):
            # `labels` of the user's own files is the path of a table.
            if not isinstance(dataset.get(part), Mapping):
                continue
            for found in dataset[part][key]:
                if found not in classes:
                    raise UserError(
                        f"config: datasets.{name}.{part}.{key}.{found}: no class {found!r}; "
                        f"{did_you_mean(found, classes)}"
                    )


def _check_references(config: Config) -> None:
    _check_targets(config)
    for name, members in config["ensembles"].items():
        _check_members(config, name, members)
    for name, sides in config["side_by_side"].items():
        _check_sides(config, name, sides["comparisons"])
    for name in config["tip_changes"]:
        _check_tip_changes(config, name)
    for name in config["realism"]:
        _check_realism(config, name)
    wanted = plan.compared(config)
    for name, comparison in config["comparisons"].items():
        _check_data(config, comparison, f"config: comparisons.{name}")
        baseline = comparison["baseline"]
        if baseline is not None and baseline not in comparison["experiments"]:
            hint = did_you_mean(baseline, comparison["experiments"])
            raise UserError(
                f"config: comparisons.{name}.baseline: {baseline!r} is not one of its experiments; "
                f"{hint}"
            )
        for experiment in comparison["experiments"]:
            known = {**config["experiments"], **config["ensembles"]}
            where = f"config: comparisons.{name}.experiments"
            if experiment not in known:
                hint = did_you_mean(experiment, known)
                raise UserError(f"{where}: no experiment {experiment!r}; {hint}")
            for member in plan.members(config, experiment):
                if config["experiments"][member]["withhold"]:
                    raise UserError(
                        f"{where}: {member!r} withholds classes, so it cannot be scored beside "
                        "experiments that name them; compare it in `anomalies`"
                    )
            # An overlay may change sizes for its own targets without regard to the others.
            if name in wanted:
                _check_samples(config, experiment)
                for member in plan.members(config, experiment):
                    _check_window(config, comparison["dataset"], member)
        if name in wanted and config["tuning"]["trials"]:
            _check_effort(config, name)


def _check_targets(config: Config) -> None:
    """Check that the targets exist, and that a name says which table it stands in."""
    tables = (
        *("comparisons", "side_by_side", "curves"),
        *("explanations", "anomalies", "tip_changes", "realism"),
    )
    known: dict[str, str] = {}
    for table in tables:
        for name in config[table]:
            if name in known:
                raise UserError(
                    f"config: {table}.{name}: one of {known[name]} has this name; give it another"
                )
            known[name] = table
    for target in config["targets"]:
        if target not in known:
            hint = did_you_mean(target, known)
            raise UserError(f"config: targets: no comparison {target!r}; {hint}")


def _check_data(config: Config, wanted: Config, where: str) -> None:
    """Check that the data set and the split that something names exist."""
    for key, table in (("dataset", "datasets"), ("split", "splits")):
        if wanted[key] not in config[table]:
            hint = did_you_mean(wanted[key], config[table])
            raise UserError(f"{where}.{key}: no {key} {wanted[key]!r}; {hint}")


def _experiment(config: Config, name: str, where: str) -> Config:
    if name not in config["experiments"]:
        hint = did_you_mean(name, config["experiments"])
        raise UserError(f"{where}: no experiment {name!r}; {hint}")
    return config["experiments"][name]


def _check_held_out(config: Config, split: str, where: str) -> None:
    """Refuse a split that has scans of one group in training and in test."""
    scheme = config["splits"][split]["scheme"]
    if not plan.holds_groups_out(config, split):
        raise UserError(
            f"{where}: scheme {scheme!r} of split {split!r} has scans of one group on both sides; "
            "take one that holds whole groups out (kfold, fixed)"
        )


def _targeted(config: Config, table: str) -> Iterator[tuple[str, Config]]:
    """Give the entries of a table that are targets: overlays may change what others rest on."""
    for name in config["targets"]:
        if name in config[table]:
            yield f"config: {table}.{name}", config[table][name]


def _check_explanations(config: Config) -> None:
    for where, wanted in _targeted(config, "explanations"):
        if wanted["comparison"] not in config["comparisons"]:
            hint = did_you_mean(wanted["comparison"], config["comparisons"])
            raise UserError(f"{where}.comparison: no comparison {wanted['comparison']!r}; {hint}")
        comparison = config["comparisons"][wanted["comparison"]]
        _check_held_out(config, comparison["split"], f"{where}.comparison")
        folds = plan.folds(config["splits"][comparison["split"]])
        for experiment in wanted["experiments"]:
            if experiment in config["ensembles"]:
                raise UserError(
                    f"{where}.experiments: {experiment!r} is an ensemble; explain its members"
                )
            if experiment in comparison["experiments"]:
                _check_window(config, comparison["dataset"], experiment)
        for key, known in (
            ("experiments", comparison["experiments"]),
            ("seeds", comparison["seeds"]),
            ("folds", folds),
        ):
            for value in wanted[key] or ():
                if value not in known:
                    raise UserError(
                        f"{where}.{key}: {value!r} is not of comparison {wanted['comparison']!r}; "
                        f"it has {', '.join(map(str, known))}"
                    )


def _check_anomalies(config: Config) -> None:
    for where, wanted in _targeted(config, "anomalies"):
        _check_data(config, wanted, where)
        _check_held_out(config, wanted["split"], f"{where}.split")
        first = _experiment(config, wanted["experiments"][0], f"{where}.experiments")["withhold"]
        classes = plan.classes(config, wanted["dataset"])
        for experiment in wanted["experiments"]:
            withheld = _experiment(config, experiment, f"{where}.experiments")["withhold"]
            if not withheld:
                raise UserError(
                    f"{where}.experiments: {experiment!r} withholds no class; give it "
                    "`withhold: [CLASS]`, or compare it in `comparisons`"
                )
            if config["experiments"][experiment]["start"] is not None:
                raise UserError(
                    f"{where}.experiments: {experiment!r} starts from a run that may have seen "
                    f"{', '.join(withheld)}; leave out `start` or `withhold`"
                )
            if config["experiments"][experiment]["teacher"] is not None:
                raise UserError(
                    f"config: experiments.{experiment}.teacher: a teacher names the classes that "
                    "are withheld; leave it out (`teacher: null`)"
                )
            if set(withheld) != set(first):
                raise UserError(
                    f"{where}.experiments: {experiment!r} withholds {', '.join(withheld)}, but "
                    f"{wanted['experiments'][0]!r} {', '.join(first)}; compare like with like"
                )
            for found in withheld:
                if found not in classes:
                    raise UserError(
                        f"config: experiments.{experiment}.withhold: no class {found!r}; "
                        f"{did_you_mean(found, classes)}"
                    )
            if len(set(classes) - set(withheld)) < 2:
                raise UserError(
                    f"config: experiments.{experiment}.withhold: leaves fewer than two of the "
                    f"{len(classes)} classes of {wanted['dataset']!r} to learn; withhold fewer"
                )
            _check_window(config, wanted["dataset"], experiment)


def _check_members(config: Config, name: str, members: list[str]) -> None:
    """Check that an ensemble has a name of its own and members that exist."""
    where = f"config: ensembles.{name}"
    experiments = config["experiments"]
    if name in experiments:
        raise UserError(f"{where}: an experiment has this name; give it another")
    for member in members:
        if member not in experiments:
            raise UserError(
                f"{where}: no experiment {member!r}; {did_you_mean(member, experiments)}"
            )


def _check_samples(config: Config, name: str) -> None:
    """Check that an ensemble's members look at the same samples of a scan."""
    first, *others = plan.members(config, name)
    windows = {member: config["experiments"][member]["window"] for member in (first, *others)}
    for member in others:
        if windows[member] != windows[first]:
            raise UserError(
                f"config: ensembles.{name}: {member!r} and {first!r} have other windows, and so "
                "answer about other samples of a scan; give them the same `window`"
            )


def _check_effort(config: Config, comparison: str) -> None:
    """Check that in a comparison either all experiments are tuned or none."""
    wanted = config["comparisons"][comparison]["experiments"]
    names = [name for experiment in wanted for name in plan.members(config, experiment)]
    without = [name for name in names if "search" not in config["experiments"][name]]
    if without and len(without) < len(names):
        raise UserError(
            f"config: comparisons.{comparison}: {without[0]!r} has no search, but others have: "
            "give it one, or `search: {}` if it has nothing to tune"
        )
    for name in names:
        experiment = config["experiments"][name]
        if experiment.get("search") and experiment["training"]["fraction"] < 1:
            raise UserError(
                f"config: experiments.{name}.search: trials would see labels beyond the share of "
                "training.fraction that a run knows; give it `search: {}`"
            )


def _check_tip_changes(config: Config, name: str) -> None:
    """Check what tip changes are looked for in, and with."""
    wanted, where = config["tip_changes"][name], f"config: tip_changes.{name}"
    _check_data(config, wanted, where)
    _check_held_out(config, wanted["split"], f"{where}.split")
    for name in wanted["experiments"]:
        experiment = _experiment(config, name, f"{where}.experiments")
        if experiment["window"] or experiment["normalisation"] == "scan":
            raise UserError(
                f"{where}.experiments: {name!r} is of windows, or normalised by lines not yet "
                "measured; take experiments that answer line by line about a whole scan"
            )
        if experiment["withhold"]:
            raise UserError(
                f"{where}.experiments: {name!r} withholds classes; compare it in `anomalies`"
            )
    for found in wanted["bad"]:
        if found not in plan.classes(config, wanted["dataset"]):
            hint = did_you_mean(found, plan.classes(config, wanted["dataset"]))
            raise UserError(f"{where}.bad: no class {found!r}; {hint}")


def _check_sides(config: Config, name: str, comparisons: list[str]) -> None:
    """Check that comparisons that stand side by side exist and have the same experiments."""
    where = f"config: side_by_side.{name}"
    for comparison in comparisons:
        if comparison not in config["comparisons"]:
            hint = did_you_mean(comparison, config["comparisons"])
            raise UserError(f"{where}.comparisons: no comparison {comparison!r}; {hint}")
        first, other = (
            config["comparisons"][n]["experiments"] for n in (comparisons[0], comparison)
        )
        if set(first) != set(other):
            odd = sorted(set(first) ^ set(other))[0]
            raise UserError(
                f"{where}.comparisons: {odd!r} is an experiment of only one of {comparisons[0]!r} "
                f"and {comparison!r}; give both the same"
            )


def _check_starts(config: Config) -> None:
    """Check that what a run starts from exists, fits it, and has not seen what it is tested on."""
    for name, experiment in config["experiments"].items():
        start, where = experiment["start"], f"config: experiments.{name}.start"
        if start is None:
            training = experiment["training"]
            for key, wrong in (
                ("epochs", training["epochs"] == 0),
                ("frozen", training["frozen"] != "none"),
            ):
                if wrong:
                    raise UserError(
                        f"config: experiments.{name}.training.{key}: {training[key]} rests on a "
                        "start, and there is none; give `start`, or leave it out"
                    )
            continue
        if config["experiments"].get(start["experiment"], {}).get("withhold"):
            raise UserError(
                f"{where}: {start['experiment']!r} withholds classes, and its weights serve "
                "`anomalies` alone; start from one that has learned them all"
            )
        for key in ("experiment", "dataset", "split"):
            if start[key] is not None and start[key] not in config[f"{key}s"]:
                hint = did_you_mean(start[key], config[f"{key}s"])
                raise UserError(f"{where}.{key}: no {key} {start[key]!r}; {hint}")
        chain = [name]
        while (above := config["experiments"][chain[-1]]["start"]) is not None:
            if above["experiment"] not in config["experiments"]:
                break  # told where that experiment is checked
            chain.append(above["experiment"])
            if chain[-1] in chain[:-1]:
                circle = " → ".join(chain[chain.index(chain[-1]) :])
                raise UserError(f"{where}: a circle ({circle}); let one of them stand on its own")
    wanted = plan.compared(config)
    for name in config["comparisons"]:
        for run in plan.trained(config, name):
            _check_foundations(config, run, sizes=name in wanted)
    for name in config["comparisons"]:
        for run in plan.trained(config, name):
            _check_shares(config, run)


def _check_teachers(config: Config) -> None:
    """Check that each teacher exists, sees whole scans, as its student does, and no circle."""
    experiments = config["experiments"]
    for name, experiment in experiments.items():
        teacher, where = experiment["teacher"], f"config: experiments.{name}.teacher"
        if teacher is None:
            continue
        taught_by = teacher["experiment"]
        if taught_by not in experiments:
            hint = did_you_mean(taught_by, experiments)
            raise UserError(f"{where}.experiment: no experiment {taught_by!r}; {hint}")
        for who in (name, taught_by):
            if experiments[who]["window"]:
                raise UserError(f"{where}: {who!r} is of windows; both must see whole scans")
        if experiment["training"]["epochs"] == 0:
            raise UserError(f"{where}: training.epochs is 0, so that nothing is learned from it")
        if teacher["answers"] == "all" and experiment["augmentation"]["flip_slow"]:
            raise UserError(
                f"{where}.answers: 'all' is of scans as measured, and augmentation.flip_slow "
                "turns them round; set that to 0, or this to last"
            )
        below, waiting = set[str](), [taught_by]
        while waiting:
            if (above := waiting.pop()) == name:
                raise UserError(f"{where}: a circle; let one of them stand on its own")
            if above not in below and above in experiments:
                below.add(above)
                rests_on = (experiments[above][role] for role in ("start", "teacher"))
                waiting += [found["experiment"] for found in rests_on if found is not None]


def _check_deployments(config: Config) -> None:
    """Check that each deployment is of an experiment of its comparison, on whole scans."""
    for name, own in config["deployments"].items():
        where = f"config: deployments.{name}"
        if own["experiment"] in config["ensembles"]:
            raise UserError(
                f"{where}.experiment: {own['experiment']!r} is an ensemble; deploy one of its "
                "members"
            )
        if own["comparison"] not in config["comparisons"]:
            hint = did_you_mean(own["comparison"], config["comparisons"])
            raise UserError(f"{where}.comparison: no comparison {own['comparison']!r}; {hint}")
        experiments = config["comparisons"][own["comparison"]]["experiments"]
        if own["experiment"] not in experiments:
            hint = did_you_mean(own["experiment"], experiments)
            raise UserError(
                f"{where}.experiment: {own['experiment']!r} is not one of the experiments of "
                f"{own['comparison']!r}; {hint}"
            )
        experiment = config["experiments"][own["experiment"]]
        if experiment["window"] or experiment["normalisation"] == "scan":
            raise UserError(
                f"{where}.experiment: {own['experiment']!r} is of windows, or normalised by lines "
                "not yet measured; deploy one on whole scans with normalisation: line"
            )


def _check_shares(config: Config, run: Config) -> None:
    """Refuse a run on few labels that rests on one that knows more labels of the same data."""
    share = config["experiments"][run["experiment"]]["training"]["fraction"]
    for found in plan.below(config, run):
        known = config["experiments"][found["experiment"]]["training"]["fraction"]
        if found["dataset"] == run["dataset"] and known > share:
            raise UserError(
                f"config: experiments.{run['experiment']}: rests on {found['experiment']!r}, which "
                f"knows {known:g} of the labels of {run['dataset']!r}, and is to know {share:g} "
                "itself; give both the same training.fraction"
            )


def _check_foundations(config: Config, run: Config, *, sizes: bool) -> None:
    """Check the runs that a run's weights go back to.

    An overlay may change sizes for its own targets without regard to the others.
    """
    above = run
    for found in plan.below(config, run):
        where = f"config: experiments.{above['experiment']}.start"
        if found["split"] not in config["splits"]:
            hint = did_you_mean(found["split"], config["splits"])
            raise UserError(f"{where}.split: no split {found['split']!r}; {hint}")
        folds = plan.folds(config["splits"][found["split"]])
        if found["fold"] not in folds:
            raise UserError(
                f"{where}.fold: {found['fold']} is no fold of split {found['split']!r}, whose "
                f"folds are 0 to {folds[-1]}"
            )
        here, there = ((one["split"], one["fold"]) for one in (run, found))
        if found["dataset"] == run["dataset"] and here != there:
            raise UserError(
                f"{where}: that run is trained on {run['dataset']!r} in split {there[0]!r}, fold "
                f"{there[1]}, and may have seen what split {here[0]!r}, fold {here[1]} tests; "
                "leave out `split` and `fold` for those of the run, or give another `dataset`"
            )
        if sizes:
            _check_alike(config, above, found, where)
        above = found


def _check_alike(config: Config, run: Config, start: Config, where: str) -> None:
    """Check that weights of one run fit another, whatever setting a search may choose."""
    for one in (run, start) if config["tuning"]["trials"] else ():
        search = config["experiments"][one["experiment"]].get("search", {})
        if any(key.startswith("options.") for key in search):
            raise UserError(
                f"config: experiments.{one['experiment']}.search: "
                f"{run['experiment']!r} starts from {start['experiment']!r} and must have its "
                "options; search none of them"
            )
    own, other = (_shape(config, one) for one in (run, start))
    for key, value in own.items():
        if value != other[key]:
            raise UserError(
                f"{where}: {run['experiment']!r} has {key} {value!r}, but "
                f"{start['experiment']!r} on {start['dataset']!r} has {other[key]!r}; make them "
                "equal"
            )


def _shape(config: Config, run: Config) -> Config:
    """Return what must be equal for one run to take over the weights of another."""
    experiment = config["experiments"][run["experiment"]]
    store = config["datasets"][run["dataset"]]["store"]
    options = plan.options(config, run["experiment"])
    return {
        "model": experiment["model"],
        **{f"options.{key}": value for key, value in options.items()},
        "normalisation": experiment["normalisation"],
        "lines": (experiment["window"] or store)["lines"],
        "pixels": store["pixels"],
    }


def _check_curves(config: Config) -> None:
    """Check that curves are of a comparison's experiments, and rise over a number of theirs."""
    for name, curves in config["curves"].items():
        where = f"config: curves.{name}"
        if curves["comparison"] not in config["comparisons"]:
            hint = did_you_mean(curves["comparison"], config["comparisons"])
            raise UserError(f"{where}.comparison: no comparison {curves['comparison']!r}; {hint}")
        comparison = config["comparisons"][curves["comparison"]]
        if comparison["baseline"] is None:
            raise UserError(
                f"{where}.comparison: {curves['comparison']!r} has no baseline to reach; name one "
                "of its experiments"
            )
        # An overlay may change a comparison without regard to curves that it does not ask for.
        if name in config["targets"]:
            for series, experiments in curves["series"].items():
                _check_series(config, curves, experiments, f"{where}.series.{series}")


def _check_series(config: Config, curves: Config, experiments: list[str], where: str) -> None:
    known = config["comparisons"][curves["comparison"]]["experiments"]
    before = -math.inf
    for experiment in experiments:
        if experiment not in known:
            raise UserError(
                f"{where}: {experiment!r} is no experiment of {curves['comparison']!r}; "
                f"{did_you_mean(experiment, known)}"
            )
        try:
            x = plan.value_of(config, experiment, curves["x"])
        except KeyError:
            x = None
        if not isinstance(x, int | float) or isinstance(x, bool):
            raise UserError(f"{where}: {experiment!r} has no number under {curves['x']!r}")
        if x <= before:
            raise UserError(f"{where}: {curves['x']} does not rise at {experiment!r}; order them")
        if x <= 0 and curves["scale"] == "log":
            raise UserError(f"{where}: {x:g} has no place on a logarithmic axis; set scale: linear")
        before = x


def _check_realism(config: Config, name: str) -> None:
    """Check that what stands side by side exists, and is what it is called."""
    where, wanted = f"config: realism.{name}", config["realism"][name]
    for side in ("real", "simulated"):
        if wanted[side] not in config["datasets"]:
            hint = did_you_mean(wanted[side], config["datasets"])
            raise UserError(f"{where}.{side}: no data set {wanted[side]!r}; {hint}")
        if (config["datasets"][wanted[side]]["source"] == "simulate") != (side == "simulated"):
            raise UserError(f"{where}.{side}: data set {wanted[side]!r} is not {side}")


def _check_window(config: Config, dataset: str, name: str) -> None:
    """Check that windows fit into a scan and that the last one ends with its last line."""
    window = config["experiments"][name]["window"]
    if not window:
        return
    lines = config["datasets"][dataset]["store"]["lines"]
    where = f"config: experiments.{name}.window"
    rest = lines - window["lines"]
    if rest < 0:
        raise UserError(
            f"{where}.lines: {window['lines']} lines do not fit into "
            f"the {lines} lines of a scan (datasets.*.store.lines); choose fewer"
        )
    if rest % window["stride"]:
        fitting = [str(stride) for stride in range(1, rest + 1) if rest % stride == 0]
        raise UserError(
            f"{where}.stride: windows of {window['lines']} lines every {window['stride']} leave "
            f"the last {rest % window['stride']} of the {lines} lines of a scan "
            f"(datasets.*.store.lines) unread; strides that fit: {', '.join(fitting)}"
        )
