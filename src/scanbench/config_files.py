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


class _RepeatedKeyError(Exception):
    """A key stands twice in one mapping; the message tells the lines."""


def check(path: Path) -> None:
    """Check that a file holds keys, as YAML or JSON.

    Raises
    ------
    UserError
        If it cannot be read, holds anything else, or a key twice; the message names the line where
        there is one.
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
    except _RepeatedKeyError as error:
        raise UserError(f"{path} {error}") from None
    except yaml.MarkedYAMLError as error:
        raise UserError(f"{path} {_told(error, text)}") from None
    # The latter two of what looks like a date or a number and is none.
    except (yaml.YAMLError, RecursionError, ValueError, AttributeError) as error:
        raise UserError(f"{path}: is no YAML ({first_line(error)}); mend it") from None
    if not isinstance(found, dict):
        what = "holds nothing" if found is None else f"holds no keys but a {type(found).__name__}"
        raise UserError(f"{path}: {what}; write keys at its top, such as `targets: [NAME]`")


def _parsed(text: str) -> object:
    """Read YAML or JSON in which no key stands twice: the later one would win without a word."""
    try:
        return json.loads(text, object_pairs_hook=_each_once)
    except ValueError:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _check_once(node, set())
        return loader.construct_document(node)


def _each_once(pairs: Sequence[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("read as YAML, whose reader knows the lines")
    return found


def _check_once(node: yaml.Node, seen: set[int]) -> None:
    """Refuse a key that stands twice in one mapping."""
    if id(node) in seen:  # an alias
        return
    seen.add(id(node))
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            _check_once(item, seen)
    if isinstance(node, yaml.MappingNode):
        first: dict[tuple[str, str], yaml.Node] = {}
        for key, value in node.value:
            other = first.setdefault((key.tag, str(key.value)), key)
            if other is not key:
                raise _RepeatedKeyError(
                    f"line {key.start_mark.line + 1}: key {key.value!r} stands in line "
                    f"{other.start_mark.line + 1} already, and one of them would be passed over; "
                    "put what both hold under one"
                )
            _check_once(value, seen)


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
