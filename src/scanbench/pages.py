"""Templates of the pages that open from the disk, without a network.

Every text that comes from data or configuration is escaped by the template engine.
"""

from __future__ import annotations

from functools import cache
from importlib.resources import files

from jinja2 import Environment, PackageLoader, StrictUndefined, Template

__all__ = ["source", "template"]

FOLDER = "templates"


@cache
def template(name: str) -> Template:
    """Return a template of the package."""
    environment = Environment(
        loader=PackageLoader("scanbench", FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(name)


def source(name: str) -> str:
    """Return the text of a style sheet or script that stands beside the templates."""
    return (files("scanbench") / FOLDER / name).read_text(encoding="utf-8")
