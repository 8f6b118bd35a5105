"""Sources give the lines of a scan as they are measured, and say what goes wrong at their end."""

import csv
import io
import json
import os
import socket
import socketserver
import struct
import subprocess
import threading
import time

import numpy as np
import pytest
from streaming_example import LINES, PIXELS, heights, make_run

from scanbench.cli import main
from scanbench.errors import UserError
from scanbench.streaming import Fault, Line, ScanInfo
from scanbench.tipstate.line_sources import (
    Controller,
    Frame,
    UnavailableError,
    Waiting,
    controller_lines,
    file_lines,
    follow,
    growing_file,
    piped_lines,
    recorded,
)
from scanbench.tipstate.readers import ReadOptions
from scanbench.tipstate.sxm import Channel, Header, write_sxm

QUICK = Waiting(poll_s=0.001, timeout_s=0.05)


def write(path, x_LP):
    header = Header(
        width_m=1e-8,
        height_m=1e-8,
        line_time_s=0.1,
        bias_v=1.0,
        setpoint_a=1e-10,
        slow_direction="down",
    )
    write_sxm(path, header, {"Z": Channel(unit="m", forward_LP=x_LP, backward_LP=x_LP)})


def kinds(found):
    return [item.kind if isinstance(item, Fault) else type(item).__name__ for item in found]


def lines_in(found):
    return {item.number: item.x_P for item in found if isinstance(item, Line)}


def assert_lines(found, x_LP):
    lines = lines_in(found)
    assert list(lines) == list(range(len(x_LP)))
    np.testing.assert_array_equal(list(lines.values()), x_LP)


def measured(x_LP, lines):
    part_LP = x_LP.copy()
    part_LP[lines:] = np.nan
    return part_LP


def test_a_finished_file_gives_its_lines(tmp_path):
    write(tmp_path / "a.sxm", heights())
    found = list(file_lines(tmp_path / "a.sxm", ReadOptions()))
    assert found[0].planned_lines == LINES
    assert found[0].unit == "m"
    assert_lines(found, heights())
    with pytest.raises(UserError, match="'sideways'; give one of --scan=forward, --scan=backward"):
        list(file_lines(tmp_path / "a.sxm", ReadOptions(), "sideways"))


@pytest.mark.parametrize(
    "name", ["down forward", 'it\'s "so"', "$HOME `ls` \\", "-x", "Größe", "two\nlines\x1b[1m"]
)
def test_a_scan_of_several_is_named_as_a_shell_takes_it(tmp_path, name):
    np.savez(tmp_path / "two.npz", images=np.stack([heights(), heights()]), scan_ids=["a", name])
    with pytest.raises(UserError, match=r"two\.npz: holds several scans; give one of ") as told:
        list(file_lines(tmp_path / "two.npz", ReadOptions()))
    assert "\n" not in str(told.value)
    option = str(told.value).partition("--scan=a, ")[2]
    words = subprocess.run(
        ["bash", "-c", f"printf '%s\\0' {option}"], capture_output=True, check=True
    )
    assert words.stdout.decode() == f"--scan={name}\0"
    assert_lines(file_lines(tmp_path / "two.npz", ReadOptions(), name), heights())


