"""`scanbench replay`: recorded streams as a page that plays them, or as an animated image."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jsonschema import Draft202012Validator
from jsonschema.exceptions import best_match

from scanbench.change import LARGEST_Z
from scanbench.errors import UserError
from scanbench.files import parse_json, replacing
from scanbench.streaming import LARGEST, Event, Item, Line, ScanInfo
from scanbench.tipstate import animation, replay_page
from scanbench.tipstate.line_sources import EVENTS, RECORDING, recorded
from scanbench.tipstate.replay_page import Replay, policy_text

_SHARE = {"type": "number", "minimum": 0, "maximum": 1}
_COUNT = {"type": "integer", "minimum": 0}
_NAMES = {"type": "array", "items": {"type": "string"}}
#: What a replay reads of each kind of event (docs/streaming.md); others are passed over.
_SCHEMAS: dict[str, dict[str, Any]] = {
    "scan": {
        "required": ["lines", "model", "classes", "policy"],
        "properties": {
            "lines": {"type": "integer", "minimum": 1},
            "experiment": {"type": "string"},
            "fold": _COUNT,
            "seed": {"type": "integer"},
            "model": {"type": "string"},
            "classes": {**_NAMES, "minItems": 1, "uniqueItems": True},
            "policy": {
                "type": "object",
                "required": ["stop", "recondition", "threshold", "patience", "first_line"],
                "properties": {
                    "stop": _NAMES,
                    "recondition": _NAMES,
                    "threshold": _SHARE,
                    "patience": _COUNT,
                    "first_line": _COUNT,
                },
            },
        },
    },
    "line": {
        "required": ["line", "answer_lines", "p", "uncertainty", "change", "advice", "fault"],
        "properties": {
            "line": {"type": "integer", "minimum": 1},
            "answer_lines": {"type": ["integer", "null"]},
            "p": {"type": ["object", "null"], "additionalProperties": _SHARE},
            "uncertainty": {**_SHARE, "type": ["number", "null"]},
            "change": {**_SHARE, "type": ["number", "null"]},
            "advice": {"enum": ["go on", "stop", "recondition"]},
            "fault": {"type": ["string", "null"]},
            "step": {"type": ["number", "null"], "minimum": -LARGEST_Z, "maximum": LARGEST_Z},
            "attention": {"type": "array", "items": {"type": "number", "minimum": 0}},
        },
    },
    "fault": {
        "required": ["message"],
        "properties": {"message": {"type": "string"}, "line": {"type": "integer", "minimum": 1}},
    },
}
_CHECKS = {kind: Draft202012Validator(schema) for kind, schema in _SCHEMAS.items()}


def replay(recordings: Sequence[Path], out: Path, note: str = "") -> None:
    """Write recorded scans as a page (`.html`) or as an animated image (`.webp`, `.gif`, `.png`).

    Parameters
    ----------
    recordings
        Folders that `scanbench stream --record` wrote.
    out
        File to write; its suffix says what.
    note
        Source and licence of the data, shown on the page and in the picture.

    Raises
    ------
    UserError
        If a recording is missing or damaged, or the suffix is none of these.
    """
    suffix = out.suffix.lower()
    if suffix not in (".html", *animation.FORMATS):
        known = ", ".join((".html", *animation.FORMATS))
        raise UserError(f"{out}: cannot write {suffix or 'a file without suffix'}, only {known}")
    replays = [one for folder in recordings for one in read_recording(folder)]
    if suffix == ".html":
        text = replay_page.page(
            replays,
            title="Replay of " + ", ".join(folder.name for folder in recordings),
            kind="",
            facts=[("Source and licence", note or "not stated (--note)")],
        )
        with replacing(out) as part:
            part.write_text(text, encoding="utf-8", errors="replace", newline="\n")
    else:
        animation.write(replays, out, note)


def read_recording(folder: Path) -> list[Replay]:
    """Return the scans of a recorded stream, with what the monitor said of each.

    Raises
    ------
    UserError
        If the folder is no recording or is damaged.
    """
    for name in (RECORDING, EVENTS):
        if not (folder / name).is_file():
            raise UserError(f"{folder}: holds no {name}; record with scanbench stream --record")
    came = _by_scan(recorded(folder / RECORDING), lambda item: isinstance(item, ScanInfo))
    said = _by_scan(_events(folder / EVENTS), lambda event: event["event"] == "scan")
    if not said:
        raise UserError(f"{folder / EVENTS}: tells of no scan; record a stream again")
    # A stream that was cut short may have received a scan of which nothing was said yet.
    if len(came) < len(said):
        raise UserError(f"{folder}: {EVENTS} tells of more scans than {RECORDING} holds")
    return [
        _replay(folder / EVENTS, items, events) for items, events in zip(came, said, strict=False)
    ]


def _by_scan(things: Iterable[Any], begins: Callable[[Any], bool]) -> list[list[Any]]:
    """Divide what belongs to several scans; what stands before the first belongs to none."""
    parts: list[list[Any]] = []
    for thing in things:
        if begins(thing):
            parts.append([])
        if parts:
            parts[-1].append(thing)
    return parts


def _events(path: Path) -> Iterator[Event]:
    """Yield the events of a recording, each checked for what a replay reads of it."""
    with path.open("rb") as file:
        for count, text in enumerate(file, 1):
            try:
                event = parse_json(text)
                check = _CHECKS.get(event["event"])
                if check is not None and (error := best_match(check.iter_errors(event))):
                    raise ValueError(f"{error.json_path}: {error.message}")
            except (ValueError, TypeError, KeyError) as error:
                said = " ".join(str(error).split())
                raise UserError(
                    f"{path}: line {count} is damaged ({said}); record the stream again"
                ) from None
            yield event


def _replay(path: Path, items: Sequence[Item], events: Sequence[Event]) -> Replay:
    """Put together what came in of one scan and what was said of it."""
    info, begun = items[0], events[0]
    assert isinstance(info, ScanInfo)
    classes = begun["classes"]
    lines = [event for event in events if event["event"] == "line"]
    if [event["line"] for event in lines] != list(range(1, len(lines) + 1)) or (
        len(lines) > info.planned_lines
    ):
        raise UserError(
            f"{path}: tells of other lines than 1 to {info.planned_lines} in turn; record again"
        )
    x_LP = np.full((len(lines), info.pixels), np.nan, np.float32)
    given: set[int] = set()
    for item in items:
        # What the monitor took: the first of each number, of the right size.
        if isinstance(item, Line) and item.number < len(lines) and item.number not in given:
            given.add(item.number)
            if len(item.x_P) == info.pixels:
                x_LP[item.number] = item.x_P
    with np.errstate(invalid="ignore"):
        x_LP[~(np.abs(x_LP) <= LARGEST)] = np.nan

    answers: list[Event] = []
    faults: list[Event] = []
    line = 0
    for event in events:
        if event["event"] == "fault":
            faults.append({**event, "line": event.get("line", line)})
        if event["event"] != "line":
            continue
        line = event["line"]
        if event["answer_lines"] is None:
            continue
        if event["p"] is None or set(event["p"]) != set(classes):
            raise UserError(f"{path}: line {line} has an answer about other classes; record again")
        if not answers or event["answer_lines"] != answers[-1]["answer_lines"]:
            answers.append(event)
    whole = info.planned_lines / info.pixels
    if info.width_m and info.height_m:
        whole = info.height_m / info.width_m
    last = "no answer"
    if answers:
        p = answers[-1]["p"]
        likely = max(p, key=p.__getitem__)
        last = f"{likely} ({p[likely]:.3f})"
    return Replay(
        name=info.name,
        summary=last,
        by=_run_of(begun),
        about=[
            ("Model", begun["model"]),
            ("Last answer", last),
            ("Policy", policy_text(begun["policy"])),
            ("Size", f"{info.planned_lines} lines of {info.pixels} pixels"),
        ],
        classes=classes,
        x_LP=x_LP,
        planned_lines=info.planned_lines,
        aspect=whole,
        upward=info.slow_direction == "up",
        answers=answers,
        faults=faults,
        faulty=[(event["line"], event["fault"]) for event in lines if event["fault"]],
        run_lines=begun["lines"],
        # Not told by recordings made before there was such a score.
        step_L=[event.get("step") for event in lines],
    )


def _run_of(begun: Event) -> str:
    """Name the run that a monitor asked, as the workflow does."""
    if not {"experiment", "fold", "seed"} <= begun.keys():
        return str(begun["model"])  # recordings once told no more
    return f"{begun['experiment']}, fold{begun['fold']}-seed{begun['seed']}"
