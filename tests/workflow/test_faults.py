"""Kills, full disks, missing permission, damaged files, two runs at once: nothing is lost or wrong.

The test command injects a sample into the rules that every study runs. `SCANBENCH_LONG=1` injects
more of each kind, drawn anew with `SCANBENCH_FAULT_SEED`, into all rules; those of scans that
people labelled need real ones, in the folder that `SCANBENCH_DATA` names. It prints how many.
"""

from __future__ import annotations

import ctypes
import errno
import os
import random
import re
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from conftest import ROOT, Project, copy_project

from scanbench import cli, training  # noqa: F401  (loaded once for all children)
from scanbench.errors import UserError
from scanbench.files import sha256_of
from scanbench.records import read_record, read_records, recorded
from scanbench.verification import verify

pytestmark = pytest.mark.workflow

LONG = bool(os.environ.get("SCANBENCH_LONG"))
SEED = int(os.environ.get("SCANBENCH_FAULT_SEED", "1"))
DATA = Path(os.environ.get("SCANBENCH_DATA") or ROOT.parent / "shared" / "data").resolve()
REAL_SCANS = DATA / "h-si100"
INJECTED: dict[str, int] = {}


def inject(kind: str) -> None:
    """Count a fault."""
    INJECTED[kind] = INJECTED.get(kind, 0) + 1


@pytest.fixture(scope="module", autouse=True)
def _told() -> Iterator[None]:
    yield
    total = sum(INJECTED.values())
    print(f"\n{total} faults: {', '.join(f'{n} {kind}' for kind, n in INJECTED.items())}")


DATASET, COMPARISON = "results/data/simulated", "results/comparisons/simulated"
STORE, SPLIT = f"{DATASET}/store.h5", f"{DATASET}/splits/sessions.json"

#: The rules of the smallest study, in the order in which they run.
BASIC = ("simulate", "ingest", "convert", "split", "train", "predict", "evaluate", "render")
#: Rules that only scans labelled by several people need.
PEOPLE = ("fetch", "predict_unlabelled", "combine_unlabelled", "agreement", "realism")


def every_rule() -> list[str]:
    """Return the names of the workflow's rules, without the one that only collects."""
    files = sorted((ROOT / "workflow/rules").glob("*.smk"))
    text = "\n".join(path.read_text("utf-8") for path in files)
    return re.findall(r"^(?:rule|use rule \w+ as) (\w+)", text, re.MULTILINE)


RULES = every_rule() if LONG else BASIC


@dataclass(frozen=True)
class Job:
    """A job as the workflow plans it.

    Attributes
    ----------
    command
        The words after `scanbench` that run its stage and make its record.
    outputs
        The files and folders that its rule promises.
    log
        It appears when the job begins.
    """

    command: list[str]
    outputs: list[str]
    log: str

    @property
    def stage(self) -> list[str]:
        """The words that run the stage alone."""
        return self.command[self.command.index("--") + 1 :]

    @property
    def inputs(self) -> list[str]:
        """The results that the stage is told to read."""
        return [word for word in self.stage if word.startswith("results/") and word != self.output]

    @property
    def output(self) -> str:
        """What the stage is told to write: a result, or the folder of all."""
        folders = [
            word
            for word in self.stage
            if all(f"{name}/".startswith(f"{word}/") for name in self.made)
        ]
        return [*folders, *(word for word in self.stage if word in self.made)][-1]

    @property
    def made(self) -> list[str]:
        """The promised outputs without the record."""
        return [name for name in self.outputs if name != self.record]

    @property
    def record(self) -> str:
        return self.command[self.command.index("--record") + 1]

    def seconds(self, project: Project) -> float:
        """Return how long it took in a finished project."""
        timed = self.log.replace("results/logs", "results/benchmarks")
        table = pd.read_csv((project.folder / timed).with_suffix(".tsv"), sep="\t")
        return float(table["s"][0])


