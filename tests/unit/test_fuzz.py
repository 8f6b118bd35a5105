"""Whatever a file holds, its reader gives a result or one clear line, in bounded time and memory.

The same few examples run each time. With `SCANBENCH_LONG=1` new ones are drawn for
`SCANBENCH_FUZZ_MINUTES` (30) minutes of processor time; a failure names the example, which
`SCANBENCH_FUZZ_EXAMPLE` runs again.
"""

from __future__ import annotations

import json
import os
import resource
import secrets
import shutil
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import fuzzing
import numpy as np
import pandas as pd
import prediction_data
import pytest
import replay_example
import scans_folder
import streaming_example
import yaml
from instrument_files import build, real
from small_study import make

from scanbench import policy, predictions, scores, start, tuning
from scanbench.config import resolve
from scanbench.convert import convert
from scanbench.errors import UserError
from scanbench.files import sha256_of, write_json
from scanbench.split_file import read_split
from scanbench.store import Store, verify
from scanbench.tipstate.labels import ScoreSheet, read_score_sheet, read_table
from scanbench.tipstate.line_sources import RECORDING, recorded
from scanbench.tipstate.readers import FORMATS, ReadOptions, read_each
from scanbench.tipstate.replay import read_recording

EXAMPLES = 40
CPU_SECONDS, MEMORY_BYTES = 10.0, 2**30
OPTIONS = ReadOptions(label_names=("a", "b"), max_pixels=10_000, max_container_pixels=100_000)
ROOT = Path(__file__).resolve().parents[2]
SCHEMA = yaml.safe_load((ROOT / "workflow/schemas/config.schema.yaml").read_text("utf-8"))


@dataclass(frozen=True)
class Target:
    """A good file, how it is damaged, and what reads it.

    Parameters
    ----------
    build
        Writes the good files into a folder.
    damage
        Changes some of them.
    use
        Reads them: it may raise a `UserError`, and nothing else.
    """

    build: Callable[[Path], Any]
    damage: Callable[[Path, Random], Any]
    use: Callable[[Path], Any]


TARGETS: dict[str, Target] = {}


def one_file(name: str, build: Any, damage: Any, use: Any) -> None:
    """Add a target that is one file."""
    TARGETS[name] = Target(
        lambda folder: build(folder / name),
        lambda folder, rng: damage(folder / name, rng),
        lambda folder: use(folder / name),
    )


def read_instrument(path: Path) -> None:
    scans, refused = read_each(path, OPTIONS)
    assert scans or refused
    for scan in scans:
        assert scan.heights_LP.dtype == np.float32
        assert scan.heights_LP.size <= OPTIONS.max_pixels
        assert not np.isinf(scan.heights_LP).any()
        assert 1 <= scan.lines <= scan.planned_lines
    for error in refused:
        raise error


DAMAGE = {".npz": fuzzing.damage_zip, ".png": fuzzing.damage_png, ".mat": fuzzing.damage_hdf5}
for suffix in sorted(suffix for suffix in FORMATS if not suffix.endswith("_mtrx")):
    one_file(
        f"scan{suffix}",
        lambda path: build(path.suffix, path),
        # Where the structure stands: past the header's padding in the one format that has it.
        DAMAGE.get(suffix, lambda path, rng: fuzzing.damage_bytes(path, rng, 4000)),
        read_instrument,
    )

MATRIX = ("2014Mar01-093225--7_100.Z_mtrx", "2014Mar01-093225_0001.mtrx")


def build_matrix(folder: Path) -> None:
    for name in MATRIX:
        shutil.copyfile(real("raw-spm", "nano-bio+pyMTRX", name), folder / name)


TARGETS["matrix"] = Target(
    build_matrix,
    lambda folder, rng: fuzzing.damage_bytes(folder / rng.choice(MATRIX), rng, 2000),
    lambda folder: read_each(folder / MATRIX[0]),
)

CLASSES = ("atoms", "rows", "defect")


def label_frame() -> pd.DataFrame:
    names = [f"scan{k:03d}" for k in range(6)]
    labels = [CLASSES[k % 3] for k in range(6)]
    return pd.DataFrame({"scan": names, "label": labels, "group": "a", "change_line": ["3"] * 6})


one_file(
    "labels.csv",
    lambda path: label_frame().to_csv(path, index=False),
    fuzzing.damage_bytes,
    lambda path: read_table(path, CLASSES),
)
one_file(
    "labels.tsv",
    lambda path: label_frame().to_csv(path, index=False, sep="\t"),
    fuzzing.damage_bytes,
    lambda path: read_table(path, CLASSES),
)
one_file(
    "labels.xlsx",
    lambda path: label_frame().to_excel(path, index=False),
    fuzzing.damage_zip,
    lambda path: read_table(path, CLASSES),
)
SHEET = ScoreSheet(merge={"atoms": ["A"], "rows": ["B"]})


