"""What the resolved configuration means for the workflow and for the report's first page."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from docutils.core import publish_doctree
from jinja2 import Environment, StrictUndefined
from snakemake.utils import update_config

from scanbench import plan
from scanbench.config import resolve

ROOT = Path(__file__).resolve().parents[2]
SCHEMA = yaml.safe_load((ROOT / "workflow/schemas/config.schema.yaml").read_text("utf-8"))
REPORT = (ROOT / "workflow/report/workflow.rst").read_text("utf-8")


def config(*overlays: str | Mapping[str, Any]) -> dict[str, Any]:
    """Resolve config.yaml with overlays: names of files in `config/`, or mappings."""
    found = yaml.safe_load((ROOT / "config.yaml").read_text("utf-8"))
    for overlay in overlays:
        named = isinstance(overlay, str)
        update_config(
            found,
            yaml.safe_load((ROOT / "config" / overlay).read_text("utf-8")) if named else overlay,
        )
    return dict(resolve(copy.deepcopy(found), SCHEMA))


def layers(overlay: str) -> tuple[str, ...]:
    """Give the overlays that one needs: that of a small size rests on the one of full size."""
    below = overlay.replace("-small.yaml", ".yaml")
    rests = below != overlay and (ROOT / "config" / below).is_file()
    return (below, overlay) if rests else (overlay,)


def first_page(resolved: Mapping[str, Any]) -> str:
    """Render the report's first page as Snakemake does; a name that is not there is an error."""
    environment = Environment(trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined)
    text = environment.from_string(REPORT).render(snakemake={"config": resolved})
    # Level 2: any warning about the markup is an error.
    return publish_doctree(text, settings_overrides={"halt_level": 2}).astext()


@pytest.mark.parametrize(
    "overlays",
    [
        (),
        *(layers(path.name) for path in sorted((ROOT / "config").glob("*.yaml"))),
    ],
    ids=lambda overlays: "+".join(overlays) or "config.yaml",
)
def test_the_first_page_names_every_comparison(overlays: tuple[str, ...]) -> None:
    resolved = config(*overlays)
    page = first_page(resolved)
    for name in plan.compared(resolved):
        assert page.count(f"({name}): ") == 1


def test_the_first_page_claims_held_out_groups_and_all_pairs_only_where_they_are() -> None:
    honest = first_page(config())
    assert "Whole groups (sessions of measurement) are held out" in honest
    assert "over all pairs." in honest
    assert "Leaky" not in honest

    leakage = first_page(config("leakage.yaml"))
    assert "In leakage-sessions whole groups" in leakage
    assert "In leakage-random, leakage-copies scans are divided at random" in leakage

    leaky = first_page(config({"targets": ["leakage-random"]}))
    assert "held out" not in leaky.split("How to read it")[0]

    ablation = first_page(config("ablations.yaml", {"targets": ["layers"]}))
    assert "over the pairs with the baseline." in ablation
    both = first_page(
        config(
            {"comparisons": {"leakage-sessions": {"baseline": "majority"}}, "targets": ["leakage"]}
        )
    )
    assert "over all pairs, in leakage-sessions over the pairs with the baseline." in both


@pytest.mark.parametrize(
    ("overlay", "people"),
    [
        ({}, True),
        # Weighted scores are no shares of responses: who named what cannot be told from them.
        ({"datasets": {"h-si100": {"labels": {"sheet": "Weighted_Score"}}}}, False),
        ({"comparisons": {"architectures": {"dataset": "simulated"}}}, False),
        ({"comparisons": {"architectures": {"split": "random"}}}, False),
    ],
)
def test_models_meet_people_only_where_the_sheet_tells_what_volunteers_named(
    overlay: dict[str, Any], people: bool
) -> None:
    assert plan.has_people(config(overlay), "architectures") is people
