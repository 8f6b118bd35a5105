"""The command line itself: what it says of its arguments, and how it stops."""

from __future__ import annotations

import argparse
import errno
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import small_study

from scanbench import verification
from scanbench.cli import main, parser
from scanbench.failures import mistakes


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


def test_ingest_by_hand_counts_classes_where_there_are_labels(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    heights = np.random.default_rng(0).normal(size=(2, 8, 8))
    np.savez(tmp_path / "two.npz", images=heights, scan_ids=["a", "b"], groups=["day", "day"])
    (tmp_path / "labels.csv").write_text("scan;label\na;sharp\nb;\n")
    source, table, out = (str(tmp_path / name) for name in ("two.npz", "labels.csv", "out"))
    assert main(["ingest", source, out]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "read     two.npz: 2 scans",
        "2 scans in 1 group, 2 without label",
    ]
    by_hand = ["--labels", table, "--classes", "blunt, sharp"]
    assert main(["ingest", source, out, *by_hand]) == 0
    assert capsys.readouterr().out.splitlines()[1:] == [
        "2 scans in 1 group, 1 without label",
        "       0 class blunt",
        "       1 class sharp",
    ]
    assert main(["ingest", source, out, "--labels", table]) == 2
    assert "row 2: label 'sharp' is not one of atoms" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("typed", "command", "said"),
    [
        (["ingest", "--lables", "x"], "ingest", "option --lables: did you mean '--labels'?"),
        (["ingest", "a", "b", "--lables=x"], "ingest", "option --lables: did you mean '--labels'?"),
        (["stream", "run", "a.sxm", "--folow"], "stream", "--folow: did you mean '--follow'?"),
        (["store", "verify", "s", "--xyzzy"], "store verify", "--xyzzy: known: --help"),
        (["curves", "a", "b", "c"], "curves", "unrecognized arguments: c"),
        (["--versoin"], "", "unrecognized option --versoin: did you mean '--version'?"),
    ],
)
def test_an_unknown_option_shows_the_usage_of_its_command_and_the_nearest(
    typed: list[str], command: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(typed)
    assert stopped.value.code == 2
    told = capsys.readouterr().err
    assert told.startswith(f"usage: scanbench {command} [-h]".replace("  ", " "))
    assert said in told.splitlines()[-1]


def test_options_may_be_shortened_and_what_follows_two_dashes_is_no_option() -> None:
    args = parser().parse_args(["ingest", "a", "b", "--lab", "c", "--spec={}"])
    assert args.labels == Path("c")
    typed = ["record", "--record", "r", "--", "split", "--split", "s", "--xyzzy"]
    assert parser().parse_args(typed).command == typed[4:]


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


@pytest.mark.parametrize(
    ("number", "mistake"),
    [(errno.ENOSPC, True), (errno.EACCES, True), (errno.EIO, False), (errno.ESTALE, False)],
)
def test_a_broken_device_is_no_mistake_of_the_user(
    number: int,
    mistake: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def broken(_: object) -> None:
        raise OSError(number, os.strerror(number), "results/store.h5")

    monkeypatch.setattr(verification, "verify", broken)
    assert main(["verify", str(tmp_path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith(f"results/store.h5: {os.strerror(number)}")
    log = tmp_path / "job.log"
    log.write_text(f"{line}\n")
    assert bool(mistakes(log)) == mistake
