"""Results with all that they go back to, as a Workflow Run RO-Crate.

The crate follows the profile *Provenance Run Crate* (Leo et al., PLoS ONE 19, e0309210, 2024):
each job is a `CreateAction` from the files that it read to those that it wrote. Everything comes
from the jobs' records, which are in the crate with the files themselves, so that
`scanbench verify` rechecks the `results` folder in it.
"""

from __future__ import annotations

import base64
import mimetypes
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rocrate.model.contextentity import ContextEntity
from rocrate.model.data_entity import DataEntity
from rocrate.model.entity import Entity
from rocrate.rocrate import ROCrate

from scanbench import __version__, records, tracing
from scanbench.errors import UserError
from scanbench.files import replacing, replacing_folder
from scanbench.tracing import Chain, Job

#: The version of RO-Crate that the profiles rest on.
RO_CRATE = "1.1"

#: Profiles that a crate keeps to: identifier → name, version.
PROFILES = {
    "https://w3id.org/ro/wfrun/process/0.5": ("Process Run Crate", "0.5"),
    "https://w3id.org/ro/wfrun/workflow/0.5": ("Workflow Run Crate", "0.5"),
    "https://w3id.org/ro/wfrun/provenance/0.5": ("Provenance Run Crate", "0.5"),
    "https://w3id.org/workflowhub/workflow-ro-crate/1.0": ("Workflow RO-Crate", "1.0"),
}
#: Terms that the profiles use beside schema.org's.
CONTEXT = "https://w3id.org/ro/terms/workflow-run/context"

#: A crate must say something.
NO_LICENCE = "No licence is stated: ask the authors"

#: What `mimetypes` does not know.
KINDS = {
    ".parquet": "application/vnd.apache.parquet",
    ".h5": "application/x-hdf5",
    ".npz": "application/zip",
    ".md": "text/markdown",
    ".yaml": "application/yaml",
    ".smk": "text/x-snakemake",
    ".rst": "text/x-rst",
}

#: What of a project says how its results are made.
WORKFLOW = ("config.yaml", "config", "workflow")
MAIN = "Snakefile"


def export(
    path: str | Path,
    out: str | Path,
    project: str | Path | None = None,
    licence: str = NO_LICENCE,
) -> int:
    """Write results, with all that they go back to, as a crate.

    Parameters
    ----------
    path
        A results folder, or a file or folder in one: only its chain is exported.
    out
        Folder, or `.zip`, to write. It holds `ro-crate-metadata.json`, `results` with every file
        of every job of the chain and its record, and the workflow. A user's raw files, from outside
        the results folder, are named by their SHA-256 and left out.
    project
        Folder of the `Snakefile`; by default the one that the results folder lies in.
    licence
        Of the results: an address or a text.

    Returns
    -------
    int
        Number of files of results in the crate.

    Raises
    ------
    UserError
        If no record tells of `path`, or a file of its chain is missing or changed.
    """
    path, out = Path(path), Path(out)
    results = tracing.results_of(path)
    project = results.parent if project is None else Path(project)
    if not (project / MAIN).is_file():
        raise UserError(f"{project / MAIN}: missing: name the workflow's folder with --project")
    chain = tracing.trace(path)
    _check(chain, results)
    crate = _crate(chain, results, project)
    crate.license = licence
    if out.suffix == ".zip":
        with replacing(out) as part:
            crate.write_zip(part)
    else:
        with replacing_folder(out, marker="ro-crate-metadata.json") as part:
            crate.write(part)
    return sum(len(job.record.outputs) for jobs in chain.steps.values() for job in jobs)


def _check(chain: Chain, results: Path) -> None:
    """Refuse to export what is not as recorded, or rests on what is not there any more."""
    if chain.changed:
        raise UserError(
            f"{results / chain.changed[0]}: not as recorded, or made from another version of what "
            f"it rests on: see scanbench verify {results}"
        )
    recorded = {
        results / name: sha
        for jobs in chain.steps.values()
        for job in jobs
        for name, sha in job.record.outputs.items()
        if name not in job.record.temporary
    }
    there = [path for path in recorded if path.is_file()]
    digests = records.hashes(there, "verify")
    for path, sha in recorded.items():
        if digests.get(path) != sha:
            raise UserError(f"{path}: not as recorded: see scanbench verify {results}")


def _crate(chain: Chain, results: Path, project: Path) -> ROCrate:
    crate = ROCrate(version=RO_CRATE)
    crate.metadata.extra_contexts.append(CONTEXT)
    root = crate.root_dataset
    crate.name = f"Results of Scanbench: {', '.join(_heads(chain))}"
    crate.description = (
        "Figures, tables and all that they were made from, down to the raw files, job by job"
    )
    root["conformsTo"] = [
        crate.add(_entity(crate, key, "CreativeWork", name=name, version=version))
        for key, (name, version) in PROFILES.items()
    ]
    files = _Files(crate, results, chain)
    steps = {stage: crate.add(_tool(crate, stage, jobs)) for stage, jobs in chain.steps.items()}
    workflow = _workflow(crate, files, project, steps)
    engine = crate.add(
        _entity(
            crate,
            "#snakemake",
            "SoftwareApplication",
            name="Snakemake",
            url="https://snakemake.readthedocs.io",
        )
    )
    run = crate.add_action(
        workflow,
        identifier="#run",
        object=_one_or_all([files[name] for name in chain.raw]),
        result=_one_or_all([files[name] for name in chain.files]),
    )
    actions = [
        _job(crate, files, results, job, steps[stage])
        for stage, jobs in chain.steps.items()
        for job in jobs
    ]
    run["name"] = "The whole run"
    run["description"] = f"From {len(chain.raw)} raw files to {', '.join(_heads(chain))}"
    run["endTime"] = max(action["endTime"] for action in actions)
    root["mentions"] = [run, *actions]
    controls = [crate.add(_control(crate, action)) for action in actions]
    crate.add(
        _entity(
            crate,
            "#organised",
            "OrganizeAction",
            name=f"Run of Snakemake, {len(controls)} jobs",
            instrument=engine,
            object=_one_or_all(controls),
            result=run,
        )
    )
    return crate


