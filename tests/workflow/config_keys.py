"""Every key of the configuration, found from its schema, with what the schema says of reruns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from jsonschema import Draft202012Validator

Schema = Mapping[str, Any]
Config = Mapping[str, Any]
Entry = tuple[str, str]

#: Keys, and wildcards of rules, that name entries of a table.
TABLES = {
    "dataset": "datasets",
    "real": "datasets",
    "simulated": "datasets",
    "split": "splits",
    "experiment": "experiments",
    "experiments": "experiments",
    "comparison": "comparisons",
    "comparisons": "comparisons",
    "explanation": "explanations",
    "anomaly": "anomalies",
    "tip_change": "tip_changes",
}
#: Table of the wildcard `name`, by rule.
TABLES_OF_NAME = {
    "protocols": "side_by_side",
    "curves": "curves",
    "realism": "realism",
    "deployment": "deployments",
}


@dataclass(frozen=True, eq=False)
class Key:
    """A key at one place of a configuration.

    Parameters
    ----------
    path
        Where it stands.
    value
        What it holds.
    schema
        What the schema says of it.
    number
        The same wherever this part of the schema holds.
    reruns
        Rules that its changes rerun; None if the schema does not say.
    acts
        Whether the keys beside it let it have an effect.
    entry
        What it belongs to, as (table, name); None if it is one for all.
    """

    path: tuple[str, ...]
    value: Any
    schema: Schema
    number: int
    reruns: tuple[str, ...] | None
    acts: bool
    entry: Entry | None


class Keys:
    """The keys of configurations of one schema."""

    def __init__(self, schema: Schema) -> None:
        self.schema = schema
        self.experiment = schema["$defs"]["experiment"]["properties"]
        #: What an experiment has of the top level, changed: it acts through the experiments alone.
        self.defaults = set(self.experiment) & set(schema["properties"])

    def of(self, config: Config) -> list[Key]:
        """List the keys of a resolved configuration that hold a value, not keys or entries."""
        return list(self._below(self.schema, config, config=config))

    def all(self) -> set[int]:
        """Give the numbers of all keys that there may be."""
        found = set()
        waiting = [self.schema]
        while waiting:
            given = waiting.pop()
            part = self._whole(given)
            inside = [branch["then"] for branch in part.get("allOf", ())]
            inside = inside or [self._part(part, key) for key in part.get("properties", ())]
            if _holds_entries(part):
                inside.append(part["additionalProperties"])
            if (not inside or _may_be_null(part)) and "const" not in part:
                found.add(id(given))
            waiting += inside
        return found

    def _whole(self, part: Schema) -> Schema:
        """Return a part of the schema with what it refers to."""
        if "$ref" not in part:
            return part
        return {**self._whole(self.schema["$defs"][part["$ref"].rsplit("/", 1)[1]]), **part}

    def _part(self, part: Schema, key: str) -> Schema:
        """Return what the schema says of a key."""
        if part["properties"] is self.experiment and key in self.defaults:
            part = self.schema
        found: Schema = part["properties"][key]
        return found

    def _below(
        self,
        given: Schema,
        value: Any,
        *,
        config: Config,
        path: tuple[str, ...] = (),
        reruns: list[str] | None = None,
        acts: bool = True,
        entry: Entry | None = None,
    ) -> Iterator[Key]:
        part = self._whole(given)
        for branch in part.get("allOf", ()):
            if Draft202012Validator(branch["if"]).is_valid(value):
                given, part = branch["then"], self._whole(branch["then"])
        reruns = part.get("x-reruns", reruns)
        entries = _holds_entries(part)
        holds_keys = isinstance(value, Mapping) and ("properties" in part or entries)
        if (not holds_keys or _may_be_null(part)) and "const" not in part:
            said = None if reruns is None else tuple(reruns)
            yield Key(path, value, part, id(given), said, acts, entry)
        if not holds_keys:
            return
        # A condition may be one on the data set that is named beside the key.
        beside = {k: config["datasets"][v] if k == "dataset" else v for k, v in value.items()}
        for key, item in value.items():
            below = part["additionalProperties"] if entries else self._part(part, key)
            condition = Draft202012Validator({"properties": below.get("x-where", {})})
            yield from self._below(
                below,
                item,
                config=config,
                path=(*path, key),
                reruns=reruns,
                acts=acts and condition.is_valid(beside),
                entry=(path[0], key) if entries else entry,
            )


def _holds_entries(part: Schema) -> bool:
    return "propertyNames" in part


def _may_be_null(part: Schema) -> bool:
    return "null" in part.get("type", ())


def entries_of(config: Config, rule: str, wildcards: Mapping[str, str]) -> set[Entry]:
    """Return the entries that a job is of, and those that these name.

    What an experiment rests on is left out: its changes come through the runs that are rested on.
    """
    found: set[Entry] = set()
    waiting: list[Entry] = []

    def add(holder: Mapping[str, Any]) -> None:
        for key, value in holder.items():
            table = TABLES_OF_NAME.get(rule) if key == "name" else TABLES.get(key)
            tables = (table, "ensembles") if table == "experiments" else (table,)
            for name in [value] if isinstance(value, str) else value or ():
                waiting.extend((t, name) for t in tables if t and name in config[t])

    add(wildcards)
    while waiting:
        table, name = entry = waiting.pop()
        if entry not in found:
            found.add(entry)
            if table not in ("experiments", "ensembles"):
                add({k: v for k, v in config[table][name].items() if k in TABLES})
    return found


def others(value: Any, part: Schema, names: list[str]) -> Iterator[Any]:
    """Give values that a key may perhaps have instead, the likeliest first.

    Parameters
    ----------
    value, part
        What it holds, and what the schema says of it.
    names
        Of entries, one of which a text may be.
    """
    yield from part.get("examples", ())
    if "enum" in part:
        yield from (item for item in part["enum"] if item != value)
    elif isinstance(value, bool):
        yield not value
    elif isinstance(value, int):
        yield from (value + 1, value - 1)
    elif isinstance(value, float):
        yield from (value / 2, value * 2, value + 0.25)
    elif isinstance(value, str):
        yield from (name for name in names if name != value)
        yield f"{value}x"
    elif isinstance(value, list):
        yield value[:-1]
        for first in [*others(value[0], part.get("items", {}), names)] if value else []:
            yield [first, *value[1:]]
        yield from ([*value, name] for name in [*names, "x"])
        yield [*value, part.get("items", {}).get("minimum", 1)]
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield {**value, f"{key}x": item}
            inside = part.get("additionalProperties", {})
            for changed in others(item, inside if isinstance(inside, Mapping) else {}, names):
                yield {**value, key: changed}
        yield {**value, "x": "x"}
    elif "array" in part["type"]:
        yield [part["items"].get("minimum", 0)]
    elif "integer" in part["type"]:
        yield part.get("minimum", 1)
    elif "string" in part["type"]:
        yield from names
    if _may_be_null(part) and value is not None:
        yield None