def test_a_file_that_grows_at_its_end_gives_each_line_once_it_is_whole(tmp_path):
    path = tmp_path / "a.sxm"
    write(path, heights())
    content = path.read_bytes()
    start = content.index(b"\x1a\x04") + 2
    source = growing_file(path, ReadOptions(), None, Waiting(poll_s=0.001, timeout_s=20))
    # Two lines and a half; later a byte more than seven; at last all.
    path.write_bytes(content[: start + 4 * PIXELS * 5 // 2])
    found = [next(source) for _ in range(3)]
    path.write_bytes(content[: start + 4 * PIXELS * 7 + 1])
    found += [next(source) for _ in range(5)]
    path.write_bytes(content)
    found += list(source)
    assert kinds(found) == ["ScanInfo"] + ["Line"] * LINES
    assert_lines(found, heights())


def frames(*steps):
    """Return a snapshot that gives one step after the other, the last one for ever."""
    left = list(steps)

    def snapshot():
        step = left.pop(0) if len(left) > 1 else left[0]
        if isinstance(step, Exception):
            raise step
        return Frame(ScanInfo(name="scan", planned_lines=LINES, pixels=PIXELS, unit="m"), step)

    return snapshot


def test_shrinking_and_silence_are_said_once_and_the_lines_go_on():
    x_LP = heights()
    steps = [x_LP[:5], x_LP[:2], x_LP[:2], x_LP[:7], x_LP]
    found = list(follow(frames(*steps), QUICK))
    assert kinds(found) == (
        ["ScanInfo"] + ["Line"] * 5 + ["shrunk", "back"] + ["Line"] * (LINES - 5)
    )
    assert_lines(found, x_LP)
    found = list(follow(frames(x_LP[:5]), QUICK))
    assert kinds(found) == ["ScanInfo"] + ["Line"] * 5 + ["silent"]


def test_a_source_that_goes_and_comes_back_loses_no_line():
    x_LP = heights()
    gone = UnavailableError("the cable is out")
    found = list(follow(frames(measured(x_LP, 4), gone, gone, measured(x_LP, 9), x_LP), QUICK))
    assert kinds(found) == (
        ["ScanInfo"] + ["Line"] * 4 + ["unavailable", "back"] + ["Line"] * (LINES - 4)
    )
    assert_lines(found, x_LP)
    with pytest.raises(UserError, match="the cable is out"):
        list(follow(frames(gone), QUICK))


def test_another_scan_in_its_place_begins_anew_without_what_is_left_of_the_first():
    first_LP, second_LP = heights(seed=0), heights(seed=1)
    over_LP = first_LP.copy()
    over_LP[:3] = second_LP[:3]  # the controller overwrites the old frame from its first line on
    found = list(follow(frames(first_LP[:9], first_LP[:12], over_LP, second_LP), QUICK))
    assert kinds(found) == (
        ["ScanInfo"] + ["Line"] * 12 + ["replaced", "ScanInfo"] + ["Line"] * LINES
    )
    assert_lines(found[14:], second_LP)


def piped(data, **options):
    """Return what is read from a pipe that holds `data` and is closed, unless it stays `open`."""
    reading, writing = os.pipe()
    stays_open = options.pop("stays_open", False)
    os.write(writing, data)
    if not stays_open:
        os.close(writing)
    with os.fdopen(reading, "rb") as stream:
        try:
            return list(piped_lines(stream, lines=LINES, pixels=PIXELS, waiting=QUICK, **options))
        finally:
            if stays_open:
                os.close(writing)


def npy(array):
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def test_a_pipe_gives_bare_lines_or_those_of_an_array():
    x_LP = heights(5)
    assert_lines(piped(x_LP.astype("<f4").tobytes()), x_LP)
    found = piped(npy(heights(5, 7).astype(np.float64)))
    assert found[0].planned_lines == 5
    assert found[0].pixels == 7
    assert_lines(found, heights(5, 7))


def test_a_pipe_that_ends_within_a_line_or_falls_silent_says_so():
    x_LP = heights(3)
    found = piped(x_LP.tobytes()[:-5])
    assert kinds(found) == ["ScanInfo", "Line", "Line", "cut"]
    found = piped(x_LP.tobytes(), stays_open=True)
    assert kinds(found) == ["ScanInfo", "Line", "Line", "Line", "silent"]


@pytest.mark.parametrize(
    "array",
    [
        np.zeros(4, np.float32),
        np.zeros((4, 4), complex),
        np.zeros((4, 4), "U3"),
        np.asfortranarray(np.zeros((4, 5))),
        np.array([[None, {}]], dtype=object),
        np.zeros((0, 5), np.float32),
        np.zeros((5, 1), np.float32),
        np.zeros((2**16 + 1, 2), np.int8),
    ],
)
def test_arrays_that_are_no_scan_are_refused_and_never_unpickled(array):
    with pytest.raises(UserError, match="stdin: ") as error:
        piped(npy(array)[:4096])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("size", [6, 7, 8, 9, 40, 127])
def test_an_array_that_ends_within_its_header_is_refused(size):
    with pytest.raises(UserError, match=r"stdin: no \.npy array") as error:
        piped(npy(heights())[:size])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "header",
    [
        "{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000, 16)}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (-1, 16)}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (4, 1000000000000)}",
        "{'descr': '<q9', 'fortran_order': False, 'shape': (4, 4)}",
        "{'descr': '<f4', 'shape': (4, 4)}",
        "{'descr': '",
        "(" * 5000,
        "-" * 9000 + "1",
    ],
)
def test_a_header_however_wrong_is_refused_in_one_line(header):
    text = header.encode()
    with pytest.raises(UserError, match="stdin: ") as error:
        piped(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text)
    assert "\n" not in str(error.value)


GOOD = {"name": "scan", "planned_lines": 4, "pixels": 4, "unit": "m"}


@pytest.mark.parametrize(
    "text",
    [
        json.dumps({"scan": {**GOOD, **wrong}}).encode()
        for wrong in (
            {"planned_lines": "4"},
            {"planned_lines": 4.5},
            {"planned_lines": True},
            {"planned_lines": 0},
            {"pixels": 10**12},
            {"name": None},
            {"unit": 3},
            {"width_m": "wide"},
            {"width_m": float("nan")},
            {"height_m": -1},
            {"colour": "red"},
        )
    ]
    + [
        b'{"scan": 5}',
        b'{"fault": {"kind": 1, "message": "no"}}',
        b'{"line": "0", "heights": ""}',
        b'{"line": 0, "heights": "abc"}',
        b"5",
        b"[" * 100_000,
        '{"scan": "Größe"}'.encode("latin-1"),
    ],
    ids=range(18),
)
def test_a_damaged_recording_is_refused_in_one_line_that_names_the_place(tmp_path, text):
    good = json.dumps({"scan": {**GOOD, "width_m": 1, "height_m": 1e-8}}).encode()
    (tmp_path / "received.jsonl").write_bytes(good + b"\n" + text + b"\n")
    source = recorded(tmp_path / "received.jsonl")
    assert next(source).planned_lines == 4
    with pytest.raises(UserError, match=r"received\.jsonl: line 2 is damaged") as error:
        next(source)
    assert "\n" not in str(error.value)


def test_an_empty_recording_is_refused_and_nothing_is_written(tmp_path, capsys):
    make_run(tmp_path / "run")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "received.jsonl").touch()
    record = ["--record", str(tmp_path / "record")]
    assert main(["stream", str(tmp_path / "run"), str(tmp_path / "empty"), *record]) == 2
    assert "the source holds no scan: it is empty" in capsys.readouterr().err
    assert not (tmp_path / "record").exists()


