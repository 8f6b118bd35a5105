"""How long planning takes: `snakemake --dry-run` of the full study and of larger ones.

    python benchmarks/dry_run.py

Nothing has run yet when it is timed, so every job is planned. The larger studies add seeds.
"""

from __future__ import annotations

import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[1]


def plan(overlay: dict, profile: str | None, folder: Path) -> tuple[int, float]:
    """Return the number of planned jobs and the wall seconds of one dry run."""
    (folder / "overlay.yaml").write_text(yaml.safe_dump(overlay), encoding="utf-8")
    command = [str(Path(sys.executable).with_name("snakemake")), "--dry-run", "--quiet"]
    command += ["--snakefile", str(ROOT / "Snakefile"), "--directory", str(folder)]
    command += ["--configfile", str(ROOT / "config.yaml"), str(folder / "overlay.yaml")]
    command += ["--profile", str(ROOT / "profiles" / profile)] if profile else []
    started = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
    seconds = time.perf_counter() - started
    total = re.search(r"^total\s+(\d+)", done.stdout + done.stderr, re.MULTILINE)
    assert total, done.stderr
    return int(total[1]), seconds


def main() -> None:
    """Print the table."""
    print("| study | jobs | profile | median s | fastest s | slowest s |")
    print("|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for name, seeds in (("as in config.yaml", 3), ("seeds 0-10", 11), ("seeds 0-61", 62)):
            overlay = {"comparisons": {"architectures": {"seeds": list(range(seeds))}}}
            for profile in (None, "slurm"):
                timed = [plan(overlay, profile, Path(folder)) for _ in range(3)]
                seconds = sorted(item[1] for item in timed)
                print(
                    f"| {name} | {timed[0][0]} | {profile or '-'} | "
                    f"{statistics.median(seconds):.1f} | {seconds[0]:.1f} | {seconds[-1]:.1f} |"
                )


if __name__ == "__main__":
    main()
