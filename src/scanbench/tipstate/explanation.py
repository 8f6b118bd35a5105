"""Explanations and what they are worth: the stages that attribute answers to lines and check them.

`attribute` explains one run on scans that it never saw; `explain` puts the runs of an explanation
together. Two checks, on scans of the run's test part that were measured to their end:

localisation
    On simulated scans whose tip changes at a known line: is the line with the largest attribution
    for the scan's label within a few lines of the change?
faithfulness
    On scans drawn at random: does the probability of the predicted class fall soon if lines are
    deleted in the order of their attribution, and rise soon if they are put in?

Shape suffixes: N scans, B scans of a block, L scan lines, P pixels of a line, C classes, S seeds,
M methods or orders of lines.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from scanbench import comparison, metrics, plotting, provenance
from scanbench.comparison import Resamples
from scanbench.errors import UserError
from scanbench.files import replacing, replacing_folder, write_json
from scanbench.parquet import read_parquet
from scanbench.runs import META, WEIGHTS, check_trained_on, load_run
from scanbench.scans import read_manifest
from scanbench.split_file import LEAKY, read_split
from scanbench.store import Store
from scanbench.tipstate.attention import ATTENTION
from scanbench.tipstate.attribution import (
    GRADIENT,
    STEPS,
    ScanAnswer,
    area,
    fillings,
    gradient_attributions,
    line_steps,
    perturbation_curves,
)
from scanbench.tipstate.explanation_figures import (
    Attributed,
    attributed_scans,
    checks,
    perturbation,
)
from scanbench.tipstate.figures import picture

__all__ = ["METHODS", "RANDOM", "Chosen", "attribute", "choose", "explain", "hit_rates"]

#: Lines in a random order: the baseline of all methods.
RANDOM = "random"
#: Every method in the order of tables and figures.
METHODS = (*ATTENTION, *GRADIENT, *STEPS, RANDOM)

LOCALISATION, FAITHFULNESS = "localisation", "faithfulness"

#: Scans that are explained at once.
BLOCK = 8

# ---------------------------------------------------------------------------------------------
# One run


@dataclass(frozen=True)
class Chosen:
    """Which scans of a fold's test part are explained, by their place in the store, rising."""

    localisation: NDArray[np.int64]
    faithfulness: NDArray[np.int64]


def choose(data: Store, split: Mapping[str, Any], fold: int, scans: int, seed: int) -> Chosen:
    """Draw the scans of a fold's test part to explain; the same for every experiment.

    Only scans measured to their end are taken, about which every model has its last answer.

    Parameters
    ----------
    data, split
        The data set and its division.
    fold
        Whose test part.
    scans
        At most so many for each check.
    seed
        Of the draw, together with the fold.

    Raises
    ------
    UserError
        If the split divides scans of a group, so that a run has seen what resembles its test part,
        or if no test scan was measured to its end.
    """
    if split["config"].get("scheme") in LEAKY:
        raise UserError(
            f"explanation: a split of scheme {split['config']['scheme']!r} has scans of one group "
            "on both sides; explain a comparison that holds whole groups out"
        )
    test = np.sort(data.index_of(split["folds"][fold]["test"]))
    test = test[data.n_lines[test] == data.lines]
    if not len(test):
        raise UserError(
            f"{data.path}: no scan of the test part of fold {fold} was measured to its end; "
            "split again, or explain another fold"
        )
    rng = np.random.default_rng([seed, fold])
    changed = test[data.change_line[test] >= 0]
    drawn, drawn_changed = (
        np.sort(rng.permutation(part)[:scans]).astype(np.int64) for part in (test, changed)
    )
    return Chosen(localisation=drawn_changed, faithfulness=drawn)


