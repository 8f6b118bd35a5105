"""Where the lines of a running scan come from: files, growing files, a pipe, a controller.

Each source is an iterator of `streaming.Item`. It only reads, with a time limit on every wait, so
that no controller is kept waiting. What goes wrong at the other end is said by a `Fault`, once.
"""

from __future__ import annotations

import base64
import io
import json
import math
import os
import re
import select
import shlex
import socket
import struct
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from tokenize import TokenError
from typing import Any, BinaryIO, get_args, get_type_hints
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray

from scanbench.errors import UserError
from scanbench.files import parse_json
from scanbench.streaming import Fault, Item, Line, ScanInfo
from scanbench.text import plain
from scanbench.tipstate.readers import RawScan, ReadOptions, read

#: File of a recording: what came in, one item a line.
RECORDING = "received.jsonl"
#: Beside it: what a monitor said, one event a line.
EVENTS = "events.jsonl"
#: Lines that a scan may have, and pixels of each.
LONGEST = WIDEST = 2**16
#: Seconds that a controller may take for an answer, unless less is asked for.
PATIENCE_S = 10.0
#: Seconds that its network may take until somebody answers at all.
CONNECTED_S = 5.0


@dataclass(frozen=True, kw_only=True)
class Waiting:
    """How a source waits: look every `poll_s` seconds, give up after `timeout_s` without news."""

    poll_s: float = 0.5
    timeout_s: float = 300.0


class UnavailableError(Exception):
    """A source gives nothing at the moment; the message says why."""


@dataclass(frozen=True, eq=False)
class Frame:
    """A scan as it stands: heights [L, P], NaN or missing where not measured yet."""

    info: ScanInfo
    x_LP: NDArray[Any]


def file_lines(path: Path, options: ReadOptions, scan: str | None = None) -> Iterator[Item]:
    """Yield the scan of a finished file line by line.

    Raises
    ------
    UserError
        If the file cannot be read or holds several scans and none is named.
    """
    frame = _frame(path, options, scan)
    yield frame.info
    for number, x_P in enumerate(frame.x_LP):
        yield Line(number, x_P)


def _frame(path: Path, options: ReadOptions, wanted: str | None) -> Frame:
    found = {_name(scan): scan for scan in read(path, options)}
    if wanted is not None and wanted not in found:
        raise UserError(f"{path}: no scan {wanted!r}; give one of {_listed(found)}")
    if wanted is None:
        forward = {n: scan for n, scan in found.items() if scan.direction == "forward"} or found
        if len(forward) > 1:
            raise UserError(f"{path}: holds several scans; give one of {_listed(forward)}")
        wanted = next(iter(forward))
    scan = found[wanted]
    info = ScanInfo(
        name=f"{path.stem}:{wanted}" if scan.name is None else scan.name,
        planned_lines=scan.planned_lines,
        pixels=scan.pixels,
        unit=scan.unit,
        width_m=scan.width_m,
        height_m=scan.height_m,
        slow_direction=scan.slow_direction,
    )
    return Frame(info, scan.heights_LP)


def _name(scan: RawScan) -> str:
    return scan.name or " ".join(filter(None, (scan.part, scan.direction)))


def _listed(found: dict[str, RawScan]) -> str:
    """Return the options that name scans, each as a shell takes it; of many, the first few."""
    names = [f"--scan={_quoted(name)}" for name in found]
    return ", ".join(names[:4]) + (f" … ({len(names)})" if len(names) > 4 else "")


def _quoted(text: str) -> str:
    """Return a word of a shell that stands for a text, on one line whatever the text holds."""
    if text.isprintable():
        return shlex.quote(text)
    codes = (f"\\U{ord(c):08x}" if c in "\\'" or not c.isprintable() else c for c in text)
    return f"$'{''.join(codes)}'"


