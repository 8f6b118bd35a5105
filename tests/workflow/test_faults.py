"""Kills, full disks, missing permission, damaged files, two runs at once: nothing is lost or wrong.

The test command injects a sample. `SCANBENCH_LONG=1` injects more of each kind, drawn anew with
`SCANBENCH_FAULT_SEED`; it prints how many.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pytest
import yaml
from conftest import ROOT, TINY, Project, merge

from scanbench import cli, plan, training  # noqa: F401  (loaded once for all children)
from scanbench.config import resolve
from scanbench.errors import UserError
from scanbench.records import read_records, recorded
from scanbench.verification import verify

pytestmark = pytest.mark.workflow

LONG = bool(os.environ.get("SCANBENCH_LONG"))
SEED = int(os.environ.get("SCANBENCH_FAULT_SEED", "1"))
INJECTED: dict[str, int] = {}


def inject(kind: str) -> None:
    """Count a fault."""
    INJECTED[kind] = INJECTED.get(kind, 0) + 1


@pytest.fixture(scope="module", autouse=True)
def _told() -> Iterator[None]:
    yield
    total = sum(INJECTED.values())
    print(f"\n{total} faults: {', '.join(f'{n} {kind}' for kind, n in INJECTED.items())}")


RUN = "runs/simulated/sessions/lrcn-w20/fold0-seed0"
DATASET, COMPARISON = "results/data/simulated", "results/comparisons/simulated"
STORE, SPLIT = f"{DATASET}/store.h5", f"{DATASET}/splits/sessions.json"


@dataclass(frozen=True)
class Stage:
    """A rule of the workflow, in the order in which they run.

    Attributes
    ----------
    inputs
        The paths that it is given.
    output
        What it is told to write.
    log
        Of the rule; it appears when the job begins.
    """

    inputs: list[str]
    output: str
    log: str


STAGES = {
    "simulate": Stage([], f"{DATASET}/source", "simulate/simulated"),
    "ingest": Stage([f"{DATASET}/source"], f"{DATASET}/scans", "ingest/simulated"),
    "convert": Stage([f"{DATASET}/scans"], STORE, "convert/simulated"),
    "split": Stage([STORE], SPLIT, "split/simulated/sessions"),
    "train": Stage([STORE, SPLIT], f"results/{RUN}/weights.safetensors", f"{RUN}/train"),
    "predict": Stage(
        [STORE, SPLIT, f"results/{RUN}/weights.safetensors"],
        f"results/{RUN}/predictions.parquet",
        f"{RUN}/predict",
    ),
    "evaluate": Stage([STORE, SPLIT], f"{COMPARISON}/scores", "evaluate/simulated"),
    "render": Stage(
        [f"{COMPARISON}/scores", f"{DATASET}/scans", STORE, SPLIT], COMPARISON, "render/simulated"
    ),
}
#: Files whose bytes tell when they were made, not only of what.
TIMED = ("history.csv", "main.csv", "costs.csv")


def hashes(folder: Path) -> dict[str, str]:
    """Hash every result that is promised to be the same bytes in every run."""
    names = ("store.h5", "sessions.json", "weights.safetensors", "predictions.parquet", "*.csv")
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for pattern in (*names, "*.sxm", "*.svg")
        for path in sorted(folder.glob(f"results/**/{pattern}"))
        if path.name not in TIMED and not any(part.endswith(".part") for part in path.parts)
    }


@pytest.fixture(scope="module")
def undisturbed(finished: Project) -> dict[str, str]:
    return hashes(finished.folder)


@pytest.fixture
def copied(finished: Project, tmp_path: Path) -> Project:
    """Give a copy in which the tiny study has run."""
    return Project(Path(shutil.copytree(finished.folder, tmp_path / "copied", symlinks=True)))


def options_of(stage: str) -> list[str]:
    """Return the options with which the workflow runs a stage."""
    schema = yaml.safe_load((ROOT / "workflow/schemas/config.schema.yaml").read_text("utf-8"))
    base, tiny = (yaml.safe_load(p.read_text("utf-8")) for p in (ROOT / "config.yaml", TINY))
    config = resolve(merge(base, tiny), schema)
    labels = ["--labels", str(plan.label_path(config, "simulated"))] if stage == "ingest" else []
    run = {"experiment": "lrcn-w20", "fold": 0, "seed": 0}
    specs = {
        "simulate": lambda: plan.simulate_spec(config, "simulated"),
        "ingest": lambda: plan.ingest_spec(config, "simulated"),
        "convert": lambda: plan.convert_spec(config, "simulated"),
        "split": lambda: plan.split_spec(config, "sessions"),
        "train": lambda: plan.train_spec(config, run),
        "evaluate": lambda: plan.evaluate_spec(config, "simulated"),
        "render": lambda: plan.render_spec(config, "simulated"),
    }
    return [*labels, "--spec", specs[stage]()] if stage in specs else []


def command_of(stage: str, output: str | None = None) -> list[str]:
    """Return the command of a stage; `output` stands for its own."""
    return [stage, *options_of(stage), *STAGES[stage].inputs, output or STAGES[stage].output]


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


# Drawing all figures twice more takes a minute.
@pytest.mark.parametrize("stage", STAGES if LONG else [name for name in STAGES if name != "render"])
def test_a_stage_killed_at_any_moment_runs_again_to_the_same_bytes(
    copied: Project, undisturbed: dict[str, str], stage: str
) -> None:
    draw = random.Random(f"{SEED} {stage}")
    output = copied.folder / STAGES[stage].output
    timed = copied.folder / f"results/benchmarks/{STAGES[stage].log}.tsv"
    took = pd.read_csv(timed, sep="\t")["s"][0]
    for _ in range(8 if LONG else 1):
        share, killed = draw.uniform(0, 0.5), False  # it has nothing to import
        while not killed:
            if stage != "render":
                remove(output)
            killed = Child(copied.folder, command_of(stage)).kill_after(share * took)
            share /= 2
        inject("kills of a stage")
    status, lines = Child(copied.folder, command_of(stage)).wait()
    assert status == 0, lines
    assert hashes(copied.folder) == undisturbed
    assert [path for path in (copied.folder / "results").rglob("*") if ".part" in path.name] == []


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


@pytest.mark.parametrize("stage", STAGES)
def test_a_full_disk_is_one_clear_line_and_leaves_nothing_half_written(
    finished: Project, stage: str
) -> None:
    full = finished.folder / "full"
    full.mkdir()
    name = Path(STAGES[stage].output).name
    try:
        # Each stage writes more than a page, the split alone no more than one.
        for pages in (0, 1, 3) if LONG and stage != "split" else (0,):
            with full_disk(full, 4096 * pages) as limit:
                command = command_of(stage, f"full/{name}")
                said = complaint(*Child(finished.folder, command, limit).wait())
                inject("full disks")
                assert any(os.strerror(n) in said for n in (errno.ENOSPC, errno.EFBIG)), said
                assert not (full / name).exists() or not list((full / name).rglob("*.json"))
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


@pytest.mark.parametrize("stage", STAGES)
def test_without_permission_is_one_clear_line_that_names_the_path(
    finished: Project, stage: str
) -> None:
    shut = finished.folder / "shut"
    shut.mkdir()
    unread = [finished.folder / path for path in STAGES[stage].inputs[:1]]
    try:
        shut.chmod(0o555)
        command = command_of(stage, f"shut/{Path(STAGES[stage].output).name}")
        status, lines = Child(finished.folder, command, as_an_ordinary_user).wait()
        if status == 77:
            pytest.skip("root cannot give up its right to pass over permission bits here")
        assert "shut" in complaint(status, lines)
        assert os.strerror(errno.EACCES) in lines[-1]
        assert list(shut.iterdir()) == []
        inject("folders without permission")
        shut.chmod(0o755)
        for path in unread:
            mode = path.stat().st_mode
            path.chmod(0)
            try:
                done = Child(finished.folder, command, as_an_ordinary_user).wait()
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


def test_a_job_is_not_begun_with_a_damaged_file(finished: Project, tmp_path: Path) -> None:
    results = finished.folder / "results"
    known, _ = read_records(results)
    readers = {name: record.stage for record in known.values() for name in record.inputs}
    draw = random.Random(SEED)
    kinds = {Path(name).suffix for name in readers}
    assert {".sxm", ".csv", ".json", ".npz", ".h5", ".safetensors", ".parquet"} <= kinds
    for name in sorted(readers):
        path = results / name
        content = path.read_bytes()
        if not content:
            continue
        for kind, damage in DAMAGES.items():
            path.write_bytes(damage(content, draw))
            try:
                with pytest.raises(UserError, match="is damaged") as caught:
                    recorded(
                        never,
                        command=[readers[name]],
                        config={},
                        inputs=[path.parent if path.suffix == ".sxm" else path],
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


def test_a_damaged_figure_or_page_that_no_job_reads_is_named(finished: Project) -> None:
    results = finished.folder / "results"
    known, _ = read_records(results)
    read = {name for record in known.values() for name in record.inputs}
    last = [name for record in known.values() for name in record.outputs if name not in read]
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


def kill_inside(project: Project, rule: str, delay: float) -> bool:
    """Make a rule's job again and kill everything `delay` seconds after it began.

    SIGKILL leaves no process the time to tidy up. Returns whether there was still one to kill; if
    not, the job was done.
    """
    # What the rule promises: of the folder that `render` is given, the files.
    forced = f"{COMPARISON}/summary.html" if rule == "render" else STAGES[rule].output
    log = project.folder / "results/logs" / f"{STAGES[rule].log}.log"
    log.unlink(missing_ok=True)
    run = subprocess.Popen(
        [
            *("snakemake", "--configfile", "config.yaml", "overlay.yaml", "--until", rule),
            *("--cores", "2", "--rerun-incomplete", "--nolock", "--forcerun", forced),
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
    # Made anew from the start on: Snakemake does not miss what only finished results rest on.
    for rule in STAGES if LONG else ("ingest", "train"):
        timed = copied.folder / f"results/benchmarks/{STAGES[rule].log}.tsv"
        delay = draw.uniform(0.1, 0.9) * pd.read_csv(timed, sep="\t")["s"][0]
        while not kill_inside(copied, rule, delay):
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
    copied.snakemake("--dry-run")  # writes the overlay
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
    copied.snakemake("--dry-run")
    rules = ("simulate", "ingest", "convert", "split", *(("train", "predict") if LONG else ()))
    again = ["--nolock", "--until", rules[-1], "--forcerun", *rules]
    both = [started(copied, *again) for _ in range(2)]
    inject("runs beside another")
    said = [run.communicate()[0] for run in both]
    assert not [text for text in said if "Traceback" in text]
    # Where a job of one found a folder away that the other was replacing, Snakemake removed what
    # both had written, which a finished run does not miss: the same command again, alone.
    copied.snakemake("--cores", "2", "--rerun-incomplete", *again)
    assert hashes(copied.folder) == undisturbed
    assert verify(copied.folder / "results").faults == []


@pytest.mark.skipif(not LONG, reason="counts the faults of the long form: set SCANBENCH_LONG=1")
def test_the_long_form_injects_two_hundred_faults_or_more() -> None:
    assert sum(INJECTED.values()) >= 200
