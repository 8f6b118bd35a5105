import subprocess
import sys
from pathlib import Path

import pytest

from scanbench.sources import ROOT, closure, module_file


def names(*modules: str) -> set[str]:
    return {str(path.relative_to(ROOT)) for path in closure(*modules)}


def test_closure_holds_the_module_its_imports_and_their_packages() -> None:
    assert names("scanbench.provenance") == {"__init__.py", "provenance.py", "files.py"}


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


def test_module_file_tells_packages_from_modules() -> None:
    assert module_file("scanbench") == ROOT / "__init__.py"
    assert module_file("scanbench.files") == ROOT / "files.py"


def test_closure_holds_the_data_files_that_modules_name() -> None:
    assert "templates/summary.html.j2" in names("scanbench.render")
    assert "tipstate/h_si100.sha256.csv.gz" in names("scanbench.tipstate.fetch")
    assert all(name.endswith(".py") for name in names("scanbench.training"))
