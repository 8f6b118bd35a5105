"""From a file of a results folder back to the raw files: what made it, and from what."""

from __future__ import annotations

import csv
import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.text import Text
from rich.tree import Tree

from scanbench import records
from scanbench.errors import UserError, counted
from scanbench.files import parse_json, sha256_of
from scanbench.records import Record

#: What is printed unless all is asked for: digits of a hash, jobs of a step, files of a job,
#: letters of a value, letters of a list of values.
DIGITS, JOBS, FILES, VALUE, LETTERS = 12, 6, 2, 30, 90


@dataclass(frozen=True, kw_only=True)
class Job:
    """A job of a chain.

    Attributes
    ----------
    name
        Its record's file in the results folder.
    record
        What it read and wrote.
    used
        Those of its outputs that the chain needs → SHA-256.
    """

    name: str
    record: Record
    used: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class Chain:
    """What a file goes back to.

    Attributes
    ----------
    files
        What is traced → the SHA-256 that is recorded.
    changed
        Those of `files` that have not their SHA-256 any more, or are gone; and what in the chain
        was made from another version of a file than lies there now.
    steps
        Stage → its jobs; what made `files` first, and a stage before all that it needs.
    raw
        Raw file → SHA-256; files outside the results folder as the configuration names them.
    sessions
        Their groups: sessions, micrographs, parts; sorted.
    """

    files: Mapping[str, str]
    changed: Sequence[str]
    steps: Mapping[str, Sequence[Job]]
    raw: Mapping[str, str]
    sessions: Sequence[str]

    def as_json(self) -> dict[str, Any]:
        """Return the chain as plain builtins."""
        return {
            "files": dict(self.files),
            "changed": list(self.changed),
            "steps": [
                {
                    "stage": stage,
                    "jobs": [
                        {"name": job.name, "used": dict(job.used), **asdict(job.record)}
                        for job in jobs
                    ],
                }
                for stage, jobs in self.steps.items()
            ],
            "raw": dict(self.raw),
            "sessions": list(self.sessions),
        }


def trace(path: str | Path) -> Chain:
    """Return what a file, or all files of a folder, go back to.

    Parameters
    ----------
    path
        In a results folder: the nearest folder above that holds records. Of a figure whose stage
        tells what each figure was drawn from, only that is followed.

    Raises
    ------
    UserError
        If no record tells of the file, or a record is damaged.
    """
    path = Path(path)
    results = results_of(path)
    known, damaged = records.read_records(results)
    for name, one in damaged.items():
        raise UserError(f"{results / name}: {one.why}: see scanbench verify {results}")
    makers = _makers(results, known)
    wanted = path.absolute().relative_to(results.absolute()).as_posix()
    files = {
        output: known[name].outputs[output]
        for output, name in sorted(makers.items())
        if output == wanted or output.startswith(f"{wanted}/") or wanted == "."
    }
    if not files:
        if not path.exists():
            raise UserError(f"{path}: no such file, and no record tells of it: is the name right?")
        raise UserError(f"{path}: no record tells of it: trace a figure, table or other result")
    used = _followed(results, known, makers, files)
    jobs = {
        name: Job(
            name=name,
            record=known[name],
            used={output: known[name].outputs[output] for output in sorted(outputs)},
        )
        for name, outputs in used.items()
    }
    return Chain(
        files=files,
        changed=[
            *(name for name, sha in files.items() if not _is(results / name, sha)),
            *_stale(jobs, makers),
        ],
        steps=_steps(jobs, makers),
        **_sources(results, jobs, makers),
    )


def results_of(path: Path) -> Path:
    """Return the results folder that a path lies in.

    Raises
    ------
    UserError
        If no folder above holds records.
    """
    full = path.absolute()
    for folder in (full, *full.parents):
        if (folder / records.FOLDER).is_dir():
            return folder
    raise UserError(
        f"{path}: no folder above it holds {records.FOLDER}/: name a file of a results folder"
    )


