"""The command line itself: what it says of its arguments, and how it stops."""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import small_study

from scanbench.cli import parser


def start(*arguments: str | Path, cwd: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "scanbench.cli", *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, "OMP_NUM_THREADS": "1", "TQDM_MININTERVAL": "0"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def stop(run: subprocess.Popen[str], when: str, signum: signal.Signals, *, group: bool) -> str:
    """Send a signal once stderr has said `when`; return what it says from there on."""
    assert run.stderr is not None
    said = ""
    while when not in said:
        said += (character := run.stderr.read(1))
        assert character, said
    (os.killpg if group else os.kill)(run.pid, signum)
    rest = run.stderr.read()
    run.stderr.close()
    assert run.wait() == 128 + signum
    return rest


@pytest.mark.parametrize(
    ("workers", "signum", "group"), [(1, signal.SIGTERM, False), (2, signal.SIGINT, True)]
)
def test_a_stopped_stage_says_so_in_one_line_and_leaves_nothing(
    tmp_path: Path, workers: int, signum: signal.Signals, group: bool
) -> None:
    spec = json.dumps({"scans": 400, "sessions": 40})
    run = start("simulate", "--workers", str(workers), "--spec", spec, "out", cwd=tmp_path)
    said = stop(run, " 2/400", signum, group=group)
    assert said.endswith(f"scanbench: stopped by {signum.name}; run again to go on\n")
    assert "Traceback" not in said
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_training_says_so_in_one_line_and_keeps_its_last_epoch(
    tmp_path: Path, signum: signal.Signals
) -> None:
    store, split = small_study.make(tmp_path / "study")
    spec = small_study.spec("cnn-scan", training={"epochs": 500})
    weights = "run/weights.safetensors"
    run = start("train", "--spec", json.dumps(spec), store, split, weights, cwd=tmp_path)
    said = stop(run, "epoch 2/", signum, group=True)
    assert said.endswith(f"scanbench: stopped by {signum.name}; run again to go on\n")
    assert "Traceback" not in said
    assert not (tmp_path / weights).exists()
    assert len(list(tmp_path.glob(".checkpoints/*/last.ckpt"))) == 1


def commands(
    top: argparse.ArgumentParser, path: Sequence[str] = ()
) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    for action in top._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, sub in action.choices.items():
                yield from commands(sub, [*path, name])
    yield " ".join(path), top


@pytest.mark.parametrize(("name", "command"), list(commands(parser())))
def test_every_argument_of_every_command_is_explained(
    name: str, command: argparse.ArgumentParser
) -> None:
    assert [a.dest for a in command._actions if not a.help] == []
    assert command.description
