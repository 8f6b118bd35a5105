"""Plans of the real Snakefile, each in a fork of a process that has loaded Snakemake already.

A dry run as a user types it spends most of its time on imports; a fork begins after them. The
process reads one request a line and answers with one line, both JSON.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Job = tuple[str, str]

#: What planning must read.
PROJECT = ("Snakefile", "config.yaml", "overlay.yaml", "src/", "workflow/")


@dataclass(frozen=True)
class Plan:
    """What Snakemake would do.

    Parameters
    ----------
    below
        Every job that the targets need, finished or not, as (rule, wildcards), and the jobs whose
        files it reads.
    reruns
        Those of them that would run now.
    recorded
        Those of them of which Snakemake has a record; of others it sees only what is missing or
        older than its inputs.
    sources
        The files of the package that each job lists as its inputs.
    commands
        Shell command of each rule.
    opened
        Files below the project's folder that planning opened, as often as it did, without those of
        Snakemake itself and of the project.
    """

    below: Mapping[Job, frozenset[Job]]
    reruns: frozenset[Job]
    recorded: frozenset[Job]
    sources: Mapping[Job, frozenset[str]]
    commands: Mapping[str, str]
    opened: tuple[str, ...]

    def with_all_above(self, first: frozenset[Job]) -> frozenset[Job]:
        """Return jobs with all that rest on them."""
        found = first
        while more := {job for job, below in self.below.items() if below & found} - found:
            found |= more
        return found


class Planner:
    """Plans in a project's folder.

    Parameters
    ----------
    folder
        With the Snakefile.
    environment
        Of the process.
    """

    def __init__(self, folder: Path, environment: Mapping[str, str]) -> None:
        self.process = subprocess.Popen(
            [sys.executable, __file__],
            cwd=folder,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def close(self) -> None:
        """End the process."""
        self.process.communicate()

    def plan(self, *configs: str) -> Plan:
        """Plan with configuration files on top of `config.yaml`."""
        answer = self._ask("plan", configs)
        jobs: list[Job] = [(rule, wildcards) for rule, wildcards in answer["jobs"]]
        return Plan(
            below={
                job: frozenset(jobs[number] for number in numbers)
                for job, numbers in zip(jobs, answer["below"], strict=True)
            },
            reruns=frozenset(jobs[number] for number in answer["reruns"]),
            recorded=frozenset(jobs[number] for number in answer["recorded"]),
            sources=dict(zip(jobs, map(frozenset, answer["sources"]), strict=True)),
            commands=answer["commands"],
            opened=tuple(answer["opened"]),
        )

    def finish(self) -> None:
        """Take every job as done: each output is an empty file, and Snakemake keeps its records.

        `--touch` does all that Snakemake does after a job, but for the job.
        """
        self._ask("make_empty", ())
        self._ask("touch", ())

    def _ask(self, what: str, configs: tuple[str, ...]) -> Any:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(json.dumps([what, configs]), file=self.process.stdin, flush=True)
        answer = json.loads(self.process.stdout.readline())
        assert "error" not in answer, answer["error"]
        return answer


def _answer(what: str, configs: list[str]) -> dict[str, Any]:
    """Do what is asked; in a fork, as Snakemake leaves its traces in a process."""
    from snakemake.api import SnakemakeApi
    from snakemake.settings.types import (
        ConfigSettings,
        DAGSettings,
        OutputSettings,
        Quietness,
        ResourceSettings,
    )

    opened: list[str] = []
    sys.addaudithook(lambda event, given: opened.append(given[0]) if event == "open" else None)
    with SnakemakeApi(OutputSettings(quiet={Quietness.ALL}, dryrun=what != "touch")) as api:
        workflow = api.workflow(
            resource_settings=ResourceSettings(cores=os.cpu_count()),
            config_settings=ConfigSettings(configfiles=[Path(name) for name in configs]),
            snakefile=Path("Snakefile"),
        )
        if what == "touch":
            # The files are there, so no job would run.
            workflow.dag(DAGSettings(forceall=True)).execute_workflow(pseudo_executor="touch")
            return {}
        workflow.dag().printd3dag()  # builds the DAG and runs nothing
        dag = workflow._workflow.dag
        if what == "make_empty":
            for path in (path for job in dag.jobs for path in job.output):
                Path(path).parent.mkdir(parents=True, exist_ok=True)
                Path(path).mkdir() if path.is_directory else Path(path).touch()
            return {}
        jobs = [job for job in dag.jobs if job.rule.name != "all"]
        known = [job for job in jobs if workflow._workflow.persistence.has_metadata(job)]
        number = {job: place for place, job in enumerate(jobs)}
        return {
            "jobs": [
                (job.rule.name, ", ".join(f"{k}={v}" for k, v in job.wildcards_dict.items()))
                for job in jobs
            ],
            "below": [[number[below] for below in dag.dependencies[job]] for job in jobs],
            "reruns": [number[job] for job in jobs if dag.needrun(job)],
            "recorded": [number[job] for job in known],
            "sources": [[path for path in job.input if path.startswith("src/")] for job in jobs],
            "commands": {job.rule.name: job.rule.shellcmd for job in jobs},
            "opened": sorted(_of_the_study(opened)),
        }


def _of_the_study(paths: list[Any]) -> Iterator[str]:
    """Give those of opened paths that are neither Snakemake's nor the project's."""
    for path in paths:
        if isinstance(path, str | os.PathLike):
            name = os.path.relpath(path)
            if not name.startswith(("..", ".snakemake", *PROJECT)):
                yield name


def _serve() -> None:
    """Answer requests until there are no more."""
    # What the forks need, loaded once.
    import importlib

    for name in ("snakemake.cli", "smart_open", "pandas", "scanbench.config", "scanbench.sources"):
        importlib.import_module(name)
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        os.dup2(nowhere, stream.fileno())
    for line in sys.stdin:
        if os.fork():
            os.wait()
            continue
        try:
            answer = _answer(*json.loads(line))
        except BaseException as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=answers, flush=True)
        os._exit(0)


if __name__ == "__main__":
    _serve()
