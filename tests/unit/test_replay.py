"""Recorded streams and held-out scans as pages and as animated images."""

from __future__ import annotations

import base64
import dataclasses
import io
import json
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from comparison_example import CLASSES, write
from PIL import Image
from replay_example import NAMES, events, record, source
from streaming_example import LINES, PIXELS

from scanbench import render
from scanbench.change import Steps
from scanbench.cli import main
from scanbench.errors import UserError
from scanbench.store import Store
from scanbench.streaming import LARGEST
from scanbench.tipstate import replay_page
from scanbench.tipstate.line_sources import EVENTS, RECORDING
from scanbench.tipstate.replay import read_recording
from scanbench.tipstate.replay_page import Replay, image_of, page, policy_text


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return record(tmp_path_factory.mktemp("stream"))


def made(x_LP: np.ndarray, planned: int | None = None, **changes: Any) -> Replay:
    known: dict[str, Any] = {
        "name": "scan", "summary": "", "by": "a run", "about": [], "classes": ["a", "b"],
        "x_LP": x_LP, "planned_lines": planned or len(x_LP), "aspect": 1.0, "upward": False,
        "answers": [], "run_lines": len(x_LP), "step_L": [None] * len(x_LP),
    }  # fmt: skip
    return Replay(**{**known, **changes})


def data_of(html: str) -> dict[str, Any]:
    """Return the data that stand in a page."""
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', html, re.DOTALL)
    assert found is not None
    return json.loads(found[1])


def test_a_recording_is_read_as_it_came_and_as_it_was_judged(recording: Path) -> None:
    replays = read_recording(recording)
    assert [replay.name for replay in replays] == list(NAMES)
    for replay, said in zip(replays, events(recording), strict=True):
        lines = {event["line"]: event for event in said if event["event"] == "line"}
        assert len(replay.x_LP) == len(lines)
        assert replay.step_L == [event["step"] for event in lines.values()]
        for n, event in lines.items():
            known = [answer for answer in replay.answers if answer["line"] <= n]
            for key in ("p", "uncertainty", "change", "advice"):
                if known:
                    assert known[-1][key] == event[key], (n, key)
        assert len(replay.answers) == len({e["answer_lines"] for e in lines.values()} - {None})
    first, second = replays
    assert [fault["line"] for fault in first.faults] == [10, 21]
    assert first.faulty == [(10, "missing"), (21, "missing"), (22, "missing")]
    assert np.isnan(first.x_LP[20:22]).all()
    assert np.array_equal(first.x_LP[0], source()[1].x_P)  # type: ignore[union-attr]
    assert (second.upward, second.aspect, second.planned_lines) == (True, 0.5, 2 * LINES)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda text: text.replace('"uncertainty": 0', '"uncertainty": NaN', 1), "is no number"),
        (lambda text: text.replace('"p": {', '"p": {"x": 2, ', 1), "2 is greater than"),
        (lambda text: text.replace('"atoms"', '"others"'), "other classes"),
        (lambda text: text.replace('"advice": "go on"', '"advice": "jump"', 1), "'jump' is not"),
        (lambda text: text.replace('"line": 3,', '"line": 4,', 1), "other lines than 1 to 32"),
        (lambda text: text.replace('"step": null', '"step": 9', 1), "9 is greater than"),
        (lambda text: text[: len(text) // 2], "is damaged"),
        (lambda text: text + text, "more scans than received.jsonl holds"),
        (lambda text: "", "tells of no scan"),
        (lambda text: "[]\n" + text, "line 1 is damaged"),
    ],
)
def test_damaged_events_are_refused_in_one_line(
    recording: Path, tmp_path: Path, change: Any, said: str
) -> None:
    text = (recording / EVENTS).read_text()
    # Classes stand both in the scan's event and in its lines': only one of them is damaged.
    head, rest = text.split("\n", 1)
    damaged = change(text) if "others" not in change(text) else f"{head}\n{change(rest)}"
    (tmp_path / EVENTS).write_text(damaged)
    (tmp_path / RECORDING).write_bytes((recording / RECORDING).read_bytes())
    with pytest.raises(UserError) as error:
        read_recording(tmp_path)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_a_stream_that_was_cut_short_is_replayed_as_far_as_it_came(
    recording: Path, tmp_path: Path
) -> None:
    text = (recording / EVENTS).read_text().splitlines()
    (tmp_path / EVENTS).write_text("\n".join(text[:9]) + "\n")
    (tmp_path / RECORDING).write_bytes((recording / RECORDING).read_bytes())
    (replay,) = read_recording(tmp_path)
    assert len(replay.x_LP) == 8


