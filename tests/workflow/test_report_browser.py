"""The summary page in a real browser, from the disk and without a network."""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browsing import Visit
from comparison_example import LONG_NAMES, write
from PIL import Image

from scanbench.render import render

SCROLLS = "r => r.scrollWidth > r.clientWidth"
HOSTILE = "<script>alert(1)</script>"


@pytest.fixture(scope="module")
def summary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    render(**write(folder, LONG_NAMES[:5], hostile=HOSTILE, seeds=1), out=folder / "out")
    return folder / "out" / "summary.html"


@pytest.fixture(params=[1200, 400])
def visit(browser: Any, summary: Path, request: pytest.FixtureRequest) -> Iterator[Visit]:
    opened = Visit(browser, summary, request.param)
    yield opened
    opened.context.close()


def test_every_figure_shows(visit: Visit) -> None:
    sizes = visit.page.eval_on_selector_all(
        "img", "all => all.map(i => [i.complete, i.naturalWidth, i.getBoundingClientRect().height])"
    )
    assert len(sizes) == 11
    for complete, width, height in sizes:
        assert complete
        assert width > 100
        assert height > 50


def test_nothing_is_asked_for_but_the_page_and_nothing_complains(
    visit: Visit, summary: Path
) -> None:
    outside = [url for url in visit.asked if not url.startswith("data:")]
    assert outside == [summary.as_uri()]
    assert visit.said == []


def test_a_hostile_name_is_shown_and_not_run(visit: Visit) -> None:
    assert visit.page.evaluate("document.scripts.length") == 0
    assert HOSTILE in visit.page.inner_text("#table-audit")
    assert "dialog" not in visit.said


def test_the_page_itself_never_scrolls_sideways(visit: Visit) -> None:
    wide, window = visit.page.evaluate(
        "[document.documentElement.scrollWidth, document.documentElement.clientWidth]"
    )
    assert wide <= window


def test_a_shadow_at_the_edge_says_that_there_is_more(visit: Visit) -> None:
    narrow = visit.page.viewport_size["width"] == 400
    for region in visit.page.locator(".scroll").all():
        hidden = region.evaluate("r => r.scrollWidth - r.clientWidth")
        edges = {}
        for at in (0, hidden):
            region.evaluate("(r, at) => { r.scrollLeft = at }", at)
            image = Image.open(io.BytesIO(region.screenshot())).convert("L")
            grey = np.asarray(image, float)
            # The background alone: a median down the edge passes over letters and lines.
            edges[at] = np.median(grey[:, 0]), np.median(grey[:, -1])
        if hidden:
            assert edges[0][0] > 240 > edges[0][1]
            assert edges[hidden][0] < 240 < edges[hidden][1]
        else:
            assert min(edges[0]) > 240
    assert not narrow or visit.page.eval_on_selector("#table-main .scroll", SCROLLS)


def test_what_scrolls_is_reached_by_the_keyboard_and_has_a_name(visit: Visit) -> None:
    regions = visit.page.locator(".scroll")
    for region in regions.all():
        region.focus()
        assert region.evaluate("r => document.activeElement === r")
    assert visit.page.get_by_role("region").filter(has=visit.page.locator("table, img")).count()
    assert regions.evaluate_all("all => all.every(r => r.ariaLabel.length > 5)")


def test_a_figure_of_few_panels_is_not_blown_up(visit: Visit) -> None:
    sizes = visit.page.eval_on_selector_all(
        "figure img",
        "all => all.map(i => [i.naturalWidth, i.getBoundingClientRect().width])",
    )
    whole = max(natural for natural, _ in sizes)
    few = [(natural, shown) for natural, shown in sizes if natural < whole]
    assert few
    assert all(shown < natural + 1 for natural, shown in few)  # natural: whole pixels


def test_every_link_leads_somewhere(visit: Visit, summary: Path) -> None:
    links = visit.page.eval_on_selector_all("a", "all => all.map(a => a.getAttribute('href'))")
    inside = [link for link in links if link.startswith("#")]
    assert [link for link in inside if visit.page.locator(link).count() != 1] == []
    beside = set(links) - set(inside)
    assert beside == {"replay.html"}
    assert all((summary.parent / link).is_file() for link in beside)


def test_tables_name_their_columns_and_figures_their_content(visit: Visit) -> None:
    assert visit.page.eval_on_selector_all("img", "all => all.every(i => i.alt.length > 40)")
    assert visit.page.eval_on_selector_all(
        "table", "all => all.every(t => t.querySelectorAll('thead th[scope=col]').length > 0)"
    )
