"""Every key of the configuration, changed: what reruns is what the schema says beside the key."""

from __future__ import annotations

import ast
import copy
import shlex
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

from scanbench import sources
from scanbench.config import resolve
from scanbench.errors import UserError

pytestmark = pytest.mark.workflow

SCHEMA = yaml.safe_load((ROOT / "workflow/schemas/config.schema.yaml").read_text("utf-8"))
EVERY_KIND = Path(__file__).with_name("every_kind.yaml")
STUDY = yaml.safe_load(EVERY_KIND.read_text("utf-8"))
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
        return self.planner.plan(self.project.overlay(change, EVERY_KIND))


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Study]:
    project = copy_project(tmp_path_factory.mktemp("every-kind") / "project")
    shutil.copy2(EVERY_KIND, project.folder / "config.yaml")
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
    one = key.value[0] if isinstance(key.value, list) and key.value else key.value
    tables = [table for table in RESOLVED.values() if isinstance(table, Mapping)]
    alike = [table for table in tables if isinstance(one, str) and one in table]
    names = list(dict.fromkeys(name for table in alike or tables for name in table))
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
    assert study.plan.recorded == study.plan.below.keys()
    # A change of any rule's jobs can be seen.
    rules = {path.stem for path in (study.project.folder / "workflow/rules").glob("*.smk")}
    assert rules - {"common", "deploy", "tune"} <= {rule for rule, _ in study.plan.below}


@pytest.mark.parametrize("case", CASES)
def test_a_changed_key_reruns_what_the_schema_says(study: Study, case: str) -> None:
    same = CASES[case]
    assert same[0].reruns is not None, f"{case}: tell in the schema what it reruns (x-reruns)"
    # Where most rules are concerned.
    at = {key: {job[0] for job in concerned(RESOLVED, key, study.plan)} for key in same if key.acts}
    there = [key for key in at if at[key] or not key.reruns]
    assert there, f"{case}: nothing in the study that it could rerun"
    for key in sorted(there, key=lambda key: -len(at[key])):
        found = change_of(key)
        if found is not None:
            break
    else:
        pytest.fail(f"{case}: no other value is allowed; give `examples` in the schema")
    change, after = found
    plan = study.changed(change)
    wanted = expected(after, study.plan, plan)
    assert not plan.reruns - wanted, f"{change} reruns too much: {sorted(plan.reruns - wanted)}"
    assert not wanted - plan.reruns, f"{change} reruns too little: {sorted(wanted - plan.reruns)}"


# ------------------------------------------------------------------------------------------- files


def all_of(plan: Plan, *wanted: tuple[str, str]) -> set[Job]:
    """Return the jobs of rules with a wildcard, and all that rest on them."""
    first = {
        job for job in plan.below for rule, part in wanted if job[0] == rule and part in job[1]
    }
    return set(plan.with_all_above(frozenset(first)))


def test_touched_files_rerun_nothing(study: Study) -> None:
    project = study.project.folder
    for name in ("config.yaml", "labels.csv", "scans/a.sxm", "scans", "scans/.hidden"):
        (project / name).touch()
    for path in (*project.glob("src/**/*.py"), *project.glob("workflow/**/*.*")):
        path.touch()
    assert study.changed({}).reruns == set()


def test_a_scan_that_comes_changes_or_goes_reruns_its_data_set(study: Study) -> None:
    after_ingest = all_of(study.plan, ("ingest", "dataset=mine"))
    assert {"ingest", "train", "evaluate", "protocols"} <= {job[0] for job in after_ingest}
    scans = study.project.folder / "scans"
    new, old = scans / "b.sxm", scans / "a.sxm"
    content = old.read_bytes()
    new.write_bytes(b"another scan")
    assert study.changed({}).reruns == after_ingest
    new.unlink()
    assert study.changed({}).reruns == set()
    old.write_bytes(content[::-1])
    assert study.changed({}).reruns == after_ingest
    old.write_bytes(content)
    assert study.changed({}).reruns == set()


def test_a_changed_label_reruns_its_data_set(study: Study) -> None:
    table = study.project.folder / "labels.csv"
    labels = table.read_text("utf-8")
    table.write_text(labels.replace("sharp", "blunt"), encoding="utf-8")
    assert study.changed({}).reruns == all_of(study.plan, ("ingest", "dataset=mine"))
    table.write_text(labels, encoding="utf-8")
    assert study.changed({}).reruns == set()


