"""A results folder of a small recorded study, for the tests of records."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

from scanbench import sources
from scanbench.files import replacing, replacing_folder, sha256_of
from scanbench.records import FOLDER, Record, recorded
from scanbench.verification import verify


def write(path: Path, text: str) -> Path:
    with replacing(path) as part:
        part.write_text(text, encoding="utf-8")
    return path


class Study:
    """Two seeds' weights made from a store of two raw files, a table and a figure."""

    def __init__(self, folder: Path) -> None:
        self.results = folder / "results"
        self.raw = folder / "raw"
        for name in ("a.sxm", "b.sxm"):
            write(self.raw / name, name)
        self.job("ingest", [self.raw], ["data/d/scans"], self._scans)
        self.job("convert", ["data/d/scans"], ["data/d/store.h5"])
        for seed in (0, 1):
            self.job("train", ["data/d/store.h5"], [f"runs/{seed}/weights"], seed=seed)
        both = ["runs/0/weights", "runs/1/weights"]
        self.job("evaluate", both, ["scores/metrics.csv"])
        self.job("render", ["scores/metrics.csv", *both], ["figures/lines.svg"], self._figure)

    def _scans(self) -> None:
        with replacing_folder(self.results / "data/d/scans", marker=".") as part:
            (part / "manifest.csv").write_text("scan_id,group\na,monday\nb,tuesday\n")
            (part / "shard.npz").write_text(f"heights of {sha256_of(self.raw / 'a.sxm')}")

    def _figure(self) -> None:
        for suffix in ("svg", "pdf"):
            write(self.results / f"figures/lines.{suffix}", suffix)
        # As the real stage, it tells from what each figure was drawn.
        drawn = {"lines": {"metrics": sha256_of(self.results / "scores/metrics.csv")}}
        write(self.results / "render.json", json.dumps({"figures": drawn}))

    def job(
        self,
        stage: str,
        inputs: Sequence[str | Path],
        outputs: Sequence[str],
        run: Callable[[], None] | None = None,
        seed: int | None = None,
        temporary: Sequence[str] = (),
    ) -> Record:
        record = self.results / FOLDER / f"{stage}{'' if seed is None else seed}.json"
        return recorded(
            run or (lambda: [write(self.results / o, f"{stage} {seed}") for o in outputs] and None),
            command=[stage, "--spec", json.dumps({"seed": seed}), *outputs],
            config={"seed": seed},
            inputs=[
                *(self.results / path if isinstance(path, str) else path for path in inputs),
                sources.ROOT / "files.py",
            ],
            outputs=[*(self.results / path for path in outputs), record],
            results=self.results,
            record=record,
            temporary=temporary,
        )

    def faults(self) -> list[str]:
        return [fault.path for fault in verify(self.results).faults]
