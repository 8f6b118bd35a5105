"""The command line: one thin command per stage, and the few that people use by hand.

Stages are imported when their command runs, so that `scanbench --help` is quick.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scanbench import STUDIES, __version__, plan
from scanbench.errors import BROKEN, MACHINE, MISTAKE, UserError, counted
from scanbench.files import parse_json
from scanbench.processes import Stopped, stoppable

if TYPE_CHECKING:
    from scanbench.tipstate.ingest import IngestSummary

Arguments = argparse.Namespace

#: Columns of a page on which no path is broken.
WIDE = 10_000


def _of_study(args: Arguments, module: str, stage: str | None = None) -> Callable[..., Any]:
    """Give the function of a stage that each study has for itself; by default its module's name."""
    return getattr(importlib.import_module(f"scanbench.{args.study}.{module}"), stage or module)


def simulate(args: Arguments) -> None:
    """Write a simulated H:Si(100) data set as Nanonis .sxm files."""
    _of_study(args, "simulate")({**args.spec, "workers": args.workers}, args.out)


def fetch(args: Arguments) -> None:
    """Download the public H:Si(100) images, or copy a clone of them, and verify every one."""
    found = _of_study(args, "fetch")(args.out, args.local)
    print(
        f"{found.matched} images verified, {len(found.unlisted)} not in the table of checksums, "
        f"{len(found.absent)} of the table absent"
    )


def ingest(args: Arguments) -> None:
    """Read raw files into scans, and list every file as read, refused or ignored."""
    spec = {**args.spec, "workers": args.workers}
    if args.classes:
        spec["classes"] = args.classes
    try:
        found = _of_study(args, "ingest")(spec, args.folder, args.labels, args.out)
    except UserError as error:
        raise UserError(f"{args.dataset}: {error}" if args.dataset else str(error)) from None
    _print_ingested(found, args.quiet)


def _print_ingested(found: IngestSummary, quiet: bool) -> None:
    for file, status, reason in found.inventory:
        if quiet and status != "refused":
            continue
        print(f"{status:8} {file}" + (f": {reason}" if reason else ""))
    scans, groups = counted(found.scans, "scan"), counted(found.groups, "group")
    print(f"{scans} in {groups}, {found.unlabelled:,} without label")
    if found.unlabelled == found.scans:
        return
    for kind, counts in (("class", found.labels), ("excluded", found.excluded)):
        for name, count in counts.items():
            print(f"{count:8} {kind} {name}")


def convert(args: Arguments) -> None:
    """Turn scans into one HDF5 store."""
    from scanbench.convert import convert

    convert(args.spec, args.scans, args.out)


def copies(args: Arguments) -> None:
    """Put augmented copies beside the scans of a store: a leak, to measure what it is worth."""
    from scanbench.copies import write_copies

    write_copies(args.spec, args.store, args.out)


def split(args: Arguments) -> None:
    """Divide the scans of a store into parts, and audit the division."""
    from scanbench.splits import Keys, write_split

    write_split(args.spec, args.store, args.out, Keys(args.dataset, args.split))


def train(args: Arguments) -> None:
    """Train one model on one fold with one seed."""
    from scanbench.training import train

    how = {"resume": False} if args.restart else {}
    how |= {"tensorboard": True} if args.tensorboard else {}
    train(
        {**args.spec, "training": {**args.spec["training"], **how}},
        args.store,
        args.split,
        args.weights.parent,
        args.start,
        teacher=args.teacher,
        chosen=args.chosen,
    )


def choose(args: Arguments) -> None:
    """Choose the setting of a search that is best on validation scans."""
    from scanbench.tuning import choose

    choose(args.spec, args.trials, args.out)


def predict(args: Arguments) -> None:
    """Write every held-out prediction of a run."""
    if args.exported:
        from scanbench.exported import predict_exported

        predict_exported(args.store, args.split, args.weights.parent, args.exported, args.out)
        return
    from scanbench.prediction import predict

    predict(args.store, args.split, args.weights.parent, args.out, unlabelled=args.unlabelled)