def follow(
    snapshot: Callable[[], Frame], waiting: Waiting, *, endless: bool = False
) -> Iterator[Item]:
    """Yield the lines of a scan as they appear in frames of it.

    A line is given once it is whole: every pixel is there, or a later line has begun. A frame with
    fewer lines than before is reported and waited for; one whose earlier lines are others is
    another scan. From its first line on that stands where it stood in the scan before it, lines are
    left from that and not measured yet. That a scan is waited for is told on stderr, once.

    Parameters
    ----------
    snapshot
        Gives the frame as it stands, or raises `UnavailableError`.
    waiting
        How often to look, and for how long without news.
    endless
        Go on with the next scan when this one is whole.

    Raises
    ------
    UserError
        If no frame comes in time.
    """
    frame: Frame | None = None
    given, said, news = 0, "", time.monotonic()
    told = False
    before_LP: NDArray[Any] | None = None  # the scan that was replaced
    while True:
        try:
            new, trouble = snapshot(), ""
        except UnavailableError as error:
            new, trouble = None, str(error)
        if new is not None:
            if frame is None:
                yield new.info
            elif _is_other(frame, new, given):
                yield Fault("replaced", f"{new.info.name}: another scan took its place")
                yield new.info
                before_LP, given, said = frame.x_LP, 0, ""
            elif len(new.x_LP) < given:
                if said != "shrunk":
                    yield Fault(
                        "shrunk",
                        f"{new.info.name}: shrank from {given} to {len(new.x_LP)} lines; "
                        f"waiting for line {given + 1}",
                    )
                said, new = "shrunk", None
            elif said:
                yield Fault("back", f"{new.info.name}: is back, going on at line {given + 1}")
                said = ""
        elif frame is not None and said != "unavailable":
            yield Fault("unavailable", f"{trouble}; waiting for line {given + 1}")
            said = "unavailable"
        if new is not None:
            frame = new
            for number in range(given, _whole_lines(new.x_LP, before_LP)):
                yield Line(number, np.array(new.x_LP[number], np.float32))
                given, news, told = number + 1, time.monotonic(), False
            if given == new.info.planned_lines and not endless:
                return
        if time.monotonic() - news > waiting.timeout_s:
            if frame is None:
                raise UserError(trouble)
            yield Fault("silent", f"{frame.info.name}: no new line for {waiting.timeout_s:g} s")
            return
        if not told and (frame is None or given in (0, frame.info.planned_lines)):
            _tell_wait(trouble, frame, given, waiting)
            told = True
        time.sleep(waiting.poll_s)


def _tell_wait(trouble: str, frame: Frame | None, given: int, waiting: Waiting) -> None:
    """Say that a scan is waited for; events say nothing before it begins."""
    if not trouble:
        assert frame is not None
        trouble = f"{frame.info.name}: {'the scan is over' if given else 'no line is measured yet'}"
    until = f"for {waiting.timeout_s:g} s at most (--timeout)"
    print(f"scanbench: {plain(trouble)}; waiting for a scan, {until}", file=sys.stderr, flush=True)


def _is_other(old: Frame, new: Frame, given: int) -> bool:
    """Tell whether a frame is another scan: of other shape, or with other lines at its start."""
    if old.info != new.info:
        return True
    rows = min(given, len(new.x_LP))
    return not np.array_equal(old.x_LP[:rows], new.x_LP[:rows], equal_nan=True)


def _whole_lines(x_LP: NDArray[Any], before_LP: NDArray[Any] | None) -> int:
    measured_LP = np.isfinite(x_LP)
    if before_LP is not None and before_LP.shape[1] == x_LP.shape[1]:
        rows = min(len(before_LP), len(x_LP))
        left = np.flatnonzero((x_LP[:rows] == before_LP[:rows]).all(axis=1))
        if len(left):
            measured_LP = measured_LP[: left[0]]
    begun = np.flatnonzero(measured_LP.any(axis=1))
    if not len(begun):
        return 0
    last = int(begun[-1])
    return last + bool(measured_LP[last].all())


def growing_file(
    path: Path, options: ReadOptions, scan: str | None, waiting: Waiting
) -> Iterator[Item]:
    """Yield the lines of a file that is still being written; see `follow`.

    The file may be written again as a whole, have its lines filled in (NaN before), or, as a
    Nanonis `.sxm`, grow at its end.
    """
    state: tuple[Any, Frame] | None = None

    def snapshot() -> Frame:
        nonlocal state
        try:
            stat = path.stat()
            signature = (stat.st_ino, stat.st_size, stat.st_mtime_ns)
            if state is None or state[0] != signature:
                state = signature, _growing_frame(path, options, scan)
            return state[1]
        except (UserError, OSError) as error:
            raise UnavailableError(
                str(error) if isinstance(error, UserError) else f"{path}: {error.strerror}"
            ) from error

    return follow(snapshot, waiting)


