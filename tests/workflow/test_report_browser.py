"""The summary page in a real browser, from the disk and without a network."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browsing import Visit
from comparison_example import LONG_NAMES, write

from scanbench.render import render

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