def build_sheet(path: Path) -> None:
    names = {"Name": ["a.png", "b.png"], "No. Responses": [2, 3]}
    with pd.ExcelWriter(path) as book:
        marks = pd.DataFrame({**names, "A": [1.0, 0.2], "B": [0.0, 0.8]})
        marks.to_excel(book, sheet_name="Mean_Score", index=False)
        agreement = pd.DataFrame({"Name": names["Name"], "Mean": [1.0, 0.7]})
        agreement.to_excel(book, sheet_name="Agreement_Score", index=False)


one_file(
    "scores.xlsx",
    build_sheet,
    fuzzing.damage_zip,
    lambda path: read_score_sheet(path, SHEET, CLASSES),
)


def build_scans(folder: Path) -> None:
    scans_folder.write_scans(folder / "scans", scans_folder.heights(4, 8, 6))
    write_json(folder / "scans/ingest.json", {"channel": "Z"})


def damage_scans(folder: Path, rng: Random) -> None:
    path = rng.choice(sorted((folder / "scans").iterdir()))
    if path.suffix == ".npz":
        fuzzing.damage_zip(path, rng)
    elif path.suffix == ".json":
        fuzzing.damage_json(path, rng)
    else:
        fuzzing.damage_bytes(path, rng)


TARGETS["scans"] = Target(
    build_scans,
    damage_scans,
    lambda folder: convert({"lines": 8, "pixels": 8}, folder / "scans", folder / "store.h5"),
)


def use_store(path: Path) -> None:
    with Store(path) as store:
        store.read(range(len(store)), "line")
        store.index_of([str(store.scan_id[0])])
        for name in ("group", "excluded", "file_sha256", "scan_sha256", "change_line"):
            getattr(store, name)
    for problem in verify(path):
        raise UserError(f"{path}: {problem}")


TARGETS["store.h5"] = Target(
    lambda folder: (build_scans(folder), convert({}, folder / "scans", folder / "store.h5")),
    lambda folder, rng: fuzzing.damage_hdf5(folder / "store.h5", rng),
    lambda folder: use_store(folder / "store.h5"),
)


def use_split(folder: Path) -> None:
    split = folder / "split.json"
    with Store(folder / "store.h5") as store:
        read_split(split, store)


TARGETS["split.json"] = Target(
    lambda folder: make(folder, groups=3, scans_per_group=3),
    lambda folder, rng: fuzzing.damage_json(folder / "split.json", rng),
    use_split,
)


def build_run(folder: Path) -> None:
    streaming_example.make_run(folder / "run", "cnn-scan")
    (folder / "run/seen.txt").write_text("0" * 64 + "\n")


def damage_run(folder: Path, rng: Random) -> None:
    """Damage weights or what is said of them, with the hash as whoever made them would have it."""
    meta = folder / "run/model.json"
    if rng.random() < 0.5:
        fuzzing.damage_json(meta, rng)
        return
    weights = folder / "run/weights.safetensors"
    fuzzing.damage_bytes(weights, rng, 800)
    document = json.loads(meta.read_text(encoding="utf-8"))
    meta.write_text(json.dumps({**document, "weights_sha256": sha256_of(weights)}))


TARGETS["run"] = Target(build_run, damage_run, lambda folder: start.load_foundation(folder / "run"))


def build_predictions(path: Path) -> None:
    every = prediction_data.scans(groups=2, per_group=4)
    prediction_data.table(every, skill=1.0).to_parquet(path)


def damage_table(path: Path, rng: Random) -> None:
    """Change bytes of a Parquet file, or, more often, a column or value of its table."""
    if rng.random() < 0.4:
        fuzzing.damage_bytes(path, rng)
        return
    frame = pd.read_parquet(path)
    column = rng.choice(list(frame.columns))
    match rng.randrange(5):
        case 0:
            frame = frame.drop(columns=column)
        case 1:
            frame[column] = frame[column].astype(str)
        case 2:
            frame[column] = [rng.choice((None, 1, -1, 2**40, 0.5, True)) for _ in range(len(frame))]
        case 3:
            frame = frame.rename(columns={column: rng.choice(("p_x", "", "<b>"))})
        case _:
            frame[column] = [[1, 2]] * len(frame)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            frame.to_parquet(path)
        except Exception:  # pandas cannot write every mixture of values
            fuzzing.damage_bytes(path, rng)


def use_predictions(path: Path) -> None:
    every = prediction_data.scans(groups=2, per_group=4)
    held_out = prediction_data.held_out(every)
    predictions.read_experiment("a", [path], prediction_data.CLASSES, held_out)


one_file("predictions.parquet", build_predictions, damage_table, use_predictions)

HASHES = {"store_sha256": "a", "split_sha256": "b", "weights_sha256": "c"}
RUN = {"name": "causal", "fold": 0, "seed": 0, **HASHES}


def build_policy(path: Path) -> None:
    document = policy.policy_document(
        classes=["defect"],
        first_line=3,
        store_sha256="a",
        split_sha256="b",
        weights={"causal": ["c"]},
        policies=[
            {
                "experiment": "causal",
                "limit": 0.05,
                "expected": {"saved": {"value": 0.2, "low": None, "high": 0.3}},
                "rules": [{"fold": 0, "seed": 0, "threshold": 0.6, "patience": 2}],
            }
        ],
        names={"comparison": "a"},
    )
    write_json(path, document)


