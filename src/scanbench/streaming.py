"""A trained run that watches a scan line by line: states, answers, faults, advice.

Everything here is a function of the lines that came in, in their order; time plays no part. So a
recorded stream replays to the same events.

Shape suffixes: L lines, P pixels of a line, C classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from scanbench.change import Drift, Steps
from scanbench.errors import UserError, did_you_mean
from scanbench.resample import area_weights, resampled_lines
from scanbench.runs import AnswerTimes, Run, by_whole_scan, looks_ahead
from scanbench.stopping import Rule, Watch, probability_of
from scanbench.store import CONSTANT, NATURAL, FloatArray, line_statistics

Event = dict[str, Any]

#: Magnitudes beyond this are no heights, as for convert.
LARGEST = 1e25
#: Digits of the numbers in an event: more than float32 arithmetic is good for.
DIGITS = 6


@dataclass(frozen=True, kw_only=True)
class ScanInfo:
    """What a source knows of a scan before its first line.

    Attributes
    ----------
    name
        For people.
    planned_lines, pixels
        Lines of the whole scan, and pixels of each.
    unit
        Of the heights; empty where the source does not tell.
    width_m, height_m
        Lengths of the whole scan, where known.
    slow_direction
        `up` or `down`: where the lines go on the instrument's screen.
    """

    name: str
    planned_lines: int
    pixels: int
    unit: str = ""
    width_m: float | None = None
    height_m: float | None = None
    slow_direction: str = "down"


@dataclass(frozen=True, eq=False)
class Line:
    """Line `number` of a scan, counted from 0: heights [P], NaN where missing."""

    number: int
    x_P: NDArray[Any]


@dataclass(frozen=True)
class Fault:
    """Something that a source has to say, on one line: what happened and what comes of it."""

    kind: str
    message: str


#: A source begins with what it knows of the scan. Another `ScanInfo` begins another scan.
Item = ScanInfo | Line | Fault


@dataclass(frozen=True, kw_only=True)
class MonitorOptions:
    """How a monitor judges answers and faults.

    Parameters
    ----------
    stop, recondition
        Classes for which a scan is to be stopped, and those that call for work on the tip.
    threshold
        Probability of these classes together from which an answer is a bad one.
    patience
        So many bad answers in a row are advice.
    first_line
        No advice before so many lines of the run's size have been seen.
    smoothing
        Weight of the newest answer in the moving average that the tip-change score refers to.
    on_fault
        `go-on` or `stop`: what follows a fault.

    Raises
    ------
    UserError
        One line naming the option.
    """

    stop: tuple[str, ...] = ()
    recondition: tuple[str, ...] = ()
    threshold: float = 0.8
    patience: int = 3
    first_line: int = 10
    smoothing: float = 0.2
    on_fault: str = "go-on"

    def __post_init__(self) -> None:
        for name in ("threshold", "smoothing"):
            if not 0 < getattr(self, name) <= 1:
                raise UserError(f"{name}: {getattr(self, name)} is no number above 0, up to 1")
        for name in ("patience", "first_line"):
            if getattr(self, name) < 1:
                raise UserError(f"{name}: {getattr(self, name)} is not possible, give at least 1")
        if self.on_fault not in ("go-on", "stop"):
            raise UserError(f"on_fault: {self.on_fault!r} is unknown, give go-on or stop")
        both = sorted(set(self.stop) & set(self.recondition))
        if both:
            raise UserError(f"stop: {both[0]} stands in recondition too, take it out of one")

    @property
    def rule(self) -> Rule:
        """When the probability of the classes of both lists together calls for advice."""
        return Rule(threshold=self.threshold, patience=self.patience, first_line=self.first_line)

    @classmethod
    def of(cls, spec: Mapping[str, Any], classes: Sequence[str]) -> MonitorOptions:
        """Return the options of a JSON object, their classes checked against a run's."""
        given = dict(spec)
        defaults = {field.name: field.default for field in fields(cls)}
        for key, value in given.items():
            if key not in defaults:
                raise UserError(f"{key}: no such option of stream; {did_you_mean(key, defaults)}")
            kind: Any = type(defaults[key])
            if kind is tuple:
                if not isinstance(value, (list, tuple)):
                    raise UserError(f"{key}: {value!r} is no list of classes")
                for name in value:
                    if name not in classes:
                        raise UserError(f"{key}: {name!r}: no class; {did_you_mean(name, classes)}")
                given[key] = tuple(value)
            elif isinstance(value, bool) or not isinstance(
                value, (int, float) if kind is float else kind
            ):
                raise UserError(f"{key}: {value!r} is no {kind.__name__}")
        return cls(**given)