def test_a_recording_names_the_run_and_an_older_one_its_model(
    recording: Path, tmp_path: Path
) -> None:
    assert {replay.by for replay in read_recording(recording)} == {"monitor, fold2-seed1"}
    assert all(("Model", "causal") in replay.about for replay in read_recording(recording))
    text = (recording / EVENTS).read_text()
    (tmp_path / EVENTS).write_text(text.replace('"experiment": "monitor", ', ""))
    (tmp_path / RECORDING).write_bytes((recording / RECORDING).read_bytes())
    assert {replay.by for replay in read_recording(tmp_path)} == {"causal"}


def test_missing_recordings_and_unknown_kinds_of_files_are_refused(
    recording: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["replay", str(tmp_path), str(tmp_path / "a.html")]) == 2
    assert "holds no received.jsonl; record with scanbench stream" in capsys.readouterr().err
    assert main(["replay", str(recording), str(tmp_path / "a.mp4")]) == 2
    assert "cannot write .mp4, only .html, .webp" in capsys.readouterr().err


def test_the_command_writes_a_page_with_every_answer(recording: Path, tmp_path: Path) -> None:
    out = tmp_path / "page.html"
    assert main(["replay", str(recording), str(out), "--note", "Us & them <CC0>"]) == 0
    html = out.read_text(encoding="utf-8")
    assert "Us &amp; them &lt;CC0&gt;" in html
    for scan, replay in zip(data_of(html)["scans"], read_recording(recording), strict=True):
        assert [answer["line"] for answer in scan["answers"]] == [a["line"] for a in replay.answers]
        assert [a["p"] for a in scan["answers"]] == [list(a["p"].values()) for a in replay.answers]
        assert scan["steps"] == replay.step_L
    first = out.read_bytes()
    assert main(["replay", str(recording), str(out), "--note", "Us & them <CC0>"]) == 0
    assert out.read_bytes() == first


def test_a_page_holds_names_as_text_and_one_script_named_by_its_hash() -> None:
    hostile = "</script><script>alert(1)</script><!--\u2028"
    answer = {"line": 1, "p": {hostile: 1.0, "b": 0.0}, "uncertainty": 0.0, "change": 0.0}
    replay = made(
        np.eye(2), name=hostile, by=hostile, classes=[hostile, "b"],
        answers=[{**answer, "advice": "go on"}], faults=[{"line": 1, "message": hostile}],
    )  # fmt: skip
    html = page([replay], title=hostile, kind=hostile, facts=[(hostile, hostile)])
    assert "alert(1)</script>" not in html
    assert html.count("<script") == 2
    assert data_of(html)["scans"][0]["name"] == hostile
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', html)
    assert policy is not None
    assert "default-src 'none'" in policy[1]
    assert re.search(r"script-src 'sha256-[^' ]+'", policy[1])


def test_a_picture_shows_each_line_where_the_screen_does_and_nothing_unmeasured() -> None:
    x_LP = np.tile(np.arange(8.0), (4, 1))
    x_LP[1] = np.nan
    x_LP[2, 3] = np.nan
    down = np.asarray(image_of(made(x_LP, planned=6)))
    assert down.shape == (6, 8)
    assert (down == 0).all(axis=1).tolist() == [False, True, False, False, True, True]
    assert np.argwhere(down[2] == 0).tolist() == [[3]]
    assert (np.diff(down[0].astype(int)) >= 0).all()
    assert (down[down > 0].min(), down.max()) == (1, 255)
    up = np.asarray(image_of(made(x_LP, planned=6, upward=True)))
    assert np.array_equal(up, down[::-1])