def _makers(results: Path, known: Mapping[str, Record]) -> dict[str, str]:
    """Return the record that tells of each output: of several, the one that tells of its bytes."""
    makers: dict[str, str] = {}
    for name, record in known.items():
        for output, sha in record.outputs.items():
            if output not in makers or _is(results / output, sha):
                makers[output] = name
    return makers


def _is(path: Path, sha: str) -> bool:
    return path.is_file() and sha256_of(path) == sha


def _followed(
    results: Path,
    known: Mapping[str, Record],
    makers: Mapping[str, str],
    files: Mapping[str, str],
) -> dict[str, set[str]]:
    """Return the records that files go back to → their outputs that are needed."""
    used: dict[str, set[str]] = defaultdict(set)
    for file in files:
        used[makers[file]].add(file)
    waiting = list(used)
    while waiting:
        name = waiting.pop()
        record = known[name]
        drawn = _drawn_from(results, record, files) if used[name] & files.keys() else None
        for path, sha in record.inputs.items():
            if path in makers and (drawn is None or sha in drawn):
                if makers[path] not in used:
                    waiting.append(makers[path])
                used[makers[path]].add(path)
    return used


def _stale(jobs: Mapping[str, Job], makers: Mapping[str, str]) -> list[str]:
    """Return an output of each job that read something else than its maker is recorded to write."""
    return [
        next(iter(job.used))
        for job in jobs.values()
        if any(
            path in makers
            and makers[path] in jobs
            and jobs[makers[path]].used.get(path, sha) != sha
            for path, sha in job.record.inputs.items()
        )
    ]


def _drawn_from(results: Path, record: Record, files: Mapping[str, str]) -> set[str] | None:
    """Return the hashes of what files were drawn from, if their stage tells of each one."""
    told: dict[str, Any] = {}
    for output in record.outputs:
        path = results / output
        if path.suffix == ".json" and path.is_file():
            try:
                content = parse_json(path.read_bytes())
                told |= {**content.get("figures", {}), **content.get("pages", {})}
            except (AttributeError, TypeError, ValueError):
                continue
    found: set[str] = set()
    for file in files.keys() & record.outputs.keys():
        name = Path(file)
        inputs = told.get(name.stem if name.parent.name == "figures" else name.name)
        if not isinstance(inputs, dict) or not inputs.keys():
            return None
        found |= {sha for sha in inputs.values() if isinstance(sha, str)}
    return found


def _steps(jobs: Mapping[str, Job], makers: Mapping[str, str]) -> dict[str, list[Job]]:
    """Order the stages by how far their jobs lie from what is traced, the nearest first."""
    after: dict[str, set[str]] = {
        name: {makers[path] for path in job.record.inputs if makers.get(path) in jobs}
        for name, job in jobs.items()
    }
    far = dict.fromkeys(jobs, 0)
    for _ in range(len(jobs) + 1):
        moved = {
            below: far[name] + 1
            for name in jobs
            for below in after[name]
            if far[below] <= far[name]
        }
        if not moved:
            break
        far |= moved
    else:
        raise UserError("the records lead in a circle: see scanbench verify")
    steps: dict[str, list[Job]] = defaultdict(list)
    for name in sorted(jobs):
        steps[jobs[name].record.stage].append(jobs[name])
    depth = {stage: max(far[job.name] for job in found) for stage, found in steps.items()}
    return {stage: steps[stage] for stage in sorted(steps, key=lambda s: (depth[s], s))}


def _sources(results: Path, jobs: Mapping[str, Job], makers: Mapping[str, str]) -> dict[str, Any]:
    """Return the raw files, and the sessions that they belong to."""
    raw: dict[str, str] = {}
    sessions: set[str] = set()
    for job in jobs.values():
        if job.record.stage == "ingest":
            raw |= {**job.record.inputs, **job.record.raw}
            for output in job.record.outputs:
                if output.endswith("manifest.csv"):
                    sessions |= _groups(results / output)
    return {"raw": dict(sorted(raw.items())), "sessions": sorted(sessions)}


def _groups(manifest: Path) -> set[str]:
    try:
        with manifest.open(encoding="utf-8", newline="") as file:
            return {row["group"] for row in csv.DictReader(file) if row.get("group")}
    except (OSError, ValueError, csv.Error):
        return set()


