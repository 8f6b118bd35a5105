"""Damage for files: random changes of bytes, of JSON values, of archive members, of HDF5 arrays.

Each function takes a `random.Random`, so that its seed tells the whole damage.
"""

from __future__ import annotations

import copy
import io
import json
import resource
import signal
import struct
import traceback
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from types import FrameType
from typing import Any

import h5py
import numpy as np

#: Numbers at which lengths, counts and offsets go wrong.
EDGES = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 2**40, 2**63)
#: Values that a document may hold where another was meant.
STRANGE: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2**31, 2**70, 0.5, -0.0, 1e-320, 1e308, float("nan"), float("inf"),
    "", "\0", "a\nb", "../../x", "/etc/passwd", "<script>", "1e-3", "é" * 40, "nan", [], {}, [[]],
    [None], {"": 0}, [0] * 5, "x" * 5000,
)  # fmt: skip


def mutated(content: bytes, rng: Random, limit: int | None = None) -> bytes:
    """Change one to four places of `content`, mostly before `limit`."""
    result = bytearray(content)
    for _ in range(rng.randint(1, 4)):
        end = len(result)
        if not end:
            break
        at = rng.randrange(min(end, limit) if limit and rng.random() < 0.9 else end)
        length = min(rng.choice((1, 2, 4, 8, 64)), end - at)
        match rng.randrange(8):
            case 0:
                result[at] ^= 1 << rng.randrange(8)
            case 1:
                result[at] = rng.randrange(256)
            case 2:
                edge = rng.choice(EDGES)
                order = rng.choice("<>")
                for size, kind in ((1, "B"), (2, "H"), (4, "I"), (8, "Q")):
                    if size == length:
                        result[at : at + size] = struct.pack(order + kind, edge % 256**size)
            case 3:
                del result[at : at + length]
            case 4:
                result[at:at] = result[at : at + length] * rng.choice((1, 2, 50))
            case 5:
                result[at:at] = rng.randbytes(length)
            case 6 if rng.random() < 0.3:
                del result[at:]
            case _:
                result[at : at + length] = rng.choice((b"\0", b"\xff", b"9", b"-", b" ")) * length
    return bytes(result)


def mutated_json(value: Any, rng: Random) -> Any:
    """Return a deep copy of a document in which one to three values or keys are others."""
    value = copy.deepcopy(value)
    for _ in range(rng.randint(1, 3)):
        places = list(_places(value))
        if not places:
            return value
        inside, key = rng.choice(places)
        match rng.randrange(4):
            case 0:
                del inside[key]
            case 1 if isinstance(inside, dict):
                inside[rng.choice(("", "x", "../x", "<b>", str(key) * 2))] = inside.pop(key)
            case 2:
                other, name = rng.choice(places)
                inside[key] = copy.deepcopy(other[name])
            case _:
                inside[key] = copy.deepcopy(rng.choice(STRANGE))
    return value


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    if isinstance(value, dict | list):
        for key in list(value) if isinstance(value, dict) else range(len(value)):
            yield value, key
            yield from _places(value[key])


def damage_bytes(path: Path, rng: Random, limit: int | None = None) -> None:
    """Change bytes of a file."""
    path.write_bytes(mutated(path.read_bytes(), rng, limit))


def damage_json(path: Path, rng: Random) -> None:
    """Change bytes of a JSON file, or, more often, its values."""
    if rng.random() < 0.25:
        damage_bytes(path, rng)
    else:
        document = json.loads(path.read_text(encoding="utf-8"))
        path.write_text(json.dumps(mutated_json(document, rng)), encoding="utf-8")


def damage_lines(path: Path, rng: Random) -> None:
    """Change bytes of a file of JSON lines, or the values of one."""
    lines = path.read_text(encoding="utf-8").splitlines()
    if rng.random() < 0.25:
        return damage_bytes(path, rng)
    at = rng.randrange(len(lines))
    lines[at] = json.dumps(mutated_json([json.loads(lines[at])], rng))[1:-1]
    return path.write_text("\n".join(lines) + "\n", encoding="utf-8") and None