def _heads(chain: Chain) -> list[str]:
    """Name what is traced by its first three parts at most, each once."""
    return list(dict.fromkeys("/".join(Path(name).parts[:2]) for name in chain.files))


def _entity(crate: ROCrate, key: str, kind: str, **properties: Any) -> ContextEntity:
    made = ContextEntity(crate, key, properties={"@type": kind})
    for name, value in properties.items():
        made[name] = value
    return made


class _Files:
    """The files of a chain as entities, each made once."""

    def __init__(self, crate: ROCrate, results: Path, chain: Chain) -> None:
        self.crate, self.results = crate, results
        self.outside: dict[str, str] = {}
        self.known: dict[str, Entity] = {}
        self.sha: dict[str, str] = dict(chain.raw)
        for jobs in chain.steps.values():
            for job in jobs:
                self.outside |= job.record.raw
                self.sha |= {**job.record.inputs, **job.record.outputs, **job.record.raw}

    def __getitem__(self, name: str) -> Entity:
        if name not in self.known:
            self.known[name] = self._made(name, self.sha[name])
        return self.known[name]

    def _made(self, name: str, sha: str) -> Entity:
        source = self.results / name
        if name in self.outside or not source.is_file():
            # RFC 6920: a file that is not here is named by what is in it.
            code = base64.urlsafe_b64encode(bytes.fromhex(sha)).decode().rstrip("=")
            told = {
                "@type": "File",
                "name": Path(name).name,
                "sha256": sha,
                "encodingFormat": "application/octet-stream",
            }
            return self.crate.add(DataEntity(self.crate, f"ni:///sha-256;{code}", properties=told))
        return self.add(source, f"results/{name}", sha256=sha)

    def add(self, source: Path, name: str, **told: str) -> Entity:
        """Put a file into the crate."""
        kind = mimetypes.guess_type(name)[0] or KINDS.get(source.suffix, "application/octet-stream")
        told |= {"encodingFormat": kind, "contentSize": str(source.stat().st_size)}
        return self.crate.add_file(source, name, properties=told)


def _tool(crate: ROCrate, stage: str, jobs: Iterable[Job]) -> ContextEntity:
    versions: dict[str, str] = {}
    for job in jobs:
        versions |= job.record.versions
    return _entity(
        crate,
        f"#{stage}",
        "SoftwareApplication",
        name=f"scanbench {stage}",
        softwareVersion=versions.get("scanbench", __version__),
        softwareRequirements=[f"{name} {version}" for name, version in sorted(versions.items())],
    )


def _workflow(crate: ROCrate, files: _Files, project: Path, steps: Mapping[str, Entity]) -> Entity:
    workflow = crate.add_workflow(
        project / MAIN,
        MAIN,
        main=True,
        lang="snakemake",
        properties={
            "@type": ["File", "SoftwareSourceCode", "ComputationalWorkflow", "HowTo"],
            "name": "Scanbench",
            "version": __version__,
        },
    )
    workflow["hasPart"] = list(steps.values())
    # From the raw files on; tracing counts from the figure.
    workflow["step"] = [
        crate.add(
            _entity(
                crate,
                f"#step-{stage}",
                "HowToStep",
                name=stage,
                position=str(position),
                workExample=tool,
            )
        )
        for position, (stage, tool) in enumerate(reversed(list(steps.items())), 1)
    ]
    for name in WORKFLOW:
        for file in records.files_below(project / name):
            if file.is_file():
                files.add(file, file.relative_to(project).as_posix())
    return workflow


def _job(crate: ROCrate, files: _Files, results: Path, job: Job, tool: Entity) -> Entity:
    source = results / job.name
    ended = datetime.fromtimestamp(source.stat().st_mtime, UTC).isoformat(timespec="seconds")
    return crate.add_action(
        tool,
        identifier=f"#job-{job.name}",
        object=_one_or_all([files[name] for name in (*job.record.inputs, *job.record.raw)]),
        result=_one_or_all([files[name] for name in job.record.outputs]),
        properties={
            "name": job.name.removeprefix(f"{records.FOLDER}/").removesuffix(".json"),
            "description": job.record.command,
            "endTime": ended,
            "subjectOf": files.add(source, f"results/{job.name}"),
        },
    )


def _control(crate: ROCrate, action: Entity) -> ContextEntity:
    return _entity(
        crate,
        action.id.replace("#job-", "#control-"),
        "ControlAction",
        name=f"Control of {action['name']}",
        instrument=crate.dereference(action["instrument"].id.replace("#", "#step-")),
        object=action,
    )


def _one_or_all(entities: list[Entity]) -> Entity | list[Entity]:
    """Return what RO-Crate recommends: one entity stands for itself."""
    return entities[0] if len(entities) == 1 else entities