class FakeController(socketserver.BaseRequestHandler):
    """Answers as the TCP protocol of Nanonis prescribes, from `frame` of the server."""

    def handle(self):
        while header := self.request.recv(40, socket.MSG_WAITALL):
            command = header[:32].rstrip(b"\0")
            size = int.from_bytes(header[32:36], "big")
            body = self.request.recv(size, socket.MSG_WAITALL) if size else b""
            if self.server.closing:  # type: ignore[attr-defined]
                return
            answer = self.answer(command.decode(), body)
            message = struct.pack(">32sIHH", command, len(answer), 0, 0) + answer
            for start in range(0, len(message), 100):  # as networks deliver: in parts
                self.request.sendall(message[start : start + 100])

    def answer(self, command, body):
        x_LP = self.server.frame  # type: ignore[attr-defined]
        no_error = struct.pack(">Ii", 0, 0)
        if command == "Scan.BufferGet":
            return struct.pack(">iiiii", 2, 0, 14, PIXELS, LINES) + no_error
        if command == "Scan.FrameGet":
            return struct.pack(">5f", 0, 0, 2e-8, 1e-8, 0) + no_error
        assert command == "Scan.FrameDataGrab"
        channel, direction = struct.unpack(">II", body)
        assert direction == 1
        name = {0: b"Current (A)", 14: b"Z (m)"}[channel]
        data = x_LP.astype(">f4").tobytes()
        shape = self.server.shape or x_LP.shape  # type: ignore[attr-defined]
        head = struct.pack(">i", len(name)) + name + struct.pack(">ii", *shape)
        return head + data + struct.pack(">I", 0) + no_error


@pytest.fixture
def controller():
    pytest.importorskip("nanonis_spm", reason="nanonis-spm is an optional extra")
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), FakeController) as server:
        server.daemon_threads = True
        server.frame, server.closing, server.shape = measured(heights(), 0), False, None
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.shutdown()


def url_of(server):
    return f"nanonis://127.0.0.1:{server.server_address[1]}"


def test_a_controller_gives_the_height_channel_line_by_line(controller, capsys):
    source = follow(
        Controller(url_of(controller), "Z", 5).snapshot, Waiting(poll_s=0.001, timeout_s=20)
    )
    found = [next(source)]
    assert (found[0].unit, found[0].planned_lines, found[0].pixels) == ("m", LINES, PIXELS)
    assert found[0].width_m == pytest.approx(2e-8)
    controller.frame = measured(heights(), 3)
    found += [next(source) for _ in range(3)]
    controller.closing = True  # the cable is out
    found.append(next(source))
    controller.closing = False
    controller.frame = heights()
    found += list(source)
    assert kinds(found) == (
        ["ScanInfo"] + ["Line"] * 3 + ["unavailable", "back"] + ["Line"] * (LINES - 3)
    )
    assert_lines(found, heights())
    assert capsys.readouterr().out == ""


def test_a_frame_that_fills_from_its_last_row_is_turned(controller):
    controller.frame = np.where(np.arange(LINES)[:, None] < LINES - 4, 0, heights())
    frame = Controller(url_of(controller), "z", 5).snapshot()
    np.testing.assert_array_equal(frame.x_LP[:4], heights()[::-1][:4])
    assert np.isnan(frame.x_LP[4:]).all()