def begun(source: Iterable[Item]) -> Iterator[Item]:
    """Yield the items of a source that begins with a scan.

    Raises
    ------
    UserError
        If it is empty or begins with anything else.
    """
    items = iter(source)
    first = next(items, None)
    if not isinstance(first, ScanInfo):
        found = "is empty" if first is None else f"begins with a {type(first).__name__.lower()}"
        raise UserError(f"the source holds no scan: it {found}; give one that begins with a scan")
    yield first
    yield from items


class Feed(Protocol):
    """A model that is fed normalised lines one by one."""

    def push(self, line_P: Tensor) -> Tensor | None:
        """Return logits [C] if the model answers after this line."""


class Cached:
    """A model with `initial_state` and `step`: the work of one line for each line."""

    def __init__(self, model: nn.Module) -> None:
        self.model: Any = model
        self.state: Mapping[str, Tensor] = model.initial_state()  # type: ignore[operator]

    def push(self, line_P: Tensor) -> Tensor | None:
        """Return logits [C] if the model answers after this line."""
        logits_C, answered, self.state = self.model.step(line_P, self.state)
        return logits_C if bool(answered) else None


class Recomputed:
    """Any model, by passing all lines so far through it again (the naive way).

    What it says is what `predict` says about a scan that was aborted here.

    Parameters
    ----------
    model
        The model.
    lines, pixels
        Shape of its samples.
    by_scan
        Normalise over the lines so far, as the store does with an aborted scan.
    """

    def __init__(self, model: nn.Module, lines: int, pixels: int, by_scan: bool = False) -> None:
        self.model = model
        self.by_scan = by_scan
        self.times = AnswerTimes.of(model, lines)
        self.x_LP = torch.zeros(lines, pixels)
        self.seen = 0

    def push(self, line_P: Tensor) -> Tensor | None:
        """Return logits [C] if the model answers after this line."""
        self.x_LP[self.seen] = line_P
        self.seen += 1
        if not self.times.at_end and self.seen not in self.times.lines:
            return None
        answer = 0 if self.times.at_end else self.times.lines.index(self.seen)
        x_LP = self.x_LP
        if self.by_scan:
            statistics = line_statistics(x_LP.numpy()[None], [self.seen])
            x_LP = (x_LP - float(statistics["scan_mean"][0])) / float(statistics["scan_std"][0])
            x_LP[self.seen :] = 0
        return self.model(x_LP[None], torch.tensor([self.seen]))[0, answer]


class Windowed:
    """A model that was trained on windows: one feed for each window that is not over.

    Its answer is the mean of the probabilities of all windows that have ended, as in the evaluation
    (`predictions.lines_reading`). Of a window counts the last answer within it.

    Parameters
    ----------
    feed
        Makes a feed for a window.
    lines, stride
        Of the windows.
    """

    def __init__(self, feed: Callable[[], Feed], lines: int, stride: int) -> None:
        self.feed, self.lines, self.stride = feed, lines, stride
        self.open: list[tuple[Feed, Tensor | None]] = []  # with the newest answer of each
        self.seen = 0
        self.ended: list[Tensor] = []  # probabilities [C] of each window that has ended

    def push(self, line_P: Tensor) -> Tensor | None:
        """Return logits [C], the logarithms of the mean, if a window ends with this line."""
        if self.seen % self.stride == 0:
            self.open.append((self.feed(), None))
        self.seen += 1
        answers = [(feed, feed.push(line_P), before) for feed, before in self.open]
        self.open = [(feed, before if new is None else new) for feed, new, before in answers]
        if self.seen < self.lines or (self.seen - self.lines) % self.stride:
            return None
        _, logits_C = self.open.pop(0)
        assert logits_C is not None, "a model answers at least once in a window"
        self.ended.append(logits_C.double().softmax(-1))
        return torch.stack(self.ended).mean(0).log()


