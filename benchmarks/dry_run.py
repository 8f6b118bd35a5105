"""How long planning takes: `snakemake --dry-run` of about 50, 500 and 5,000 jobs.

    python benchmarks/dry_run.py [--repeats 3] [--folds 2] [--seeds 1 9 92]

Nothing has run yet when it is timed, so every job is planned. The target `architectures` of
config.yaml is planned, with so many folds and seeds. CPU time is that of Snakemake and its
children.
"""

from __future__ import annotations

import argparse
import re
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[1]


def cpu_seconds_of_children() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def plan(folds: int, seeds: int, profile: str | None, folder: Path) -> tuple[int, float, float]:
    """Return the number of planned jobs and the CPU and wall seconds of one dry run."""
    overlay = {
        "splits": {"sessions": {"folds": folds}},
        "comparisons": {"architectures": {"seeds": list(range(seeds))}},
    }
    (folder / "overlay.yaml").write_text(yaml.safe_dump(overlay), encoding="utf-8")
    # `--quiet` without `rules` would hide the table of jobs too.
    command = [str(Path(sys.executable).with_name("snakemake")), "--dry-run", "--quiet", "rules"]
    command += ["--snakefile", str(ROOT / "Snakefile"), "--directory", str(folder)]
    command += ["--configfile", str(ROOT / "config.yaml"), str(folder / "overlay.yaml")]
    command += ["--profile", str(ROOT / "profiles" / profile)] if profile else []
    cpu, wall = cpu_seconds_of_children(), time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    seconds = cpu_seconds_of_children() - cpu, time.perf_counter() - wall
    said = done.stdout + done.stderr
    total = re.search(r"^total\s+(\d+)", said, re.MULTILINE)
    assert done.returncode == 0, said
    assert total, said
    return int(total[1]), *seconds


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--folds", type=int, default=2)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 9, 92])
    arguments = parser.parse_args()
    print("| jobs | profile | least CPU s | least wall s |")
    print("|--:|---|--:|--:|")
    with tempfile.TemporaryDirectory() as folder:
        for seeds in arguments.seeds:
            for profile in (None, "slurm"):
                timed = [
                    plan(arguments.folds, seeds, profile, Path(folder))
                    for _ in range(arguments.repeats)
                ]
                jobs, cpu, wall = (min(column) for column in zip(*timed, strict=True))
                print(f"| {jobs} | {profile or '-'} | {cpu:.1f} | {wall:.1f} |", flush=True)


if __name__ == "__main__":
    main()