@pytest.mark.parametrize("value", [np.nan, 0.0])
def test_a_scan_without_contrast_or_measurement_is_drawn(value: float) -> None:
    grey = np.asarray(image_of(made(np.full((3, 4), value, np.float32))))
    assert set(grey.ravel().tolist()) == ({0} if np.isnan(value) else {1})


def test_heights_that_are_none_are_missing_in_the_picture(tmp_path: Path, recording: Path) -> None:
    text = (recording / RECORDING).read_text().splitlines()
    line = json.loads(text[3])
    heights = np.frombuffer(base64.b64decode(line["heights"]), "<f4").copy()
    heights[5] = 10 * LARGEST
    line["heights"] = base64.b64encode(heights.tobytes()).decode()
    (tmp_path / RECORDING).write_text("\n".join([*text[:3], json.dumps(line), *text[4:]]) + "\n")
    (tmp_path / EVENTS).write_bytes((recording / EVENTS).read_bytes())
    grey = np.asarray(image_of(read_recording(tmp_path)[0]))
    assert np.argwhere(grey[:9] == 0).tolist() == [[2, 5]]


def test_large_scans_are_thinned_out() -> None:
    limit = replay_page.LARGEST_IMAGE
    x_LP = np.random.default_rng(0).normal(size=(2 * limit + 1, 3)).astype(np.float32)
    assert image_of(made(x_LP)).size == (3, limit * 2 // 3 + 1)


def test_a_policy_is_said_in_a_sentence() -> None:
    policy = {"stop": ["defect"], "recondition": [], "threshold": 0.8, "patience": 1}
    assert policy_text({**policy, "first_line": 10}) == (
        "stop for defect: from a probability of 0.8 in one answer, from line 10 of the run on"
    )
    assert policy_text({**policy, "stop": [], "first_line": 1}).startswith("none")


# --------------------------------------------------------------------------------- held-out scans


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("comparison")
    given = write(folder)
    with Store(given["store"]) as store:
        read = render._read(
            given["spec"], given["scores"], given["runs"], given["scans"], store, given["split"]
        )
        yield read


def test_a_page_shows_how_each_answer_draws_on_the_lines_before_it(recording: Path) -> None:
    html = page(read_recording(recording), title="t", kind="", facts=[])
    answers = [answer for scan in data_of(html)["scans"] for answer in scan["answers"]]
    said = [event for scan in events(recording) for event in scan if event.get("attention")]
    assert said
    for event in said:
        assert len(event["attention"]) == event["answer_lines"]
        assert sum(event["attention"]) == pytest.approx(1, abs=1e-2)
    told = [event["attention"] for event in said]
    assert all(answer["attention"] in told for answer in answers)


def test_held_out_scans_are_those_of_the_examples_as_the_first_seed_saw_them(material: Any) -> None:
    replays, _ = replay_page.of_material(material)
    examples = material.scores["examples"]
    mine = examples[examples["experiment"] == "causal-full"].drop_duplicates(["label", "kind"])
    assert [replay.name for replay in replays] == list(mine["scan_id"])
    table = pd.read_parquet(material.runs["causal-full"][0] / "predictions.parquet")
    for replay in replays:
        assert replay.by == "causal-full, fold0-seed0"
        assert replay.upward  # as the manifest says
        rows = table[table["scan_id"] == replay.name].set_index("lines_seen")
        assert [answer["line"] for answer in replay.answers] == list(rows.index)
        for answer in replay.answers:
            expected = [rows.loc[answer["line"], f"p_{name}"] for name in CLASSES]
            assert list(answer["p"].values()) == pytest.approx(expected, abs=1e-6)
        steps, scores = Steps(), [None]
        for before, after in pairwise(replay.x_LP):
            score = float(steps.push(before, after))
            scores.append(None if np.isnan(score) else score)
        assert replay.step_L == scores
        assert scores[:3] == [None] * 3
        assert None not in scores[3:]
        # The rule of this run for the smallest limit that has one: two answers in a row from 0.6.
        p = [answer["p"]["defect"] >= 0.6 for answer in replay.answers]
        wanted = [
            "stop" if all(p[max(0, i - 1) : i + 1]) and i >= 1 and answer["line"] >= 5 else "go on"
            for i, answer in enumerate(replay.answers)
        ]
        assert [answer["advice"] for answer in replay.answers] == wanted
        assert "0.6 in each of 2 answers in a row, from line 5" in dict(replay.about)["Policy"]
        assert "chosen for 5% wrong stops" in dict(replay.about)["Policy"]


def test_a_run_without_a_policy_is_judged_by_the_default(material: Any) -> None:
    without = dataclasses.replace(material, policy={"classes": ["defect"], "policies": []})
    for replay in replay_page.of_material(without)[0]:
        assert "0.8 in each of 3 answers in a row" in dict(replay.about)["Policy"]
        assert "(default)" in dict(replay.about)["Policy"]


def test_the_page_of_a_comparison_says_what_is_shown(material: Any) -> None:
    record = {"command": "scanbench render", "commit": None, "dirty": None}
    replays, _ = replay_page.of_material(material)
    html = replay_page.material_page(material, replays, {"store.h5": "0" * 64}, record)
    assert ("Simulated data" in html) == material.spec["simulated"]
    assert material.spec["attribution"] in html
    assert len(data_of(html)["scans"]) == len(replays)


def test_a_comparison_without_examples_has_a_page_that_says_so(material: Any) -> None:
    record = {"command": "scanbench render", "commit": "0" * 40, "dirty": True}
    html = replay_page.material_page(material, [], {}, record)
    assert "There is no scan to replay" in html
    assert "with uncommitted changes" in html


# -------------------------------------------------------------------------------- animated images


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scanbench.tipstate.animation.LEAST_S", 0.5)
    monkeypatch.setattr("scanbench.tipstate.animation.ROUND_S", 1.0)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("suffix", [".webp", ".gif", ".png"])
def test_an_animated_image_loops_begins_with_an_end_and_holds_it(
    recording: Path, tmp_path: Path, suffix: str
) -> None:
    out = tmp_path / f"monitor{suffix}"
    assert main(["replay", str(recording), str(out), "--note", "made up"]) == 0
    with Image.open(out) as image:
        count = image.n_frames  # type: ignore[attr-defined]
        assert image.size == (800, 400)
        assert image.info["loop"] == 0
        frames, durations = [], []
        for n in range(count):
            image.seek(n)
            frames.append(np.asarray(image.convert("RGB"), int))
            durations.append(image.info["duration"])
    assert count == 8
    # WebP tells a picture's duration once it is decoded.
    assert max(durations) >= 2 * min(durations)
    # The first picture is what the last scan played, the first one, comes to: all its lines.
    scan = (slice(80, 330), slice(40, 280))
    empty = [np.mean(np.abs(frame[scan] - 0xED).max(axis=2) < 6) for frame in frames]
    assert empty[0] < 0.1  # two lines are missing
    assert empty[4] > 0.15  # the second scan, half as high, was aborted
    assert empty[1] > empty[2] > empty[3]


def test_an_animation_of_nothing_is_refused(tmp_path: Path) -> None:
    from scanbench.tipstate import animation

    with pytest.raises(UserError, match="no line was measured"):
        animation.write([made(np.zeros((0, 4)), planned=4)], tmp_path / "a.webp")


def test_the_picture_of_a_page_is_a_png_that_leaves_out_what_is_missing() -> None:
    html = page([made(np.full((2, PIXELS), np.nan))], title="t", kind="", facts=[])
    content = data_of(html)["scans"][0]["image"].removeprefix("data:image/png;base64,")
    with Image.open(io.BytesIO(base64.b64decode(content))) as image:
        assert image.format == "PNG"
        assert np.asarray(image.convert("RGBA"))[..., 3].max() == 0