def feed_of(run: Run) -> Callable[[], Feed]:
    """Return what makes a feed for a scan, by the cheapest way that is exact.

    Parameters
    ----------
    run
        From `load_run`.

    Raises
    ------
    UserError
        If the run's answers depend on lines that a running scan has not measured yet.
    """
    meta, model = run.meta, run.model
    lines, pixels, window = meta["lines"], meta["pixels"], meta.get("window")
    by_scan = by_whole_scan(model, meta["normalisation"])
    if looks_ahead(model, lines, meta["normalisation"], windowed=bool(window)):
        raise UserError(
            f"model {meta['model']} was trained with normalisation: scan, which looks at lines not "
            "yet measured; train it with normalisation: line to stream"
        )

    def feed() -> Feed:
        if hasattr(model, "step"):
            return Cached(model)
        return Recomputed(model, lines, pixels, by_scan)

    if window:
        return lambda: Windowed(feed, window["lines"], window["stride"])
    return feed


class LineResampler:
    """Resample lines as they come: the same numbers as `resample` gives for the whole scan.

    Parameters
    ----------
    planned_lines, width
        Size of the whole scan as it is measured.
    lines, pixels
        Size wanted.
    """

    def __init__(self, planned_lines: int, width: int, lines: int, pixels: int) -> None:
        self.planned_lines, self.width, self.lines, self.pixels = (
            planned_lines,
            width,
            lines,
            pixels,
        )
        self.weights = area_weights(planned_lines, lines)
        self.columns = area_weights(width, pixels)
        self.kept: dict[int, NDArray[np.float64]] = {}  # lines that a coming one is made of
        self.measured = 0

    def push(self, x_P: NDArray[Any]) -> list[FloatArray]:
        """Return the lines that are whole once this one has been measured: none, one or several."""
        if (self.planned_lines, self.width) == (self.lines, self.pixels):
            return [np.asarray(x_P, np.float32)]
        self.kept[self.measured] = np.asarray(x_P, np.float64)
        done = resampled_lines(self.measured, self.planned_lines, self.lines)
        self.measured += 1
        whole = range(done, resampled_lines(self.measured, self.planned_lines, self.lines))
        result = []
        for i in whole:
            part = slice(self.weights.indptr[i], self.weights.indptr[i + 1])
            row_P = np.zeros(self.width)
            for j, weight in zip(self.weights.indices[part], self.weights.data[part], strict=True):
                row_P += weight * self.kept[int(j)]
            result.append((self.columns @ row_P).astype(np.float32))
        needed = whole.stop * self.planned_lines // self.lines
        self.kept = {j: row_P for j, row_P in self.kept.items() if j >= needed}
        return result


def normalised(x_P: FloatArray, normalisation: str, unit: str) -> FloatArray:
    """Normalise a line as `Store.read` does; by scan it is left to the feed."""
    if normalisation == "none":
        return x_P / np.float32(NATURAL.get(unit, 1.0))
    if normalisation == "scan":
        return x_P
    statistics = line_statistics(x_P[None, None], [1])
    return (x_P - statistics["line_mean"][0]) / statistics["line_std"][0]


def inspected(x_P: NDArray[Any], before_P: FloatArray | None) -> tuple[FloatArray | None, str]:
    """Fill what is missing in a line, and say what is wrong with it.

    Parameters
    ----------
    x_P
        Heights as they came.
    before_P
        The last good line.

    Returns
    -------
    line : ndarray or None
        float32 [P], missing pixels interpolated along the line; None if it is no measurement: more
        than half of its pixels missing, or at the largest or at the smallest value.
    kind : str
        `missing`, `saturated`, `constant`, `repeated`, or empty.
    """
    with np.errstate(over="ignore"):
        line_P = np.array(x_P, np.float32)
    good_P = np.abs(line_P) <= LARGEST  # false for NaN
    if good_P.sum() * 2 < len(line_P):
        return None, "missing"
    low, high = float(line_P[good_P].min()), float(line_P[good_P].max())
    if high - low <= CONSTANT * max(abs(low), abs(high)):
        return None, "constant"
    at_limit = max((line_P == low).sum(), (line_P == high).sum())
    if at_limit * 2 > len(line_P):
        return None, "saturated"
    if not good_P.all():
        columns = np.arange(len(line_P))
        line_P[~good_P] = np.interp(columns[~good_P], columns[good_P], line_P[good_P])
        return line_P, "missing"
    if before_P is not None and np.array_equal(line_P, before_P):
        return line_P, "repeated"
    return line_P, ""


