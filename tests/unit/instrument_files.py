"""Instrument files built from arrays, and where the real ones are."""

import os
import struct
import zlib
from pathlib import Path

import gwyfile.objects as gwy
import h5py
import numpy as np
import pytest
from PIL import Image

from scanbench.tipstate.readers.png import orange_map
from scanbench.tipstate.sxm import Channel, Header, write_sxm

DATA = Path(os.environ.get("SCANBENCH_DATA") or Path(__file__).parents[3] / "shared" / "data")


def real(*parts: str) -> Path:
    """Return a file of the real data, or skip the test where there is none."""
    path = DATA.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"real data absent: {path} (set SCANBENCH_DATA)")
    return path


def ramp(lines: int = 6, pixels: int = 5) -> np.ndarray:
    """Return an image without any symmetry, so that every flip is seen."""
    return np.arange(lines * pixels, dtype=np.float32).reshape(lines, pixels) ** 2


def createc(planes: np.ndarray, **header: object) -> bytes:
    """Return a Createc file of screen-oriented planes [2 or 4, lines, pixels] in DAC units."""
    n, lines, pixels = planes.shape
    entries = {
        "DAC-Type": "20bit",
        "Num.X / Num.X": pixels,
        "Num.Y / Num.Y": lines,
        "GainZ / GainZ": 3,
        "GainPre 10^": 9,
        "BiasVoltage / BiasVolt.[mV]": "50.00",
        "Channels / Channels": n,
        "Dacto[A]z": 0.5,
        "Length x[A]": 100.0,
        "Length y[A]": 200.0,
        "Sec/line:": 0.25,
        "Current[A]": "8.8E-11",
    } | header
    text = "[Paramco32]\r\n" + "".join(f"{key}={value}\r\n" for key, value in entries.items())
    values = np.concatenate([[0.0], planes.ravel(), np.zeros(7)]).astype("<f4")
    return text.encode("latin-1").ljust(16_380) + b"DATA" + zlib.compress(values.tobytes())


def _objects(*objects: tuple[int, int, int]) -> bytes:
    return b"".join(struct.pack("<3I", *item) for item in objects)


def rhk(pages: list[tuple[int, int, np.ndarray]], completed: str = "") -> bytes:
    """Return an RHK file of pages (page type, scan type, int32 [lines, pixels] top line first)."""
    head, prm_header, prm = 38 + 20 + 3 * 12, 12, b"parameters"
    index_at = head + prm_header + len(prm)
    array_at = index_at + 16 + 12
    body = bytearray()
    entries = bytearray()
    body_at = array_at + len(pages) * (32 + 24)
    for number, (page_type, scan_type, image) in enumerate(pages):
        lines, pixels = image.shape
        texts = ["Topography", "", "", "", "", "01/02/20", "03:04:05", "m", "m", "m", "x", "y", ""]
        texts += [completed, "", "", "", "", ""]
        strings = b"".join(
            struct.pack("<H", len(text)) + text.encode("utf-16-le") for text in texts
        )
        data = image.astype("<i4").tobytes()
        header_at = body_at + len(body)
        header_size = 4 + 14 * 4 + 11 * 4 + 4 * 4 + 64 + 12
        header = struct.pack("<2H", 0, len(texts))
        header += struct.pack("<3I", page_type, 0, 0)
        header += struct.pack("<4I", 0, 0, pixels, lines)
        header += struct.pack("<6I", 0, scan_type, 0, len(data), 0, 0)
        # x, y, z scale; negative y scale: the top line is stored first.
        header += struct.pack("<11f", 1e-10, -2e-10, 1e-12, 0, 0, 0, 5e-10, 1e-3, -0.5, 2e-10, 0)
        header += struct.pack("<4I", 0, 0, 0, 1) + struct.pack("<B", 1) + bytes(63)
        strings_at = header_at + len(header) + 12
        header += _objects((10, strings_at, len(strings)))
        assert len(header) <= header_size
        body += header + strings
        data_at = body_at + len(body)
        body += data
        entries += struct.pack("<H", number) + bytes(14) + struct.pack("<4I", 0, 0, 2, 0)
        entries += _objects((3, header_at, len(header)), (4, data_at, len(data)))
    out = struct.pack("<H", 56) + "STiMage 005.006 1".encode("utf-16-le").ljust(36, b"\0")
    out += struct.pack("<5I", len(pages), 3, 12, 0, 0)
    out += _objects((15, head, prm_header), (13, head + prm_header, len(prm)), (1, index_at, 28))
    out += struct.pack("<3I", 0, len(prm), 0) + prm
    out += struct.pack("<4I", len(pages), 1, 0, 0) + _objects((2, array_at, len(entries)))
    return out + bytes(entries) + bytes(body)


def build(suffix: str, path: Path) -> None:
    """Write a small good file of the format that `suffix` names."""
    images = np.stack([ramp(4, 5), 2 * ramp(4, 5)])
    if suffix == ".sxm":
        header = Header(width_m=1e-9, height_m=1e-9, line_time_s=1, bias_v=1, setpoint_a=1e-10)
        write_sxm(path, header, {"Z": Channel(unit="m", forward_LP=ramp(), backward_LP=ramp())})
    elif suffix == ".dat":
        path.write_bytes(createc(np.stack([ramp(), ramp()])))
    elif suffix == ".sm4":
        path.write_bytes(rhk([(1, 0, ramp())]))
    elif suffix == ".gwy":
        container = gwy.GwyContainer()
        container["/0/data"] = gwy.GwyDataField(ramp().astype(float), si_unit_xy="m")
        container.tofile(str(path))
    elif suffix == ".png":
        Image.fromarray(orange_map()[np.arange(40).reshape(5, 8)]).save(path)
    elif suffix == ".npz":
        np.savez(path, images=images, labels=np.array([0, 1]))
    elif suffix == ".mat":
        with h5py.File(path, "w") as file:
            file["x_raw"] = images.reshape(-1, 5)
            file["y"] = np.eye(2)