def jobs_of(project: Project) -> dict[str, Job]:
    """Return one job of each rule of a finished project: a network's, of few scans."""
    typed = ("snakemake", "--configfile", "config.yaml", "overlay.yaml")
    said = project.run(*typed, "--dry-run", "--forceall", "--printshellcmds").stdout
    found: dict[str, list[Job]] = {}
    for block in re.split(r"\n(?=(?:local)?rule \w+:\n)", said)[1:]:
        rule = re.match(r"(?:local)?rule (\w+)", block)
        told = dict(re.findall(r"^    (output|log): (.*)$", block, re.MULTILINE))
        shell = re.search(r"^Shell command: scanbench (.*) 2>&1 \| tee", block, re.MULTILINE)
        if rule and shell:
            plain = re.sub(
                r"\$\(dirname (\S+?)\)", lambda match: os.path.dirname(match[1]), shell[1]
            )
            job = Job(shlex.split(plain), told["output"].split(", "), told["log"])
            found.setdefault(rule[1], []).append(job)
    return {
        rule: min(jobs, key=lambda job: ("causal-full" not in job.log, "real" in job.log, job.log))
        for rule, jobs in found.items()
    }


#: Files whose bytes tell when they were made, not only of what.
TIMED = ("history.csv", "main.csv", "costs.csv")


def hashes(folder: Path) -> dict[str, str]:
    """Hash every result that is promised to be the same bytes in every run."""
    names = ("store.h5", "sessions.json", "weights.safetensors", "predictions.parquet", "*.csv")
    return {
        str(path.relative_to(folder)): sha256_of(path)
        for pattern in (*names, "*.sxm", "*.svg", "*.onnx", "unlabelled.parquet", "copies.h5")
        for path in sorted(folder.glob(f"results/**/{pattern}"))
        if path.name not in TIMED
        and not any(part.endswith(".part") for part in path.parts)
        and "records" not in path.parts  # children run the sources of the tests, not of the copy
    }


@pytest.fixture(scope="module")
def undisturbed(undisturbed_run: Project) -> dict[str, str]:
    return hashes(undisturbed_run.folder)


def copy(project: Project, folder: Path) -> Project:
    """Copy a finished project; Snakemake sees no change."""
    return Project(Path(shutil.copytree(project.folder, folder, symlinks=True)))


@pytest.fixture
def copied(undisturbed_run: Project, tmp_path: Path) -> Iterator[Project]:
    """Give a copy in which the smallest study has run, and nothing that another test planned."""
    yield copy(undisturbed_run, tmp_path / "copied")
    shutil.rmtree(tmp_path)