def combine(args: Arguments) -> None:
    """Average the held-out predictions of an ensemble's members."""
    from scanbench.ensembles import combine

    names = args.spec.pop("members")
    if len(names) != len(args.tables):
        raise UserError(f"combine: {len(args.tables)} tables for {len(names)} members")
    members = dict(zip(names, args.tables, strict=True))
    combine(args.spec, members, args.spec.pop("classes"), args.out)


def evaluate(args: Arguments) -> None:
    """Score the models of a comparison on the same rows."""
    from scanbench.evaluation import evaluate

    evaluate(args.spec, _runs(args), args.store, args.split, args.out)


def agreement(args: Arguments) -> None:
    """Compare the models of a comparison with people, and estimate the ceiling of noisy labels."""
    _of_study(args, "agreement")(
        args.spec, _runs(args), args.store, args.split, args.scans, args.out
    )


def tip_change_scores(args: Arguments) -> None:
    """Score each line of held-out scans by how much a run takes it for a tip change."""
    _of_study(args, "tip_change_stage", "tip_change_scores")(
        args.spec, args.store, args.split, args.weights.parent, args.out
    )


def tip_changes(args: Arguments) -> None:
    """Judge detectors of tip changes against known lines, and against people's labels of scans."""
    spec = args.spec
    scores = {
        (experiment, fold, seed): args.scores / experiment / f"fold{fold}-seed{seed}.parquet"
        for experiment in spec["experiments"]
        for fold in spec["folds"]
        for seed in spec["seeds"]
    }
    _of_study(args, "tip_change_stage", "tip_changes")(
        spec, scores, args.scans, args.store, args.split, args.out
    )


def render(args: Arguments) -> None:
    """Draw the figures of a comparison and write its tables and summary page."""
    from scanbench.render import render

    render(
        args.spec, args.scores, _runs(args), args.scans, args.store, args.split, args.out,
        people=args.agreement,
    )  # fmt: skip


def protocols(args: Arguments) -> None:
    """Put comparisons of the same experiments under several protocols side by side."""
    from scanbench.protocols import side_by_side

    names = [side["comparison"] for side in args.spec["comparisons"]]
    folders = {name: args.results / "comparisons" / name / "scores" for name in names}
    side_by_side(args.spec, folders, args.out)


def attribute(args: Arguments) -> None:
    """Attribute a run's answers about held-out scans to their lines."""
    _of_study(args, "explanation", "attribute")(
        args.spec, args.store, args.split, args.weights.parent, args.out
    )


def explain(args: Arguments) -> None:
    """Put the attributions of an explanation's runs together: what they say and are worth."""
    folders = {
        experiment: [
            args.attributions / experiment / f"fold{fold}-seed{seed}"
            for fold in args.spec["folds"]
            for seed in args.spec["seeds"]
        ]
        for experiment in args.spec["experiments"]
    }
    _of_study(args, "explanation", "explain")(args.spec, folders, args.store, args.scans, args.out)


def anomaly_scores(args: Arguments) -> None:
    """Score how strange held-out scans are to a run from whose training classes were withheld."""
    _of_study(args, "anomaly", "anomaly_scores")(
        args.store, args.split, args.weights.parent, args.out
    )


def anomaly(args: Arguments) -> None:
    """Compare scores of strangeness: how well they tell withheld kinds of scans from known ones."""
    _of_study(args, "anomaly")(args.spec, _runs(args), args.store, args.split, args.out)


def curves(args: Arguments) -> None:
    """Draw a comparison's experiments against a number of theirs, such as their share of labels."""
    from scanbench.curves import draw_curves

    draw_curves(args.spec, args.scores, args.out)


def realism(args: Arguments) -> None:
    """Draw and measure how much simulated scans are like real ones."""
    _of_study(args, "realism")(args.spec, args.real, args.simulated, args.out)


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


