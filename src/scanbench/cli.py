"""The command line: its parser, and what becomes of errors; `commands` has what it runs."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from scanbench import STUDIES, __version__, commands
from scanbench.commands import Arguments
from scanbench.errors import BROKEN, MACHINE, MISTAKE, UserError, did_you_mean
from scanbench.files import parse_json
from scanbench.processes import Stopped, stoppable


def record(args: Arguments) -> None:
    """Run a command, and record the SHA-256 of all that it reads and writes."""
    from scanbench.records import recorded

    inner = parser().parse_args(args.command)
    # What the command writes of itself names the command alone.
    sys.argv[1:] = args.command
    recorded(
        lambda: inner.run_command(inner),
        command=args.command,
        config=getattr(inner, "spec", {}),
        inputs=args.inputs,
        outputs=args.outputs,
        results=args.results,
        record=args.record,
        temporary=args.temporary,
    )


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0 < seconds < 1e6:
        raise argparse.ArgumentTypeError(f"no time in seconds: {text!r}")
    return seconds


def _json(text: str) -> dict[str, Any]:
    try:
        value = parse_json(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"no JSON ({error}): {text}") from None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError("not a JSON object")
    return value


def _names(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",")]
    if "" in names or len(set(names)) < len(names):
        raise argparse.ArgumentTypeError(f"names one class twice, or an empty one: {text!r}")
    return names


class _Parser(argparse.ArgumentParser):
    """A parser that answers for its own arguments.

    Python's hands what a command does not know up to the program, whose usage does not help, and
    says of a misspelt option before a missing argument that only the latter is wrong.
    """

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[Any, list[str]]:
        """Parse all arguments; what is not known is an error here."""
        words = sys.argv[1:] if args is None else list(args)
        self._check_options(words)
        known, rest = super().parse_known_args(words, namespace)
        if rest:
            self.error(f"unrecognized arguments: {' '.join(rest)}")
        return known, rest

    def _check_options(self, words: Sequence[str]) -> None:
        options = [option for option in self._option_string_actions if option.startswith("--")]
        for word in words:
            # What follows a command is its own to judge.
            if word == "--" or (self._subparsers is not None and not word.startswith("-")):
                return
            name = word.partition("=")[0]
            # The beginning of an option stands for it.
            option = name.startswith("--") and " " not in name  # with a space it is a value
            if option and not any(own.startswith(name) for own in options):
                self.error(f"unrecognized option {name}: {did_you_mean(name, options)}")


def parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command line."""
    top = _Parser(
        prog="scanbench", description="From raw scans to a comparison of models, stage by stage."
    )
    top.add_argument("--version", action="version", version=__version__)
    names = top.add_subparsers(
        required=True, metavar="COMMAND", help="COMMAND --help explains its arguments"
    )

    def command(
        name: str,
        run: Callable[[Arguments], int | None],
        paths: Mapping[str, str],
        spec: bool = True,
    ) -> argparse.ArgumentParser:
        summary = (run.__doc__ or "").splitlines()[0]
        sub = names.add_parser(name, help=summary, description=summary)
        if spec:
            sub.add_argument("--spec", type=_json, default={}, help="the stage's options, as JSON")
        for path, what in paths.items():
            sub.add_argument(path, type=Path, help=what)
        sub.set_defaults(run_command=run)
        return sub

    trained_on = {
        "store": "HDF5 store, from convert",
        "split": "split file (JSON), from split",
    }
    simulated = command(
        "simulate", commands.simulate, {"out": "folder to write the .sxm files and tables into"}
    )
    fetched = command(
        "fetch", commands.fetch, {"out": "folder to write the images into"}, spec=False
    )
    fetched.add_argument("--local", type=Path, help="a local clone, instead of downloading")
    read = command(
        "ingest",
        commands.ingest,
        {
            "folder": "folder of instrument files, or one .npz or .mat file",
            "out": "scans folder to write",
        },
    )
    read.add_argument("--labels", type=Path, help="table of labels (CSV, TSV, XLSX)")
    read.add_argument(
        "--classes",
        type=_names,
        metavar="A,B,C",
        help="class names in the order of every result; default: the study's",
    )
    read.add_argument("--quiet", action="store_true", help="list only the files that are refused")
    for sub in (simulated, read):
        sub.add_argument("--workers", type=int, default=1, help="processes to use; default: 1")
    command(
        "convert",
        commands.convert,
        {"scans": "scans folder, from ingest", "out": "HDF5 store to write"},
    )
    command("copies", commands.copies, {"store": trained_on["store"], "out": "HDF5 store to write"})
    divided = command(
        "split", commands.split, {"store": trained_on["store"], "out": "split file to write (JSON)"}
    )
    divided.add_argument("--split", default="", help="name of the split, for messages")
    for sub in (read, divided):
        sub.add_argument("--dataset", default="", help="name of the data set, for messages")
    trained = command(
        "train",
        commands.train,
        {
            **trained_on,
            "weights": "RUN/weights.safetensors; the run's other files are written beside it",
        },
    )
    trained.add_argument("--start", type=Path, help="folder of a run to begin with the weights of")
    trained.add_argument(
        "--teacher", type=Path, help="folder of a run to learn the soft answers of"
    )
    trained.add_argument("--chosen", type=Path, help="setting to train with (JSON), from choose")
    trained.add_argument(
        "--restart", action="store_true", help="keep no checkpoint, and go on from none"
    )
    trained.add_argument(
        "--tensorboard", action="store_true", help="also write the history for TensorBoard"
    )
    settled = command("choose", commands.choose, {"out": "JSON file to write"})
    settled.add_argument("trials", type=Path, nargs="+", help="folders of trials, from train")
    predicted = command(
        "predict",
        commands.predict,
        {
            **trained_on,
            "weights": "weights.safetensors of a run, from train",
            "out": "table of predictions to write (Parquet)",
        },
        spec=False,
    )
    instead = predicted.add_mutually_exclusive_group()
    instead.add_argument("--exported", type=Path, help="the run's step as ONNX, to feed instead")
    instead.add_argument(
        "--unlabelled",
        action="store_true",
        help="predict the scans without label of the tested groups, instead of the test part",
    )
    pooled = command(
        "combine", commands.combine, {"out": "table of predictions to write (Parquet)"}
    )
    pooled.add_argument(
        "tables", type=Path, nargs="+", help="the members' tables of predictions, from predict"
    )
    scored = command(
        "evaluate", commands.evaluate, {**trained_on, "out": "folder of scores to write"}
    )
    compared = command(
        "agreement",
        commands.agreement,
        {
            **trained_on,
            "scans": "scans folder, from ingest, with people's scores in its manifest",
            "out": "folder of tables to write",
        },
    )
    line_scored = command(
        "tip-change-scores",
        commands.tip_change_scores,
        {
            **trained_on,
            "weights": "weights.safetensors of a run, from train",
            "out": "table of scores to write (Parquet)",
        },
    )
    detected = command(
        "tip-changes",
        commands.tip_changes,
        {
            **trained_on,
            "scans": "scans folder, from ingest",
            "scores": "folder with EXPERIMENT/foldN-seedN.parquet, from tip-change-scores",
            "out": "folder to write tables and a figure into",
        },
    )
    drawn = command(
        "render",
        commands.render,
        {
            "scores": "folder of scores, from evaluate",
            "scans": "scans folder, from ingest",
            **trained_on,
            "out": "folder to write figures, tables and the summary page into",
        },
    )
    drawn.add_argument("--agreement", type=Path, help="folder of tables, from agreement")
    kept = command("record", record, {}, spec=False)
    kept.add_argument("--record", type=Path, required=True, help="record to write (JSON)")
    for flag, what in {
        "--inputs": "files and folders that the command reads",
        "--outputs": "files and folders that it writes, in the results folder",
    }.items():
        kept.add_argument(flag, type=Path, nargs="*", default=[], metavar="PATH", help=what)
    kept.add_argument(
        "--temporary", nargs="*", default=[], metavar="NAME", help="outputs that will be removed"
    )
    kept.add_argument("command", nargs="+", help="-- COMMAND and its arguments")
    rechecked = command(
        "verify", commands.verify, {"results": "folder of results, with records/ in it"}, spec=False
    )
    rechecked.add_argument(
        "--delete",
        action="store_true",
        help="delete all that the jobs at fault wrote, so that the next run makes it anew",
    )
    likened = command(
        "realism",
        commands.realism,
        {
            "real": "store of real scans, from convert",
            "simulated": "store of simulated scans, from convert",
            "out": "folder to write figures and the table into",
        },
    )
    traced = command(
        "trace",
        commands.trace,
        {"file": "figure, table, weights, or any other file or folder of a results folder"},
        spec=False,
    )
    how = traced.add_mutually_exclusive_group()
    how.add_argument("--files", action="store_true", help="list every file, with whole hashes")
    how.add_argument("--json", action="store_true", help="print everything as JSON")
    exported_as = command(
        "crate",
        commands.crate,
        {
            "path": "folder of results, or a file or folder in it: its chain alone",
            "out": "folder to write, or a .zip file",
        },
        spec=False,
    )
    exported_as.add_argument(
        "--project", type=Path, help="folder of the Snakefile; default: where results/ lies"
    )
    exported_as.add_argument(
        "--license",
        help="of the results: an address, as https://spdx.org/licenses/CC-BY-4.0, or a text",
    )
    beside = command(
        "protocols", commands.protocols, {"out": "folder to write the table and figure into"}
    )
    attributed = command(
        "attribute",
        commands.attribute,
        {
            **trained_on,
            "weights": "weights.safetensors of a run, from train",
            "out": "folder of attributions to write",
        },
    )
    explained = command(
        "explain",
        commands.explain,
        {
            "attributions": "folder with EXPERIMENT/foldN-seedN, from attribute",
            "scans": "scans folder, from ingest",
            "store": trained_on["store"],
            "out": "folder to write tables and figures into",
        },
    )
    strange = command(
        "anomaly-scores",
        commands.anomaly_scores,
        {
            **trained_on,
            "weights": "weights.safetensors of a run with withheld classes, from train",
            "out": "table of scores to write (Parquet)",
        },
        spec=False,
    )
    flagged = command(
        "anomaly",
        commands.anomaly,
        {**trained_on, "out": "folder to write tables and figures into"},
    )
    brought = command("deployment", commands.deployment, {**trained_on, "out": "folder to write"})
    for sub in (scored, compared, drawn, beside, flagged, brought, kept):
        sub.add_argument(
            "--results",
            type=Path,
            default=Path("results"),
            help="folder that holds runs/ and comparisons/; default: results",
        )
    command(
        "curves",
        commands.curves,
        {
            "scores": "folder of scores of the comparison, from evaluate",
            "out": "folder to write the tables and the figure into",
        },
    )
    applied = command(
        "apply",
        commands.apply,
        {
            "run": "folder of a trained run, .../DATASET/SPLIT/EXPERIMENT/foldN-seedN",
            "folder": "folder of instrument files, or one .npz or .mat file",
        },
    )
    applied.add_argument("--labels", type=Path, help="table of labels: also write metrics")
    applied.add_argument("--out", type=Path, help="default: FOLDER-DATASET-SPLIT-EXPERIMENT-RUN")
    applied.add_argument("--no-figures", action="store_true", help="draw no figure per scan")
    trained_run = "folder of a trained run, .../DATASET/SPLIT/EXPERIMENT/foldN-seedN"
    watched = command("stream", commands.stream, {"run": trained_run})
    watched.add_argument(
        "source",
        help="instrument file, folder of a recording, - for .npy or raw float32 lines on stdin, or "
        "nanonis://host:port",
    )
    for flag, what in {
        "--follow": "the file is still being written: wait for its lines",
        "--view": "show the answers on the terminal",
        "--attention": "tell how much each answer draws on each line (slow; for replay pages)",
    }.items():
        watched.add_argument(flag, action="store_true", help=what)
    watched.add_argument(
        "--policy",
        metavar="FILE[:LIMIT]",
        help="policy.json of a comparison: keep the rule that was chosen for this run, for a share "
        "of wrong stops; default: the smallest",
    )
    watched.add_argument("--record", type=Path, help="folder for a CSV, a figure and a recording")
    watched.add_argument("--scan", help="which scan, of a file that holds several")
    for flag in ("--lines", "--pixels"):
        watched.add_argument(flag, type=int, help="of the scan, for raw lines; default: the run's")
    for flag, seconds, what in (
        ("--poll", 0.5, "look for new lines every so many seconds"),
        ("--timeout", 300.0, "end after so many seconds without a new line"),
    ):
        watched.add_argument(flag, type=_seconds, default=seconds, help=f"{what}; {seconds:g}")
    replayed = command("replay", commands.replay, {}, spec=False)
    replayed.add_argument(
        "recordings",
        type=Path,
        nargs="+",
        metavar="recording",
        help="folder that stream --record wrote; several are shown one after the other",
    )
    replayed.add_argument("out", type=Path, help="file to write: .html, .webp, .gif or .png")
    replayed.add_argument("--note", default="", help="source and licence of the data, to be shown")
    exported = command(
        "export", commands.export, {"run": trained_run, "out": "ONNX file to write"}, spec=False
    )
    exported.add_argument(
        "--form", default="fp32", metavar="FORM", help="weights as fp32 (default), fp16 or int8"
    )
    exported.add_argument("--metrics", type=Path, help="metrics.csv of apply, for the model card")
    for sub in (
        *(simulated, fetched, read, compared, likened, applied, watched, replayed),
        *(attributed, explained, strange, flagged, line_scored, detected),
    ):
        sub.add_argument(
            "--study",
            choices=STUDIES,
            default=STUDIES[0],
            help=f"study that the data belong to; default: {STUDIES[0]}",
        )
    stored = names.add_parser("store", help="Check a store.", description="Check a store.")
    actions = stored.add_subparsers(required=True, metavar="ACTION", help="what to do with it")
    summary = (commands.store_verify.__doc__ or "").splitlines()[0]
    whole = actions.add_parser("verify", help=summary, description=summary)
    whole.add_argument("store", type=Path, help=trained_on["store"])
    whole.set_defaults(run_command=commands.store_verify)
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return the exit status: 0 done, 2 for a mistake that the user can mend.

    `verify` returns 1 if something does not hold.

    A stopped command has the status that shells give it, 128 and the number of the signal.
    """
    args = parser().parse_args(argv)
    if not sys.stderr.isatty():
        # In a log, a progress bar need not move ten times a second.
        os.environ.setdefault("TQDM_MININTERVAL", "10")
    try:
        with stoppable():
            status = args.run_command(args)
    except Stopped as stopped:
        with suppress(BrokenPipeError):  # whoever read the output was stopped too
            # What was measured meanwhile does not come again.
            more = "" if args.run_command is commands.stream else "; run again to go on"
            print(f"scanbench: stopped by {stopped}{more}", file=sys.stderr)
        return 128 + stopped.signum
    except UserError as error:
        print(f"{MISTAKE}{error}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        # Whoever read the output has closed it, as `head` does.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        # A full disk or a missing permission is the user's to mend; a broken device is not, and the
        # same may succeed on another node.
        name = f"{error.filename}: " if error.filename else ""
        begin = BROKEN if error.errno in MACHINE else MISTAKE
        print(f"{begin}{name}{error.strerror or error}", file=sys.stderr)
        return 2
    return status or 0


if __name__ == "__main__":
    sys.exit(main())
