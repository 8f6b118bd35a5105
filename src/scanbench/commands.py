"""What the commands do: a thin function for each stage, and for the few that people use by hand.

Stages are imported when their command runs, so that `scanbench --help` is quick.
"""

from __future__ import annotations

import argparse
import importlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scanbench import plan
from scanbench.errors import UserError, counted

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
