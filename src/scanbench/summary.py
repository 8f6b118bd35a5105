"""The summary page: one HTML file with its figures inside, which opens offline.

Every text that comes from data or configuration is escaped by the template engine. Figures stand
in the page as images, so nothing inside them can run, and the page's policy forbids scripts and
any request.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from scanbench.pages import template
from scanbench.plotting import DOUBLE
from scanbench.split_file import LEAKY
from scanbench.tables import ResultTable

if TYPE_CHECKING:
    from scanbench.render import Drawing, Material

__all__ = ["page"]


def page(
    material: Material,
    drawings: Sequence[Drawing],
    svgs: Mapping[str, bytes],
    tables: Mapping[str, ResultTable],
    record: Mapping[str, Any],
) -> str:
    """Return the summary page of a comparison.

    Parameters
    ----------
    material
        What is shown.
    drawings, svgs
        The figures and, by name, their SVG files.
    tables
        Name → table.
    record
        Provenance of the render stage (`scanbench.provenance.record`). Only what is the same
        whenever the inputs are goes into the page.

    Returns
    -------
    str
        A whole HTML document.
    """
    evaluation, audit = material.evaluation, material.split["audit"]
    facts = {
        "groups": evaluation["groups"],
        "scans": evaluation["scans"],
        "seeds": len(evaluation["seeds"]),
        "folds": len(evaluation["folds"]),
    }
    leaks = {
        "groups": sum(len(fold["shared_groups"]) for fold in audit),
        "exact": sum(fold["exact_duplicates"] for fold in audit),
        "near": sum(fold["near_duplicates"] for fold in audit),
    }
    return template("summary.html.j2").render(
        spec=material.spec,
        facts=facts,
        leaks=leaks,
        leaky=material.spec["scheme"] in LEAKY,
        caution=evaluation.get("caution", ""),
        confidence=evaluation["settings"]["confidence"],
        tables=tables,
        figures=[
            {
                "name": drawing.name,
                "title": drawing.title,
                "caption": drawing.caption,
                "inputs": {name: record["inputs"][name] for name in drawing.inputs},
                # Few panels are not blown up to the width of many.
                "narrow": drawing.figure.get_figwidth() < DOUBLE,
                "src": "data:image/svg+xml;base64,"
                + base64.b64encode(svgs[drawing.name]).decode("ascii"),
            }
            for drawing in drawings
        ],
        record=record,
    )
