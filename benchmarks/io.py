"""Time ingest and convert against bare h5py writes, and windows against a plain loop.

`python benchmarks/io.py [--scans N]` prints Markdown tables. The ways compared are run in turn and
the best of each is taken, so that a busy machine disturbs ratios little. CPU time is that of all
threads of this process; wall time is beside it. Each memory figure is the peak of a process of its
own.

"The same arrays" are the heights that the instrument files hold, float32 [lines, pixels] of one
channel, forward and backward: ingest takes all of them. Where the store has another size, they are
compared with bare writes of what the store holds too. A bare write is `dataset[k] = x` for every
scan, from memory, one chunk a scan, without flushing to disk; "filters" gives the dataset the
compression and checksums of the store, and "fsync" waits for the disk, as convert does.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import h5py
import hdf5plugin
import numpy as np
from numpy.typing import NDArray

from scanbench.convert import convert
from scanbench.files import replacing_folder
from scanbench.scans import ScansWriter
from scanbench.store import Store
from scanbench.tipstate.ingest import FILES_PER_BATCH, ingest
from scanbench.tipstate.sxm import Channel, Header, write_sxm
from scanbench.windows import WindowReader

SIZE = 128
WINDOW = 20


def simulated(n: int, size: int) -> list[NDArray[np.float32]]:
    """Return lattices with noise, in metres on a piezo's offset."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:size, :size].astype(np.float32)
    scans = []
    for _ in range(n):
        kx, ky, phase = rng.uniform(0.05, 0.4, 3)
        z = np.sin(kx * x + ky * y + phase) + 0.3 * rng.normal(size=(size, size))
        scans.append((-2.3e-7 + 1e-11 * z).astype(np.float32))
    return scans


def write_scans(folder: Path, scans: list[NDArray[np.float32]], repeat: int = 1) -> None:
    with replacing_folder(folder) as part, ScansWriter(part) as writer:
        rows = [
            {
                "scan_id": f"scan{k}-{r}", "group": f"session{k % 20}", "file": f"{k}.sxm",
                "sha256": "0" * 64, "planned_lines": len(x), "channel": "Z", "unit": "m",
                "direction": "forward", "slow_direction": "up", "label": "atoms", "excluded": "",
                **writer.add(x),
            }
            for r in range(repeat)
            for k, x in enumerate(scans)
        ]  # fmt: skip
        writer.finish(rows, [], [])


def bare_write(
    scans: list[NDArray[np.float32]], path: Path, fsync: bool = False, **filters: object
) -> None:
    """Write arrays with h5py and nothing else."""
    with h5py.File(path, "w") as file:
        shape = scans[0].shape
        data = file.create_dataset(
            "scans", (len(scans), *shape), "f4", chunks=(1, *shape), **filters
        )
        for k, x in enumerate(scans):
            data[k] = x
    if fsync:
        with path.open("rb") as written:
            os.fsync(written.fileno())


def best_seconds(ways: Iterable[Callable[[], object]], rounds: int = 5) -> NDArray[np.float64]:
    """Return the least CPU and wall seconds of each way [ways, 2], which take turns."""
    seconds = []
    for _ in range(rounds):
        for way in ways:
            cpu, wall = time.process_time(), time.perf_counter()
            way()
            seconds.append((time.process_time() - cpu, time.perf_counter() - wall))
    return np.array(seconds).reshape(rounds, -1, 2).min(axis=0)


def write_instrument_files(folder: Path, scans: list[NDArray[np.float32]]) -> None:
    """Write scans as .sxm files, the forward and the backward scan of one frame in each."""
    header = Header(width_m=1e-8, height_m=1e-8, line_time_s=0.2, bias_v=-2.0, setpoint_a=2e-11)
    folder.mkdir(parents=True)
    for k, (forward_LP, backward_LP) in enumerate(zip(scans[::2], scans[1::2], strict=True)):
        channel = Channel(unit="m", forward_LP=forward_LP, backward_LP=backward_LP)
        write_sxm(folder / f"{k:05d}.sxm", header, {"Z": channel})


