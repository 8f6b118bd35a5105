"""Which models exist and what may be set in each, told without importing torch.

A model is known by its file: `models/cnn_scan.py` is `cnn-scan` in the config. The workflow reads
the options from the syntax tree while it plans, so that a misspelt option costs a second, not the
import of a deep-learning library, and certainly not a job.
"""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path
from typing import Any

from scanbench.errors import UserError, did_you_mean

MODELS = Path(__file__).resolve().parent / "models"


def names() -> list[str]:
    """Return the names of all models, sorted. Files that begin with `_` are shared parts."""
    return sorted(
        path.stem.replace("_", "-") for path in MODELS.glob("*.py") if not path.name.startswith("_")
    )


def source(name: str) -> Path:
    """Return the file of a model.

    Raises
    ------
    UserError
        If there is no such model.
    """
    if name not in names():
        raise UserError(f"model: no model {name!r}; {did_you_mean(name, names())}")
    return MODELS / f"{name.replace('-', '_')}.py"


@cache
def option_fields(name: str) -> dict[str, tuple[str, Any]]:
    """Return the options of a model: name → (annotated type as text, default).

    Parameters
    ----------
    name
        A model's name as in the config.

    Raises
    ------
    UserError
        If there is no such model.

    Examples
    --------
    >>> option_fields("cnn-scan")["dropout"]
    ('float', 0.3)
    """
    path = source(name)
    tree = ast.parse(path.read_bytes(), str(path))
    options = next(
        (node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "Options"),
        None,
    )
    assert options is not None, f"{path}: a model needs a dataclass named Options"
    fields: dict[str, tuple[str, Any]] = {}
    for base in options.bases:
        # A model made of others has their options: `class Options(causal.Options)`.
        module, _, kind = ast.unparse(base).rpartition(".")
        assert kind == "Options", f"{path}: Options may rest on the Options of other models only"
        fields |= option_fields(module.replace("_", "-"))
    return fields | {
        node.target.id: (ast.unparse(node.annotation), _default(node, path))
        for node in options.body
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    }


def _default(node: ast.AnnAssign, path: Path) -> Any:
    try:
        assert node.value is not None
        return ast.literal_eval(node.value)
    except (AssertionError, ValueError):
        raise AssertionError(f"{path}:{node.lineno}: an option needs a literal default") from None