def attribute(
    spec: Mapping[str, Any],
    store: str | Path,
    split: str | Path,
    run: str | Path,
    out: str | Path,
) -> None:
    """Attribute a run's answers about held-out scans to their lines, and delete and insert lines.

    Parameters
    ----------
    spec
        `scans`, `examples`, `steps` (of the integrated gradients), `points` and `random_orders` (of
        deletion and insertion), `fill`, `seed`.
    store, split
        The data set and its division; only the test part of the run's fold is read.
    run
        Folder of a trained run.
    out
        Folder that is replaced as a whole: `attributions.parquet`, `curves.parquet`, `maps.npz` and
        `attribute.json`. The same inputs give the same bytes on the same machine.

    Raises
    ------
    UserError
        If a file is damaged, the run was trained on another data set or division, or its model
        cannot be explained.
    """
    started = time.time()
    run = Path(run)
    trained = load_run(run)
    meta = trained.meta
    torch.set_num_threads(meta["training"]["num_threads"])
    device = "cuda" if torch.cuda.is_available() else "cpu"
    answer = ScanAnswer(trained).to(device)
    with Store(store) as data:
        document = read_split(split, data)
        check_trained_on(run, meta, data, split)
        chosen = choose(data, document, meta["fold"], spec["scans"], spec["seed"])
        names = {
            "experiment": meta.get("name", meta["model"]),
            **{key: meta[key] for key in ("fold", "seed")},
        }
        parts = {LOCALISATION: chosen.localisation, FAITHFULNESS: chosen.faithfulness}
        shown = _examples(parts, data, spec["examples"])
        blocks = [
            (check, scans[begin : begin + BLOCK])
            for check, scans in parts.items()
            for begin in range(0, len(scans), BLOCK)
        ]
        title = f"attribute {names['experiment']} fold {meta['fold']} seed {meta['seed']}"
        attributions, curves, examples = [], [], []
        for check, block in tqdm(blocks, desc=title, unit="block"):
            x_BLP = torch.from_numpy(data.read(block, meta["normalisation"])).to(device)
            label_B = torch.from_numpy(data.label[block].astype(np.int64)).to(device)
            explained = _explained(
                answer,
                x_BLP,
                torch.from_numpy(data.read(block, "none")),
                label_B if check == LOCALISATION else None,
                spec["steps"],
            )
            for k, x_LP, found in zip(block.tolist(), x_BLP, explained, strict=True):
                row = {
                    **names,
                    "check": check,
                    "scan_id": str(data.scan_id[k]),
                    "group": str(data.group[k]),
                    "label": data.classes[data.label[k]],
                    "predicted": data.classes[found.predicted],
                    "explained": data.classes[found.target],
                    "p_explained": found.probability,
                    "gap": found.gap,
                    "change_line": int(data.change_line[k]),
                }
                attributions.append(_lines_table(row, found.by_line))
                if check == FAITHFULNESS:
                    curves.append(_curves(row, answer, x_LP, found, k, spec))
                if (check, k) in shown:
                    examples.append({"check": check, "place": k, **found.by_pixel})
        record = provenance.record(
            {**spec, **names},
            inputs={"store": store, "split": split, "weights": run / WEIGHTS, "model": run / META},
            started=started,
            seed=spec["seed"],
            device=torch.cuda.get_device_name() if device == "cuda" else None,
        )
    with replacing_folder(out, marker="attribute.json") as part:
        for name, frames in (("attributions", attributions), ("curves", curves)):
            pd.concat(frames, ignore_index=True).to_parquet(
                part / f"{name}.parquet", compression="zstd", index=False
            )
        # Columns to arrays; text becomes fixed-length Unicode, so that nothing is pickled.
        maps: dict[str, Any] = {
            name: np.array([example[name] for example in examples])
            for name in ("check", "place", *GRADIENT)
        }
        np.savez(part / "maps.npz", **maps)
        write_json(part / "attribute.json", record)