#: What is said of a faulty line, and what comes of it.
_SAID = {
    "missing": "lacks pixels, which are interpolated",
    "constant": "is constant",
    "saturated": "is at the limit in more than half of its pixels",
    "repeated": "is the line before once more",
}
_REPLACED = "; the last good line stands for it and the last answer is kept"


class Adviser:
    """Turn answers into `go on`, `stop` or `recondition`.

    Probabilities of the classes of both lists are added and meet the rule of the options, of the
    kind that an evaluation judges (`stopping`). The list with the larger share is advised.

    Parameters
    ----------
    options
        Lists and rule.
    classes
        Names of the classes that are answered about.
    """

    def __init__(self, options: MonitorOptions, classes: Sequence[str]) -> None:
        listed = (options.stop, options.recondition, options.stop + options.recondition)
        self.stop_C, self.recondition_C, self.bad_C = (
            np.array([name in names for name in classes]) for names in listed
        )
        self.watch = Watch(options.rule)

    def advise(self, p_C: NDArray[np.float64], seen: int) -> str:
        """Return the advice after one more answer, given after `seen` lines."""
        if not self.watch.stops(float(probability_of(p_C[self.bad_C])), seen):
            return "go on"
        more = p_C[self.stop_C].sum() >= p_C[self.recondition_C].sum()
        return "stop" if more else "recondition"


def uncertainty(p_C: NDArray[np.float64]) -> float:
    """Return the entropy of probabilities over that of equal ones: 0 is sure, 1 knows nothing."""
    if len(p_C) < 2:
        return 0.0
    return float(-(p_C * np.log(np.maximum(p_C, 1e-300))).sum() / math.log(len(p_C)))


class Judge:
    """Say what the answers about one scan mean, taken in their order.

    Parameters
    ----------
    options
        How to judge.
    classes
        Of the answers.
    """

    def __init__(self, options: MonitorOptions, classes: Sequence[str]) -> None:
        self.options, self.classes = options, classes
        self.adviser = Adviser(options, classes)
        self.drift = Drift(options.smoothing)

    def judged(self, p_C: NDArray[np.float64], seen: int) -> Event:
        """Return what an event tells of one more answer, given after `seen` lines."""
        return {
            "answer_lines": seen,
            "p": {name: round(float(p), DIGITS) for name, p in zip(self.classes, p_C, strict=True)},
            "uncertainty": round(uncertainty(p_C), DIGITS),
            "change": round(self.drift.push(p_C), DIGITS),
            "advice": self.adviser.advise(p_C, seen),
        }