def use_policy(path: Path) -> None:
    found = policy.monitor_spec(path, None, path.parent, RUN)
    assert 0 <= found["threshold"] <= 1
    assert found["patience"] >= 0


one_file("policy.json", build_policy, fuzzing.damage_json, use_policy)


def build_recording(folder: Path) -> None:
    replay_example.record(folder / "made")
    shutil.copytree(folder / "made/recording", folder / "recording")
    shutil.rmtree(folder / "made")


TARGETS["recording"] = Target(
    build_recording,
    lambda folder, rng: fuzzing.damage_lines(
        folder / "recording" / rng.choice((RECORDING, "events.jsonl")), rng
    ),
    lambda folder: (list(recorded(folder / "recording" / RECORDING)),
                    read_recording(folder / "recording")),
)  # fmt: skip

HISTORY = "epoch,lr,val_loss\n1,0.1,0.5\n2,0.1,0.4\n"
one_file(
    "history.csv",
    lambda path: path.write_text(HISTORY),
    fuzzing.damage_bytes,
    lambda path: (tuning._score(path, "val_loss", min), scores.read_csv(path, "epoch lr val_loss")),
)


def damage_config(path: Path, rng: Random) -> None:
    if rng.random() < 0.1:
        fuzzing.damage_bytes(path, rng)
        return
    config = yaml.safe_load(path.read_text(encoding="utf-8"))
    path.write_text(yaml.safe_dump(fuzzing.mutated_json(config, rng)), encoding="utf-8")


def use_config(path: Path) -> None:
    try:
        config = yaml.safe_load(path.read_bytes())
    except (yaml.YAMLError, ValueError):  # Snakemake reads the file itself, and names it
        return
    if isinstance(config, dict):
        resolve(config, SCHEMA)


CONFIG: dict[str, Any] = {
    "study": "tipstate",
    "datasets": {
        "a": {"title": "A", "source": "simulate"},
        "b": {"title": "B", "source": "files", "path": "x", "labels": "y.csv"},
    },
    "splits": {"fixed": {"scheme": "fixed"}},
    "experiments": {
        "cnn-scan": {"model": "cnn-scan", "options": {"widths": [4, 8]}},
        "other": {"base": "cnn-scan", "training": {"epochs": 3}},
    },
    "comparisons": {
        "a": {
            "title": "A against B",
            "dataset": "a",
            "split": "fixed",
            "experiments": ["cnn-scan", "other"],
            "seeds": [0],
        }
    },
    "targets": ["a"],
}
one_file(
    "config.yaml",
    lambda path: path.write_text(yaml.safe_dump(CONFIG)),
    damage_config,
    use_config,
)


def restore(folder: Path, files: dict[Path, bytes]) -> None:
    """Make a folder hold these files and no other."""
    for path in folder.rglob("*"):
        if path.is_file() and path.relative_to(folder) not in files:
            path.unlink()
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


def example(target: Target, folder: Path, seed: str) -> str:
    """Return what went wrong with one damaged file; empty if nothing did."""
    target.damage(folder, Random(seed))
    try:
        with fuzzing.bounded(CPU_SECONDS, MEMORY_BYTES):
            target.use(folder)
    except UserError as error:
        cause: BaseException | None = error
        while cause is not None:
            if isinstance(cause, MemoryError):
                return f"needs more than {MEMORY_BYTES} bytes: {error}"
            cause = cause.__cause__
        named = str(folder) in str(error) or str(error).startswith(("config: ", "experiment "))
        return "" if named and "\n" not in str(error) else f"is no clear line: {error!r}"
    except (Exception, fuzzing.HangError):
        return traceback.format_exc(limit=-3, chain=False)
    return ""


@pytest.mark.parametrize("name", TARGETS)
def test_a_damaged_file_gives_a_result_or_one_clear_line(name: str, tmp_path: Path) -> None:
    target = TARGETS[name]
    target.build(tmp_path)
    target.use(tmp_path)
    files = {p.relative_to(tmp_path): p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    failures: dict[str, str] = {}
    for seed in seeds(name):
        restore(tmp_path, files)
        if said := example(target, tmp_path, seed):
            failures.setdefault(said.strip().splitlines()[-1][:60], f"{seed}: {said}")
    assert not failures, "\n\n".join([f"{len(failures)} kinds", *failures.values()])
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak
    assert grown < MEMORY_BYTES / 2**10


def seeds(name: str) -> Any:
    """Yield what the examples of a target are drawn with."""
    if again := os.environ.get("SCANBENCH_FUZZ_EXAMPLE"):
        if again.startswith(f"{name}:"):
            yield again
    elif os.environ.get("SCANBENCH_LONG"):
        seconds = 60 * float(os.environ.get("SCANBENCH_FUZZ_MINUTES", "30")) / len(TARGETS)
        begun, run, number = time.process_time(), secrets.token_hex(3), 0
        while time.process_time() - begun < seconds:
            yield f"{name}:{run}-{number}"
            number += 1
        print(f"{name}: {number} examples")
    else:
        yield from (f"{name}:{number}" for number in range(EXAMPLES))
