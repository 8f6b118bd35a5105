"""The summary page in a real browser, from the disk and without a network."""

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))
from comparison_example import LONG_NAMES, write

from scanbench.render import render

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

HOSTILE = "<script>alert(1)</script>"


def chromium() -> str | None:
    """Find a browser of the system: playwright's own would be a download."""
    names = ("chromium", "chromium-browser", "google-chrome")
    found = (shutil.which(name) for name in names)
    return os.environ.get("SCANBENCH_CHROMIUM") or next((path for path in found if path), None)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    path = chromium()
    if path is None:
        pytest.skip("no chromium found: install one or set SCANBENCH_CHROMIUM")
    root = hasattr(os, "geteuid") and os.geteuid() == 0
    with (
        sync_api.sync_playwright() as play,
        play.chromium.launch(executable_path=path, args=["--no-sandbox"] if root else []) as opened,
    ):
        yield opened


@pytest.fixture(scope="module")
def summary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    render(**write(folder, LONG_NAMES[:5], hostile=HOSTILE, seeds=1), out=folder / "out")
    return folder / "out" / "summary.html"


class Visit:
    """A page opened from the disk, and all that it said and asked for."""

    def __init__(self, browser: Any, path: Path, width: int) -> None:
        self.context = browser.new_context(viewport={"width": width, "height": 900}, offline=True)
        self.page = self.context.new_page()
        self.said: list[str] = []
        self.asked: list[str] = []
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("dialog", lambda dialog: (self.said.append("dialog"), dialog.dismiss()))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.goto(path.as_uri())
        self.page.wait_for_load_state("load")


@pytest.fixture(params=[1200, 400])
def visit(browser: Any, summary: Path, request: pytest.FixtureRequest) -> Iterator[Visit]:
    opened = Visit(browser, summary, request.param)
    yield opened
    opened.context.close()


def test_every_figure_shows(visit: Visit) -> None:
    sizes = visit.page.eval_on_selector_all(
        "img", "all => all.map(i => [i.complete, i.naturalWidth, i.getBoundingClientRect().height])"
    )
    assert len(sizes) == 10
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


def test_every_link_leads_somewhere(visit: Visit) -> None:
    dead = visit.page.eval_on_selector_all(
        "a", "all => all.map(a => a.getAttribute('href')).filter(h => !document.querySelector(h))"
    )
    assert dead == []


def test_tables_name_their_columns_and_figures_their_content(visit: Visit) -> None:
    assert visit.page.eval_on_selector_all("img", "all => all.every(i => i.alt.length > 40)")
    assert visit.page.eval_on_selector_all(
        "table", "all => all.every(t => t.querySelectorAll('thead th[scope=col]').length > 0)"
    )
