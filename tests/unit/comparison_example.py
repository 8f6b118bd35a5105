"""A small made-up comparison with every file that the render stage reads.

The numbers come from normal scores with a chosen separation, so that the tables hang together; no
model is trained and nothing here is a result.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd

from scanbench.policy import policy_document

CLASSES = ("atoms", "asymmetry/dimer", "rows", "defect")
LINES = 32
#: Of tables that may have no rows.
COLUMNS = {
    "pairs": ["experiment_a", "experiment_b", "reading", "metric", "difference", "low", "high", "p",
              "p_holm", "seeds", "groups", "scans"],
    "progress": ["experiment", "metric", "lines", "difference", "low", "high"],
    "stopping": ["experiment", "patience", "threshold", "wrong_stops", "saved", "lines_spent"],
    "stops": ["experiment", "limit", "figure", "value", "low", "high"],
}  # fmt: skip
GROUP_METRICS = ("auroc", "balanced_accuracy", "accuracy")
NAMES = ("majority", "cnn-scan", "lrcn-w20", "causal-full")
LONG_NAMES = (
    *NAMES, "features", "vit", "vit-prefix-layers-6-no-normalisation",
    "causal-d512-dropout-0.20-decay-0.1", "vit-prefix-layers-6-with-class-weights",
    "causal-tokenizer-5x7-max-pooling",
)  # fmt: skip


def _answers(name: str) -> list[int]:
    return [LINES] if name in ("majority", "cnn-scan", "features") else [2, 4, 8, 12, 16, 24, LINES]


def _softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def _auroc(positive: np.ndarray, negative: np.ndarray) -> float:
    return float((positive[:, None] > negative).mean() + (positive[:, None] == negative).mean() / 2)


def _scores(p: np.ndarray, label: np.ndarray) -> dict[tuple[str, str], float]:
    predicted = p.argmax(axis=1)
    out: dict[tuple[str, str], float] = {}
    recalls = []
    for c, name in enumerate(CLASSES):
        mine, other = p[label == c, c], p[label != c, c]
        if len(mine) and len(other):
            out["auroc", name] = _auroc(mine, other)
            recalls.append(float((predicted[label == c] == c).mean()))
            out["balanced_accuracy", name] = out["f1", name] = recalls[-1]
    if len(recalls) >= 2:
        out["auroc", ""] = float(np.mean([v for (m, c), v in out.items() if m == "auroc"]))
        out["balanced_accuracy", ""] = out["f1", ""] = float(np.mean(recalls))
    out["accuracy", ""] = float((predicted == label).mean())
    out["ece", ""] = abs(float(p.max(axis=1).mean()) - out["accuracy", ""])
    return out


def write(
    folder: Path,
    names: Sequence[str] = NAMES,
    *,
    hostile: str | None = None,
    groups: int = 6,
    per_group: int = 20,
    seeds: int = 2,
    images: np.ndarray | None = None,
) -> dict[str, Any]:
    """Write the example below `folder` and return the arguments of `render` except `out`.

    `hostile` becomes the name of every tenth scan and of one group; `images` [n, L, P] replace the
    made-up scans.
    """
    rng = np.random.default_rng(7)
    n = groups * per_group
    label = rng.choice(4, size=n, p=[0.09, 0.44, 0.17, 0.30])
    label[:4] = range(4)
    session = [f"2014-11-{1 + i // per_group:02d}_session" for i in range(n)]
    ids = [f"2014-11-{1 + i // per_group:02d}_094512_0--{i}_1" for i in range(n)]
    if hostile is not None:
        ids[::10] = [f"{hostile}{i}" for i in range(0, n, 10)]
        session[:per_group] = [hostile] * per_group

    scans = folder / "scans"
    scans.mkdir(parents=True)
    measured = np.where(rng.random(n) < 0.1, LINES // 2, LINES)
    manifest = pd.DataFrame(
        {
            "scan_id": ids, "group": session, "file": [f"Images/{i}.png" for i in range(n)],
            "sha256": "0" * 64, "shard": "shard-00000.npz", "key": [f"s{i}" for i in range(n)],
            "lines": np.where(measured < LINES, 150, np.where(rng.random(n) < 0.8, 300, 512)),
            "pixels": 300, "planned_lines": 300, "width_m": 5e-8, "height_m": 5e-8,
            "channel": "Z", "unit": "m", "direction": "forward", "slow_direction": "up",
            "label": [CLASSES[c] for c in label], "excluded": "", "responses": 2,
            "change_line": "",
        }
    )  # fmt: skip
    manifest["planned_lines"] = manifest["lines"].clip(lower=300)
    manifest.loc[manifest.index % 9 == 8, "excluded"] = "tie"
    manifest.loc[manifest.index % 17 == 16, "excluded"] = "below threshold"
    manifest.to_csv(scans / "manifest.csv", index=False)
    (scans / "rejected.csv").write_text("file,reason\na.sxm,truncated\nb.sxm,every pixel is NaN\n")

    y, x = np.mgrid[0:LINES, 0:LINES]
    made = [
        np.sin(2 * np.pi * (x + y / 3) / (4 + 2 * c)) * (c != 3)
        + rng.normal(0, 0.3 + (c == 3), (LINES, LINES))
        for c in label
    ]
    stack = np.asarray(made if images is None else images, "float32")
    store = folder / "store.h5"
    index = np.where(manifest["excluded"] == "", label, -1)
    with h5py.File(store, "w") as file:
        file.attrs.update(
            schema_version=1, study="tipstate", classes=json.dumps(CLASSES), unit="m", complete=1,
            manifest_sha256="0" * 64, inputs="{}", created_by="test", convert="{}",
        )  # fmt: skip
        file["scans"] = stack
        file["n_lines"] = (measured * stack.shape[1] // LINES).astype("int32")
        file["label"] = index.astype("int16")
        file["line_mean"], file["line_std"] = stack.mean(axis=2), stack.std(axis=2)
        file["scan_mean"], file["scan_std"] = stack.mean(axis=(1, 2)), stack.std(axis=(1, 2))
        file["change_line"] = np.full(n, -1, "int32")
        for key, values in {
            "scan_id": ids, "group": session, "file_sha256": ["0" * 64] * n,
            "scan_sha256": ["0" * 64] * n, "excluded": list(manifest["excluded"]),
        }.items():  # fmt: skip
            file[key] = np.array([value.encode() for value in values])

    used = np.flatnonzero(index >= 0)
    split = folder / "split.json"
    shares = {c: int((label == k).sum()) for k, c in enumerate(CLASSES)}
    split.write_text(
        json.dumps(
            {
                "schema_version": 1, "store_sha256": "0" * 64, "seed": 0, "classes": CLASSES,
                "config": {"scheme": "kfold", "folds": 1},
                "folds": [{"train": [], "validation": [], "test": [ids[i] for i in used]}],
                "audit": [
                    {"fold": 0, "parts": "train/test", "shared_files": 0,
                     "shared_groups": [], "exact_duplicates": 0, "near_duplicates": 1,
                     "examples": [[ids[0], ids[1], 0.97]]}
                ],
                "counts": [
                    {"fold": 0, "part": part, "groups": groups, "scans": len(used), **shares}
                    for part in ("train", "validation", "test")
                ],
            }
        )
    )  # fmt: skip

    metrics, roc, confusion, calibration, by_group, examples = [], [], [], [], [], []
    runs = []
    latent = rng.normal(size=(n, 4))
    skill = {name: 0.0 if name == "majority" else 1.2 + 0.25 * k for k, name in enumerate(names)}
    for name in names:
        p_final: list[np.ndarray] = []
        for seed in range(seeds):
            run = folder / "runs" / name / f"fold0-seed{seed}"
            run.mkdir(parents=True)
            runs.append(run)
            table = []
            noise = 0.6 * rng.normal(size=(n, 4))
            for seen in _answers(name):
                strength = skill[name] * (1 - np.exp(-3 * seen / LINES))
                p = _softmax(strength * 2 * np.eye(4)[label] + latent + noise)
                if name == "majority":
                    p = np.tile([0.09, 0.44, 0.17, 0.30], (n, 1))
                table.append(
                    pd.DataFrame(
                        {"scan_id": ids, "group": session, "label": label, "fold": 0, "seed": seed,
                         "first_line": 0, "lines_seen": seen, "final": seen == LINES,
                         **{f"p_{c}": p[:, k] for k, c in enumerate(CLASSES)}}
                    ).iloc[used]
                )  # fmt: skip
            p_final.append(p[used])
            pd.concat(table).to_parquet(run / "predictions.parquet")
            epochs = np.arange(0 if name in ("majority", "features") else 14)
            loss = 1.4 * np.exp(-epochs / 6) + 0.1 * rng.random(len(epochs))
            pd.DataFrame(
                {
                    "epoch": epochs, "step": 40 * (epochs + 1), "lr": 1e-4, "train_loss": loss,
                    "train_accuracy": 1 - loss / 2, "val_loss": 0.3 + 0.8 * loss,
                    "val_accuracy": 0.85 - loss / 2.2, "val_balanced_accuracy": 0.8 - loss / 2.2,
                    "val_auroc": 0.95 - loss / 4, "seconds": 3.5,
                }
            ).to_csv(run / "history.csv", index=False)  # fmt: skip
            best = int(epochs[-4]) if len(epochs) else None
            model = {"model": name, "parameters": 1234567, "operations": 86_000_000}
            model["best_epoch"] = best
            (run / "model.json").write_text(json.dumps(model))
            train = {"config": {"name": name, "fold": 0, "seed": seed}, "cpu_seconds": 61.5}
            train |= {"seconds": 70.2, "seed": seed, "peak_memory_mb": 812.3}
            (run / "train.json").write_text(json.dumps(train))
            (run / "predict.json").write_text(json.dumps({"cpu_seconds": 4.2}))

        truth = label[used]
        mean = np.mean(p_final, axis=0)
        readings = [("scan", "", mean)]
        if name != "majority":
            for seen in _answers(name):
                part = pd.concat(pd.read_parquet(r / "predictions.parquet") for r in runs[-seeds:])
                part = part[part["lines_seen"] == seen].groupby("scan_id", sort=False)
                readings.append(
                    ("lines", str(seen), part[[f"p_{c}" for c in CLASSES]].mean().to_numpy())
                )
        for reading, lines, p in readings:
            for (metric, c), value in _scores(p, truth).items():
                metrics.append(
                    {"experiment": name, "reading": reading, "lines": lines, "metric": metric,
                     "class": c, "value": value, "low": max(0, value - 0.05),
                     "high": min(1, value + 0.04), "seeds": seeds, "groups": groups,
                     "scans": len(used), "rows": len(used) * seeds}
                )  # fmt: skip
        for seed, p in enumerate(p_final):
            for k, c in enumerate(CLASSES):
                for cut in np.unique(np.append(np.quantile(p[:, k], np.linspace(0, 1, 25)), 2)):
                    hit = p[:, k] >= cut
                    roc.append({"experiment": name, "class": c, "seed": seed,
                                "fpr": hit[truth != k].mean(),
                                "tpr": hit[truth == k].mean()})  # fmt: skip
            table = pd.crosstab(truth, p.argmax(axis=1)).reindex(
                index=range(4), columns=range(4), fill_value=0
            )
            for t in range(4):
                for q in range(4):
                    confusion.append({"experiment": name, "seed": seed, "true": CLASSES[t],
                                      "predicted": CLASSES[q],
                                      "count": int(table.loc[t, q])})  # fmt: skip
        top, right = mean.max(axis=1), mean.argmax(axis=1) == truth
        for low in np.arange(0, 1, 0.1):
            inside = (top > low) & (top <= low + 0.1)
            calibration.append(
                {"experiment": name, "bin_low": low, "bin_high": low + 0.1, "count": inside.sum(),
                 "confidence": top[inside].mean() if inside.any() else np.nan,
                 "accuracy": right[inside].mean() if inside.any() else np.nan}
            )  # fmt: skip
        for group in sorted(set(session)):
            mine = np.array([session[i] == group for i in used])
            for (metric, c), value in _scores(mean[mine], truth[mine]).items():
                if not c and metric in GROUP_METRICS:
                    by_group.append({"experiment": name, "group": group, "scans": int(mine.sum()),
                                     "metric": metric, "value": value})  # fmt: skip
        for kind in ("right", "wrong"):
            for c in range(4):
                for i in [i for i in np.flatnonzero(truth == c) if right[i] == (kind == "right")][
                    :2
                ]:
                    q = int(mean[i].argmax())
                    examples.append({"experiment": name, "scan_id": ids[used[i]],
                                     "label": CLASSES[c], "predicted": CLASSES[q],
                                     "p_label": mean[i, c],
                                     "p_predicted": mean[i, q], "kind": kind})  # fmt: skip

    stopping, stops = [], []
    for k, name in enumerate(n for n in names if n != "majority"):
        for cut in np.linspace(0, 1, 9):
            stopping.append(
                {
                    "experiment": name,
                    "patience": 1,
                    "threshold": 1 - cut,
                    "wrong_stops": cut**2,
                    "saved": 0.8 * cut,
                    "lines_spent": 128 - 100 * cut,
                }
            )
        for limit in (0.01, 0.05):
            for figure, value in (
                ("saved", limit**0.5 + 0.02 * k),
                ("wrong_stops", limit),
                ("lines_spent", 100 - 200 * limit),
                ("time_saved", limit),
            ):
                stops.append({"experiment": name, "limit": limit, "figure": figure, "value": value,
                              "low": 0.5 * value, "high": 1.5 * value})  # fmt: skip

    progress = [
        {"experiment": m["experiment"], "metric": m["metric"], "lines": m["lines"],
         **{key: k * (int(m["lines"]) / LINES - 1)
            for key, k in (("difference", 1), ("low", 1.2), ("high", 0.8))}}
        for m in metrics
        if m["reading"] == "lines" and not m["class"] and m["metric"] in GROUP_METRICS[:2]
    ]  # fmt: skip
    pairs = []
    macro = {(m["experiment"], m["metric"]): m["value"] for m in metrics
             if m["reading"] == "scan" and not m["class"]}  # fmt: skip
    for i, a in enumerate(names):
        for b in names[i + 1 :]:
            for metric in ("auroc", "balanced_accuracy"):
                d = macro[a, metric] - macro[b, metric]
                pairs.append(
                    {"experiment_a": a, "experiment_b": b, "reading": "scan", "metric": metric,
                     "difference": d, "low": d - 0.06, "high": d + 0.05,
                     "p": np.exp(-30 * abs(d)), "p_holm": min(1, 3 * np.exp(-30 * abs(d))),
                     "seeds": seeds, "groups": groups, "scans": len(used)}
                )  # fmt: skip
    tables = folder / "tables"
    tables.mkdir()
    for name, rows in {
        "metrics": metrics, "pairs": pairs, "roc": roc, "confusion": confusion,
        "calibration": calibration, "groups": by_group, "examples": examples,
        "stopping": stopping, "stops": stops, "progress": progress,
    }.items():  # fmt: skip
        pd.DataFrame(rows, columns=COLUMNS.get(name)).to_csv(tables / f"{name}.csv", index=False)
    (tables / "evaluate.json").write_text(
        json.dumps(
            {
                "caution": f"There are only {groups} test groups.",
                "best": names[-1],
                "settings": {"confidence": 0.95, "settled_within": 0.01},
                "seeds": list(range(seeds)),
                "folds": [0],
                "groups": groups,
                "scans": len(used),
                "windows": {"lrcn-w20": 4 * len(used)},
            }
        )
    )
    rule = {"fold": 0, "seed": 0, "patience": 2}
    (tables / "policy.json").write_text(
        json.dumps(
            policy_document(
                classes=["defect"],
                first_line=5,
                store_sha256="0" * 64,
                split_sha256="1" * 64,
                weights={},
                policies=[
                    {"experiment": name, "limit": limit, "rules": [{**rule, "threshold": at}]}
                    for name in names
                    for limit, at in ((0.05, 0.6), (0.01, None), (0.1, 0.5))
                ],
                names={},
            )
        )
    )
    spec = {
        "comparison": "example", "title": "Architectures on made-up scans", "dataset": "made-up",
        "dataset_title": "made-up scans", "attribution": "Made by a test; no measured data",
        "simulated": True, "split": "sessions", "scheme": "kfold", "experiments": list(names),
        "members": {name: [name] for name in names}, "folds": [0], "seeds": list(range(seeds)),
    }  # fmt: skip
    by_name = {name: [r for r in runs if r.parent.name == name] for name in names}
    return {
        "spec": spec,
        "scores": tables,
        "runs": by_name,
        "store": store,
        "split": split,
        "scans": scans,
    }