def damage_zip(path: Path, rng: Random) -> None:
    """Change bytes of an archive, or, more often, of a member: its checksum is then right."""
    if rng.random() < 0.3:
        damage_bytes(path, rng)
        return
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    name = rng.choice(sorted(members))
    if rng.random() < 0.1:
        members.pop(name)
    else:
        members[name] = mutated(members[name], rng, 300)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)


def damage_png(path: Path, rng: Random) -> None:
    """Change a PNG, or, more often, the data of a chunk: its checksum is then right."""
    if rng.random() < 0.3:
        damage_bytes(path, rng)
        return
    content = path.read_bytes()
    out, at = io.BytesIO(), 8
    out.write(content[:8])
    while at < len(content):
        (size,) = struct.unpack_from(">I", content, at)
        kind, data = content[at + 4 : at + 8], content[at + 8 : at + 8 + size]
        if rng.random() < 0.5:
            data = zlib.compress(mutated(zlib.decompress(data), rng)) if kind == b"IDAT" else (
                mutated(data, rng) if data else data
            )  # fmt: skip
        out.write(struct.pack(">I", len(data)) + kind + data)
        out.write(struct.pack(">I", zlib.crc32(kind + data)))
        at += 12 + size
    path.write_bytes(out.getvalue())


def damage_hdf5(path: Path, rng: Random) -> None:
    """Change bytes of an HDF5 file, or, more often, put another array or attribute in its place."""
    if rng.random() < 0.4:
        damage_bytes(path, rng)
        return
    with h5py.File(path, "r+") as file:
        names = sorted(file)
        if file.attrs and rng.random() < 0.4:
            key = rng.choice(sorted(file.attrs))
            value = rng.choice(("", "{", "[1]", '{"a": 1}', "[[]]", 1, -1, 1.5, [1, 2], b"\xff"))
            del file.attrs[key]
            if rng.random() < 0.8:
                file.attrs[key] = value
            return
        name = rng.choice(names)
        old = file[name]
        shape = list(old.shape)
        if shape and rng.random() < 0.5:
            k = rng.randrange(len(shape))
            shape[k] = rng.choice((0, 1, shape[k] + 1, 3 * shape[k]))
        elif rng.random() < 0.3:
            shape = rng.choice(([], [2], [*shape, 2]))
        kind = rng.choice((old.dtype, "<f4", "<f8", "<i4", "<i8", "<u1", "S3", "?", "<c8"))
        with np.errstate(all="ignore"):
            values = np.frombuffer(rng.randbytes(64), "<i2") * rng.choice((0, 1, 1, 1000))
            array = np.resize(values, shape).astype(kind)
        del file[name]
        match rng.randrange(8):
            case 0:
                file[name] = h5py.SoftLink(rng.choice(("/x", f"/{names[0]}", f"/{name}")))
            case 1:
                file[name] = h5py.ExternalLink("/etc/passwd", "/x")
            case 2:
                file.create_group(name)
            case 3:
                # Promises much and holds nothing.
                file.create_dataset(name, [2**36] * max(1, len(shape)), "<f4", chunks=True)
            case _:
                file[name] = array


class HangError(BaseException):
    """An example took too much processor time; no reader may swallow this."""


@contextmanager
def bounded(cpu_seconds: float, memory_bytes: int) -> Iterator[None]:
    """Let what runs inside take so much processor time, and so much more address space."""

    def hang(_: int, frame: FrameType | None) -> None:
        at = "".join(traceback.format_stack(frame, limit=3))
        raise HangError(f"took more than {cpu_seconds:g} s of processor time at\n{at}")

    with open("/proc/self/statm", encoding="ascii") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    before = signal.signal(signal.SIGVTALRM, hang)
    resource.setrlimit(resource.RLIMIT_AS, (used + memory_bytes, hard))
    signal.setitimer(signal.ITIMER_VIRTUAL, cpu_seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        resource.setrlimit(resource.RLIMIT_AS, (hard, hard))
        signal.signal(signal.SIGVTALRM, before)
