"""How often the comparison finds a difference, on simulated models whose truth is known.

`python tests/unit/false_alarms.py` prints the table of docs/protocol.md (some minutes).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from prediction_data import softmax

from scanbench import comparison, metrics

CLASSES = 3


def sessions(
    rng: np.random.Generator,
    *,
    groups: int = 20,
    per_group: int = 10,
    seeds: int = 2,
    advantage: float = 0.0,
    retraining: float = 0.0,
    folds: int = 1,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Two models whose errors resemble each other within a session; labels, groups and folds.

    What is hard about a scan is hard for both models. Each model has leanings of its own in each
    session, so scans of a session are no independent trials of their difference. The second
    model's scores are three times steeper, and `advantage` makes its signal stronger. With
    `retraining`, the signal of each trained model differs from that of its architecture by so much
    (standard deviation, as a share of the signal). With several `folds`, the second model leans to
    some classes otherwise in each fold, as one does whose training parts differ.
    """
    scans = groups * per_group
    unit = np.repeat(np.arange(groups), per_group)
    label = rng.integers(0, CLASSES, scans)
    truth = np.eye(CLASSES)[label]
    hard = rng.normal(size=(scans, CLASSES))
    models = []
    for skill, steep in ((1.0, 1.0), (1.0 + advantage, 3.0)):
        leaning = rng.normal(size=(groups, CLASSES))[unit]
        in_session = rng.normal(size=(groups, 1))[unit] / 2
        trained = skill + retraining * rng.normal(size=(seeds, 1, 1))
        noise = rng.normal(size=(seeds, scans, CLASSES))
        logits = hard + leaning + noise + (trained + in_session) * truth
        models.append(steep * logits)
    fold = unit % folds
    if folds > 1:
        models[1] += 3 * rng.normal(size=(folds, CLASSES))[fold]
    return softmax(models[0]), softmax(models[1]), label, unit, fold


def significant(
    data: tuple[np.ndarray, ...], metric: str, number: int, *, by_scan: bool = False
) -> bool:
    """Whether the swap test of one simulated comparison comes out at 5 %."""
    a, b, label, unit, fold = data
    if by_scan:
        unit = np.arange(len(label))
    swaps = comparison.draw_swaps(int(unit.max()) + 1, 199, seed=number)
    return comparison.swap_test(a, b, label, unit, fold, swaps, metric)[1] <= 0.05


def excludes_zero(data: tuple[np.ndarray, ...], metric: str, number: int) -> bool:
    """Whether the 95 % interval of one simulated comparison leaves out zero."""
    a, b, label, unit, fold = data
    units = int(unit.max()) + 1
    resamples = comparison.draw_resamples(
        label, unit, fold, units=units, classes=CLASSES, seeds=len(a), count=400, seed=number
    )
    value_a, value_b = (
        metrics.metric_values(p, label, unit, fold, resamples.unit_BK, 10)[metric, None]
        for p in (a, b)
    )
    low, high = comparison.interval(value_a - value_b, resamples, 0.95)
    return not low <= 0 <= high


def main(count: int = 400) -> None:
    """Print shares in per cent for several worlds."""
    print("| world | metric | swap by scan | swap by group | interval | group and interval |")
    print("|---|---|---|---|---|---|")
    both = ("auroc", "balanced_accuracy")
    worlds: list[tuple[str, tuple[str, ...], dict[str, Any]]] = [
        ("no difference, 8 groups", both, {"groups": 8}),
        ("no difference, 20 groups", both, {}),
        ("no difference, 20 groups in 5 folds that lean", ("auroc",), {"folds": 5}),
        ("no difference, retraining 0.2, 2 seeds", ("auroc",), {"retraining": 0.2}),
        ("no difference, retraining 0.2, 5 seeds", ("auroc",), {"retraining": 0.2, "seeds": 5}),
        ("advantage 0.6, 20 groups", both, {"advantage": 0.6}),
    ]
    for name, tried, world in worlds:
        for metric in tried:
            rng = np.random.default_rng(7)
            hits = np.zeros(4)
            for number in range(count):
                data = sessions(rng, **world)
                swap = significant(data, metric, number)
                off = excludes_zero(data, metric, number)
                hits += [significant(data, metric, number, by_scan=True), swap, off, swap and off]
            shares = " | ".join(f"{100 * share:.0f}" for share in hits / count)
            print(f"| {name} | {metric} | {shares} |", flush=True)


if __name__ == "__main__":
    main()
