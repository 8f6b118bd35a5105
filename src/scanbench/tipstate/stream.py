"""`scanbench stream`: let a trained run watch a running scan, and show, print and record it."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from scanbench import plotting
from scanbench.change import LARGEST_Z
from scanbench.errors import UserError
from scanbench.files import replacing
from scanbench.policy import monitor_spec, split_limit
from scanbench.predictions import class_columns
from scanbench.runs import Run, load_run
from scanbench.streaming import Event, Item, Monitor, MonitorOptions, ScanInfo, begun
from scanbench.tipstate.attention import running_attention
from scanbench.tipstate.figures import Example, Picture, scan_answer
from scanbench.tipstate.line_sources import EVENTS, RECORDING, Waiting, open_source, to_json
from scanbench.tipstate.readers import ReadOptions

#: Classes of this study's data sets that end a scan, unless options say otherwise.
BAD = ("defect", "Tip Change", "Bad/Blurry")
#: Keys of a line's event that are no column of `lines.csv`.
NO_COLUMN = ("event", "p", "attention")
STYLES = {"go on": "bold green", "stop": "bold white on red", "recondition": "bold black on yellow"}


def stream(
    run: Path,
    source: str,
    spec: Mapping[str, Any] | None = None,
    *,
    policy: str | None = None,
    follow: bool = False,
    view: bool = False,
    record: Path | None = None,
    attention: bool = False,
    scan: str | None = None,
    lines: int | None = None,
    pixels: int | None = None,
    waiting: Waiting | None = None,
) -> None:
    """Print the events of a running scan as JSON lines, until its source ends.

    Parameters
    ----------
    run
        Folder of a trained run.
    source
        See `line_sources.open_source`.
    spec
        Keys of `MonitorOptions`; by default, the classes of `BAD` that the run knows mean stop.
    policy
        `FILE[:limit]`: take classes and rule from the `policy.json` of a comparison. `spec` may
        then divide the classes between `stop` and `recondition`, but not change the rule.
    follow
        Wait for what is still to be measured.
    view
        Show the newest answer on the terminal (stderr), too.
    record
        Folder for `received.jsonl` (from which the stream can be replayed), `events.jsonl` (what
        was printed), `lines.csv` and a figure of each scan.
    attention
        Tell with each answer how much it draws on each line so far.
    scan
        Which scan of a file.
    lines, pixels
        Size of the whole scan, where a pipe does not tell; by default the run's.
    waiting
        For sources that may pause.

    Raises
    ------
    UserError
        If run, source or options are wrong.
    """
    torch.set_num_threads(1)
    trained = load_run(run)
    meta = trained.meta
    for name, value in {"--lines": lines, "--pixels": pixels}.items():
        if value is not None and not 1 <= value <= 2**16:
            raise UserError(f"{name}: {value} is not possible, give 1 to {2**16}")
    options = monitor_options(trained, run, spec or {}, policy)
    told = running_attention(trained) if attention else None
    if attention and told is None:
        raise UserError(
            f"--attention: model {meta['model']!r} of {run} has none over the lines of a running "
            "scan; leave it out"
        )
    monitor = Monitor(trained, options, told)
    reading = ReadOptions.recorded(meta["ingest"])
    if "directions" in reading:
        reading["directions"] = tuple(reading["directions"])
    items = open_source(
        source,
        options=ReadOptions(**reading),
        scan=scan,
        lines=lines or meta["scan_lines"],
        pixels=pixels or meta["pixels"],
        waiting=waiting or Waiting(),
        keep_following=follow,
    )
    printed = not (view and sys.stdout.isatty())
    with ExitStack() as stack:
        if record is not None:
            recorder = stack.enter_context(Recorder(record, monitor))
            items = recorder.received(items)
        screen = None
        if view:
            console = Console(stderr=True)
            screen = stack.enter_context(Live(console=console, refresh_per_second=10))
        said: list[str] = []
        for event in monitor.events(items):
            if printed:
                print(json.dumps(event, ensure_ascii=False), flush=True)
            if record is not None:
                recorder.note(event)
            if event["event"] == "fault":
                said = [*said, event["message"]][-3:]
            if screen is not None and event["event"] == "line":
                screen.update(shown(event, monitor.info, trained.classes, said))


def monitor_options(
    trained: Run, run: Path, spec: Mapping[str, Any], policy: str | None
) -> MonitorOptions:
    """Return the options of a monitor: from a policy's file, the user's, and the defaults.

    Raises
    ------
    UserError
        If an option or the file is wrong, or both say something of the rule.
    """
    if policy is None:
        bad = [name for name in BAD if name in trained.classes]
        return MonitorOptions.of({"stop": bad, **spec}, trained.classes)
    MonitorOptions.of(spec, trained.classes)  # so that what follows can rely on its kinds
    path, limit = split_limit(policy)
    given = monitor_spec(path, limit, run, trained.meta)
    for key in ("threshold", "patience", "first_line"):
        if key in spec:
            raise UserError(f"--spec: {key}: is the policy's to say; leave it or --policy out")
    recondition = [name for name in spec.get("recondition", ()) if name in given["stop"]]
    given["stop"] = [name for name in given["stop"] if name not in recondition]
    options = MonitorOptions.of({**given, **spec}, trained.classes)
    if odd := set(options.stop + options.recondition) ^ set(given["stop"] + recondition):
        raise UserError(
            f"--spec: {sorted(odd)[0]!r}: the policy's rule was chosen for "
            f"{', '.join(given['stop'] + recondition)}; divide these between stop and recondition"
        )
    return options


def shown(event: Event, info: ScanInfo, classes: Iterable[str], said: Iterable[str]) -> Group:
    """Return the terminal's view of a line's event."""
    title = Text(f"{info.name}   line {event['line']} of {info.planned_lines}", style="bold")
    table = Table.grid(padding=(0, 1))

    def show(name: str, share: float | None, said: str, style: str = "dim") -> None:
        bar = "" if share is None else "█" * round(30 * share)
        table.add_row(name, Text(f"{bar:<30}", style=style), "–" if share is None else said)

    for name in classes:
        p = (event["p"] or {}).get(name)
        show(name, p, f"{p or 0:.2f}", "cyan")
    for name in ("uncertainty", "change"):
        show(name, event[name], f"{event[name] or 0:.2f}")
    step = event["step"]
    show("step", None if step is None else max(0.0, step) / LARGEST_Z, f"{step or 0:+.1f} σ")
    advice = Text(event["advice"].upper(), style=STYLES[event["advice"]])
    return Group(title, table, advice, *(Text(message, style="red") for message in said))


class Recorder:
    """Keep what came in as it comes, and at the end what was made of it.

    Parameters
    ----------
    folder
        New or empty.
    monitor
        Whose events are recorded.
    """

    def __init__(self, folder: Path, monitor: Monitor) -> None:
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise UserError(f"{folder}: is not empty; give --record a new folder")
        self.folder, self.monitor = folder, monitor
        self.scans = 0  # nothing is written before the first
        self.rows: list[Event] = []

    def __enter__(self) -> Recorder:
        return self

    def __exit__(self, *_: object) -> None:
        # Also when the stream is stopped or fails: what was seen until then is worth keeping.
        if not self.scans:
            return
        self.file.close()
        self.events.close()
        self._draw()
        with replacing(self.folder / "lines.csv") as part:
            frame = pd.DataFrame(self.rows)
            frame.to_csv(part, index=False, float_format="%.6g", lineterminator="\n")

    def received(self, items: Iterable[Item]) -> Iterator[Item]:
        """Pass the items of a source on, each written down before anything is made of it."""
        for item in begun(items):
            if isinstance(item, ScanInfo):
                if not self.scans:
                    self.folder.mkdir(parents=True, exist_ok=True)
                    self.file = (self.folder / RECORDING).open("w", encoding="utf-8")
                    self.events = (self.folder / EVENTS).open("w", encoding="utf-8")
                self._draw()
                self.scans += 1
            self.file.write(to_json(item) + "\n")
            self.file.flush()
            yield item

    def note(self, event: Event) -> None:
        """Write an event down, and keep that of a line as a row of `lines.csv`."""
        self.events.write(json.dumps(event) + "\n")
        self.events.flush()
        if event["event"] != "line":
            return
        p = event["p"] or dict.fromkeys(self.monitor.run.classes)
        columns = class_columns(list(self.monitor.run.classes))
        row = {"scan": self.scans, **event, **dict(zip(columns, p.values(), strict=True))}
        kept = {key: value for key, value in row.items() if key not in NO_COLUMN}
        self.rows.append(kept)

    def _draw(self) -> None:
        """Draw the scan that is over, if there was an answer about it."""
        classes = list(self.monitor.run.classes)
        columns = class_columns(classes)
        rows = [r for r in self.rows if r["scan"] == self.scans and r["answer_lines"]]
        if not rows:
            return
        answers = pd.DataFrame(rows).drop_duplicates("answer_lines").set_index("answer_lines")
        answers = answers[columns].set_axis(classes, axis=1).astype(float)
        info, x_LP = self.monitor.info, self.monitor.x_LP
        lines = self.monitor.run.meta["scan_lines"]
        whole = info.planned_lines / info.pixels
        if info.width_m and info.height_m:
            whole = info.height_m / info.width_m
        picture = Picture(
            x_LP=np.stack(x_LP),
            title=info.name,
            aspect=whole * len(x_LP) / lines,
            width_m=info.width_m,
            lines=(lines, info.planned_lines),
        )
        predicted = str(answers.iloc[-1].idxmax())
        example = Example(picture=picture, label="", predicted=predicted, answers=answers)
        plotting.save(scan_answer(example, classes), self.folder, f"scan-{self.scans}", ["png"])
