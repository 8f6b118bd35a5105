"""The render stage: tables in, figures, tables for people and one offline page out.

Everything shown is drawn from files of the stages before (docs/formats.md); nothing is computed
here that could be a result. `render.json`, written last, names for each figure the files it was
made from with their SHA-256.
"""

from __future__ import annotations

import importlib
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd
from tqdm import tqdm

from scanbench import STUDIES, comparison_figures, plotting, provenance, summary, tables
from scanbench.comparison_figures import History
from scanbench.errors import UserError
from scanbench.files import read_json, replacing, write_json
from scanbench.parquet import read_parquet
from scanbench.plotting import Sheet
from scanbench.policy import read_policy
from scanbench.runs import WEIGHTS
from scanbench.scores import TABLE_COLUMNS, read_csv, read_scores
from scanbench.split_file import LEAKY
from scanbench.store import Store

__all__ = ["Drawing", "Material", "render"]

SPEC_KEYS = (
    "attribution", "comparison", "dataset", "dataset_title", "experiments", "folds", "members",
    "scheme", "seeds", "simulated", "split", "title",
)  # fmt: skip

AGAIN = "run the stage before again"
RUN_FILES = ("history.csv", "model.json", "train.json", "predictions.parquet", WEIGHTS)

PEOPLE_COLUMNS = {
    "people": "scope reading class probability low high rate scans both one unknown",
    "agreement": "experiment reading class people model difference difference_low difference_high",
    "ceiling": "reader labels metric class value low high scans",
    "errors": "experiment by value scans errors rate low high",
}
HISTORY_COLUMNS = "epoch train_loss train_accuracy val_loss val_accuracy"
MANIFEST_COLUMNS = (
    "scan_id group lines pixels planned_lines width_m height_m slow_direction label excluded"
)


@dataclass(frozen=True, kw_only=True)
class Material:
    """All that can be shown of a comparison, read once.

    Attributes
    ----------
    spec
        What `scanbench.plan.render_spec` gives.
    classes
        Class names, in the order of the store.
    scores
        Name of a table of the evaluate stage → the table.
    evaluation, policy
        `evaluate.json` and `policy.json`.
    runs
        Experiment → its run folders.
    histories
        Experiment → the course of each run.
    costs
        `experiment` and the columns of `tables.COSTS`, means over the runs.
    searches
        Experiment → of each run, what `tuning.choose` wrote; None where nothing was tuned.
    manifest, rejected
        Tables of ingest.
    split
        `split.json`.
    store
        The scans.
    people
        Name of a table of the agreement stage → the table; empty where people are not known.
    """

    spec: Mapping[str, Any]
    classes: Sequence[str]
    scores: Mapping[str, pd.DataFrame]
    evaluation: Mapping[str, Any]
    policy: Mapping[str, Any]
    runs: Mapping[str, Sequence[Path]]
    histories: Mapping[str, Sequence[History]]
    costs: pd.DataFrame
    searches: Mapping[str, Sequence[Mapping[str, Any] | None]]
    manifest: pd.DataFrame
    rejected: pd.DataFrame
    split: Mapping[str, Any]
    store: Store
    people: Mapping[str, pd.DataFrame] = field(default_factory=dict)

    @property
    def experiments(self) -> list[str]:
        """Names of the experiments, in the order of the configuration."""
        return list(self.spec["experiments"])

    def predictions(self, experiment: str) -> pd.DataFrame:
        """Return the held-out predictions of all runs of an experiment."""
        known = ["scan_id", "fold", "seed", "first_line", "lines_seen"]
        columns = [*known, *(f"p_{c}" for c in self.classes)]
        frames = [
            read_parquet(run / "predictions.parquet", AGAIN, columns=columns)
            for run in self.runs[experiment]
        ]
        return pd.concat(frames, ignore_index=True)


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """A figure with what must be said about it.

    Attributes
    ----------
    name
        File name without suffix.
    title, caption
        Plain text.
    figure
        What was drawn.
    inputs
        Names of the files it was made from, as `render.json` lists them.
    """

    name: str
    title: str
    caption: str
    figure: Sheet
    inputs: Sequence[str]