def _growing_frame(path: Path, options: ReadOptions, scan: str | None) -> Frame:
    if path.suffix.lower() != ".sxm":
        return _frame(path, options, scan)
    content = path.read_bytes()
    header, mark, data = content.partition(b"\x1a\x04")
    size = re.search(rb":SCAN_PIXELS:\s+(\d+)\s+(\d+)", header)
    table = re.search(rb":DATA_INFO:\r?\n(.*?)\r?\n\s*\r?\n", header, re.DOTALL)
    if not mark or size is None or table is None:
        return _frame(path, options, scan)
    rows = [row for row in table[1].splitlines()[1:] if row.strip()]
    planes = sum(2 if b"\tboth\t" in row else 1 for row in rows)
    pixels = int(size[1]) * int(size[2])
    missing = (4 * planes * pixels - len(data)) // 4
    if missing <= 0 or pixels > options.max_pixels:
        return _frame(path, options, scan)
    # What the controller has yet to write is not measured: NaN, as in a file of full size.
    data = data[: len(data) // 4 * 4]
    missing = planes * pixels - len(data) // 4
    with TemporaryDirectory() as folder:
        whole = Path(folder) / path.name
        whole.write_bytes(header + mark + data + np.full(missing, np.nan, ">f4").tobytes())
        try:
            return _frame(whole, options, scan)
        except UserError as error:
            raise UserError(str(error).replace(str(whole), str(path))) from None


def piped_lines(
    stream: BinaryIO, *, lines: int, pixels: int, waiting: Waiting, unit: str = ""
) -> Iterator[Item]:
    """Yield the lines of a pipe: one `.npy` array [L, P], or bare little-endian float32 lines.

    Parameters
    ----------
    stream
        What to read; only its file descriptor is used.
    lines, pixels
        Size of the whole scan, where the pipe does not tell.
    waiting
        `timeout_s`: give up after so long without a line.
    unit
        Of the heights.

    Raises
    ------
    UserError
        If the array is no scan.
    """
    pipe = _Pipe(stream.fileno(), waiting.timeout_s)
    dtype = np.dtype("<f4")
    start = pipe.read(8)
    if start.startswith(b"\x93NUMPY"):
        lines, pixels, dtype = _npy_header(pipe, start)
        start = b""
    yield ScanInfo(name="stdin", planned_lines=lines, pixels=pixels, unit=unit)
    number, size = 0, pixels * dtype.itemsize
    while True:
        data = start[:size] + pipe.read(size - len(start[:size]))
        start = start[size:]
        if len(data) < size:
            if pipe.silent:
                yield Fault("silent", f"stdin: no new line for {waiting.timeout_s:g} s")
            elif data:
                yield Fault(
                    "cut", f"stdin: ended within line {number + 1}, after {len(data)} bytes"
                )
            return
        yield Line(number, np.frombuffer(data, dtype).astype(np.float32))
        number += 1


class _Pipe:
    """A file descriptor read with a time limit."""

    def __init__(self, descriptor: int, timeout_s: float) -> None:
        self.descriptor, self.timeout_s, self.silent = descriptor, timeout_s, False

    def read(self, size: int) -> bytes:
        """Return `size` bytes; fewer at the end, or after the time limit (then `silent`)."""
        data = b""
        while len(data) < size:
            if not select.select([self.descriptor], [], [], self.timeout_s)[0]:
                self.silent = True
                break
            part = os.read(self.descriptor, size - len(data))
            if not part:
                break
            data += part
        return data


def _npy_header(pipe: _Pipe, start: bytes) -> tuple[int, int, np.dtype[Any]]:
    """Return lines, pixels and type of the `.npy` array that a pipe begins with."""
    # https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html
    if len(start) < 8:
        raise UserError("stdin: no .npy array (it ends within the header); give all of it")
    old = start[6] == 1
    length = start[8:] + pipe.read(2 if old else 4)
    text = pipe.read(min(int.from_bytes(length, "little"), 10_000))
    reader = np.lib.format.read_array_header_1_0 if old else np.lib.format.read_array_header_2_0
    try:
        shape, by_columns, dtype = reader(io.BytesIO(length + text))
    # All that parsing a literal may raise.
    except (ValueError, TypeError, SyntaxError, TokenError, RecursionError, MemoryError) as error:
        said = " ".join(str(error).split())
        raise UserError(
            f"stdin: no .npy array ({said}); give one as numpy.save writes it"
        ) from None
    if len(shape) != 2 or by_columns or dtype.kind not in "fiu":
        raise UserError(
            f"stdin: array of {dtype} {shape}; give lines × pixels of real numbers, line by line"
        )
    try:
        _check_size(*shape)
    except ValueError as error:
        raise UserError(f"stdin: array of {error}") from None
    return shape[0], shape[1], dtype


def _check_size(lines: int, pixels: int) -> None:
    if not (1 <= lines <= LONGEST and 2 <= pixels <= WIDEST):
        raise ValueError(
            f"{lines} lines of {pixels} pixels; a scan has 1 to {LONGEST} of 2 to {WIDEST}"
        )


class Connection:
    """The socket that `nanonis-spm` is given: it gets whole messages, or an error in time.

    On a bare socket the package takes the first part of a message for all of it, waits for ever at
    a closed connection, and sets a time limit of 1,000 s.
    """

    def __init__(self, host: str, port: int, timeout_s: float) -> None:
        self.socket = socket.create_connection((host, port), min(timeout_s, CONNECTED_S))
        self.socket.settimeout(timeout_s)

    def send(self, data: bytes) -> None:
        """Send all of `data`."""
        self.socket.sendall(data)

    def recv(self, size: int) -> bytes:
        """Return exactly `size` bytes."""
        data = b""
        while len(data) < size:
            part = self.socket.recv(size - len(data))
            if not part:
                raise ConnectionError("the controller closed the connection")
            data += part
        return data

    def settimeout(self, seconds: float) -> None:
        """Keep the time limit that was asked for here."""

    def close(self) -> None:
        """Close the socket."""
        self.socket.close()


class Controller:
    """A Nanonis controller: frames of the running scan, by the package `nanonis-spm`.

    Parameters
    ----------
    url
        `nanonis://host:port`.
    channel
        Channel of the heights by its name without unit, e.g. `Z`.
    timeout_s
        Longest wait for an answer.

    Raises
    ------
    UserError
        If the package is not installed or the address is none.
    """

    def __init__(self, url: str, channel: str, timeout_s: float = PATIENCE_S) -> None:
        try:
            import nanonis_spm
        except ImportError:
            raise UserError(
                f"{url}: needs the package nanonis-spm: pip install 'scanbench[nanonis]'"
            ) from None
        self.package = nanonis_spm
        try:
            address = urlsplit(url)
            self.host, self.port = address.hostname or "", address.port or 6501
        except ValueError as error:
            raise UserError(f"{url}: {error}; give nanonis://host:port") from None
        if not self.host:
            raise UserError(f"{url}: names no host; give nanonis://host:port")
        self.url, self.channel, self.timeout_s = url, channel, timeout_s
        self.nanonis: Any = None
        self.index: int | None = None
        self.unit = ""

    def connect(self) -> None:
        """Connect, unless that is done.

        Raises
        ------
        UnavailableError
            If nobody answers at the address.
        """
        if self.nanonis is not None:
            return
        try:
            connection = Connection(self.host, self.port, self.timeout_s)
        except (OSError, ValueError) as error:  # the latter of a host that can be none
            why = getattr(error, "strerror", None) or error
            raise UnavailableError(
                f"{self.url}: nobody answers at host {self.host}, port {self.port} ({why}); start "
                "the controller, and check host and port of its TCP programming interface"
            ) from error
        self.nanonis = self.package.Nanonis(connection)

    def snapshot(self) -> Frame:
        """Return the forward scan as it stands.

        Rows that were never measured are NaN or 0 throughout. Where these come first, the frame is
        stored upside down (the slow axis runs up), and is turned.

        Raises
        ------
        UnavailableError
            If the controller cannot be reached or refuses.
        """
        self.connect()
        try:
            if self.index is None:
                self.index = self._channel_index()
            _, _, lines, pixels, values, _ = self._ask("Scan_FrameDataGrab", self.index, 1)
            _check_size(lines, pixels)
            x_LP = np.array(values, np.float32).reshape(lines, pixels)
            _, _, width_m, height_m, _ = map(float, self._ask("Scan_FrameGet"))
        # The package makes of a broken answer whatever its parsing makes of it.
        except (OSError, ValueError, IndexError, TypeError, struct.error) as error:
            self.nanonis.close()
            self.nanonis = self.index = None
            raise UnavailableError(f"{self.url}: {error}") from error
        x_LP[(x_LP == 0).all(axis=1)] = np.nan
        begun = np.flatnonzero(np.isfinite(x_LP).any(axis=1))
        if len(begun) and begun[0] > 0 and begun[-1] == lines - 1:
            x_LP = x_LP[::-1]
        info = ScanInfo(
            name=self.url,
            planned_lines=lines,
            pixels=pixels,
            unit=self.unit,
            width_m=width_m,
            height_m=height_m,
        )
        return Frame(info, x_LP)

    def _channel_index(self) -> int:
        """Return the index of the recorded channel that is wanted, by the names of all."""
        _, indexes, _, _ = self._ask("Scan_BufferGet")
        names = []
        for (index,) in indexes:
            name = str(self._ask("Scan_FrameDataGrab", int(index), 1)[1])
            names.append(name)
            bare, _, unit = name.partition(" (")
            if bare.lower() == self.channel.lower():
                self.unit = unit.rstrip(")")
                return int(index)
        raise ValueError(f"records no channel {self.channel}, only {', '.join(names)}")

    def _ask(self, function: str, *arguments: int) -> list[Any]:
        # The package prints what it has to say; stdout belongs to the events.
        with redirect_stdout(io.StringIO()):
            answer = getattr(self.nanonis, function)(*arguments)
        if not answer:
            raise ValueError("answered another question")
        if answer[0]:
            raise ValueError(" ".join(str(answer[0]).split()))
        return list(answer[2])


def controller_lines(url: str, channel: str, waiting: Waiting, endless: bool) -> Iterator[Item]:
    """Return the lines of the scan that a Nanonis controller is making; see `follow`.

    Raises
    ------
    UserError
        If nobody answers at the address: to wait for that would hide a mistyped one.
    """
    controller = Controller(url, channel, min(PATIENCE_S, waiting.timeout_s))
    try:
        controller.connect()
    except UnavailableError as error:
        raise UserError(str(error)) from None
    return follow(controller.snapshot, waiting, endless=endless)


def to_json(item: Item) -> str:
    """Return an item of a source as one line of a recording."""
    if isinstance(item, ScanInfo):
        return json.dumps({"scan": asdict(item)})
    if isinstance(item, Fault):
        return json.dumps({"fault": asdict(item)})
    heights = base64.b64encode(np.asarray(item.x_P, "<f4").tobytes()).decode()
    return json.dumps({"line": item.number, "heights": heights})


def recorded(path: Path) -> Iterator[Item]:
    """Yield the items of a recording, `DIR/received.jsonl`, as they once came.

    Raises
    ------
    UserError
        If it is damaged; what stands before the damage is given.
    """
    with path.open("rb") as file:
        for count, text in enumerate(file, 1):
            try:
                item = _from_json(text.decode("utf-8"))
            except (ValueError, TypeError, KeyError) as error:
                raise UserError(
                    f"{path}: line {count} is damaged ({error}); take it and what follows out"
                ) from None
            yield item


def _from_json(text: str) -> Item:
    """Return the item of a source that `to_json` wrote.

    Raises
    ------
    ValueError, TypeError, KeyError
        If it did not.
    """
    item = parse_json(text)
    if "scan" in item:
        info = ScanInfo(**item["scan"])
        _check_types(info)
        _check_size(info.planned_lines, info.pixels)
        return info
    if "fault" in item:
        fault = Fault(**item["fault"])
        _check_types(fault)
        return fault
    if type(item["line"]) is not int:
        raise TypeError(f"line: {item['line']!r} is no int")
    data = base64.b64decode(item["heights"], validate=True)
    return Line(item["line"], np.frombuffer(data, "<f4"))


def _check_types(item: ScanInfo | Fault) -> None:
    for name, kind in get_type_hints(type(item)).items():
        value = getattr(item, name)
        allowed = get_args(kind) or (kind,)
        number = float in allowed and type(value) in (int, float)
        if type(value) not in allowed and not number:
            raise TypeError(f"{name}: {value!r} is no {allowed[0].__name__}")
        if number and not (math.isfinite(value) and value >= 0):
            raise ValueError(f"{name}: {value!r} is no length")
    if isinstance(item, ScanInfo) and item.slow_direction not in ("up", "down"):
        raise ValueError(f"slow_direction: {item.slow_direction!r} is neither up nor down")


def open_source(
    source: str,
    *,
    options: ReadOptions,
    scan: str | None,
    lines: int,
    pixels: int,
    waiting: Waiting,
    keep_following: bool,
) -> Iterator[Item]:
    """Return the items of whatever `source` names.

    Parameters
    ----------
    source
        An instrument file, the folder of a recording, `-` for stdin, or `nanonis://host:port`.
    options
        How instrument files are read; its channel is also the controller's.
    scan
        Which scan of a file.
    lines, pixels
        Size of the whole scan, for a pipe that does not tell.
    waiting
        For sources that may pause.
    keep_following
        The file is still being written; a controller's next scan is wanted too.

    Raises
    ------
    UserError
        If there is no such source.
    """
    if source == "-":
        return piped_lines(sys.stdin.buffer, lines=lines, pixels=pixels, waiting=waiting)
    if source.startswith("nanonis://"):
        return controller_lines(source, options.channel, waiting, keep_following)
    path = Path(source)
    if (path / RECORDING).is_file():
        return recorded(path / RECORDING)
    if keep_following:
        return growing_file(path, options, scan, waiting)
    if not path.is_file():
        what = "a folder without a recording" if path.is_dir() else "no such file"
        raise UserError(
            f"{source}: {what}; give an instrument file, a recording's folder, - or "
            "nanonis://host:port"
        )
    return file_lines(path, options, scan)
