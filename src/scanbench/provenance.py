"""Where a result comes from: code, configuration, inputs, packages, device and time."""

from __future__ import annotations

import os
import platform
import resource
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from scanbench import __version__
from scanbench.files import sha256_of

#: Packages whose versions can change a number.
PACKAGES = ("h5py", "lightning", "numpy", "pandas", "scikit-learn", "scipy", "torch")


@cache
def git_state() -> tuple[str | None, bool | None]:
    """Return the commit of the running source tree and whether it has uncommitted changes.

    A new file counts where it could run: in the package.

    Both are None where the package does not run from a git checkout.
    """
    folder = Path(__file__).resolve().parent

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", __file__)
        changes = git("status", "--porcelain", "--untracked-files=no")
        new = git("status", "--porcelain", "--untracked-files=all", "--", str(folder))
        return git("rev-parse", "HEAD"), bool(changes or new)
    except (OSError, subprocess.CalledProcessError):
        return None, None


def versions() -> dict[str, str]:
    """Return the versions of Python, Scanbench and the packages that can change a number."""
    found = {"python": platform.python_version(), "scanbench": __version__}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def processor() -> str:
    """Return the processor's name as the system gives it."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def command_line(arguments: Sequence[str]) -> str:
    """Return the command as one would type it in the working directory.

    Absolute paths below the working directory are given relative to it; of others, which say where
    things lie on one machine, the name alone is kept, as in `…/scans`.
    """
    folder = Path.cwd()

    def told(argument: str) -> str:
        option, equals, value = "", "", argument
        if argument.startswith("--"):
            option, equals, value = argument.rpartition("=")
        path = Path(value)
        if not path.is_absolute():
            return argument
        short = path.relative_to(folder) if path.is_relative_to(folder) else f"…/{path.name}"
        return f"{option}{equals}{short}"

    return shlex.join(["scanbench", *map(told, arguments)])


def record(
    spec: Mapping[str, Any],
    *,
    inputs: Mapping[str, str | Path],
    started: float,
    seed: int | None = None,
    device: str | None = None,
    cpu_seconds: float | None = None,
) -> dict[str, Any]:
    """Describe how a result came to be, as plain builtins for a JSON file beside it.

    Parameters
    ----------
    spec
        The resolved configuration of the stage.
    inputs
        Name of each input and its file, which is hashed.
    started
        `time.time()` when the stage began.
    seed
        Seed of the stage's random numbers, if it drew any.
    device
        What computed the result; the processor's name if None.
    cpu_seconds
        Processor time that the result took; that of this process if None.

    Returns
    -------
    dict
        Keys `command`, `commit`, `dirty`, `config`, `inputs`, `seed`, `device`, `threads`,
        `versions`, `started` (UTC, ISO 8601), `seconds` (wall, of this process), `cpu_seconds` and
        `peak_memory_mb` (largest resident memory of this process so far, in 2²⁰ bytes).
    """
    commit, dirty = git_state()
    return {
        "command": command_line(sys.argv[1:]),
        "commit": commit,
        "dirty": dirty,
        "config": dict(spec),
        "inputs": {name: sha256_of(path) for name, path in inputs.items()},
        "seed": seed,
        "device": device or processor(),
        "threads": os.environ.get("OMP_NUM_THREADS"),
        "versions": versions(),
        "started": datetime.fromtimestamp(started, UTC).isoformat(timespec="seconds"),
        "seconds": round(time.time() - started, 3),
        "cpu_seconds": round(time.process_time() if cpu_seconds is None else cpu_seconds, 3),
        "peak_memory_mb": round(peak_memory_mb(), 1),
    }


def peak_memory_mb() -> float:
    """Return the largest resident memory that this process ever had, in 2²⁰ bytes."""
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return largest / (1 << (20 if sys.platform == "darwin" else 10))  # bytes there, KiB elsewhere