def verify(args: Arguments) -> int:
    """Recheck every checksum of a results folder, from the raw files to the figures."""
    from scanbench.verification import delete, verify

    found = verify(args.results)
    for note in found.notes:
        print(f"note: {note}")
    for fault in found.faults:
        print(fault)
    checked = (
        f"{counted(found.files, 'file')} ({found.size / 1e6:,.1f} MB), "
        f"{counted(found.records, 'record')}"
    )
    if found.faults:
        print(f"{args.results}: {counted(len(found.faults), 'fault')} in {checked}")
        if args.delete:
            print(
                f"{args.results}: {counted(delete(args.results, found), 'file')} deleted: run again"
            )
        return 1
    print(f"{args.results}: every checksum holds: {checked}")
    return 0


def trace(args: Arguments) -> None:
    """Show what a result goes back to, step by step down to the raw files."""
    from rich.console import Console

    from scanbench.tracing import trace, tree

    chain = trace(args.file)
    if args.json:
        print(json.dumps(chain.as_json(), indent=1, ensure_ascii=False))
    else:
        # Paths are for copying: the terminal may break lines, the table does not.
        Console(highlight=False, width=WIDE).print(tree(chain, everything=args.files))


def crate(args: Arguments) -> None:
    """Export results, with all that they go back to, as a Workflow Run RO-Crate."""
    from scanbench.crate import NO_LICENCE, export

    count = export(args.path, args.out, args.project, args.license or NO_LICENCE)
    print(f"{args.out}: {counted(count, 'file')} of results with their records")


def store_verify(args: Arguments) -> None:
    """Recheck every checksum and rule of a store."""
    from scanbench.store import verify

    problems = verify(args.store)
    if problems:
        raise UserError("\n".join(f"{args.store}: {problem}" for problem in problems))
    print(f"{args.store}: whole and consistent")


def apply(args: Arguments) -> None:
    """Let a trained run judge a new folder of scans: CSVs, figures and, with labels, metrics."""
    # A run lies in DATASET/SPLIT/EXPERIMENT/foldN-seedN.
    named = [args.folder.resolve().stem, *args.run.resolve().parts[1:][-4:]]
    out = args.out or Path("-".join(named))
    done = _of_study(args, "apply")(
        args.run, args.folder, out, args.labels, args.spec, figures=not args.no_figures
    )
    _print_ingested(done.found, quiet=True)
    for scan, reason in done.left_out.items():
        print(f"left out {scan}: {reason}")
    print(f"scans are resampled to {done.lines} lines; lines_seen counts these")
    if done.seen is None:
        print(
            f"{args.run / 'seen.txt'}: not there: whether the run was trained on these is unknown"
        )
    elif done.seen:
        print(
            f"{done.seen} of {counted(done.judged, 'scan')} had a part in the run's training or "
            "validation: how well it judges them says nothing about new ones"
        )
    if "metrics.csv" in done.files:
        _print_metrics(out / "metrics.csv", done.absent)
    print(f"{out}: {', '.join(done.files)}")


def _print_metrics(path: Path, absent: Sequence[str]) -> None:
    import pandas as pd

    metrics = pd.read_csv(path)
    macro = metrics[(metrics["reading"] == "scan") & metrics["class"].isna()]
    for row in macro.dropna(subset="value").to_dict("records"):
        print(f"{row['metric']:>18} {row['value']:.3f}")
    undefined = macro.loc[macro["value"].isna(), "metric"]
    if len(undefined):
        print(f"not defined without labelled scans of {', '.join(absent)}: {', '.join(undefined)}")