def render(
    spec: Mapping[str, Any],
    scores: str | Path,
    runs: Mapping[str, Sequence[str | Path]],
    scans: str | Path,
    store: str | Path,
    split: str | Path,
    out: str | Path,
    people: str | Path | None = None,
) -> None:
    """Draw a comparison's figures and write its tables and its summary page.

    Parameters
    ----------
    spec
        What `scanbench.plan.render_spec` gives.
    scores
        Folder that evaluate wrote.
    runs
        Experiment → its run folders.
    scans
        Folder that ingest wrote.
    store, split
        What was trained and tested on.
    out
        Folder for `figures/NAME.{svg,pdf,png}`, `tables/NAME.{csv,md,tex}`, `summary.html`,
        `replay.html` and `render.json`. The same inputs give the same bytes, but for the times in
        `render.json`.
    people
        Folder that agreement wrote, if the data set tells what people named.

    Raises
    ------
    UserError
        If a file is missing or has not the columns it should have.
    """
    started = time.time()
    out = Path(out)
    if odd := sorted(set(SPEC_KEYS) ^ set(spec)):
        raise UserError(
            f"render: key {odd[0]!r} is missing or unknown in the spec: mend the config"
        )
    folders = {name: [Path(run) for run in paths] for name, paths in runs.items()}
    # The page must not outlive a failed run as if it were whole: its record is written last.
    (out / "render.json").unlink(missing_ok=True)
    with Store(store) as opened:
        material = _read(spec, Path(scores), folders, Path(scans), opened, Path(split))
        if people is not None:
            tables_of_people = {
                n: read_csv(Path(people) / f"{n}.csv", columns)
                for n, columns in PEOPLE_COLUMNS.items()
            }
            material = replace(material, people=tables_of_people)
        figures, replay = (_of_study(opened.study, name) for name in ("figures", "replay_page"))
        drawings = [*figures.drawings(material), *_drawings(material)]
        replays, seen = replay.of_material(material)
    files = _input_files(Path(scores), folders, Path(scans), Path(store), Path(split))
    if people is not None:
        files |= {f"agreement/{n}.csv": Path(people) / f"{n}.csv" for n in PEOPLE_COLUMNS}
    used = {"scores/evaluate.json", "split.json", *seen}.union(*(d.inputs for d in drawings))
    record = provenance.record(spec, inputs={n: files[n] for n in sorted(used)}, started=started)

    note = ("Simulated data: " if spec["simulated"] else "Data: ") + spec["dataset_title"]
    if spec["attribution"]:
        note += f". {spec['attribution']}"
    if spec["scheme"] in LEAKY:
        note += ". Leaky split: says nothing about groups never seen"
    svgs = {}
    for drawing in tqdm(drawings, desc="draw figures", unit="figure"):
        drawing.figure.note(note)
        svgs[drawing.name] = plotting.save(drawing.figure, out / "figures", drawing.name)["svg"]
    shown = _tables(material)
    for table in shown.values():
        tables.write(table, out / "tables")
    page = summary.page(
        material, drawings, {n: p.read_bytes() for n, p in svgs.items()}, shown, record
    )
    made = {d.name: {n: record["inputs"][n] for n in d.inputs} for d in drawings}
    # The scans that are replayed are those of this figure.
    replayed = {**made["examples"], **{name: record["inputs"][name] for name in seen}}
    for name, text in {
        "summary.html": page,
        "replay.html": replay.material_page(material, replays, replayed, record),
    }.items():
        with replacing(out / name) as part:
            part.write_text(text, encoding="utf-8", newline="\n")
    record = {**record, "figures": made, "pages": {"replay.html": replayed}}
    write_json(out / "render.json", record)


def _of_study(study: str, module: str) -> Any:
    """Import a module of a study; its name comes from the store, so it is checked."""
    if study not in STUDIES:
        raise UserError(f"render: the store is of study {study!r}; known: {', '.join(STUDIES)}")
    return importlib.import_module(f"scanbench.{study}.{module}")


# ----------------------------------------------------------------------------------------- reading


def _read(
    spec: Mapping[str, Any],
    scores: Path,
    runs: Mapping[str, Sequence[Path]],
    scans: Path,
    store: Store,
    split: Path,
) -> Material:
    frames = {name: read_scores(scores, name) for name in TABLE_COLUMNS}
    for name in spec["experiments"]:
        if name not in set(frames["metrics"]["experiment"]):
            raise UserError(f"{scores / 'metrics.csv'}: no rows of {name!r}: evaluate again")
    histories: dict[str, list[History]] = {}
    searches: dict[str, list[dict[str, Any] | None]] = {}
    costs = []
    for name in spec["experiments"]:
        members = spec["members"][name]
        trained = [[_trained(_of_member(run, m)) for m in members] for run in runs[name]]
        # An ensemble is not trained itself: it costs what its members cost.
        alone = [run for (run, *others) in trained if not others]
        histories[name] = [run.history for run in alone]
        searches[name] = [run.search for run in alone]
        spent = [_together([part.costs for part in parts]) for parts in trained]
        costs.append({"experiment": name, **pd.DataFrame(spent).mean()})
    return Material(
        spec=spec,
        classes=store.classes,
        scores=frames,
        evaluation=read_json(scores / "evaluate.json", AGAIN),
        policy=read_policy(scores / "policy.json"),
        runs=runs,
        histories=histories,
        costs=pd.DataFrame(costs),
        searches=searches,
        manifest=read_csv(scans / "manifest.csv", MANIFEST_COLUMNS),
        rejected=read_csv(scans / "rejected.csv", "file reason"),
        split=read_json(split, AGAIN),
        store=store,
    )


