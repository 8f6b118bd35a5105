"""The HTML report of a run: one file that opens from the disk, complete and without a network."""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browsing import Visit
from conftest import ROOT, Project

pytestmark = pytest.mark.workflow

RULES = ("simulate", "ingest", "convert", "split", "train", "predict", "evaluate", "render")
BESIDE = ["anomaly", "attributions", "curves", "explanation", "protocols", "realism", "tip_change"]
FIGURES = sorted(
    path.stem
    for path in (ROOT / "workflow/report").glob("*.rst")
    # The tiny study asks for one comparison and for no target beside it.
    if path.stem not in ("workflow", "main", "summary", "replay", *BESIDE)
)
#: What Snakemake's own page says of its own libraries.
KNOWN = ("cdn.tailwindcss.com should not be used in production", "The input spec uses Vega-Lite")


@pytest.fixture(scope="module")
def report(finished: Project) -> Path:
    finished.snakemake("--report", "report.html", "--cores", "1")
    return finished.folder / "report.html"


def test_make_says_where_the_report_of_each_configuration_is(finished: Project) -> None:
    finished.planned()  # writes the overlay
    for name in ("Makefile", "pyproject.toml", "requirements.lock"):
        shutil.copy2(ROOT / name, finished.folder)
    venv = finished.folder / ".venv"
    venv.mkdir()
    (venv / "bin").symlink_to(Path(sys.executable).parent)
    (venv / ".complete").touch()
    (finished.folder / "second.yaml").write_text("{}\n", encoding="utf-8")
    said = [
        finished.run("make", "-s", "report", f"CONFIG={config}").stdout.splitlines()
        for config in ("overlay.yaml", "overlay.yaml second.yaml")
    ]
    place = "results/comparisons/simulated"
    rest = [f"Summary:  {place}/summary.html", f"Figures:  {place}/figures/"]
    rest.append(f"Tables:   {place}/tables/")
    assert said == [
        ["Report:   results/report-overlay.html", *rest],
        ["Report:   results/report-overlay-second.html", *rest],
    ]
    for path in (line.split(":")[1].strip() for lines in said for line in lines):
        assert (finished.folder / path).exists(), path


@pytest.fixture
def visit(browser: Any, report: Path) -> Iterator[Visit]:
    opened = Visit(browser, report, width=1200)
    opened.page.set_default_timeout(20_000)
    yield opened
    assert [url for url in opened.asked if not url.startswith(("data:", "blob:"))] == [
        report.as_uri()
    ]
    assert [text for text in opened.said if not text.startswith(KNOWN)] == []
    opened.context.close()


def open_results(visit: Visit) -> None:
    visit.page.get_by_text("Results", exact=True).first.click()
    visit.page.get_by_text("main table", exact=True).wait_for()


def button(visit: Visit, result: str, icon: str) -> Any:
    row = visit.page.locator("tr", has=visit.page.get_by_text(result, exact=True))
    return row.locator(f'a[iconname="{icon}"]')


def assert_rendered(text: str) -> None:
    """Fail where markup was shown instead of what it means."""
    assert not re.search(r"\{\{|\}\}|\{%|\*\*|``|\bUndefined\b|System Message", text), text


def test_first_page_says_what_was_compared_and_how(visit: Visit) -> None:
    text = visit.page.inner_text("body")
    assert_rendered(text)
    assert "4 experiments with 1 seed each on simulated H:Si(100), split sessions" in text
    assert "The data are simulated." in text
    title = "Architectures on simulated scans <script>alert(1)</script>"
    assert visit.page.locator("li", has_text=title).count() == 1


def assert_drawn(visit: Visit, charts: int) -> None:
    """Fail unless so many charts are shown and none of them is blank."""
    visit.page.wait_for_function(f"document.querySelectorAll('canvas').length === {charts}")
    painted = visit.page.eval_on_selector_all(
        "canvas",
        """all => all.map(c => c.getContext("2d").getImageData(0, 0, c.width, c.height).data
            .some(value => value !== 0 && value !== 255))""",
    )
    assert painted == [True] * charts


def test_graph_of_steps_and_their_run_times_are_there(visit: Visit) -> None:
    # Vega links what it draws in circles, so the charts' own data is read from the page's text.
    text = visit.page.content()
    for chart in ("rulegraph_spec", "runtimes_spec"):
        data = text.split(f"var {chart} =", 1)[1].split("var ", 1)[0]
        assert [rule for rule in RULES if f'"{rule}"' not in data] == []
    assert_drawn(visit, charts=1)
    visit.page.get_by_text("Statistics", exact=True).first.click()
    assert_drawn(visit, charts=2)


def test_every_result_has_a_caption_that_names_its_data(visit: Visit) -> None:
    open_results(visit)
    for result in (*FIGURES, "main table", "summary", "replay"):
        button(visit, result, "information-circle").click()
        visit.page.get_by_text("Job parameters").wait_for()
        text = visit.page.inner_text("body").upper()
        caption = text.split("\nDESCRIPTION\n", 1)[1].split("\nSIZE\n", 1)[0]
        assert_rendered(caption)
        assert len(caption) > 150
        assert "DATA: SIMULATED H:SI(100). SIMULATED DATA." in caption
        visit.page.get_by_text("simulated", exact=True).first.click()


def test_every_figure_opens(visit: Visit) -> None:
    open_results(visit)
    for figure in FIGURES:
        button(visit, figure, "eye").click()
        image = visit.page.locator(f'img[src*="filename={figure}.svg"]')
        image.wait_for()
        width, height = image.evaluate("i => [i.naturalWidth, i.naturalHeight]")
        assert width > 100
        assert height > 50


def test_summary_opens_in_the_report(visit: Visit) -> None:
    open_results(visit)
    button(visit, "summary", "eye").click()
    frame = visit.page.frame_locator("iframe")
    frame.locator("img").first.wait_for()
    # Nobody named simulated scans: the summary leaves the comparison with people out.
    assert frame.locator("img").count() == len(FIGURES) - 1


def test_replay_opens_and_plays_in_the_report(visit: Visit) -> None:
    open_results(visit)
    button(visit, "replay", "eye").click()
    frame = visit.page.frame_locator("iframe")
    frame.locator("#line").press("Home")
    assert frame.locator("#count").inner_text() == "line 0 of 32"
    frame.get_by_role("button", name="Play").click()
    frame.locator("#count", has_text="line 32 of 32").wait_for()
    assert frame.locator("#scan option").count() > 0
    assert frame.get_by_text("Simulated data").count() == 1
