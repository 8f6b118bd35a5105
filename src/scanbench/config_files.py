"""Configuration files as people write them: what is wrong with one, and in which line.

Snakemake reads them before any of this project's code, and says of a wrong one neither its name nor
the line. `python -m scanbench.config_files FILE …`, which `make` does first, tells both.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import yaml

from scanbench.errors import MISTAKE, UserError, first_line

__all__ = ["check", "main"]


def check(path: Path) -> None:
    """Check that a file holds keys, as YAML or JSON.

    Raises
    ------
    UserError
        If it cannot be read, or holds anything else; the message names the line where there is one.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"{path}: no such configuration file") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: is not UTF-8 text; save it as UTF-8") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); name a file") from None
    try:
        found = _parsed(text)
    except yaml.MarkedYAMLError as error:
        raise UserError(f"{path} {_told(error, text)}") from None
    # The latter two of what looks like a date or a number and is none.
    except (yaml.YAMLError, RecursionError, ValueError, AttributeError) as error:
        raise UserError(f"{path}: is no YAML ({first_line(error)}); mend it") from None
    if not isinstance(found, dict):
        what = "holds nothing" if found is None else f"holds no keys but a {type(found).__name__}"
        raise UserError(f"{path}: {what}; write keys at its top, such as `targets: [NAME]`")


def _parsed(text: str) -> object:
    try:
        return json.loads(text)
    except ValueError:
        return yaml.safe_load(text)


def _told(error: yaml.MarkedYAMLError, text: str) -> str:
    """Tell line, trouble and mend of an error of syntax."""
    mark = error.problem_mark or error.context_mark
    assert mark is not None, error
    said = " ".join(filter(None, (error.context, error.problem)))
    lines = text.splitlines()[mark.line : mark.line + 1]
    mend = "mend it there or in a line above"
    if any("\t" in line[: len(line) - len(line.lstrip())] for line in lines):
        mend = "indent with spaces, not with tabs"
    return f"line {mark.line + 1}: is no YAML ({said}); {mend}"


def main(paths: Sequence[str]) -> int:
    """Check files in turn; return the exit status: 0, or 2 for a mistake, which is told."""
    try:
        for path in paths:
            check(Path(path))
    except UserError as error:
        print(f"{MISTAKE}{error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
