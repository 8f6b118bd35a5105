"""A real SLURM of one node, from Debian's packages, for the time of a test."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CONFIG = Path("/etc/slurm")
MUNGE = Path("/run/munge")
#: The first line of the configuration that this module writes; no other is touched.
OURS = "# Written by Scanbench's tests, which remove it again."
TOOLS = ("slurmctld", "slurmd", "squeue", "munged")
ACCOUNTING_TOOLS = ("slurmdbd", "mariadbd", "mariadb-install-db")
PASSWORD = "only-for-the-test"

# The node poses as a larger one, so that the sizes of the profile fit: nothing is really reserved.
# No cgroups and no systemd are needed. Each device file of `GRES` stands for a GPU.
SLURM_CONF = """\
ClusterName=scanbench
SlurmctldHost={host}
SlurmUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
SlurmdParameters=config_overrides
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=1
JobAcctGatherParams=OverMemoryKill
SchedulerParameters=batch_sched_delay=0,sched_interval=1,sched_min_interval=0,bf_interval=1
MinJobAge=3600
KillWait=2
ReturnToService=2
GresTypes=gpu
NodeName={host} CPUs=16 RealMemory=256000 Gres=gpu:2 State=UNKNOWN
PartitionName=cpu Nodes=ALL Default=YES MaxTime=INFINITE State=UP
PartitionName=gpu Nodes=ALL MaxTime=INFINITE State=UP
"""
GRES = "Name=gpu File=/dev/tty[0-1]\n"
ACCOUNTING = """\
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=localhost
"""
SLURMDBD_CONF = """\
DbdHost=localhost
SlurmUser=root
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort={port}
StorageUser=slurm
StoragePass={password}
StorageLoc=slurm
PidFile={folder}/slurmdbd.pid
LogFile={folder}/slurmdbd.log
"""


def why_not(*, accounting: bool = False) -> str | None:
    """Say why a SLURM cannot be started here, or None if it can."""
    if os.geteuid() != 0:
        return "only root can start SLURM's daemons"
    missing = [name for name in TOOLS + ACCOUNTING_TOOLS * accounting if not shutil.which(name)]
    if missing:
        return f"not installed: {', '.join(missing)}; `make slurm` installs what Debian has"
    for name in ("slurm.conf", "slurmdbd.conf", "gres.conf"):
        path = CONFIG / name
        if path.exists() and not path.read_text(encoding="utf-8").startswith(OURS):
            return f"{path} is that of a cluster of yours, which is left alone"
    for name in ("slurmctld", "slurmd"):
        if runs(name):
            return f"{name} runs already"
    if not all(Path(f"/dev/tty{number}").exists() for number in range(2)):
        return "no /dev/tty0 and /dev/tty1 to stand for GPUs"
    return None


def runs(name: str) -> bool:
    """Tell whether a process of a command runs; one that has ended has no command line."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            if Path(path.read_text(encoding="utf-8").split("\0")[0]).name == name:
                return True
    return False