@pytest.fixture(scope="module")
def study(undisturbed_run: Project, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """Give the study whose jobs are struck: in the long form one in which every rule ran."""
    folder = tmp_path_factory.mktemp("study") / "study"
    if not LONG:
        return copy(undisturbed_run, folder)
    own = Path(__file__).with_name("every_rule.yaml")
    config = yaml.safe_load(own.read_text("utf-8"))
    if REAL_SCANS.is_dir():
        config["datasets"]["real"]["path"] = str(REAL_SCANS)
    else:
        config["targets"] = [name for name in config["targets"] if name not in ("people", "alike")]
    project = copy_project(folder)
    project.snakemake("--cores", "2", config=config)
    return project


@pytest.fixture(scope="module")
def jobs(study: Project) -> dict[str, Job]:
    return jobs_of(study)


@pytest.fixture(scope="module")
def made(study: Project) -> dict[str, str]:
    return hashes(study.folder)


@pytest.fixture(params=RULES)
def job(request: pytest.FixtureRequest, jobs: dict[str, Job]) -> Job:
    rule: Any = request.param
    if rule in PEOPLE and not REAL_SCANS.is_dir():
        pytest.skip("real scans absent: set SCANBENCH_DATA")
    return jobs[rule]


# ------------------------------------------------------------------------------- stages in children


class Child:
    """A command of `scanbench` in a forked process, which need not import anything again."""

    def __init__(
        self, folder: Path, command: list[str], before: Callable[[], None] = lambda: None
    ) -> None:
        # No file: a disk may be full, and a file's size limited.
        self.messages, out = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            self._run(folder, command, before, out)
        os.close(out)

    def _run(self, folder: Path, command: list[str], before: Callable[[], None], out: int) -> None:
        status = 70
        try:
            os.setsid()
            os.chdir(folder)
            os.close(self.messages)
            os.dup2(out, 1)
            os.dup2(out, 2)
            os.close(out)
            sys.stdout = os.fdopen(1, "w", closefd=False)
            sys.stderr = os.fdopen(2, "w", closefd=False)
            for name in (signal.SIGINT, signal.SIGTERM):
                signal.signal(name, signal.SIG_DFL)
            before()
            status = cli.main(command)
        except SystemExit as stop:
            status = stop.code if isinstance(stop.code, int) else 70
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)

    def wait(self) -> tuple[int, list[str]]:
        """Return the exit status and the lines that it said."""
        with open(self.messages, encoding="utf-8", errors="replace") as file:
            lines = file.read().splitlines()
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1]), lines

    def kill_after(self, seconds: float) -> bool:
        """Kill it and its own children after so long; return whether it still ran."""
        with open(self.messages, "rb", closefd=True):
            end = time.monotonic() + seconds
            while time.monotonic() < end:
                if os.waitpid(self.pid, os.WNOHANG)[0]:
                    return False
                time.sleep(0.005)
            os.killpg(self.pid, signal.SIGKILL)
            return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1]) == -signal.SIGKILL


def complaint(status: int, lines: list[str]) -> str:
    """Return the one line in which a command says why it failed."""
    assert status == 2, "\n".join(lines[-40:])
    assert not [line for line in lines if "Traceback" in line]
    (error,) = [line for line in lines if "scanbench: error: " in line]
    return error