# ---------------------------------------------------------------------------------------- printing


def tree(chain: Chain, *, everything: bool = False) -> Tree:
    """Return a chain for the terminal.

    Parameters
    ----------
    chain
        What to show.
    everything
        Every job and raw file with whole hashes, instead of the first ones.
    """
    digits = 64 if everything else DIGITS
    top = _lines([f"{name}  {sha[:digits]}" for name, sha in chain.files.items()], everything)
    if chain.changed:
        top.append(f"\n{chain.changed[0]} is not as recorded: see scanbench verify", "bold red")
    root = branch = Tree(top)
    for stage, jobs in chain.steps.items():
        branch = branch.add(_step(stage, jobs, digits, everything))
    if chain.raw:
        text = Text(counted(len(chain.raw), "raw file"), "bold")
        told = f", {counted(len(chain.sessions), 'session')}: {_listed(chain.sessions, everything)}"
        text.append(told if chain.sessions else "", "not bold")
        names = [f"{name}  {sha[:digits]}" for name, sha in chain.raw.items()]
        branch.add(text.append("\n").append_text(_lines(names, everything)))
    return root


def _step(stage: str, jobs: Sequence[Job], digits: int, everything: bool) -> Text:
    text = Text(stage, "bold")
    if len(jobs) > 1:
        text.append(f" × {len(jobs)}", "not bold")
    commits = sorted({_commit(job.record) for job in jobs})
    text.append(f"  {_listed(commits, everything)}", "not bold dim")
    shown = [_shown(job.record, everything) for job in jobs]
    common = {k: v for k, v in shown[0].items() if all(one.get(k) == v for one in shown)}
    if common:
        values = [f"{key}={value}" for key, value in common.items()]
        text.append("\n" + _listed(values, everything), "not bold")
    lines = []
    for job in jobs:
        own = {k: v for k, v in job.record.seeds.items() if k not in common}
        told = "".join(f"  {key}={value}" for key, value in own.items())
        lines += [line + told for line in _used(job, digits, everything)]
    return text.append("\n").append_text(_lines(lines, everything))


def _used(job: Job, digits: int, everything: bool) -> list[str]:
    """Return the outputs of a job: a line for each, or those of a folder on one line."""
    if everything or len(job.used) == 1:
        return [f"{name}  {sha[:digits]}" for name, sha in job.used.items()]
    folder = os.path.commonpath(job.used)
    names = [f"{name[len(folder) + 1 :]}  {sha[:digits]}" for name, sha in job.used.items()]
    left = len(names) - FILES
    more = f" and {left:,} more" if left > 0 else ""
    return [f"{folder}/: {', '.join(names[:FILES])}{more}"]


def _commit(record: Record) -> str:
    if record.commit is None:
        return f"code {record.code[:DIGITS]}"
    return f"commit {record.commit[:DIGITS]}{' with changes' if record.dirty else ''}"


def _shown(record: Record, everything: bool) -> dict[str, Any]:
    """Return the seeds of a configuration, and then the short values of its first level."""
    if everything:
        return {**record.seeds, **records.flattened(record.config)}
    short = {
        key: value
        for key, value in record.config.items()
        if isinstance(value, str | int | float) and value and len(str(value)) <= VALUE
    }
    return {**record.seeds, **short}


def _listed(parts: Sequence[str], everything: bool) -> str:
    """Join what fits on a line."""
    size, fitting = 0, 0
    for part in parts:
        size += len(part) + 2
        if size > LETTERS and not everything:
            break
        fitting += 1
    left = len(parts) - fitting
    return ", ".join(parts[:fitting]) + (f" … and {left:,} more" if left else "")


def _lines(lines: Sequence[str], everything: bool) -> Text:
    left = 0 if everything or len(lines) <= JOBS else len(lines) - JOBS
    text = Text("\n".join(lines[: len(lines) - left]), "not bold")
    if left:
        text.append(f"\n… and {left:,} more (--files lists all)", "dim")
    return text
