"""The replay page in a real browser, from the disk and without a network."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from browsing import Visit
from replay_example import events, record
from streaming_example import LINES

from scanbench.cli import main
from scanbench.tipstate.line_sources import EVENTS

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>"
WIDTHS = (1200, 360)


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Record two scans, the second under a hostile name, and let some answers tell attention."""
    folder = record(tmp_path_factory.mktemp("stream"), names=("first", HOSTILE))
    told = []
    for text in (folder / EVENTS).read_text(encoding="utf-8").splitlines():
        event = json.loads(text)
        if event["event"] == "line" and event["p"] and event["lines_seen"] > 4:
            event["attention"] = [1.0] * (event["lines_seen"] - 1) + [3.0]
        told.append(json.dumps(event) + "\n")
    (folder / EVENTS).write_text("".join(told), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def page(recording: Path) -> Path:
    out = recording.parent / "page.html"
    assert main(["replay", str(recording), str(out), "--note", "made up"]) == 0
    return out


@pytest.fixture(params=WIDTHS)
def visit(browser: Any, page: Path, request: pytest.FixtureRequest) -> Iterator[Visit]:
    opened = Visit(browser, page, request.param)
    opened.page.set_default_timeout(10_000)
    yield opened
    close(opened, page)


@pytest.fixture
def wide(browser: Any, page: Path) -> Iterator[Visit]:
    opened = Visit(browser, page, WIDTHS[0])
    opened.page.set_default_timeout(10_000)
    yield opened
    close(opened, page)


def close(visit: Visit, page: Path) -> None:
    """Close a page that asked for nothing but itself and did not complain, whatever a test did."""
    assert [url for url in visit.asked if not url.startswith("data:")] == [page.as_uri()]
    assert visit.said == []
    visit.context.close()


def line(visit: Visit) -> int:
    return int(visit.page.input_value("#line"))


def stop_the_clock(visit: Visit) -> None:
    """Let the page's time go on only as the test says."""
    visit.page.clock.install(time=0)
    visit.page.clock.pause_at(1000)


def test_the_page_never_scrolls_sideways(visit: Visit) -> None:
    for _ in range(2):
        wide, window = visit.page.evaluate(
            "[document.documentElement.scrollWidth, document.documentElement.clientWidth]"
        )
        assert wide <= window
        if visit.page.is_enabled("#next"):
            visit.page.click("#next")


def test_every_line_shows_the_numbers_of_its_event(wide: Visit, recording: Path) -> None:
    for index, said in enumerate(events(recording)):
        wide.page.select_option("#scan", str(index))
        shown = wide.page.evaluate(
            """() => {
                const slider = document.getElementById("line");
                const all = [];
                for (let n = 1; n <= Number(slider.max); n++) {
                    slider.value = n;
                    slider.dispatchEvent(new Event("input"));
                    all.push({
                        numbers: [...document.querySelectorAll("#answer td.n")]
                            .map((cell) => cell.textContent),
                        advice: document.getElementById("advice").dataset.advice,
                        faults: [...document.querySelectorAll("#faults li")]
                            .map((item) => item.textContent),
                        count: document.getElementById("count").value,
                    });
                }
                return all;
            }"""
        )
        lines = [event for event in said if event["event"] == "line"]
        assert len(shown) == len(lines)
        for page, event in zip(shown, lines, strict=True):
            told = [*(event["p"] or dict.fromkeys(said[0]["classes"])).values()]
            told += [event["uncertainty"], event["change"], event["step"]]
            expected = [
                "–" if value is None else f"{value:.3f}".replace("-", "−") for value in told
            ]
            assert page["numbers"] == expected, event
            assert page["advice"] == event["advice"]
            faults = [e["message"] for e in said if e["event"] == "fault"]
            known = [message for message in faults if int(message.split()[1]) <= event["line"]]
            assert page["faults"] == (known or ["none"])
            assert page["count"] == f"line {event['line']} of {2 * LINES}"


def test_it_plays_pauses_and_stops_at_the_end(visit: Visit) -> None:
    stop_the_clock(visit)
    assert line(visit) == 2 * LINES  # it opens with all that is known
    visit.page.click("#play")
    assert line(visit) == 0
    visit.page.clock.run_for(1000)
    assert 9 <= line(visit) <= 10
    assert visit.page.inner_text("#play") == "Pause"
    visit.page.click("#play")
    paused = line(visit)
    visit.page.clock.run_for(1000)
    assert (line(visit), visit.page.inner_text("#play")) == (paused, "Play")
    visit.page.select_option("#speed", "50")
    visit.page.click("#play")
    visit.page.clock.run_for(2000)
    assert (line(visit), visit.page.inner_text("#play")) == (2 * LINES, "Play")


def test_where_motion_is_unwelcome_the_picture_changes_once_a_second(wide: Visit) -> None:
    wide.page.emulate_media(reduced_motion="reduce")
    stop_the_clock(wide)
    wide.page.click("#play")
    wide.page.clock.run_for(900)
    assert line(wide) == 0
    wide.page.clock.run_for(300)
    assert line(wide) == 10


def test_the_keyboard_does_all_that_the_mouse_does(visit: Visit) -> None:
    keyboard = visit.page.keyboard
    for key, expected in (
        ("Home", 0),
        ("ArrowRight", 1),
        ("Shift+ArrowRight", 11),
        ("ArrowLeft", 10),
        ("End", 2 * LINES),
        ("ArrowRight", 2 * LINES),
    ):
        keyboard.press(key)
        assert line(visit) == expected, key
    # The same where the slider has the focus; the browser's own steps would come on top.
    visit.page.focus("#line")
    keyboard.press("Home")
    keyboard.press("ArrowRight")
    assert line(visit) == 1
    stop_the_clock(visit)
    keyboard.press("Space")
    visit.page.clock.run_for(1000)
    assert line(visit) > 5
    keyboard.press("Space")
    assert visit.page.inner_text("#play") == "Play"
    # On a button, space presses it and does nothing else.
    visit.page.focus("#next")
    keyboard.press("Space")
    assert visit.page.input_value("#scan") == "1"
    assert visit.page.inner_text("#play") == "Play"


def test_controls_have_names_and_show_focus(wide: Visit) -> None:
    for role, name in (
        ("button", "Play"),
        ("button", "Previous scan"),
        ("button", "Next scan"),
        ("slider", "Scan line"),
        ("combobox", "Scan"),
        ("combobox", "Speed in lines a second"),
    ):
        control = wide.page.get_by_role(role, name=name, exact=True)
        assert control.count() == 1, name
    wide.page.keyboard.press("Tab")
    while wide.page.evaluate("document.activeElement.id") != "play":
        wide.page.keyboard.press("Tab")
    width = wide.page.evaluate("getComputedStyle(document.activeElement).outlineWidth")
    assert width == "3px"
    text = wide.page.get_attribute("#line", "aria-valuetext")
    assert text is not None
    assert text.startswith(f"line {2 * LINES} of {2 * LINES}: recondition; atoms 0.")


def test_advice_is_said_aloud_when_it_changes_and_not_at_every_line(
    wide: Visit, recording: Path
) -> None:
    assert wide.page.get_attribute("#advice", "aria-live") == "polite"
    wide.page.keyboard.press("Home")
    wide.page.evaluate(
        """() => {
            window.changes = 0;
            new MutationObserver(() => window.changes++)
                .observe(document.getElementById("advice"), { childList: true });
        }"""
    )
    for _ in range(2 * LINES):
        wide.page.keyboard.press("ArrowRight")
    lines = [event for event in events(recording)[0] if event["event"] == "line"]
    states = [(event["advice"], event["p"] is None) for event in lines]
    steps = sum(a != b for a, b in pairwise(states))
    assert 2 <= steps < 6
    assert wide.page.evaluate("window.changes") == steps
    assert "RECONDITION since line" in wide.page.inner_text("#advice")


def test_another_scan_fills_in_its_own_direction(wide: Visit) -> None:
    def clip() -> str:
        return wide.page.evaluate("getComputedStyle(document.getElementById('image')).clipPath")

    assert not wide.page.is_enabled("#previous")
    wide.page.keyboard.press("Home")
    wide.page.keyboard.press("Shift+ArrowRight")
    hidden = f"{100 * (1 - 10 / (2 * LINES))}%"
    assert clip() == f"inset(0px 0px {hidden})"
    wide.page.click("#next")
    assert not wide.page.is_enabled("#next")
    assert line(wide) == LINES + 3  # it was aborted
    assert f"aborted after {LINES + 3}" in wide.page.inner_text("#caption")
    wide.page.keyboard.press("Home")
    wide.page.keyboard.press("Shift+ArrowRight")
    assert clip() == f"inset({hidden} 0px 0px)"
    assert "measured upwards" in wide.page.inner_text("#caption")
    size = wide.page.locator("#frame").bounding_box()
    assert size["height"] / size["width"] == pytest.approx(0.5, abs=0.02)  # 40 nm × 20 nm
    wide.page.click("#previous")
    assert wide.page.input_value("#scan") == "0"


def test_a_hostile_name_is_shown_and_not_run(wide: Visit) -> None:
    wide.page.click("#next")
    assert HOSTILE in wide.page.inner_text("#about")
    assert HOSTILE in wide.page.locator("#scan option").nth(1).inner_text()
    assert wide.page.evaluate("document.scripts.length") == 2
    assert wide.page.locator("img").count() == 1


def test_attention_stands_beside_its_lines_where_the_events_tell_it(wide: Visit) -> None:
    wide.page.keyboard.press("Home")
    assert wide.page.get_attribute("#attention path", "d") == ""
    wide.page.keyboard.press("End")
    bars = str(wide.page.get_attribute("#attention path", "d")).split("z")[:-1]
    assert len(bars) == LINES
    assert bars[-1] == f"M0 {LINES - 1}h1v1H0"
    assert bars[0].startswith("M0 0h0.333")
    wide.page.click("#next")  # upwards: the last line is on top
    assert "M0 0h" not in str(wide.page.get_attribute("#attention path", "d"))


def test_a_needle_stands_for_each_step_up_or_down(wide: Visit, recording: Path) -> None:
    for index, said in enumerate(events(recording)):
        wide.page.select_option("#scan", str(index))
        told = [event["step"] for event in said if event["event"] == "line"]
        drawn = str(wide.page.get_attribute("[data-of=steps]", "d")).split("M")[1:]
        known = [step for step in told if step is not None]
        assert len(drawn) == len(known) > 3
        assert min(known) < 0 < max(known)
        for needle, step in zip(drawn, known, strict=True):
            foot, tip = needle.split()[1].split("V")
            # 56 pixels are 16 standard deviations; up is less.
            assert float(foot) - float(tip) == pytest.approx(step * 56 / 16, abs=1e-6)


def test_a_click_on_the_chart_goes_to_that_line(wide: Visit) -> None:
    box = wide.page.locator("#chart").bounding_box()
    wide.page.locator("#chart").click(position={"x": 30 + (box["width"] - 48) / 4, "y": 100})
    assert line(wide) == LINES // 2


def test_an_address_opens_a_scan_at_a_line(browser: Any, page: Path) -> None:
    opened = Visit(browser, page, 800)
    opened.page.goto(page.as_uri() + "#2-7")
    opened.page.reload()
    assert (opened.page.input_value("#scan"), line(opened)) == ("1", 7)
    opened.context.close()


def test_dark_light_and_print(wide: Visit) -> None:
    def background() -> str:
        return wide.page.evaluate("getComputedStyle(document.body).backgroundColor")

    wide.page.emulate_media(color_scheme="dark")
    assert background() == "rgb(22, 24, 27)"
    wide.page.emulate_media(color_scheme="dark", media="print")
    assert background() == "rgb(255, 255, 255)"
    assert not wide.page.is_visible("#play")
    assert wide.page.is_visible("#chart")
    assert wide.page.is_visible("#answer")