def test_a_seed_more_trains_the_runs_of_that_seed_alone(study: Study) -> None:
    plan = study.changed({"comparisons": {"people": {"seeds": [0, 7]}}})
    new = {job for job in plan.below if "seed=7" in job[1]}
    rules = ("train", "predict", "predict_unlabelled")
    experiments = STUDY["comparisons"]["people"]["experiments"]
    assert {job[0] for job in new} == set(rules)
    # One of the experiments starts from a run of the same seed on other scans.
    assert len(new) == len(rules) * len(experiments) + 1
    above = {"evaluate", "agreement", "render", "curves"}
    assert {job[0] for job in plan.reruns - new} == above
    assert len(plan.reruns - new) == len(above)


def test_planning_reads_no_result_and_each_file_of_a_user_once(study: Study) -> None:
    assert study.plan.opened == ("scans/a.sxm",)  # and large ones are not read: see `user_files`


# --------------------------------------------------------------------------------- source modules

#: Modules that import others by names that they put together, and which: `{model}` is that of the
#: job's experiment. A job of no one experiment builds no model.
DYNAMIC = {
    "scanbench.runs": ["scanbench.tipstate.models", "{model}"],
    "scanbench.tipstate.models": ["{model}"],
    "scanbench.tipstate.readers": sources.modules("scanbench.tipstate.readers"),
    # Only to render a comparison: what others take from it draws nothing of a study.
    "scanbench.render": [],
    # No stage imports these: they plan, and hand over.
    "scanbench.commands": [],
    "scanbench.config": [],
    "scanbench.plan": [],
}
#: `scanbench.cli`, `scanbench.commands` and what they need to start, and to record a job, are no
#: inputs of a rule: they parse a command and hand it over, and every edit would rerun everything.


def module_of(path: Path) -> str:
    parts = path.relative_to(sources.ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def test_every_module_that_imports_by_a_made_up_name_is_known() -> None:
    found = {
        module_of(path)
        for path in sources.ROOT.rglob("*.py")
        if "import_module(" in path.read_text("utf-8")
    }
    assert found == set(DYNAMIC)


COMMANDS = {
    node.name: node
    for node in ast.parse((sources.ROOT / "commands.py").read_bytes()).body
    if isinstance(node, ast.FunctionDef)
}


def imported_by(command: str) -> set[str]:
    """Return the modules that a shell command's function of the command line imports."""
    words = shlex.split(command)
    words = words[words.index("--") + 1 :]  # before it: what records the job
    return set(_imported(COMMANDS[words[0].replace("-", "_")].body, set(words)))


def _imported(body: list[ast.stmt], words: set[str]) -> Iterator[str]:
    for statement in body:
        if isinstance(statement, ast.If) and isinstance(statement.test, ast.Attribute):
            given = f"--{statement.test.attr}" in words
            yield from _imported(statement.body if given else statement.orelse, words)
            if given and isinstance(statement.body[-1], ast.Return):
                return
            continue
        for node in ast.walk(statement):
            if isinstance(node, ast.ImportFrom) and node.module and "scanbench" in node.module:
                yield node.module
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                if node.func.id == "_of_study":
                    assert isinstance(node.args[1], ast.Constant)
                    yield f"scanbench.tipstate.{node.args[1].value}"
                elif node.func.id.startswith("_") and node.func.id in COMMANDS:
                    yield from _imported(COMMANDS[node.func.id].body, words)


#: What the rule `render` draws with.
DRAWN = {"scanbench.tipstate.figures", "scanbench.tipstate.replay_page"}


def needed(job: Job, command: str) -> frozenset[str]:
    """Return the sources that the code of a job may import."""
    experiment = wildcards_of(job).get("experiment")
    model = None
    if experiment in RESOLVED["experiments"]:
        name = RESOLVED["experiments"][experiment]["model"].replace("-", "_")
        model = f"scanbench.tipstate.models.{name}"
    modules = imported_by(command) | (DRAWN if job[0] == "render" else set())
    while True:
        files = sources.closure(*modules)
        more = {
            name.format(model=model)
            for path in files
            if path.suffix == ".py"
            for name in DYNAMIC.get(module_of(path), [])
            if model or (name != "{model}" and not name.endswith(".models"))
        }
        if more <= modules:
            return frozenset(f"src/{path.relative_to(sources.ROOT.parent)}" for path in files)
        modules |= more


def test_every_rule_lists_the_sources_that_its_code_imports_and_no_others(study: Study) -> None:
    wrong = {}
    for job, listed in study.plan.sources.items():
        wanted = needed(job, study.plan.commands[job[0]])
        if listed != wanted:
            wrong[job[0]] = {
                "missing": sorted(wanted - listed),
                "too many": sorted(listed - wanted),
            }
    assert not wrong
