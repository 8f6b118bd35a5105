"""All speed benchmarks, one after the other: `python benchmarks/run.py` (or `make bench`)."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def main() -> None:
    """Run every benchmark beside this file; each prints a Markdown table."""
    for path in sorted(Path(__file__).parent.glob("*.py")):
        if path.name not in (Path(__file__).name, "__init__.py"):
            print(f"\n## {path.stem}\n", flush=True)
            subprocess.run([sys.executable, str(path)], check=True)


if __name__ == "__main__":
    main()