def remove(path: Path) -> None:
    """Remove a file or folder."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def files_of(project: Project, name: str) -> list[Path]:
    """Return a result, or the files in it; none where the workflow has removed it."""
    path = project.folder / name
    return [file for file in (path, *path.rglob("*")) if file.is_file()]


@contextmanager
def put_back(project: Project, names: list[str]) -> Iterator[None]:
    """Put results back as they were, whatever became of them."""
    with tempfile.TemporaryDirectory() as folder:
        kept = {name: Path(folder, str(number)) for number, name in enumerate(names)}
        for name, own in kept.items():
            if (project.folder / name).exists():
                transfer(project.folder / name, own)
        try:
            yield
        finally:
            for name, own in kept.items():
                remove(project.folder / name)
                if own.exists():
                    transfer(own, project.folder / name)


def transfer(path: Path, own: Path) -> None:
    """Copy a file or folder with its times."""
    if path.is_dir():
        shutil.copytree(path, own)
    else:
        shutil.copy2(path, own)


# Drawing all figures twice more takes a minute.
@pytest.mark.parametrize("job", RULES if LONG else BASIC[:-1], indirect=True)
def test_a_job_killed_at_any_moment_runs_again_to_the_same_bytes(
    study: Project, made: dict[str, str], job: Job
) -> None:
    draw = random.Random(f"{SEED} {job.log}")
    results = study.folder / "results"
    # Promised or not: provenance tells when it was written.
    written = [f"results/{name}" for name in read_record(study.folder / job.record).outputs]
    with put_back(study, [*job.outputs, *written]):
        for _ in range(4 if LONG else 1):
            share, killed = draw.uniform(0, 0.5), False  # it has nothing to import
            while not killed:
                for name in job.outputs:  # as Snakemake does before a job
                    remove(study.folder / name)
                killed = Child(study.folder, job.command).kill_after(share * job.seconds(study))
                share /= 2
            inject("kills of a job")
        status, lines = Child(study.folder, job.command).wait()
        assert status == 0, lines
        assert [path for path in results.rglob("*") if ".part" in path.name] == []
        record = read_record(study.folder / job.record)
        for name, digest in record.outputs.items():
            assert sha256_of(results / name) == digest
        for name in record.temporary:  # as the workflow does once they are read
            remove(results / name)
        assert hashes(study.folder) == made


@contextmanager
def full_disk(folder: Path, free: int) -> Iterator[Callable[[], None]]:
    """Make `folder` a disk with so many free bytes; where none can be mounted, limit each file."""
    options = ["-t", "tmpfs", "-o", "size=64k", "none", str(folder)]
    mounted = subprocess.run(["mount", *options], capture_output=True).returncode == 0

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (free, free))

    try:
        if mounted:
            (folder / "filling").write_bytes(bytes(2**16 - free))
        yield (lambda: None) if mounted else limit
    finally:
        if mounted:
            subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_full_disk_is_one_clear_line_and_leaves_nothing_half_written(
    study: Project, job: Job
) -> None:
    full = study.folder / "full"
    name = Path(job.output).name
    command = [f"full/{name}" if word == job.output else word for word in job.stage]
    largest = max(path.stat().st_size for made in job.made for path in files_of(study, made))
    full.mkdir()
    try:
        for pages in (0, 1, 3) if LONG else (0,):
            if largest <= 4096 * pages:  # it may find room
                continue
            with full_disk(full, 4096 * pages) as limit:
                said = complaint(*Child(study.folder, command, limit).wait())
                inject("full disks")
                assert any(os.strerror(n) in said for n in (errno.ENOSPC, errno.EFBIG)), said
                assert not (full / name).is_file()
                assert not list((full / name).rglob("*.json"))  # the last file of a folder
                assert [path for path in full.rglob("*") if ".part" in path.name] == []
    finally:
        shutil.rmtree(full)


def as_an_ordinary_user() -> None:
    """Let permission bits count for root, too: give up the right to pass them over."""
    if os.geteuid():
        return
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # version 3, this process
    sets = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable; then the higher bits
    libc = ctypes.CDLL(None, use_errno=True)
    override = 1 << 1 | 1 << 2  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
    if libc.capget(header, sets) == 0:
        sets[0] &= ~override
        if libc.capset(header, sets) == 0:
            return
    os._exit(77)


def test_without_permission_is_one_clear_line_that_names_the_path(study: Project, job: Job) -> None:
    shut = study.folder / "shut"
    own = f"shut/{Path(job.output).name}"
    command = [own if word == job.output else word for word in job.stage]
    shut.mkdir()
    try:
        shut.chmod(0o555)
        status, lines = Child(study.folder, command, as_an_ordinary_user).wait()
        if status == 77:
            pytest.skip("root cannot give up its right to pass over permission bits here")
        assert "shut" in complaint(status, lines)
        assert os.strerror(errno.EACCES) in lines[-1]
        assert list(shut.iterdir()) == []
        inject("folders without permission")
        shut.chmod(0o755)
        for name in job.inputs[:1]:
            path = study.folder / name
            mode = path.stat().st_mode
            path.chmod(0)
            try:
                done = Child(study.folder, command, as_an_ordinary_user).wait()
            finally:
                path.chmod(mode)
            assert path.name in complaint(*done)
            inject("inputs without permission")
    finally:
        shut.chmod(0o755)
        shutil.rmtree(shut)


# ------------------------------------------------------------------------------------ damaged files


def one_byte(content: bytes, draw: random.Random) -> bytes:
    at = draw.randrange(len(content))
    return content[:at] + bytes([content[at] ^ 1 << draw.randrange(8)]) + content[at + 1 :]


DAMAGES: dict[str, Callable[[bytes, random.Random], bytes]] = {
    "changed bytes": one_byte,
    "truncated files": lambda content, draw: content[: draw.randrange(len(content))],
    "emptied files": lambda content, draw: b"",
}


def never() -> None:
    pytest.fail("a job was begun with a damaged file")


def test_a_job_is_not_begun_with_a_damaged_file(study: Project, tmp_path: Path) -> None:
    results = study.folder / "results"
    known, _ = read_records(results)
    draw = random.Random(SEED)
    read: dict[tuple[str, str], list[str]] = {}
    for record in known.values():
        for name in record.inputs:
            if (results / name).stat().st_size:
                read.setdefault((record.stage, Path(name).suffix), []).append(name)
    kinds = {suffix for _, suffix in read}
    assert {".sxm", ".csv", ".json", ".npz", ".h5", ".safetensors", ".parquet"} <= kinds
    for (stage, _), names in sorted(read.items()):
        for name in draw.sample(sorted(names), min(8, len(names))):
            path = results / name
            content = path.read_bytes()
            for kind, damage in DAMAGES.items():
                path.write_bytes(damage(content, draw))
                try:
                    with pytest.raises(UserError, match="is damaged") as caught:
                        recorded(
                            never,
                            command=[stage],
                            config={},
                            inputs=[path],
                            outputs=[],
                            results=results,
                            record=tmp_path / "record.json",
                        )
                finally:
                    path.write_bytes(content)
                said = str(caught.value)
                assert said.startswith(f"{path}: ")
                assert "delete" in said
                assert "run again" in said
                assert "\n" not in said
                inject(kind)


def test_a_damaged_figure_or_page_that_no_job_reads_is_named(study: Project) -> None:
    results = study.folder / "results"
    known, _ = read_records(results)
    read = {name for record in known.values() for name in record.inputs}
    last = [
        name
        for record in known.values()
        for name in record.outputs
        if name not in read and name not in record.temporary
    ]
    assert {".svg", ".pdf", ".png", ".html", ".tex", ".md"} <= {Path(name).suffix for name in last}
    draw = random.Random(SEED)
    whole = {results / name: (results / name).read_bytes() for name in last}
    try:
        for path, content in whole.items():
            if content:
                path.write_bytes(one_byte(content, draw))
                inject("changed bytes of last results")
        named = {fault.path for fault in verify(results).faults}
        assert named == {name for name in last if whole[results / name]}
    finally:
        for path, content in whole.items():
            path.write_bytes(content)


#: A file, and what is made from it; the first takes least time to make anew.
READ = [
    (f"{COMPARISON}/scores/metrics.csv", f"{COMPARISON}/summary.html"),
    (f"{DATASET}/scans/manifest.csv", STORE),
    (STORE, SPLIT),
]


@pytest.mark.parametrize(("name", "reader"), READ if LONG else READ[:1])
def test_a_damaged_file_stops_the_run_until_it_is_deleted(
    copied: Project, undisturbed: dict[str, str], name: str, reader: str
) -> None:
    path = copied.folder / name
    path.write_bytes(one_byte(path.read_bytes(), random.Random(SEED)))
    inject("damaged files in a run")
    # Something asks for the file again, as a changed configuration would; Snakemake itself looks
    # into no folder, and keeps what was made from the file before.
    command = ["--cores", "2", "--forcerun", reader]
    failed = copied.snakemake(*command, check=False)
    said = failed.stdout + failed.stderr
    assert failed.returncode
    assert f"scanbench: error: {name}: is damaged" in said
    assert "Traceback" not in said
    remove(path.parent if path.suffix == ".csv" else path)  # a rule that promises a folder
    copied.snakemake(*command)
    assert hashes(copied.folder) == undisturbed


# ---------------------------------------------------------------------------- kills of a whole run


def kill_inside(project: Project, rule: str, job: Job, delay: float) -> bool:
    """Make a rule's job again and kill everything `delay` seconds after it began.

    SIGKILL leaves no process the time to tidy up. Returns whether there was still one to kill; if
    not, the job was done.
    """
    log = project.folder / job.log
    log.unlink(missing_ok=True)
    run = subprocess.Popen(
        [
            *("snakemake", "--configfile", "config.yaml", "overlay.yaml", "--until", rule),
            *("--cores", "2", "--rerun-incomplete", "--nolock", "--forcerun", job.record),
        ],
        cwd=project.folder,
        env=project.environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    while not log.exists() and run.poll() is None:
        time.sleep(0.02)
    try:
        assert run.wait(delay) == 0, f"{rule} failed by itself"
    except subprocess.TimeoutExpired:
        os.killpg(run.pid, signal.SIGKILL)
        run.wait()
        return True
    return False


@pytest.mark.parametrize("number", range(4 if LONG else 1))
def test_a_run_killed_inside_its_rules_ends_with_the_bytes_of_an_undisturbed_one(
    copied: Project, undisturbed: dict[str, str], number: int
) -> None:
    draw = random.Random(SEED + number)
    jobs = jobs_of(copied)
    # Made anew from the start on: Snakemake does not miss what only finished results rest on.
    for rule in BASIC if LONG else ("ingest", "train"):
        delay = draw.uniform(0.1, 0.9) * jobs[rule].seconds(copied)
        while not kill_inside(copied, rule, jobs[rule], delay):
            delay /= 2  # the machine was busier when the undisturbed run was timed
        inject("kills of a run")
    copied.snakemake("--cores", "2", "--rerun-incomplete", "--nolock")
    assert hashes(copied.folder) == undisturbed
    assert copied.planned() == set()


# ------------------------------------------------------------------------------- two runs at once


def started(project: Project, *arguments: str) -> subprocess.Popen[str]:
    """Start Snakemake on the tiny study."""
    return subprocess.Popen(
        ["snakemake", "--configfile", "config.yaml", "overlay.yaml", "--cores", "1", *arguments],
        cwd=project.folder,
        env=project.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_a_second_run_in_the_same_folder_is_refused_and_the_first_goes_on(
    copied: Project, undisturbed: dict[str, str]
) -> None:
    # A job that waits: the first run holds the folder until the second was refused.
    first = started(copied, "--forcerun", STORE, "--until", "convert")
    locks = copied.folder / ".snakemake/locks"
    while not (locks.is_dir() and any(locks.iterdir())):
        assert first.poll() is None, first.communicate()[0]
        time.sleep(0.01)
    os.kill(first.pid, signal.SIGSTOP)
    second = started(copied, "--forcerun", STORE, "--until", "convert").communicate()[0]
    os.kill(first.pid, signal.SIGCONT)
    said, _ = first.communicate()
    inject("runs beside another")
    assert first.returncode == 0, said
    assert "Directory cannot be locked" in second
    assert hashes(copied.folder) == undisturbed


def test_two_runs_that_pass_over_the_lock_leave_what_one_would_have(
    copied: Project, undisturbed: dict[str, str]
) -> None:
    rules = ("simulate", "ingest", "convert", "split", *(("train", "predict") if LONG else ()))
    again = ["--nolock", "--until", rules[-1], "--forcerun", *rules]
    both = [started(copied, *again) for _ in range(2)]
    inject("runs beside another")
    said = [run.communicate()[0] for run in both]
    assert not [text for text in said if "Traceback" in text]
    # Where a job of one found a folder away that the other was replacing, Snakemake removed what
    # both had written, which a finished run does not miss: the same command again, alone.
    copied.snakemake("--cores", "2", "--rerun-incomplete", *again)
    if "train" in rules:  # its files tell how long it took: what rests on them is made again
        copied.snakemake("--cores", "2")
    assert hashes(copied.folder) == undisturbed
    assert verify(copied.folder / "results").faults == []


def test_two_hundred_faults_or_more_were_injected() -> None:
    assert sum(INJECTED.values()) >= 200
