import ast
import subprocess
import sys
from pathlib import Path

import pytest

from scanbench import sources
from scanbench.sources import ROOT, closure, module_file


def names(*modules: str) -> set[str]:
    return {str(path.relative_to(ROOT)) for path in closure(*modules)}


def test_closure_holds_the_module_its_imports_and_their_packages() -> None:
    assert names("scanbench.provenance") == {
        "__init__.py", "provenance.py", "files.py", "errors.py",
    }  # fmt: skip


def test_unknown_module_is_refused() -> None:
    with pytest.raises(ValueError, match=r"scanbench\.nothing"):
        closure("scanbench.nothing")


@pytest.mark.parametrize(
    "module", ["scanbench.store", "scanbench.splits", "scanbench.evaluation", "scanbench.config"]
)
def test_closure_holds_every_module_that_python_really_imports(module: str) -> None:
    code = (
        f"import sys, {module}\n"
        "print(*(m.__file__ for n, m in sys.modules.items() if n.split('.')[0] == 'scanbench'))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert {Path(file).resolve() for file in out.stdout.split()} <= set(closure(module))


def whole_file_imports(path: Path) -> set[str]:
    """Read the imports of this package from the syntax tree of a whole file."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return {name for name in found if name.split(".")[0] == sources.PACKAGE}


def test_reading_statements_alone_finds_the_imports_of_every_module() -> None:
    for path in ROOT.rglob("*.py"):
        assert sources._imports(path) == whole_file_imports(path), path


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("from scanbench import store, plan as p", {"store", "plan"}),
        ("from scanbench.store import (  # (why)\n    Store,\n)\n", {"store", "store.Store"}),
        ("from scanbench.store import \\\n    Store\n", {"store", "store.Store"}),
        ("def f():\n    import scanbench.files as f, scanbench.plan\n", {"files", "plan"}),
        ('"""Prose\nfrom scanbench to here.\n"""\nimport scanbench.store\n', {"store"}),
        ("import numpy\nfrom scanbenches import store\n", set()),
    ],
)
def test_imports_of_any_form_are_found(tmp_path: Path, code: str, found: set[str]) -> None:
    path = tmp_path / "module.py"
    path.write_text(code, encoding="utf-8")
    assert sources._imports(path) == whole_file_imports(path)
    assert sources._imports(path) - {"scanbench"} == {f"scanbench.{name}" for name in found}


def test_relative_imports_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "module.py"
    path.write_text("from .store import Store\n", encoding="utf-8")
    with pytest.raises(AssertionError, match="import by absolute name"):
        sources._imports(path)


def test_module_file_tells_packages_from_modules() -> None:
    assert module_file("scanbench") == ROOT / "__init__.py"
    assert module_file("scanbench.files") == ROOT / "files.py"


def test_closure_holds_the_data_files_that_modules_name() -> None:
    assert "templates/summary.html.j2" in names("scanbench.render")
    assert "tipstate/h_si100.sha256.csv.gz" in names("scanbench.tipstate.fetch")
    assert all(name.endswith(".py") for name in names("scanbench.training"))