@dataclass(frozen=True)
class Cluster:
    """A cluster that runs; its commands are those of SLURM."""

    folder: Path

    def command(self, *words: str) -> str:
        """Run a command of SLURM and return what it prints."""
        done = subprocess.run(words, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, f"{' '.join(words)}: {done.stderr}"
        return done.stdout

    def jobs(self) -> list[dict[str, str]]:
        """List all jobs that the controller remembers, oldest first."""
        fields = {"id": "%i", "state": "%T", "rule": "%k", "partition": "%P", "memory": "%m"}
        out = self.command(
            *("squeue", "--states=all", "--noheader", "--sort=i"),
            *("--format", "|".join(fields.values())),
        )
        jobs = [dict(zip(fields, line.split("|"), strict=True)) for line in out.splitlines()]
        # The comment is rule_NAME, or rule_GROUP_NAMES, and the wildcards of a job that has any.
        return [{**job, "rule": job["rule"].split("_wildcards_")[0]} for job in jobs]


@contextmanager
def cluster(folder: Path, *, accounting: bool = False) -> Iterator[Cluster]:
    """Start a cluster of one node; stop it and remove its configuration at the end.

    Parameters
    ----------
    folder
        Where the daemons keep their state and logs.
    accounting
        Whether a database remembers jobs, as on most large clusters.
    """
    reason = why_not(accounting=accounting)
    assert reason is None, reason
    for name in ("state", "spool"):
        (folder / name).mkdir(parents=True)
    host = socket.gethostname().split(".")[0]
    existed = CONFIG.is_dir()
    CONFIG.mkdir(exist_ok=True)
    texts = {"slurm.conf": SLURM_CONF, "gres.conf": GRES}
    port = _free_port()
    if accounting:
        texts |= {"slurm.conf": SLURM_CONF + ACCOUNTING, "slurmdbd.conf": SLURMDBD_CONF}
    started: list[subprocess.Popen[bytes]] = []

    def start(*words: str) -> None:
        with (folder / f"{Path(words[0]).name}.out").open("wb") as out:
            streams: Any = {"stdin": subprocess.DEVNULL, "stdout": out, "stderr": out}
            started.append(subprocess.Popen(words, **streams))

    try:
        for name, text in texts.items():
            values = {"host": host, "folder": folder, "port": port, "password": PASSWORD}
            path = CONFIG / name
            path.write_text(f"{OURS}\n{text.format(**values)}", encoding="utf-8")
            path.chmod(0o600 if name == "slurmdbd.conf" else 0o644)
        if not _succeeds("munge", "-n"):
            MUNGE.mkdir(mode=0o755, exist_ok=True)
            shutil.chown(MUNGE, "munge", "munge")
            start(
                "runuser",
                "-u",
                "munge",
                "--",
                shutil.which("munged") or "",
                "--foreground",
                "--force",
            )
            _wait_until("munge answers", "munge", "-n")
        if accounting:
            _start_database(folder, port, start)
            start("slurmdbd", "-D")
            _wait_until("slurmdbd answers", "sacctmgr", "--noheader", "show", "cluster")
            _succeeds("sacctmgr", "--immediate", "add", "cluster", "scanbench")
        start("slurmctld", "-D", "-c")
        start("slurmd", "-D", "-N", host)
        _wait_until("a job runs", "srun", "--immediate=5", "--ntasks=1", "--mem=100", "true")
        yield Cluster(folder)
    finally:
        _succeeds("scancel", "--user=root")
        for process in reversed(started):  # each while what it needs still runs
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(20)
            process.kill()
            process.wait()
        for name in texts:
            (CONFIG / name).unlink(missing_ok=True)
        if not existed:
            shutil.rmtree(CONFIG)


def _start_database(folder: Path, port: int, start: Callable[..., None]) -> None:
    """Start a database of the test's own, with the user that slurmdbd needs."""
    data = folder / "database"
    subprocess.run(
        ["mariadb-install-db", "--no-defaults", f"--datadir={data}", "--user=root"],
        check=True,
        capture_output=True,
    )
    init = folder / "database.sql"
    init.write_text(
        "CREATE DATABASE slurm;\n"
        f"CREATE USER slurm@'127.0.0.1' IDENTIFIED BY '{PASSWORD}';\n"
        "GRANT ALL ON slurm.* TO slurm@'127.0.0.1';\n",
        encoding="utf-8",
    )
    start(
        *("mariadbd", "--no-defaults", "--user=root", f"--datadir={data}"),
        f"--socket={folder}/database.sock",
        *(f"--port={port}", "--bind-address=127.0.0.1", f"--init-file={init}"),
        *("--skip-name-resolve", f"--pid-file={folder}/database.pid"),
    )
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.2)
    raise AssertionError("the database does not answer")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _succeeds(*words: str) -> bool:
    try:
        return subprocess.run(words, capture_output=True, timeout=30).returncode == 0
    except subprocess.TimeoutExpired:
        return False


def _wait_until(what: str, *words: str) -> None:
    """Repeat a command until it succeeds."""
    deadline = time.monotonic() + 60
    while not _succeeds(*words):
        assert time.monotonic() < deadline, f"a minute has passed before {what}"
        time.sleep(0.2)