@dataclass(frozen=True, kw_only=True)
class _Trained:
    """What the files of a run tell: its course, what it cost, how its setting was chosen."""

    history: History
    costs: Mapping[str, float]
    search: dict[str, Any] | None


def _trained(run: Path) -> _Trained:
    model, train, predict = (
        read_json(run / f"{stage}.json", AGAIN) for stage in ("model", "train", "predict")
    )
    return _Trained(
        history=History(
            fold=int(train["config"]["fold"]),
            seed=int(train["config"]["seed"]),
            frame=read_csv(run / "history.csv", HISTORY_COLUMNS),
            best_epoch=model.get("best_epoch"),
        ),
        costs={
            "parameters": model["parameters"],
            "operations": model.get("operations", math.nan),  # not in older runs
            "cpu_seconds": train["cpu_seconds"],
            "peak_memory_mb": train.get("peak_memory_mb", math.nan),
            "predict_cpu_seconds": predict["cpu_seconds"],
            "search_cpu_seconds": train.get("search_cpu_seconds", 0.0),
        },
        search=model.get("tuning"),
    )


def _together(costs: Sequence[Mapping[str, float]]) -> pd.Series:
    """Return what members cost together: sums, but for memory, as they run one after another."""
    each = pd.DataFrame(costs)
    return each.sum(min_count=1).where(each.columns != "peak_memory_mb", each.max())


def _of_member(run: Path, member: str) -> Path:
    """Return the folder of a member's run of the same fold and seed."""
    return run.parent.with_name(member) / run.name


def _input_files(
    scores: Path, runs: Mapping[str, Sequence[Path]], scans: Path, store: Path, split: Path
) -> dict[str, Path]:
    """Name every input file without the folders of this machine."""
    files = {f"scores/{n}.csv": scores / f"{n}.csv" for n in TABLE_COLUMNS}
    files |= {f"scores/{name}": scores / name for name in ("evaluate.json", "policy.json")}
    for name in ("manifest.csv", "rejected.csv"):
        files[f"scans/{name}"] = scans / name
    files["store.h5"], files["split.json"] = store, split
    for experiment, folders in runs.items():
        for run in folders:
            for name in RUN_FILES:
                files[f"{experiment}/{run.name}/{name}"] = run / name
    return files


# ----------------------------------------------------------------------------------------- showing


def _tables(material: Material) -> dict[str, tables.ResultTable]:
    metrics, progress = material.scores["metrics"], material.scores["progress"]
    simulated = material.spec["simulated"]
    made = [
        tables.main_table(
            metrics,
            material.costs,
            material.evaluation.get("windows", {}),
            simulated=simulated,
            leaky=material.spec["scheme"] in LEAKY,
            confidence=_confidence(material),
        ),
        tables.class_table(metrics, material.experiments, material.classes),
        tables.progress_table(metrics, progress, material.experiments, simulated=simulated),
        tables.settled_table(
            metrics, progress, material.experiments, within=_within(material), simulated=simulated
        ),
        tables.stop_table(
            material.scores["stops"],
            _stopped(material),
            folds=len(material.evaluation["folds"]),
            simulated=simulated,
        ),
        tables.cost_table(material.costs),
        tables.pair_table(material.scores["pairs"]),
        tables.exclusion_table(material.manifest, material.rejected, material.split),
        tables.part_table(material.split["counts"], material.classes),
        tables.audit_table(material.split["audit"]),
    ]
    if any(any(found) for found in material.searches.values()):
        made.append(tables.search_table(material.searches, material.costs))
    if material.people:
        made += [
            tables.people_table(material.people["agreement"]),
            tables.ceiling_table(material.people["ceiling"]),
            tables.error_table(material.people["errors"]),
        ]
    return {table.name: table for table in made}


def _confidence(material: Material) -> float:
    return float(material.evaluation["settings"]["confidence"])


def _stopped(material: Material) -> list[str]:
    """Return the classes for which a scan is stopped."""
    wanted = material.evaluation["settings"].get("stop_classes", ())
    return [name for name in material.classes if name in wanted]


def _within(material: Material) -> float:
    return float(material.evaluation["settings"]["settled_within"])


