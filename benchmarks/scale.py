"""Build a store of many windows in bounded memory, and read windows of it in several processes.

    python benchmarks/scale.py [--windows 10000000] [--folder DIR]

Scans are simulated (lattices with noise, each another one), 128×128, in windows of 20 lines at
every line. Cold: the file was dropped from the system's cache before; warm: it was read before.
Workers are processes of their own; each reads another share of the scans for so many seconds, and
peak memory is that of the largest of them. Bare read: the bytes of the file in order, in pieces of
8 MiB.
"""

from __future__ import annotations

import argparse
import hashlib
import multiprocessing
import os
import resource
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from scanbench.convert import write_store
from scanbench.store import Store
from scanbench.windows import WindowReader

LINES = PIXELS = 128
WINDOW = 20
PER_SCAN = LINES - WINDOW + 1
SESSION = 200  # scans
BLOCK = 64  # scans simulated at once
PIECE = 8 << 20
BATCH = 256


def simulated(scans: int) -> Iterator[NDArray[np.float32]]:
    """Yield blocks of lattices with noise, in metres on a piezo's offset."""
    rng = np.random.default_rng(0)
    y_LP, x_LP = np.mgrid[:LINES, :PIXELS].astype(np.float32)
    for begin in tqdm(range(0, scans, BLOCK), desc="build the store", unit="block"):
        n = min(BLOCK, scans - begin)
        kx_N, ky_N, phase_N = rng.uniform(0.05, 0.4, (3, n)).astype(np.float32)[..., None, None]
        z_NLP = np.sin(kx_N * x_LP + ky_N * y_LP + phase_N)
        z_NLP += 0.3 * rng.standard_normal(z_NLP.shape, np.float32)
        yield -2.3e-7 + 1e-11 * z_NLP


def build(path: Path, scans: int) -> None:
    """Write the store, as `convert` does."""
    write_store(
        path,
        attributes={
            "study": "tipstate", "classes": '["atoms", "defect"]', "unit": "m", "channel": "Z",
            "ingest": "{}", "manifest_sha256": "0" * 64, "inputs": "{}", "convert": "{}",
        },
        shape=(scans, LINES, PIXELS),
        numbers={
            "n_lines": np.full(scans, LINES), "label": np.arange(scans) % 2,
            "change_line": np.full(scans, -1),
        },
        texts={
            "scan_id": [f"scan{k}" for k in range(scans)],
            "group": [f"session{k // SESSION}" for k in range(scans)],
            "excluded": [""] * scans,
            "file_sha256": [hashlib.sha256(str(k).encode()).hexdigest() for k in range(scans)],
        },
        blocks=simulated(scans),
    )  # fmt: skip


def peak_mb() -> float:
    """Return the largest resident memory of this process, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def forget(path: Path) -> None:
    """Drop a file from the system's cache."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def bare_read(path: Path) -> float:
    """Read a file in order; return bytes per second."""
    started = time.perf_counter()
    with path.open("rb", buffering=0) as file:
        while file.read(PIECE):
            pass
    return path.stat().st_size / (time.perf_counter() - started)


def by_blocks(path: Path, rank: int, workers: int, seconds: float) -> tuple[int, float]:
    """Go through shuffled windows as a training does; return how many, and the seconds taken."""
    with Store(path) as store:
        scans = np.arange(len(store))[rank::workers]
        reader = WindowReader(store, scans, window=WINDOW, batch_size=BATCH, memory_mb=128)
        started, windows = time.perf_counter(), 0
        for batch in reader.epoch():
            windows += len(batch.x)
            if time.perf_counter() - started > seconds:
                break
        return windows, time.perf_counter() - started


def one_by_one(path: Path, rank: int, workers: int, seconds: float) -> tuple[int, float]:
    """Read windows at random places, each on its own: the scan that it stands in."""
    rng = np.random.default_rng(rank)
    with Store(path) as store:
        started, windows = time.perf_counter(), 0
        while time.perf_counter() - started < seconds:
            first = int(rng.integers(PER_SCAN))
            x_NLP = store.read([int(rng.integers(len(store)))], "line")
            assert x_NLP[0, first : first + WINDOW].shape == (WINDOW, PIXELS)
            windows += 1
        return windows, time.perf_counter() - started


Way = Callable[[Path, int, int, float], tuple[int, float]]


def _worker(arguments: tuple[Way, Path, int, int, float]) -> tuple[float, float]:
    way, path, rank, workers, seconds = arguments
    windows, taken = way(path, rank, workers, seconds)
    return windows / taken, peak_mb()


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--windows", type=int, default=1_000_000)
    parser.add_argument("--folder", type=Path, help="where there is room; default: a temporary one")
    parser.add_argument("--seconds", type=float, default=20.0, help="of each reading")
    args = parser.parse_args()
    scans = -(-args.windows // PER_SCAN)
    spawn = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        path = Path(folder) / "store.h5"
        cpu, wall = time.process_time(), time.perf_counter()
        build(path, scans)
        cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
        size = path.stat().st_size
        print("| scans | windows | bytes | per window | build, CPU s | wall s | peak memory |")
        print("|--:|--:|--:|--:|--:|--:|--:|")
        print(
            f"| {scans:,} | {scans * PER_SCAN:,} | {size / 1e9:.2f} GB "
            f"| {size / scans / PER_SCAN:.0f} B | {cpu:.0f} | {wall:.0f} "
            f"| {peak_mb():.0f} MB |\n"
        )
        print(
            "| reading | cache | workers | windows/s | scans/s | MB/s of the file | peak memory |"
        )
        print("|---|---|--:|--:|--:|--:|--:|")
        per_scan = size / scans / 1e6
        for cold in (True, False):
            cache = "cold" if cold else "warm"
            if cold:
                forget(path)
            print(f"| bare read | {cache} | 1 | | | {bare_read(path) / 1e6:.0f} | |", flush=True)
            for name, way, windows_per_read in (
                ("`WindowReader`", by_blocks, PER_SCAN),
                ("one by one", one_by_one, 1),
            ):
                for workers in (1, 2, 4):
                    if cold:
                        forget(path)
                    jobs = [(way, path, rank, workers, args.seconds) for rank in range(workers)]
                    with spawn.Pool(workers) as pool:
                        found = pool.map(_worker, jobs, chunksize=1)
                    rate = sum(per_second for per_second, _ in found)
                    read = rate / windows_per_read
                    print(
                        f"| {name} | {cache} | {workers} | {rate:,.0f} | {read:,.0f} "
                        f"| {read * per_scan:.0f} | {max(mb for _, mb in found):.0f} MB |",
                        flush=True,
                    )


if __name__ == "__main__":
    main()