def time_store(folder: Path, size: int, stored: int, n: int) -> None:
    """Print a table of ways to bring `n` scans of `size` into HDF5, stored at another size."""
    scans = simulated(n, size)
    write_instrument_files(folder / "source", scans)
    convert_spec = {"lines": stored, "pixels": stored}
    ingest_spec = {"directions": ["forward", "backward"], "group": "scan"}

    def run_ingest(workers: int = 1) -> None:
        ingest({**ingest_spec, "workers": workers}, folder / "source", None, folder / "scans")

    def run_convert() -> None:
        convert(convert_spec, folder / "scans", folder / "store.h5")

    run_ingest()
    run_convert()
    with Store(folder / "store.h5") as store:
        held = list(store.read(np.arange(n)))

    filters = {"fletcher32": True, **hdf5plugin.Bitshuffle(cname="lz4")}
    ways: dict[str, Callable[[], object]] = {}
    for side, heights in {size: scans, stored: held}.items():
        bare = partial(bare_write, heights, folder / "bare.h5")
        ways |= {
            f"bare write, {side}×{side}": bare,
            f"bare write, {side}×{side}, filters": partial(bare, **filters),
            f"bare write, {side}×{side}, filters, fsync": partial(bare, fsync=True, **filters),
        }
    bare_ways = list(ways)
    ways |= {"`scanbench ingest`": run_ingest, "`scanbench convert`": run_convert}
    seconds = best_seconds(ways.values())
    seconds = np.vstack([seconds, seconds[-2] + seconds[-1]])
    names = [*ways, "ingest + convert"]
    if n >= 16 * FILES_PER_BATCH:  # enough that starting processes is not all there is
        parallel = best_seconds([partial(run_ingest, 2)], rounds=3)
        names += ["`scanbench ingest`, 2 processes"]
        seconds = np.vstack([seconds, [[np.nan, parallel[0, 1]]]])

    print(f"\n{n} scans of {size}×{size} from .sxm files, stored at {stored}×{stored}:\n")
    columns = ["way", "µs CPU a scan", "µs wall a scan"]
    columns += [f"÷ {way}: CPU, wall" for way in bare_ways]
    print("| " + " | ".join(columns) + " |\n" + "|---" * len(columns) + "|")
    for name, own in zip(names, seconds, strict=True):
        cells = [name, *(_rounded(value / n * 1e6, 0) for value in own)]
        for other in seconds[: len(bare_ways)]:
            cells.append(", ".join(_rounded(ratio, 2) for ratio in other / own))
        print("| " + " | ".join(cells) + " |")


def _rounded(value: float, digits: int) -> str:
    return "-" if np.isnan(value) else f"{value:.{digits}f}"


def naive_windows(path: Path, order: NDArray[np.int64], first: NDArray[np.int64]) -> float:
    """Read each window from HDF5 on its own and normalise it; return CPU seconds per window."""
    start = time.process_time()
    with h5py.File(path) as file:
        for scan, line in zip(order.tolist(), first.tolist(), strict=True):
            x = file["scans"][scan, line : line + WINDOW]
            (x - x.mean(axis=1, keepdims=True)) / x.std(axis=1, keepdims=True)
    return (time.process_time() - start) / len(order)


def epoch_of(path: Path, stride: int, memory_mb: float) -> tuple[int, float]:
    """Return the windows of an epoch and its CPU seconds."""
    with Store(path) as store:
        start = time.process_time()
        reader = WindowReader(
            store, np.arange(len(store)), window=WINDOW, stride=stride, batch_size=256,
            memory_mb=memory_mb,
        )  # fmt: skip
        windows = sum(len(batch.x) for batch in reader.epoch(0))
        return windows, time.process_time() - start


def peak_memory_mb() -> float:
    """Return this program's peak memory; getrusage's would include the parent's before exec."""
    status = Path("/proc/self/status").read_text()
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    assert found, "needs Linux"
    return int(found[1]) * 1024 / 1e6


def time_windows(folder: Path, n: int, memory_mb: float) -> None:
    write_scans(folder / "scans", simulated(256, SIZE), repeat=n // 256)
    convert({}, folder / "scans", folder / "store.h5")
    rng = np.random.default_rng(0)
    order, first = rng.integers(0, n // 256 * 256, 1000), rng.integers(0, SIZE - WINDOW + 1, 1000)
    naive = naive_windows(folder / "store.h5", order, first)
    print(f"| loop reading each window from HDF5 | 1,000 | {1 / naive:,.0f} windows/s | 1 | |")
    for stride in (108, 11, 1):
        child = [
            sys.executable, __file__, "--epoch", str(folder / "store.h5"), str(stride),
            "--memory-mb", str(memory_mb),
        ]  # fmt: skip
        answer = subprocess.run(child, capture_output=True, text=True, check=True).stdout.split()
        windows, seconds, peak_mb = int(answer[0]), float(answer[1]), float(answer[2])
        print(
            f"| `WindowReader`, stride {stride}, {memory_mb:.0f} MB | {windows:,} "
            f"| {windows / seconds:,.0f} windows/s | {naive * windows / seconds:.0f} "
            f"| {peak_mb:.0f} MB |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scans", type=int, default=18432, help="scans of the window benchmark")
    parser.add_argument("--memory-mb", type=float, default=128)
    parser.add_argument("--epoch", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.epoch:
        windows, seconds = epoch_of(Path(args.epoch[0]), int(args.epoch[1]), args.memory_mb)
        print(windows, seconds, peak_memory_mb())
        return
    with tempfile.TemporaryDirectory() as folder:
        for size, stored, n in ((128, 128, 4096), (300, 128, 512), (512, 512, 128)):
            time_store(Path(folder, f"{size}-{stored}"), size, stored, n)
        print("\n| way | windows | throughput | ratio | peak memory |\n|---|---|---|---|---|")
        time_windows(Path(folder, "windows"), args.scans, args.memory_mb)


if __name__ == "__main__":
    main()
