"""Models against people on the same footing, and where models err.

How often does a model name a class that a volunteer names, at the volunteers' own rate of naming
it, and how often does a second volunteer? What volunteers named is in `namings`, the ceiling that
noise in their labels sets in `ceiling`.

Shape suffixes: N scans, K columns of the sheet, C classes, S seeds, U units (groups), B weightings
of units.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from tqdm import tqdm

from scanbench import metrics
from scanbench.comparison import Resamples, draw_groups, percentiles
from scanbench.errors import UserError
from scanbench.files import replacing_folder, write_json
from scanbench.metrics import Floats, Ints
from scanbench.parquet import read_parquet
from scanbench.predictions import (
    HeldOut,
    Reading,
    check_same_rows,
    check_table,
    read_experiment,
    scan_reading,
)
from scanbench.tipstate.ceiling import MOST_RESPONSES, Ways, ceilings
from scanbench.tipstate.namings import Namings, completions, masks, namings, prior_of_namings

#: File with a run's predictions of scans without label, beside `predictions.parquet`.
UNLABELLED = "unlabelled.parquet"

SPEC_KEYS = frozenset(
    {
        "bootstrap", "comparison", "confidence", "dataset", "experiments", "folds", "merge", "seed",
        "seeds", "split",
    }
)  # fmt: skip

#: How two columns of a class, each named by one of two volunteers, are read.
READINGS = ("fewest", "most", "likely")


# ---------------------------------------------------------------------------------------------
# People with people


def named_by(own: Namings, reading: str, likely_NC: Floats | None = None) -> tuple[Floats, Floats]:
    """Return how often one, and both, of two volunteers named a class: [N, C] each.

    The first is the number of volunteers that named it (0–2), the second the number of volunteers
    that named it and whose fellow did so (0 or 2); where unknown, by the reading.

    Parameters
    ----------
    own
        Scans with two responses.
    reading
        `fewest`: one volunteer named both of two columns that were named once each; `most`: each
        named one; `likely`: the mean of the two.
    likely_NC
        For `likely`: the chance that both volunteers named the class (`chance_of_both`).
    """
    fewest_NC, most_NC = own.fewest_NC.astype(np.float64), own.most_NC.astype(np.float64)
    if reading == "likely":
        assert likely_NC is not None
        unknown_NC = fewest_NC != most_NC
        both_NC = np.where(unknown_NC, likely_NC, fewest_NC == 2)
        return np.where(unknown_NC, 1 + likely_NC, fewest_NC), 2 * both_NC
    count_NC = fewest_NC if reading == "fewest" else most_NC
    return count_NC, 2.0 * (count_NC == 2)


def chance_of_both(own: Namings, prior: Floats) -> Floats:
    """Return how likely it is that both of two volunteers named each class: [N, C]."""
    mask_C = masks(own.class_K)

    @cache
    def of(count_K: tuple[int, ...]) -> list[float]:
        ways, weight = completions(count_K, 2, prior)
        return [
            float(sum(w for way, w in zip(ways, weight, strict=True) if all(s & m for s in way)))
            for m in mask_C
        ]

    return np.array([of(tuple(row.tolist())) for row in own.count_NK]).reshape(len(own), -1)


def agreement_of_people(
    named_NC: Floats, both_NC: Floats, unit_N: Ints, weight_BU: Floats
) -> Floats:
    """Return P(the second volunteer names a class | the first does): [B, C].

    Both volunteers take the part of the first, so it is symmetric: twice the scans that both named
    over the namings (the positive agreement of Cicchetti & Feinstein, J. Clin. Epidemiol. 43, 551
    (1990)).
    """
    sums_B2C = metrics.weighted_sums(np.stack([both_NC, named_NC], axis=1), unit_N, weight_BU)
    return metrics.ratio(sums_B2C[:, 0], sums_B2C[:, 1])


# ---------------------------------------------------------------------------------------------
# Models with people


def thresholds(p_M: Floats, share_B: Floats, weight_BM: Floats) -> Floats:
    """Return the probability from which a model names a class as often as volunteers do: [B].

    Parameters
    ----------
    p_M
        Probability of the class for the scans that the threshold is found on.
    share_B
        Share of volunteers' responses that name the class.
    weight_BM
        How often each scan counts.
    """
    order = np.argsort(-p_M, kind="stable")
    named_BM = np.cumsum(weight_BM[:, order], axis=1)
    wanted_B = share_B * named_BM[:, -1]
    # Of the two thresholds about the wanted number of scans, the nearer one.
    first_B = (named_BM < wanted_B[:, None]).sum(axis=1).clip(max=len(p_M) - 1)
    rows = np.arange(len(first_B))
    over_B = named_BM[rows, first_B] - wanted_B
    before_B = np.where(first_B > 0, named_BM[rows, first_B - 1], 0)
    back_B = (wanted_B - before_B < over_B) & (first_B > 0)
    return np.asarray(p_M[order][first_B - back_B])


def named_by_model(
    p_NC: Floats, named_NC: Floats, fold_N: Ints, unit_N: Ints, weight_BU: Floats
) -> Iterator[tuple[NDArray[np.intp], Floats]]:
    """Yield the rows of each fold and whether its model names each class: [B, M, C].

    The threshold of a fold's model makes the models of the *other* folds name the class, on their
    own held-out scans, at the rate of the volunteers on those scans. So no answer that is tested
    plays a part in its own threshold, though the other folds' models were trained on this fold's
    scans. Where there is one fold only, the threshold is found on the tested scans themselves.
    """
    folds = np.unique(fold_N)
    for fold in folds:
        mine = np.flatnonzero(fold_N == fold)
        others = np.flatnonzero(fold_N != fold) if len(folds) > 1 else mine
        weight_BM = weight_BU[:, unit_N[others]]
        scans_B1 = weight_BM.sum(axis=1, keepdims=True)
        named_BC = weight_BM @ named_NC[others]
        share_BC = metrics.ratio(named_BC, np.broadcast_to(2 * scans_B1, named_BC.shape))
        named = np.stack(
            [
                p_NC[mine, c] >= thresholds(p_NC[others, c], share_BC[:, c], weight_BM)[:, None]
                for c in range(p_NC.shape[1])
            ],
            axis=2,
        )
        yield mine, named.astype(np.float64)


def agreement_of_model(
    p_NC: Floats, named_NC: Floats, fold_N: Ints, unit_N: Ints, weight_BU: Floats
) -> dict[str, Floats]:
    """Return how a model agrees with volunteers, for many weightings of the units: [B, C] each.

    Returns
    -------
    dict
        `agreement`: P(the model names a class | a volunteer does); `rate`: share of scans for which
        it names the class; `positive`: positive agreement, 2 P(both) / (P(model) + P(volunteer)),
        which a model that names a class more often than people cannot raise by doing so. For two
        people, who name at one rate, the two agreements are one number.
    """
    batches = weight_BU.shape[0]
    found = np.zeros((3, batches, p_NC.shape[1]))
    scans_B = np.zeros(batches)
    for mine, named_BMC in named_by_model(p_NC, named_NC, fold_N, unit_N, weight_BU):
        weight_BM = weight_BU[:, unit_N[mine]]
        found[0] += np.einsum("bm,bmc,mc->bc", weight_BM, named_BMC, named_NC[mine])
        found[1] += weight_BM @ named_NC[mine]
        found[2] += np.einsum("bm,bmc->bc", weight_BM, named_BMC)
        scans_B += weight_BM.sum(axis=1)
    hit_BC, people_BC, model_BC = found
    return {
        "agreement": metrics.ratio(hit_BC, people_BC),
        "rate": model_BC / scans_B[:, None],
        "positive": metrics.ratio(2 * hit_BC, 2 * model_BC + people_BC),
    }


# ---------------------------------------------------------------------------------------------
# Where errors lie


def errors_of(
    reading: Reading, own: Namings, classes: Sequence[str], resamples: Resamples, confidence: float
) -> pd.DataFrame:
    """Return how often a model is wrong, by what is known of the scans: rows of `errors.csv`.

    `by`: `all`; `responses` (1, 2, 3+); `agreement` (of scans with several responses: did all
    volunteers name the same classes); `pair` (label → predicted; the rate is the share of the
    label's scans); `group`. Errors are means over seeds.
    """
    at = _places(own.scan_id_N, reading.scan_id_N)
    assert (at >= 0).all(), "every labelled scan has responses"
    scans = own[at]
    _, unit_N = metrics.units_of(reading.group_N)
    predicted_SN = reading.p_SNC.argmax(axis=2)
    wrong_SN = (predicted_SN != reading.label_N).astype(np.float64)
    count = np.minimum(scans.responses_N, MOST_RESPONSES)
    agree_N = ((scans.fewest_NC == 0) | (scans.fewest_NC == scans.responses_N[:, None])).all(axis=1)
    several_N = scans.responses_N > 1
    everything = np.ones(len(scans), dtype=bool)
    masks: list[tuple[str, str, NDArray[np.bool_], Floats]] = [("all", "", everything, wrong_SN)]
    for r in np.unique(count):
        name = f"{r}+" if r == MOST_RESPONSES else str(r)
        masks.append(("responses", name, count == r, wrong_SN))
    masks.append(("agreement", "all alike", several_N & agree_N, wrong_SN))
    masks.append(("agreement", "not alike", several_N & ~agree_N, wrong_SN))
    for a, b in itertools.permutations(range(len(classes)), 2):
        pair = f"{classes[a]} → {classes[b]}"
        masks.append(("pair", pair, reading.label_N == a, (predicted_SN == b).astype(np.float64)))
    for group in sorted(set(reading.group_N)):
        masks.append(("group", str(group), reading.group_N == group, wrong_SN))
    rows = []
    for by, value, mask_N, hit_SN in masks:
        if not mask_N.any():
            continue
        low = high = math.nan
        if by != "group":
            sums_BX = metrics.weighted_sums(
                np.vstack([hit_SN * mask_N, mask_N]).T, unit_N, resamples.unit_BK
            )
            rate_SB = metrics.ratio(sums_BX[:, :-1].T, np.tile(sums_BX[:, -1], (len(hit_SN), 1)))
            low, high = _interval(rate_SB, resamples.seed_BS, confidence)
        errors = float(hit_SN[:, mask_N].sum(axis=1).mean())
        rows.append(
            {
                "by": by, "value": value, "scans": int(mask_N.sum()), "errors": errors,
                "rate": errors / mask_N.sum(), "low": low, "high": high,
            }
        )  # fmt: skip
    return pd.DataFrame(rows)


def _interval(value_SB: Floats, seed_BS: Floats, confidence: float) -> tuple[float, float]:
    """Interval of the mean over seeds, resampled with the groups."""
    return percentiles((value_SB * seed_BS.T).sum(axis=0) / seed_BS.shape[1], confidence)


# ---------------------------------------------------------------------------------------------
# The stage


def agreement(
    spec: Mapping[str, Any],
    predictions: Mapping[str, Sequence[str | Path]],
    store: str | Path,
    split: str | Path,
    scans: str | Path,
    out: str | Path,
) -> None:
    """Compare the models of a comparison with people, and write the tables of `docs/formats.md`.

    Parameters
    ----------
    spec
        `merge`, `bootstrap`, `confidence`, `seed`; names of the comparison may stand beside them.
    predictions
        Experiment → its run folders, each with `predictions.parquet` and `unlabelled.parquet`.
    store, split
        What was predicted on.
    scans
        Scans folder, with the scores of people in its manifest.
    out
        Folder that is replaced as a whole. The same inputs give the same bytes.

    Raises
    ------
    UserError
        If a key of the spec or a table is wrong or missing, or the data set has no score sheet.
    """
    if odd := sorted(set(spec) - SPEC_KEYS) or sorted(
        {"merge", "bootstrap", "confidence", "seed"} - set(spec)
    ):
        raise UserError(f"agreement: key {odd[0]!r} is unknown or missing: mend the config")
    held_out = HeldOut.load(store, split)
    classes = held_out.classes
    try:
        manifest = pd.read_csv(Path(scans) / "manifest.csv", dtype={"scan_id": str, "group": str})
    except FileNotFoundError:
        raise UserError(f"{scans}: has no manifest.csv; ingest again") from None
    everyone = namings(manifest, spec["merge"], classes)
    prior = prior_of_namings(everyone)
    confidence, seed = float(spec["confidence"]), int(spec["seed"])

    tested: dict[str, Reading] = {}
    complete: dict[str, Reading] = {}
    for name, runs in tqdm(predictions.items(), desc="read predictions", unit="experiment"):
        table = read_experiment(name, runs, classes, held_out)
        more = _read_unlabelled(name, runs, classes, held_out)
        tested[name] = scan_reading(table, classes)
        complete[name] = scan_reading(pd.concat([table, more], ignore_index=True), classes)
    check_same_rows(complete)
    shared = next(iter(complete.values()))

    units = sorted(set(everyone.group_N))
    resamples = draw_groups(
        units=len(units), seeds=len(shared.seeds), count=spec["bootstrap"], seed=seed
    )
    weight_BU = np.vstack([np.ones(len(units)), resamples.unit_BK])
    place = {name: i for i, name in enumerate(units)}

    two = everyone[everyone.responses_N == 2]
    at = _places(shared.scan_id_N, two.scan_id_N)
    known = two[at >= 0]
    people = pd.concat(
        [
            _people(scope, chosen, prior, classes, place, weight_BU, confidence)
            for scope, chosen in (("all", two), ("predicted", known))
        ],
        ignore_index=True,
    )
    pairs = pd.concat(
        [
            _against(name, complete[name], known, prior, classes, place, weight_BU, resamples,
                     confidence)
            for name in tqdm(complete, desc="against people", unit="experiment")
        ],
        ignore_index=True,
    )  # fmt: skip
    ceiling = ceilings(everyone, Ways.of(everyone, prior, units), weight_BU, confidence, seed)
    models = pd.concat(
        [_by_responses(name, tested[name], everyone, place, resamples, confidence)
         for name in tested],
        ignore_index=True,
    )  # fmt: skip
    ceiling = pd.concat([ceiling, models], ignore_index=True)
    ceiling["class"] = [None if pd.isna(c) else classes[int(c)] for c in ceiling["class"]]
    errors = []
    for name, reading in tested.items():
        own_units, _ = metrics.units_of(reading.group_N)
        kept = [place[group] for group in own_units]
        part = Resamples(unit_BK=resamples.unit_BK[:, kept], seed_BS=resamples.seed_BS)
        frame = errors_of(reading, everyone, classes, part, confidence)
        frame.insert(0, "experiment", name)
        errors.append(frame)
    tables = {
        "people": people, "agreement": pairs, "ceiling": ceiling, "errors": pd.concat(errors),
    }  # fmt: skip
    summary = {
        "schema_version": 1,
        "settings": dict(spec),
        "experiments": list(complete),
        "seeds": list(shared.seeds),
        "groups": len(set(known.group_N)),
        "responses": {
            str(r): int((everyone.responses_N == r).sum()) for r in np.unique(everyone.responses_N)
        },
        "scans": {
            "two_responses": len(two),
            "predicted": len(known),
            "predicted_without_label": int((known.label_N < 0).sum()),
            "some_disagreement": int((known.fewest_NC == 1).any(axis=1).sum()),
        },
    }
    with replacing_folder(out, marker="agreement.json") as folder:
        for name, frame in tables.items():
            frame.to_csv(
                folder / f"{name}.csv", index=False, float_format="%.6g", lineterminator="\n"
            )
        write_json(folder / "agreement.json", summary)


def _read_unlabelled(
    name: str, runs: Sequence[str | Path], classes: Sequence[str], held_out: HeldOut
) -> pd.DataFrame:
    """Read the predictions of scans without label, which must be of groups that a fold tests."""
    frames = []
    for run in map(Path, runs):
        path = run / UNLABELLED
        where = f"experiment {name!r}: {path}"
        frame = read_parquet(path, "run predict --unlabelled", where=where)
        if frame.empty:
            continue
        check_table(frame, classes, where)
        unknown_R = ~frame["scan_id"].isin(held_out.scans.index).to_numpy()
        if unknown_R.any():
            raise UserError(
                f"{where}: scan {frame['scan_id'].to_numpy()[unknown_R][0]!r} is not in the store: "
                "predict again"
            )
        truth = held_out.scans.loc[frame["scan_id"]]
        if not ((frame["label"] == -1).to_numpy() & (truth["label"] == -1).to_numpy()).all():
            raise UserError(f"{where}: holds a scan with a label: predict again")
        # What leaks is decided by the store's groups; the table's own could say anything.
        group_R = truth["group"].to_numpy()
        odd_R = frame["group"].to_numpy() != group_R
        if odd_R.any():
            raise UserError(
                f"{where}: scan {frame['scan_id'].to_numpy()[odd_R][0]!r} is of group "
                f"{frame['group'].to_numpy()[odd_R][0]!r}, in the store of {group_R[odd_R][0]!r}: "
                "predict again"
            )
        for fold in map(int, frame["fold"].unique()):
            if not 0 <= fold < len(held_out.folds):
                raise UserError(
                    f"{where}: fold {fold} is not in {held_out.name}, which has "
                    f"{len(held_out.folds)}: predict again"
                )
            parts = held_out.folds[fold]
            used = held_out.scans.loc[sorted(parts["train"] | parts["validation"]), "group"]
            mine = group_R[frame["fold"].to_numpy() == fold]
            if stray := sorted(set(mine) & set(used)):
                raise UserError(
                    f"{where}: group {stray[0]!r} is in training or validation of fold {fold}: "
                    "predictions of it would be leakage; predict again with this split"
                )
        frames.append(frame)
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()


def _people(
    scope: str,
    own: Namings,
    prior: Floats,
    classes: Sequence[str],
    place: Mapping[str, int],
    weight_BU: Floats,
    confidence: float,
) -> pd.DataFrame:
    unit_N = np.array([place[group] for group in own.group_N], dtype=np.int64)
    likely_NC = chance_of_both(own, prior)
    rows = []
    for reading in READINGS:
        named_NC, both_NC = named_by(own, reading, likely_NC)
        found_BC = agreement_of_people(named_NC, both_NC, unit_N, weight_BU)
        for c, value_B in _with_mean(found_BC):
            own_c = slice(None) if c is None else [c]
            low, high = percentiles(value_B[1:], confidence)
            rows.append(
                {
                    "scope": scope, "reading": reading,
                    "class": None if c is None else classes[c],
                    "probability": float(value_B[0]), "low": low, "high": high,
                    "rate": float(named_NC[:, own_c].mean() / 2),
                    "scans": len(own), "groups": len(set(own.group_N)),
                    "both": float(both_NC[:, own_c].sum() / 2),
                    "one": float((named_NC - both_NC)[:, own_c].sum()),
                    "unknown": int((own.fewest_NC != own.most_NC)[:, own_c].sum()),
                }
            )  # fmt: skip
    return pd.DataFrame(rows)


def _with_mean(value_XC: Floats) -> list[tuple[int | None, Floats]]:
    """Give each class's values, and last their mean over classes."""
    by_class: list[tuple[int | None, Floats]] = [
        (c, value_XC[..., c]) for c in range(value_XC.shape[-1])
    ]
    return [*by_class, (None, value_XC.mean(axis=-1))]


def _against(
    name: str,
    reading: Reading,
    two: Namings,
    prior: Floats,
    classes: Sequence[str],
    place: Mapping[str, int],
    weight_BU: Floats,
    resamples: Resamples,
    confidence: float,
) -> pd.DataFrame:
    """Compare one experiment with second volunteers, on the same scans: rows of `agreement.csv`."""
    at = _places(reading.scan_id_N, two.scan_id_N)
    fold_N, p_SNC = reading.fold_N[at], reading.p_SNC[:, at]
    unit_N = np.array([place[group] for group in two.group_N], dtype=np.int64)
    likely_NC = chance_of_both(two, prior)
    rows = []
    for how in READINGS:
        named_NC, both_NC = named_by(two, how, likely_NC)
        people_BC = agreement_of_people(named_NC, both_NC, unit_N, weight_BU)
        models = [agreement_of_model(p_NC, named_NC, fold_N, unit_N, weight_BU) for p_NC in p_SNC]
        model_SBC = {key: np.stack([m[key] for m in models]) for key in models[0]}
        rate_C = named_NC.mean(axis=0) / 2
        of_people = dict(_with_mean(people_BC))
        of_model = {key: dict(_with_mean(value)) for key, value in model_SBC.items()}
        for c, people_B in of_people.items():
            row: dict[str, Any] = {
                "experiment": name, "reading": how, "class": None if c is None else classes[c],
                "people": float(people_B[0]),
            }  # fmt: skip
            row["people_low"], row["people_high"] = percentiles(people_B[1:], confidence)
            for key, prefix in (("agreement", ""), ("positive", "positive_")):
                value_SB = of_model[key][c]
                column = prefix + "model" if prefix else "model"
                row[column] = float(value_SB[:, 0].mean())
                for suffix, series_SB, point in (
                    ("model", value_SB, None),
                    ("difference", value_SB - people_B, row[column] - row["people"]),
                ):
                    if point is not None:
                        row[prefix + suffix] = point
                    row[f"{prefix}{suffix}_low"], row[f"{prefix}{suffix}_high"] = _interval(
                        series_SB[:, 1:], resamples.seed_BS, confidence
                    )
            row["people_rate"] = float(rate_C.mean() if c is None else rate_C[c])
            row["model_rate"] = float(of_model["rate"][c][:, 0].mean())
            row |= {
                "seeds": len(p_SNC), "groups": len(set(two.group_N)), "scans": len(two),
                "unlabelled": int((two.label_N < 0).sum()),
            }  # fmt: skip
            rows.append(row)
    return pd.DataFrame(rows)


def _by_responses(
    name: str,
    reading: Reading,
    own: Namings,
    place: Mapping[str, int],
    resamples: Resamples,
    confidence: float,
) -> pd.DataFrame:
    """Score an experiment on labels of one, two and more volunteers: rows of `ceiling.csv`."""
    at = _places(own.scan_id_N, reading.scan_id_N)
    count_N = np.minimum(own.responses_N[at], MOST_RESPONSES)
    unit_N = np.array([place[group] for group in reading.group_N], dtype=np.int64)
    weight_BU = np.vstack([np.ones(len(place)), resamples.unit_BK])
    labels = {None: "as tested", 1: "one volunteer", 2: "two volunteers", 3: "three or more"}
    rows = []
    for responses in labels:
        kept = np.ones(len(count_N), dtype=bool) if responses is None else count_N == responses
        if len(np.unique(reading.label_N[kept])) < reading.p_SNC.shape[2]:
            continue
        found = metrics.metric_values(
            reading.p_SNC[:, kept], reading.label_N[kept], unit_N[kept], reading.fold_N[kept],
            weight_BU, 1,
        )  # fmt: skip
        for (metric, c), value_SB in found.items():
            if metric not in ("accuracy", "balanced_accuracy", "auroc", "recall"):
                continue
            low, high = _interval(value_SB[:, 1:], resamples.seed_BS, confidence)
            rows.append(
                {
                    "reader": name, "labels": labels[responses],
                    "metric": metric, "class": c, "value": float(value_SB[:, 0].mean()),
                    "low": low, "high": high, "scans": int(kept.sum()),
                }
            )  # fmt: skip
    return pd.DataFrame(rows)


def _places(of: NDArray[np.object_], wanted: NDArray[np.object_]) -> Ints:
    """Return where each wanted scan stands; −1 where it does not."""
    place = {name: i for i, name in enumerate(of)}
    return np.array([place.get(name, -1) for name in wanted], dtype=np.int64)