@pytest.mark.parametrize("shape", [(0, 0), (-1, -1), (-4, 4), (1, 1)])
def test_a_frame_of_no_possible_size_is_waited_for_as_one_that_does_not_come(controller, shape):
    controller.shape = shape
    with pytest.raises(UnavailableError, match=r"nanonis://"):
        Controller(url_of(controller), "Z", 5).snapshot()


def test_no_wait_for_a_controllers_answer_is_longer_than_the_time_limit():
    pytest.importorskip("nanonis_spm", reason="nanonis-spm is an optional extra")
    with socket.create_server(("127.0.0.1", 0)) as mute:
        url = f"nanonis://127.0.0.1:{mute.getsockname()[1]}"
        begin = time.monotonic()
        with pytest.raises(UserError, match="timed out"):
            list(controller_lines(url, "Z", QUICK, False))
        assert time.monotonic() - begin < 5


def test_where_nobody_listens_the_stream_ends_at_once_and_names_host_and_port():
    pytest.importorskip("nanonis_spm", reason="nanonis-spm is an optional extra")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    begin = time.monotonic()
    with pytest.raises(UserError, match=f"host 127.0.0.1, port {port} .*refused.*start the") as no:
        controller_lines(f"nanonis://127.0.0.1:{port}", "Z", Waiting(), False)
    assert time.monotonic() - begin < 5
    assert "\n" not in str(no.value)


def test_a_wait_for_a_scan_is_told_once_and_not_when_lines_come(capsys):
    x_LP = heights()
    gone = UnavailableError("a.sxm: No such file or directory")
    none = measured(x_LP, 0)
    list(follow(frames(gone, gone, none, none, measured(x_LP, 5), x_LP), QUICK))
    assert capsys.readouterr().err == (
        "scanbench: a.sxm: No such file or directory; waiting for a scan, for 0.05 s at most "
        "(--timeout)\n"
    )
    list(follow(frames(none, none, x_LP), QUICK, endless=True))
    first, second = capsys.readouterr().err.splitlines()
    assert "scan: no line is measured yet; waiting for a scan" in first
    assert "scan: the scan is over; waiting for a scan" in second
    list(follow(frames(measured(x_LP, 5), x_LP), QUICK))
    assert capsys.readouterr().err == ""


def test_what_a_controller_lacks_is_said_in_one_line(controller):
    with pytest.raises(UnavailableError, match="records no channel Phase, only Current"):
        Controller(url_of(controller), "Phase", 5).snapshot()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        nobody = f"nanonis://127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(UnavailableError, match="refused"):
        Controller(nobody, "Z", 5).snapshot()
    with pytest.raises(UserError, match="give nanonis://host:port"):
        Controller("nanonis://:port", "Z")


def test_the_command_prints_records_and_replays_to_the_same_output(tmp_path, capsys):
    run = make_run(tmp_path / "run", normalisation="line")
    x_LP = heights(2 * LINES, 2 * PIXELS)
    x_LP[9, 4:6] = np.nan
    x_LP[20:22] = np.nan
    write(tmp_path / "a.sxm", x_LP)
    arguments = ["stream", str(tmp_path / "run")]
    spec = ["--spec", json.dumps({"recondition": ["rows"], "threshold": 0.2, "patience": 1})]
    record = ["--record", str(tmp_path / "record"), "--view"]
    assert main([*arguments, str(tmp_path / "a.sxm"), *spec, *record]) == 0
    first = capsys.readouterr()
    assert "a:forward" in first.err
    events = [json.loads(text) for text in first.out.splitlines()]
    lines = [event for event in events if event["event"] == "line"]
    assert len(lines) == 2 * LINES
    assert [e["line"] for e in events if e["event"] == "fault"] == [10, 21]
    assert {line["advice"] for line in lines} & {"stop", "recondition"}

    assert main([*arguments, str(tmp_path / "record"), *spec]) == 0
    assert capsys.readouterr().out == first.out

    rows = list(csv.DictReader((tmp_path / "record" / "lines.csv").open()))
    assert [int(row["line"]) for row in rows] == list(range(1, 2 * LINES + 1))
    last = {name: float(rows[-1][f"p_{name}"]) for name in run.classes}
    assert last == pytest.approx(lines[-1]["p"], abs=1e-5)
    assert (tmp_path / "record" / "scan-1.png").read_bytes().startswith(b"\x89PNG")

    assert main([*arguments, str(tmp_path / "a.sxm"), *record[:2]]) == 2
    assert "record: is not empty; give --record a new folder" in capsys.readouterr().err
    assert main([*arguments, str(tmp_path / "b.sxm")]) == 2
    assert "b.sxm: no such file; give an instrument file" in capsys.readouterr().err
    (tmp_path / "scans").mkdir()
    assert main([*arguments, str(tmp_path / "scans")]) == 2
    assert "scans: a folder without a recording; give an" in capsys.readouterr().err
