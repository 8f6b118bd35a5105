"""Which source files a module needs: its import closure inside the package.

The workflow lists them as inputs of each rule, so that editing a module reruns exactly the jobs
whose code it is. Importing nothing, it reads the `import` statements, those inside functions too,
and adds the data files (templates, tables) that a module names. Every `snakemake` command and every
job on a cluster does this first, so only the statements are parsed, and no file as a whole.
"""

from __future__ import annotations

import ast
import re
import textwrap
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parent
PACKAGE = ROOT.name


#: An import of this package, or a relative one: the statement to its end, or something like it.
_IMPORT = re.compile(
    rf"^[ \t]*(?:from[ \t]+(?:{PACKAGE}\b|\.)|import[ \t][^\n]*\b{PACKAGE}\b)[^\n(]*(?:\([^)]*\))?",
    re.MULTILINE,
)


@cache
def module_file(module: str) -> Path | None:
    """Return the file of a module of this package, or None if there is no such module."""
    base = ROOT.parent.joinpath(*module.split("."))
    for candidate in (base.with_suffix(".py"), base / "__init__.py"):
        if candidate.is_file():
            return candidate
    return None


def modules(package: str) -> list[str]:
    """Return the full names of the modules of a package, sorted."""
    folder = module_file(package)
    assert folder is not None, f"{package}: no such package"
    return sorted(
        f"{package}.{path.stem}" for path in folder.parent.glob("*.py") if path.stem != "__init__"
    )


@cache
def _data_files() -> dict[str, Path]:
    """Return the package's files that are no Python, by name."""
    return {
        path.name: path
        for path in sorted(ROOT.rglob("*.*"))
        if path.is_file() and path.suffix not in (".py", ".pyc", ".typed")
    }


@cache
def _named_data(path: Path) -> frozenset[Path]:
    """Return the data files of the package whose names stand in a module as text."""
    source = path.read_text(encoding="utf-8")
    found = {name: file for name, file in _data_files().items() if name in source}
    if found:  # perhaps in a comment only
        texts = {node.value for node in _nodes(source) if isinstance(node, ast.Constant)}
        found = {name: file for name, file in found.items() if name in texts}
    return frozenset(found.values())


@cache
def _imports(path: Path) -> frozenset[str]:
    source = path.read_text(encoding="utf-8")
    try:
        nodes = [
            node
            for statement in _IMPORT.finditer(source)
            for node in _nodes(textwrap.dedent(statement[0]))
        ]
    except SyntaxError:  # prose that begins like an import, or an import of an unusual form
        nodes = list(_nodes(source))
    found: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.module, f"{path}: {ast.unparse(node)}: import by absolute name"
            assert node.level == 0, f"{path}: {ast.unparse(node)}: import by absolute name"
            found.add(node.module)
            # `from package import module` names a module only in the alias.
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
    return frozenset(name for name in found if name.split(".")[0] == PACKAGE)


def _nodes(source: str) -> Iterator[ast.AST]:
    return ast.walk(ast.parse(source))


def _with_parents(module: str) -> Iterator[str]:
    parts = module.split(".")
    for end in range(1, len(parts) + 1):
        yield ".".join(parts[:end])


def closure(*modules: str) -> list[Path]:
    """Return the files of `modules`, of all that they import here, and their data files, sorted.

    Parameters
    ----------
    modules
        Full names such as `scanbench.store`.

    Raises
    ------
    ValueError
        If a name is not a module of this package.
    """
    for module in modules:
        if module_file(module) is None:
            raise ValueError(f"{module}: no such module")
    files: set[Path] = set()
    waiting = [name for module in modules for name in _with_parents(module)]
    while waiting:
        path = module_file(waiting.pop())
        if path is None or path in files:
            continue
        files.add(path)
        waiting += [name for found in _imports(path) for name in _with_parents(found)]
    return sorted(files.union(*map(_named_data, files)))