def stream(args: Arguments) -> None:
    """Let a trained run watch a running scan: an answer and advice after every line."""
    from scanbench.tipstate.line_sources import Waiting

    _of_study(args, "stream")(
        args.run,
        args.source,
        args.spec,
        policy=args.policy,
        follow=args.follow,
        view=args.view,
        record=args.record,
        attention=args.attention,
        scan=args.scan,
        lines=args.lines,
        pixels=args.pixels,
        waiting=Waiting(poll_s=args.poll, timeout_s=args.timeout),
    )


def replay(args: Arguments) -> None:
    """Make recorded streams a page that plays them (.html) or an animated image (.webp, .gif)."""
    _of_study(args, "replay")(args.recordings, args.out, args.note)


def export(args: Arguments) -> None:
    """Write one step of a run as ONNX, with its state as inputs and outputs, and a model card."""
    from scanbench.export import export

    export(args.run, args.out, form=args.form, metrics=args.metrics)


def deployment(args: Arguments) -> None:
    """Score an experiment's exported forms beside its runs and their teacher."""
    from scanbench.deployment import deployment

    deployment(args.spec, args.results, args.store, args.split, args.out)


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0 < seconds < 1e6:
        raise argparse.ArgumentTypeError(f"no time in seconds: {text!r}")
    return seconds


def _runs(args: Arguments) -> dict[str, list[Path]]:
    """Give the run folders of each experiment of a comparison."""
    spec = args.spec
    return {
        experiment: [
            args.results
            / plan.RUN.format(
                dataset=spec["dataset"],
                split=spec["split"],
                experiment=experiment,
                fold=fold,
                seed=seed,
            )
            for fold in spec["folds"]
            for seed in spec["seeds"]
        ]
        for experiment in spec["experiments"]
    }


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


def parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command line."""
    top = argparse.ArgumentParser(prog="scanbench", description=__doc__.splitlines()[0])
    top.add_argument("--version", action="version", version=__version__)
    commands = top.add_subparsers(
        required=True, metavar="COMMAND", help="COMMAND --help explains its arguments"
    )

    def command(
        name: str,
        run: Callable[[Arguments], int | None],
        paths: Mapping[str, str],
        spec: bool = True,
    ) -> argparse.ArgumentParser:
        summary = (run.__doc__ or "").splitlines()[0]
        sub = commands.add_parser(name, help=summary, description=summary)
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
        "simulate", simulate, {"out": "folder to write the .sxm files and tables into"}
    )
    fetched = command("fetch", fetch, {"out": "folder to write the images into"}, spec=False)
    fetched.add_argument("--local", type=Path, help="a local clone, instead of downloading")
    read = command(
        "ingest",
        ingest,
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
        convert,
        {"scans": "scans folder, from ingest", "out": "HDF5 store to write"},
    )
    command("copies", copies, {"store": trained_on["store"], "out": "HDF5 store to write"})
    divided = command(
        "split", split, {"store": trained_on["store"], "out": "split file to write (JSON)"}
    )
    divided.add_argument("--split", default="", help="name of the split, for messages")
    for sub in (read, divided):
        sub.add_argument("--dataset", default="", help="name of the data set, for messages")
    trained = command(
        "train",
        train,
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
    settled = command("choose", choose, {"out": "JSON file to write"})
    settled.add_argument("trials", type=Path, nargs="+", help="folders of trials, from train")
    predicted = command(
        "predict",
        predict,
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
    pooled = command("combine", combine, {"out": "table of predictions to write (Parquet)"})
    pooled.add_argument(
        "tables", type=Path, nargs="+", help="the members' tables of predictions, from predict"
    )
    scored = command("evaluate", evaluate, {**trained_on, "out": "folder of scores to write"})
    compared = command(
        "agreement",
        agreement,
        {
            **trained_on,
            "scans": "scans folder, from ingest, with people's scores in its manifest",
            "out": "folder of tables to write",
        },
    )
    line_scored = command(
        "tip-change-scores",
        tip_change_scores,
        {
            **trained_on,
            "weights": "weights.safetensors of a run, from train",
            "out": "table of scores to write (Parquet)",
        },
    )
    detected = command(
        "tip-changes",
        tip_changes,
        {
            **trained_on,
            "scans": "scans folder, from ingest",
            "scores": "folder with EXPERIMENT/foldN-seedN.parquet, from tip-change-scores",
            "out": "folder to write tables and a figure into",
        },
    )
    drawn = command(
        "render",
        render,
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
        "verify", verify, {"results": "folder of results, with records/ in it"}, spec=False
    )
    rechecked.add_argument(
        "--delete",
        action="store_true",
        help="delete all that the jobs at fault wrote, so that the next run makes it anew",
    )
    likened = command(
        "realism",
        realism,
        {
            "real": "store of real scans, from convert",
            "simulated": "store of simulated scans, from convert",
            "out": "folder to write figures and the table into",
        },
    )
    traced = command(
        "trace",
        trace,
        {"file": "figure, table, weights, or any other file or folder of a results folder"},
        spec=False,
    )
    how = traced.add_mutually_exclusive_group()
    how.add_argument("--files", action="store_true", help="list every file, with whole hashes")
    how.add_argument("--json", action="store_true", help="print everything as JSON")
    exported_as = command(
        "crate",
        crate,
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
    beside = command("protocols", protocols, {"out": "folder to write the table and figure into"})
    attributed = command(
        "attribute",
        attribute,
        {
            **trained_on,
            "weights": "weights.safetensors of a run, from train",
            "out": "folder of attributions to write",
        },
    )
    explained = command(
        "explain",
        explain,
        {
            "attributions": "folder with EXPERIMENT/foldN-seedN, from attribute",
            "scans": "scans folder, from ingest",
            "store": trained_on["store"],
            "out": "folder to write tables and figures into",
        },
    )
    strange = command(
        "anomaly-scores",
        anomaly_scores,
        {
            **trained_on,
            "weights": "weights.safetensors of a run with withheld classes, from train",
            "out": "table of scores to write (Parquet)",
        },
        spec=False,
    )
    flagged = command(
        "anomaly", anomaly, {**trained_on, "out": "folder to write tables and figures into"}
    )
    brought = command("deployment", deployment, {**trained_on, "out": "folder to write"})
    for sub in (scored, compared, drawn, beside, flagged, brought, kept):
        sub.add_argument(
            "--results",
            type=Path,
            default=Path("results"),
            help="folder that holds runs/ and comparisons/; default: results",
        )
    command(
        "curves",
        curves,
        {
            "scores": "folder of scores of the comparison, from evaluate",
            "out": "folder to write the tables and the figure into",
        },
    )
    applied = command(
        "apply",
        apply,
        {
            "run": "folder of a trained run, .../DATASET/SPLIT/EXPERIMENT/foldN-seedN",
            "folder": "folder of instrument files, or one .npz or .mat file",
        },
    )
    applied.add_argument("--labels", type=Path, help="table of labels: also write metrics")
    applied.add_argument("--out", type=Path, help="default: FOLDER-DATASET-SPLIT-EXPERIMENT-RUN")
    applied.add_argument("--no-figures", action="store_true", help="draw no figure per scan")
    trained_run = "folder of a trained run, .../DATASET/SPLIT/EXPERIMENT/foldN-seedN"
    watched = command("stream", stream, {"run": trained_run})
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
    replayed = command("replay", replay, {}, spec=False)
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
        "export", export, {"run": trained_run, "out": "ONNX file to write"}, spec=False
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
    stored = commands.add_parser("store", help="Check a store.", description="Check a store.")
    actions = stored.add_subparsers(required=True, metavar="ACTION", help="what to do with it")
    summary = (store_verify.__doc__ or "").splitlines()[0]
    whole = actions.add_parser("verify", help=summary, description=summary)
    whole.add_argument("store", type=Path, help=trained_on["store"])
    whole.set_defaults(run_command=store_verify)
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
            more = "" if args.run_command is stream else "; run again to go on"
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
