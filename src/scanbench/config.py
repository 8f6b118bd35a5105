"""The configuration: defaults filled in, every key checked, one clear line for each mistake.

The schema (`workflow/schemas/config.schema.yaml`) says what a key may hold. Added here: what an
experiment takes from its base, that a model has the options it is given, that a search tries values
that could stand there, that numbers are finite. What one part may say of another is checked in
`references`.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Mapping
from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError

from scanbench import plan, tuning
from scanbench.errors import UserError, did_you_mean
from scanbench.references import check_references

Schema = Mapping[str, Any]
Config = dict[str, Any]

_MOST_VALUES, _DEEPEST = 200_000, 50


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
    _check_values(config, (), [0])
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
    check_references(filled)
    if filled["tuning"]["trials"]:
        _check_own_values(config, filled)
    return filled


def _check_values(value: Any, where: tuple[str, ...], seen: list[int]) -> None:
    """Refuse NaN and infinity, which pass every comparison of the schema or fail none.

    Refused, too, is what would take for ever to check: a few lines of YAML, aliases of aliases, can
    mean billions of values, or values within themselves. `seen` counts them.
    """
    seen[0] += 1
    if seen[0] > _MOST_VALUES or len(where) > _DEEPEST:
        raise UserError(
            f"config: {'.'.join(where[:3])}: more than {_MOST_VALUES:,} values, or {_DEEPEST} "
            "levels of them; name what is used in many places once, as a `base`"
        )
    if isinstance(value, Mapping):
        for key, item in value.items():
            _check_values(item, (*where, str(key)), seen)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            _check_values(item, (*where, str(index)), seen)
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
    if error.validator == "pattern" and isinstance(part, Mapping) and "x-mend" in part:
        return f"config: {path}: {value!r} cannot be used; {part['x-mend']}"
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