def _examples(
    parts: Mapping[str, NDArray[np.int64]], data: Store, number: int
) -> set[tuple[str, int]]:
    """Choose scans to draw, by place and class and not by what any model says of them.

    Half are tip changes, where there are any; the others are of each class in turn.
    """
    changed = parts[LOCALISATION][: number // 2].tolist()
    others = parts[FAITHFULNESS]
    turn = pd.Series(data.label[others]).groupby(data.label[others]).cumcount().to_numpy()
    others = others[np.lexsort((data.label[others], turn))][: number - len(changed)].tolist()
    return {(LOCALISATION, k) for k in changed} | {(FAITHFULNESS, k) for k in others}


@dataclass(frozen=True)
class _Explained:
    """One scan's answer and its attributions."""

    predicted: int
    target: int
    probability: float
    gap: float
    by_line: dict[str, NDArray[np.float32]]
    by_pixel: dict[str, NDArray[np.float32]]


def _explained(
    answer: ScanAnswer,
    x_BLP: Tensor,
    height_BLP: Tensor,
    target_B: Tensor | None,
    steps: int,
) -> Iterator[_Explained]:
    """Attribute answers about scans by every method; None explains the class predicted in each."""
    log_p_BC = answer.log_probability(x_BLP)
    predicted_B = log_p_BC.argmax(1)
    target_B = predicted_B if target_B is None else target_B
    by_pixel, gap_B = gradient_attributions(answer, x_BLP, target_B, steps)
    by_line = {
        **answer.line_attention(x_BLP),
        **{name: value_BLP.sum(2) for name, value_BLP in by_pixel.items()},
        **dict(zip(STEPS, map(line_steps, (x_BLP, height_BLP)), strict=True)),
    }
    for b in range(len(x_BLP)):
        yield _Explained(
            predicted=int(predicted_B[b]),
            target=int(target_B[b]),
            probability=float(log_p_BC[b, target_B[b]].exp()),
            gap=float(gap_B[b]),
            by_line={name: by_line[name][b].cpu().numpy() for name in METHODS if name in by_line},
            by_pixel={name: value_BLP[b].cpu().numpy() for name, value_BLP in by_pixel.items()},
        )


def _lines_table(
    row: Mapping[str, Any], by_line: Mapping[str, NDArray[np.float32]]
) -> pd.DataFrame:
    value_ML = np.stack(list(by_line.values()))
    methods, lines = value_ML.shape
    return pd.DataFrame(
        {
            **row,
            "method": np.repeat(list(by_line), lines),
            "line": np.tile(np.arange(lines), methods),
            "value": value_ML.ravel(),
        }
    )


def _curves(
    row: Mapping[str, Any],
    answer: ScanAnswer,
    x_LP: Tensor,
    found: _Explained,
    place: int,
    spec: Mapping[str, Any],
) -> pd.DataFrame:
    """Return deletion and insertion curves by method; those of random orders as their mean."""
    # Seeded by the scan, so that every experiment meets the same random orders.
    rng = np.random.default_rng([spec["seed"], place])
    random_ML = rng.permuted(
        np.tile(np.arange(len(x_LP)), (spec["random_orders"], 1)), axis=1
    ).astype(np.int64)
    order_ML = np.argsort(-np.stack(list(found.by_line.values())), axis=1, kind="stable")
    fill_1P = fillings(x_LP[None], spec["fill"])[0]
    both = perturbation_curves(
        answer, x_LP, fill_1P, found.target, np.concatenate([order_ML, random_ML]), spec["points"]
    )
    known, points = len(order_ML), spec["points"] + 1
    deletion, insertion = (
        np.concatenate([curve[:known], curve[known:].mean(axis=0, keepdims=True)]).ravel()
        for curve in both
    )
    return pd.DataFrame(
        {
            **{key: row[key] for key in ("experiment", "fold", "seed", "scan_id", "group")},
            "method": np.repeat([*found.by_line, RANDOM], points),
            "share": np.tile(np.linspace(0, 1, points), known + 1),
            "deletion": deletion,
            "insertion": insertion,
        }
    )


# ---------------------------------------------------------------------------------------------
# All runs together


def explain(
    spec: Mapping[str, Any],
    folders: Mapping[str, Sequence[Path]],
    store: str | Path,
    scans: str | Path,
    out: Path,
) -> None:
    """Score the attributions of all runs of an explanation; write tables and figures.

    Parameters
    ----------
    spec
        What `scanbench.plan.explain_spec` gives.
    folders
        Experiment → the folders that `attribute` wrote for its runs.
    store, scans
        The data set and its scans folder, for the pictures of examples.
    out
        Folder for `localisation.csv`, `faithfulness.csv`, `curves.csv`, the figures `checks` and
        `curves`, `scans/EXPERIMENT.svg`, and `explain.json`.

    Raises
    ------
    UserError
        If a folder is missing or broken, or runs explain different scans.
    """
    started = time.time()
    out.mkdir(parents=True, exist_ok=True)
    hits, areas, curves = [], [], []
    for name, paths in tqdm(folders.items(), desc="explain", unit="experiment"):
        attributions = read_tables(paths, "attributions")
        found = read_tables(paths, "curves")
        hits.append(hit_rates(attributions, spec))
        areas.append(areas_under(found, spec))
        curves.append(
            found.groupby(["method", "share"], sort=False)[["deletion", "insertion"]]
            .mean()
            .reset_index()
        )
        for table in (hits[-1], areas[-1], curves[-1]):
            table.insert(0, "experiment", name)
    joined = {
        "localisation": pd.concat(hits, ignore_index=True),
        "faithfulness": pd.concat(areas, ignore_index=True),
        "curves": pd.concat(curves, ignore_index=True),
    }
    for stem, table in joined.items():
        with replacing(out / f"{stem}.csv") as part:
            table.to_csv(part, index=False, float_format="%.6g", lineterminator="\n")
    names, simulated = list(folders), spec["simulated"]
    sheets = {
        "checks": checks(
            joined["localisation"], joined["faithfulness"], names, spec["tolerance"], simulated
        ),
        "curves": perturbation(joined["curves"], names, simulated),
    }
    for stem, sheet in sheets.items():
        sheet.note(spec["data"])
        plotting.save(sheet, out, stem)
    manifest = read_manifest(scans)
    whole = replacing_folder(out / "scans", marker=".")  # it lies in this stage's own folder
    with whole as part, Store(store) as data:
        for name, paths in folders.items():
            # The first fold's first seed stands for the experiment.
            sheet = attributed_scans(_attributed(paths[0], data, manifest), name, simulated)
            sheet.note(spec["data"])
            plotting.save(sheet, part, name, formats=("svg", "png"))
    inputs = {
        f"{name}/{path.name}": path / "attributions.parquet"
        for name, paths in folders.items()
        for path in paths
    }
    write_json(out / "explain.json", provenance.record(spec, inputs=inputs, started=started))


def _attributed(folder: Path, data: Store, manifest: pd.DataFrame) -> list[Attributed]:
    """Return the examples of a run, with everything that is drawn of them."""
    table = read_tables([folder], "attributions")
    with np.load(folder / "maps.npz", allow_pickle=False) as maps:
        places, found = maps["place"], maps["check"]
        heat_NLP = maps["integrated-gradients"]
    examples = []
    for k, check, heat_LP in zip(places.tolist(), found.tolist(), heat_NLP, strict=True):
        scan_id, change = str(data.scan_id[k]), int(data.change_line[k])
        rows = table[(table["check"] == check) & (table["scan_id"] == scan_id)]
        first = rows.iloc[0]
        examples.append(
            Attributed(
                picture=picture(data, manifest, k),
                label=first["label"],
                predicted=first["predicted"],
                explained=first["explained"],
                heat_LP=heat_LP,
                by_line={
                    str(method): part.sort_values("line")["value"].to_numpy()
                    for method, part in rows.groupby("method")
                },
                change_line=change if change >= 0 else None,
            )
        )
    return examples


def read_tables(folders: Sequence[Path], stem: str) -> pd.DataFrame:
    """Read a table of all runs of an experiment.

    Raises
    ------
    UserError
        If one is missing or is no table, or runs of one fold explain different scans.
    """
    frames = []
    for folder in folders:
        path = folder / f"{stem}.parquet"
        frames.append(read_parquet(path, "attribute the run again"))
    table = pd.concat(frames, ignore_index=True)
    scans = table.groupby("seed")["scan_id"].agg(frozenset)
    if len(set(scans)) > 1:
        raise UserError(
            f"{folders[0].parent}: seeds explain different scans; attribute all runs again"
        )
    return table


def _mean(
    value_SN: NDArray[np.float64], group_N: NDArray[np.object_], spec: Mapping[str, Any]
) -> tuple[float, float, float]:
    """Return the mean over seeds and scans with its interval from resampling groups and seeds."""
    units, unit_N = metrics.units_of(group_N)
    resamples: Resamples = comparison.draw_groups(
        units=len(units), seeds=len(value_SN), count=spec["bootstrap"], seed=spec["seed"]
    )
    drawn_SB = metrics.mean_values(value_SN, unit_N, resamples.unit_BK)
    low, high = comparison.interval(drawn_SB, resamples, spec["confidence"])
    return float(value_SN.mean()), low, high


def _by_seed(table: pd.DataFrame, column: str) -> tuple[NDArray[np.float64], pd.DataFrame]:
    """Return a column as [S, N] and what is known of the N scans, in the order of their names."""
    wide = table.pivot(index="seed", columns="scan_id", values=column)
    known = table.drop_duplicates("scan_id").set_index("scan_id").loc[wide.columns]
    return wide.to_numpy(np.float64), known


def chance_of_hit(change_N: NDArray[np.int64], lines: int, tolerance: int) -> NDArray[np.float64]:
    """Return the exact probability that a line drawn at random is a hit, [N]."""
    first = np.maximum(change_N - tolerance, 0)
    last = np.minimum(change_N + tolerance, lines - 1)
    return (last - first + 1) / lines


def hit_rates(attributions: pd.DataFrame, spec: Mapping[str, Any]) -> pd.DataFrame:
    """Return how often the line with the largest attribution is near a known tip change.

    Parameters
    ----------
    attributions
        `attributions.parquet` of all runs of an experiment.
    spec
        `tolerance`: a hit is at most so many lines off; `bootstrap`, `confidence`, `seed`.

    Returns
    -------
    DataFrame
        `method,scans_of,value,low,high,above_chance,above_chance_low,above_chance_high,seeds,
        groups,scans`, for all scans with a known change and for those that every seed's model
        named right; empty where no change is known. Of `random` the value is exact.
    """
    rows = []
    table = attributions[attributions["check"] == LOCALISATION]
    right = table.assign(right=table["predicted"] == table["label"]).groupby("scan_id")["right"]
    always_right = right.all()
    for scans_of in ("all", "right"):
        part = table
        if scans_of == "right":
            part = table[table["scan_id"].map(always_right).astype(bool)]
        if part.empty:
            continue
        lines = int(part["line"].max()) + 1
        largest = part.loc[part.groupby(["method", "seed", "scan_id"])["value"].idxmax()]
        off = (largest["line"] - largest["change_line"]).abs()
        largest = largest.assign(hit=(off <= spec["tolerance"]).astype(float))
        for method in METHODS:
            if method == RANDOM:
                hit_SN, known = _by_seed(largest[largest["method"] == STEPS[0]], "hit")
            elif method in set(largest["method"]):
                hit_SN, known = _by_seed(largest[largest["method"] == method], "hit")
            else:
                continue
            chance_N = chance_of_hit(known["change_line"].to_numpy(), lines, spec["tolerance"])
            if method == RANDOM:
                hit_SN = np.broadcast_to(chance_N, hit_SN.shape)
            group_N = known["group"].to_numpy(object)
            rows.append(
                {
                    "method": method,
                    "scans_of": scans_of,
                    **_named("", _mean(hit_SN, group_N, spec)),
                    **_named("above_chance", _mean(hit_SN - chance_N, group_N, spec)),
                    **_counts(hit_SN, known),
                }
            )
    columns = [
        *("method", "scans_of", "value", "low", "high"),
        *("above_chance", "above_chance_low", "above_chance_high", "seeds", "groups", "scans"),
    ]
    return pd.DataFrame(rows, columns=columns)


def areas_under(curves: pd.DataFrame, spec: Mapping[str, Any]) -> pd.DataFrame:
    """Return the areas under the deletion and insertion curves, and how far from random orders'.

    Parameters
    ----------
    curves
        `curves.parquet` of all runs of an experiment.
    spec
        `bootstrap`, `confidence`, `seed`.

    Returns
    -------
    DataFrame
        `method,metric,value,low,high,difference,difference_low,difference_high,seeds,groups,
        scans`; the difference is from the mean of random orders on the same scans.
    """
    wide = {
        metric: curves.pivot(
            index=["method", "seed", "scan_id"], columns="share", values=metric
        ).sort_index(axis=1)
        for metric in ("deletion", "insertion")
    }
    groups = curves.drop_duplicates("scan_id")[["scan_id", "group"]]
    rows = []
    for metric, table in wide.items():
        areas = pd.Series(area(table.to_numpy(np.float64)), index=table.index, name="area")
        flat = areas.reset_index().merge(groups, on="scan_id")
        by_method = {
            method: _by_seed(flat[flat["method"] == method], "area")
            for method in METHODS
            if method in set(flat["method"])
        }
        random_SN, known = by_method[RANDOM]
        group_N = known["group"].to_numpy(object)
        for method, (area_SN, _) in by_method.items():
            rows.append(
                {
                    "method": method,
                    "metric": metric,
                    **_named("", _mean(area_SN, group_N, spec)),
                    **_named("difference", _mean(area_SN - random_SN, group_N, spec)),
                    **_counts(area_SN, known),
                }
            )
    return pd.DataFrame(rows)


def _named(name: str, found: tuple[float, float, float]) -> dict[str, float]:
    keys = (name, f"{name}_low", f"{name}_high") if name else ("value", "low", "high")
    return dict(zip(keys, found, strict=True))


def _counts(value_SN: NDArray[np.float64], known: pd.DataFrame) -> dict[str, int]:
    seeds, scans = value_SN.shape
    return {"seeds": seeds, "groups": known["group"].nunique(), "scans": scans}