class Monitor:
    """Watch a scan: take the items of a source, give events.

    Parameters
    ----------
    run
        From `load_run`.
    options
        How to judge.
    attention
        Tells how much an answer draws on each of the lines so far, normalised [L, P]; None: that is
        not told.

    Attributes
    ----------
    x_LP
        Lines of the current scan that the model was fed, before normalisation.

    Raises
    ------
    UserError
        If the run cannot be streamed.
    """

    def __init__(
        self,
        run: Run,
        options: MonitorOptions,
        attention: Callable[[FloatArray], list[float]] | None = None,
    ) -> None:
        self.run, self.options, self.attention = run, options, attention
        self.feed = feed_of(run)

    def events(self, source: Iterable[Item]) -> Iterator[Event]:
        """Yield the events of a source; after a fault none, where the options say so.

        Raises
        ------
        UserError
            If there is no scan, or it names a unit that the run does not take (`Run.takes`).
        """
        reason = "the source ended"
        for item in begun(source):
            faults = []
            for event in self.take(item):
                yield event
                faults += [event] if event["event"] == "fault" else []
            if faults and self.options.on_fault == "stop":
                reason = f"stopped at a fault: {faults[0]['kind']}"
                break
        yield {"event": "end", "reason": reason, "line": self.next, "lines_seen": len(self.x_LP)}

    def take(self, item: Item) -> Iterator[Event]:
        """Yield what one item of a source gives rise to."""
        if isinstance(item, ScanInfo):
            yield self._begin(item)
        elif isinstance(item, Fault):
            yield {"event": "fault", "kind": item.kind, "message": item.message}
        else:
            yield from self._line(item)

    def _begin(self, info: ScanInfo) -> Event:
        if info.unit and not self.run.takes(info.unit):
            raise UserError(
                f"{info.name}: heights in {info.unit!r}, but the run was trained on "
                f"{self.run.quantity}; stream that channel"
            )
        meta = self.run.meta
        self.info = info
        self.resampler = LineResampler(
            info.planned_lines, info.pixels, meta["scan_lines"], meta["pixels"]
        )
        self.model = self.feed()
        self.judge = Judge(self.options, self.run.classes)
        self.next = 0  # the line that is expected
        self.waiting = 0  # lines without a good one before them to stand for them
        self.x_LP: list[FloatArray] = []
        self.steps = Steps()
        self.step: float | None = None  # to the newest line, if it was measured
        self.good_P: FloatArray | None = None
        self.kind = ""
        self.answer: Event = {
            "answer_lines": None,
            "p": None,
            "uncertainty": None,
            "change": None,
            "advice": "go on",
        }
        return {
            "event": "scan",
            "name": info.name,
            "planned_lines": info.planned_lines,
            "pixels": info.pixels,
            "lines": meta["scan_lines"],
            "experiment": str(meta.get("name", meta["model"])),
            "fold": meta["fold"],
            "seed": meta["seed"],
            "model": meta["model"],
            "classes": self.run.classes,
            "policy": asdict(self.options),
        }

    def _line(self, line: Line) -> Iterator[Event]:
        if line.number < self.next:
            yield from self._fault("again", line.number, f"came again; line {self.next + 1} is due")
            return
        if line.number >= self.info.planned_lines:
            planned = self.info.planned_lines
            yield from self._fault(
                "surplus", line.number, f"is past the {planned} planned; give the true number"
            )
            return
        if line.number > self.next:
            missing = f"was dropped, and all up to line {line.number}" + _REPLACED
            yield from self._fault("dropped", self.next, missing)
            while self.next < line.number:
                yield from self._feed(None, "dropped")
        if len(line.x_P) != self.info.pixels:
            wrong = f"has {len(line.x_P)} pixels instead of {self.info.pixels}" + _REPLACED
            yield from self._fault("size", line.number, wrong)
            yield from self._feed(None, "size")
            return
        x_P, kind = inspected(line.x_P, self.good_P)
        if kind:
            said = "lacks most of its pixels" if x_P is None and kind == "missing" else _SAID[kind]
            yield from self._fault(kind, line.number, said + (_REPLACED if x_P is None else ""))
        else:
            self.kind = ""
        yield from self._feed(x_P, kind)

    def _fault(self, kind: str, number: int, message: str) -> Iterator[Event]:
        """Yield a fault; once for lines in a row with the same one."""
        if kind != self.kind:
            yield {
                "event": "fault",
                "kind": kind,
                "line": number + 1,
                "message": f"line {number + 1} {message}",
            }
        self.kind = kind

    def _feed(self, x_P: FloatArray | None, kind: str) -> Iterator[Event]:
        """Yield the event of the next line; None is a line without a measurement."""
        self.next += 1
        good = x_P is not None
        self.step = None
        if x_P is not None and self.good_P is not None:
            step = float(self.steps.push(self.good_P, x_P))
            self.step = round(step, DIGITS) if math.isfinite(step) else None
        if x_P is None:
            x_P = self.good_P
        if x_P is None:
            self.waiting += 1  # nothing was measured yet: the first good line will stand for it
        else:
            self.good_P = x_P
            for _ in range(self.waiting + 1):
                for row_P in self.resampler.push(x_P):
                    self._ask(row_P, good)
            self.waiting = 0
        yield {
            "event": "line",
            "line": self.next,
            "lines_seen": len(self.x_LP),
            **self.answer,
            "step": self.step,
            "fault": kind or None,
        }

    def _ask(self, row_P: FloatArray, good: bool) -> None:
        """Feed the model a line, and keep its answer if the line was measured."""
        self.x_LP.append(row_P)
        meta = self.run.meta
        line_P = normalised(row_P, meta["normalisation"], meta["unit"])
        with torch.inference_mode():
            logits_C = self.model.push(torch.from_numpy(line_P))
        if logits_C is None or not good:
            return
        # Through float32, as tables of predictions hold them: a rule that was chosen there is met
        # by the same numbers here.
        p_C = logits_C.double().softmax(-1).float().double().numpy()
        self.answer = self.judge.judged(p_C, len(self.x_LP))
        if self.attention is not None:
            fed = [normalised(x_P, meta["normalisation"], meta["unit"]) for x_P in self.x_LP]
            self.answer["attention"] = self.attention(np.stack(fed))