def _drawings(material: Material) -> list[Drawing]:
    """Draw what every study shows."""
    scores, names, classes = material.scores, material.experiments, material.classes
    chance = {"auroc": 0.5, "balanced_accuracy": 1 / len(classes)}
    level = f"{_confidence(material):.0%}"
    baseline = material.evaluation["settings"].get("baseline")
    folds = len(material.evaluation["folds"])
    within = _within(material)
    settled = tables.settled_early(scores["progress"], names, within)
    close = (
        f"at most {within:g} below that of the last answer, by the lower end of the interval of "
        "the paired difference"
    )
    histories = [
        f"{name}/{run.name}/{file}"
        for name in names
        if material.histories[name]
        for run in material.runs[name]
        for file in ("history.csv", "model.json")
    ]
    return [
        Drawing(
            name="lines",
            title="How good, and how soon",
            caption="Metrics of the latest answer that each scan had when n of its lines were "
            f"measured: mean over seeds, with the {level} interval from resampling groups and "
            "seeds (below). An experiment with one point answers only when the scan is over. "
            "Dotted: guessing. "
            + (
                f"Vertical: from here on the AUROC lies {close}."
                if settled
                else f"Before the end of the scan no AUROC is settled ({close})."
            ),
            figure=comparison_figures.by_lines(scores["metrics"], names, chance, settled),
            inputs=["scores/metrics.csv", "scores/progress.csv"],
        ),
        Drawing(
            name="stopping",
            title="What stopping early saves",
            caption="A rule stops a scan once the probability of the bad classes has reached a "
            "threshold in so many answers in a row. Curves: the best that any threshold and any "
            "patience could do on these scans, with hindsight (all seeds). Markers: rules chosen, "
            f"for a wanted share of good scans stopped, on {tables.rules_chosen_on(folds)}, with "
            f"the {level} interval from resampling groups and seeds. Right: the lines of bad scans "
            "that these saved, as a share of the lines of all scans.",
            figure=comparison_figures.trade_offs(
                scores["stopping"],
                scores["stops"],
                names,
                _stopped(material),
            ),
            inputs=["scores/stopping.csv", "scores/stops.csv"],
        ),
        Drawing(
            name="differences",
            title="Differences between experiments",
            caption=f"Difference of seed means with its {level} interval (paired bootstrap over "
            "groups and seeds), on whole scans. p: permutation that swaps the two experiments "
            "group by group, after Holm's correction over the pairs shown; filled: p < 0.05. "
            + (
                f"Each experiment is compared with {baseline} only."
                if baseline
                else "Each pair is written so that its first difference is positive."
            ),
            figure=comparison_figures.differences(scores["pairs"], names, baseline),
            inputs=["scores/pairs.csv"],
        ),
        Drawing(
            name="groups",
            title="Each held-out group on its own",
            caption="One dot is one group that was left out of training (area: number of its "
            "scans; mean over seeds); black: the median group; dotted: guessing. Within a group "
            "the mean is over the classes that it holds.",
            figure=comparison_figures.group_dots(scores["groups"], names, chance),
            inputs=["scores/groups.csv"],
        ),
        Drawing(
            name="roc",
            title="ROC of each class against the rest",
            caption="Last answer of each scan. Bold: mean over seeds of the true-positive rate at "
            "each false-positive rate; thin: the seeds (where at most four experiments are "
            "compared). With several folds, a seed's curve is the mean of its folds' curves, "
            "weighted by their pairs of scans, so the area under it is the AUROC of the table.",
            figure=comparison_figures.roc_curves(scores["roc"], names, classes),
            inputs=["scores/roc.csv"],
        ),
        Drawing(
            name="confusion",
            title="Confusion of classes",
            caption="Last answer of each scan: share of the true class (each row is 100 %) and, "
            "below it, the number of scans summed over seeds.",
            figure=comparison_figures.confusion_matrices(scores["confusion"], names, classes),
            inputs=["scores/confusion.csv"],
        ),
        Drawing(
            name="calibration",
            title="Calibration",
            caption="How often predictions of some confidence are right, in bins of confidence; "
            "area of a point: its share of all predictions, also shown as columns. ECE: expected "
            f"calibration error with its {level} interval.",
            figure=comparison_figures.reliability(scores["calibration"], scores["metrics"], names),
            inputs=["scores/calibration.csv", "scores/metrics.csv"],
        ),
        Drawing(
            name="learning",
            title="Learning curves",
            caption="Every run (fold and seed) is a curve. Ring: the epoch whose weights were "
            "kept, chosen on validation groups. Grey: gap between training and validation "
            "accuracy (mean over runs); the number is its mean at the kept epochs. Training "
            "accuracy is a running mean over the epoch, under augmentation and dropout; validation "
            "accuracy has neither, so the gap may be negative and is no measure of overfitting "
            "by itself.",
            figure=comparison_figures.learning_curves(material.histories, names),
            inputs=histories,
        ),
    ]
