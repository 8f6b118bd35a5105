"""Every key of the configuration, changed: what reruns is what the schema says beside the key."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from config_keys import Config, Key, Keys, entries_of, others
from conftest import ROOT, Job, Project, copy_project, merge
from planner import Plan, Planner

from scanbench.config import resolve
from scanbench.errors import UserError

pytestmark = pytest.mark.workflow

SCHEMA = yaml.safe_load((ROOT / "workflow/schemas/config.schema.yaml").read_text("utf-8"))
STUDY = yaml.safe_load(Path(__file__).with_name("every_kind.yaml").read_text("utf-8"))
KEYS = Keys(SCHEMA)


def resolved(config: Config) -> dict[str, Any]:
    return dict(resolve(copy.deepcopy(dict(config)), SCHEMA))


RESOLVED = resolved(STUDY)


def places() -> dict[int, list[Key]]:
    """Give the places of each key in the study, by its number."""
    found: dict[int, list[Key]] = {}
    for key in KEYS.of(RESOLVED):
        found.setdefault(key.number, []).append(key)
    return found


PLACES = places()
CASES = {
    # Of three kinds of data sets have each a title: the place tells them apart.
    ".".join(same[0].path): same
    for same in PLACES.values()
    if same[0].schema.get("enum", ["several", "values"])[1:]
}


@dataclass(frozen=True)
class Study:
    """The study with an entry of every kind, all of it finished."""

    project: Project
    planner: Planner
    plan: Plan

    def changed(self, change: Config) -> Plan:
        """Plan with a change of the configuration."""
        overlay = self.project.folder / "overlay.yaml"
        overlay.write_text(yaml.safe_dump(merge(STUDY, change)), encoding="utf-8")
        return self.planner.plan(overlay.name)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Study]:
    project = copy_project(tmp_path_factory.mktemp("every-kind") / "project")
    shutil.copy2(Path(__file__).with_name("every_kind.yaml"), project.folder / "config.yaml")
    (project.folder / "scans").mkdir()
    (project.folder / "scans/a.sxm").write_bytes(b"a scan")
    (project.folder / "labels.csv").write_text("scan,label\na,sharp\n", encoding="utf-8")
    planner = Planner(project.folder, project.environment)
    planner.finish()
    yield Study(project, planner, planner.plan())
    planner.close()


def wildcards_of(job: Job) -> dict[str, str]:
    return dict(item.split("=", 1) for item in job[1].split(", "))


def concerned(config: Config, key: Key, plan: Plan) -> set[Job]:
    """Return the jobs that rerun, by the schema, if a key changes: those of its entry, or all."""
    return {
        job
        for job in plan.below
        if job[0] in (key.reruns or ())
        and (key.entry is None or key.entry in entries_of(config, job[0], wildcards_of(job)))
    }


def expected(after: Config, old: Plan, new: Plan) -> frozenset[Job]:
    """Return what reruns, by the schema, after changes of the study's configuration."""
    before, now = ({key.path: key for key in KEYS.of(config)} for config in (RESOLVED, after))
    first = frozenset(new.below) - frozenset(old.below)
    for path in before.keys() | now.keys():
        at = [keys[path] for keys in (before, now) if path in keys]
        if len({repr(key.value) for key in at}) == 1 and len(at) == 2:
            continue
        # Defaults act through the experiments that take them over.
        if path[0] in KEYS.defaults or not any(key.acts for key in at) or searched(after, path):
            continue
        first |= concerned(after, at[-1], new)
    return new.with_all_above(first)


def searched(config: Config, path: tuple[str, ...]) -> bool:
    """Return whether a search sets what an experiment has there."""
    if path[0] != "experiments" or not config["tuning"]["trials"]:
        return False
    return ".".join(path[2:]) in config["experiments"][path[1]].get("search", {})


def change_of(key: Key) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """Return a change of the key's value that is no mistake, and the configuration after it."""
    names = [name for table in RESOLVED.values() if isinstance(table, Mapping) for name in table]
    for value in others(key.value, key.schema, names):
        change: Any = value
        for part in reversed(key.path):
            change = {part: change}
        try:
            after = resolved(merge(STUDY, change))
        except UserError:
            continue
        if after != RESOLVED:
            return change, after
    return None


def test_every_key_that_the_schema_knows_is_in_the_study() -> None:
    assert {key for key in KEYS.all() if key not in PLACES} == {
        id(SCHEMA["$defs"]["experiment"]["properties"]["base"])  # gives its keys, and is gone
    }


def test_nothing_reruns_in_the_finished_study(study: Study) -> None:
    assert study.plan.reruns == set()
    # A change of any rule's jobs can be seen.
    rules = {path.stem for path in (study.project.folder / "workflow/rules").glob("*.smk")}
    assert rules - {"common", "deploy", "tune"} <= {rule for rule, _ in study.plan.below}


@pytest.mark.parametrize("case", CASES)
def test_a_changed_key_reruns_what_the_schema_says(study: Study, case: str) -> None:
    same = CASES[case]
    assert same[0].reruns is not None, f"{case}: tell in the schema what it reruns (x-reruns)"
    # Where most rules are concerned.
    at = {key: {job[0] for job in concerned(RESOLVED, key, study.plan)} for key in same if key.acts}
    for key in sorted(at, key=lambda key: -len(at[key])):
        found = change_of(key)
        if found is not None:
            break
    else:
        pytest.fail(f"{case}: no other value is allowed; give `examples` in the schema")
    assert at[key] or not key.reruns, f"{case}: nothing in the study that it could rerun"
    change, after = found
    plan = study.changed(change)
    wanted = expected(after, study.plan, plan)
    assert (sorted(plan.reruns - wanted), sorted(wanted - plan.reruns)) == ([], []), change
