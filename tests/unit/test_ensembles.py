"""An ensemble answers whenever a member does, by the newest answers of all."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scanbench.ensembles import combine, pooled
from scanbench.errors import UserError
from scanbench.predictions import check_table, lines_reading

CLASSES = ["a", "b", "c"]
P = [f"p_{name}" for name in CLASSES]
SPEC = {"name": "both", "same_windows": True}


def table(answers: dict[tuple[str, int], dict[int, list[float]]]) -> pd.DataFrame:
    """Give predictions from (scan, first line) → lines seen → probabilities."""
    rows = [
        [scan, f"session of {scan}", 1, 2, 3, first, seen, seen == max(times), *p]
        for (scan, first), times in answers.items()
        for seen, p in times.items()
    ]
    columns = ["scan_id", "group", "label", "fold", "seed", "first_line", "lines_seen", "final", *P]
    return pd.DataFrame(rows, columns=columns).astype(dict.fromkeys(P, np.float32))


def simplex(rng: np.random.Generator) -> list[float]:
    return list(rng.dirichlet(np.ones(3)))


def drawn(times: list[int], seed: int, scans: int = 3) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    return table({(f"scan{k}", 0): {t: simplex(rng) for t in times} for k in range(scans)})


TIMES = st.lists(st.integers(1, 40), min_size=1, max_size=6, unique=True).map(sorted)


@settings(max_examples=25)
@given(times=TIMES, seed=st.integers(0, 99))
def test_an_ensemble_of_twins_is_one_of_them(times: list[int], seed: int) -> None:
    twin = drawn(times, seed)
    found = pooled({"one": twin, "other": twin})
    check_table(found, CLASSES, "ensemble")
    pd.testing.assert_frame_equal(found, twin, rtol=1e-5)


@settings(max_examples=25)
@given(one=TIMES, other=TIMES, seed=st.integers(0, 99))
def test_the_order_of_members_does_not_matter(one: list[int], other: list[int], seed: int) -> None:
    members = {"one": drawn(one, seed), "other": drawn(other, seed + 1)}
    found = pooled(members)
    check_table(found, CLASSES, "ensemble")
    pd.testing.assert_frame_equal(found, pooled(dict(reversed(members.items()))))
    assert sorted(set(found["lines_seen"])) == sorted({*one, *other})


@settings(max_examples=25)
@given(one=TIMES, other=TIMES, seed=st.integers(0, 99), cut=st.integers(1, 40))
def test_no_answer_looks_at_a_later_one(
    one: list[int], other: list[int], seed: int, cut: int
) -> None:
    members = {"one": drawn(one, seed), "other": drawn(other, seed + 1)}
    early = {name: frame[frame["lines_seen"] <= cut] for name, frame in members.items()}
    whole = pooled(members)
    if any(frame.empty for frame in early.values()):
        return
    part = pooled(early)
    pd.testing.assert_frame_equal(
        part[[*P, "lines_seen"]],
        whole[whole["lines_seen"] <= cut][[*P, "lines_seen"]].reset_index(drop=True),
    )


def test_the_geometric_mean_of_the_newest_answers() -> None:
    one = table({("x", 0): {10: [0.2, 0.3, 0.5], 20: [0.8, 0.1, 0.1]}})
    other = table({("x", 0): {15: [0.2, 0.4, 0.4]}})
    found = pooled({"one": one, "other": other}).set_index("lines_seen")
    mean = np.sqrt([0.2 * 0.2, 0.3 * 0.4, 0.5 * 0.4])
    np.testing.assert_allclose(found.loc[10, P].astype(float), [0.2, 0.3, 0.5], rtol=1e-6)
    np.testing.assert_allclose(found.loc[15, P].astype(float), mean / mean.sum(), rtol=1e-6)
    mean = np.sqrt([0.8 * 0.2, 0.1 * 0.4, 0.1 * 0.4])
    np.testing.assert_allclose(found.loc[20, P].astype(float), mean / mean.sum(), rtol=1e-6)
    assert found["final"].tolist() == [False, False, True]


def test_a_partial_scan_has_one_last_answer_of_all() -> None:
    """One member answers when the scan breaks off, the other had answered two lines before."""
    one, other = (table({("x", 0): {n: [0.2, 0.3, 0.5]}}) for n in (58, 60))
    found = pooled({"one": one, "other": other})
    assert found.loc[found["final"], "lines_seen"].tolist() == [60]


def test_a_probability_of_zero_stays_finite() -> None:
    one = table({("x", 0): {10: [0.0, 0.0, 1.0]}})
    other = table({("x", 0): {10: [1.0, 0.0, 0.0]}})
    check_table(pooled({"one": one, "other": other}), CLASSES, "ensemble")


def test_beside_others_a_member_speaks_by_the_mean_over_its_windows_so_far() -> None:
    windows = table({("x", 0): {5: [0.2, 0.3, 0.5]}, ("x", 5): {10: [0.6, 0.3, 0.1]}})
    whole = table({("x", 0): {8: [0.1, 0.1, 0.8]}})
    found = pooled({"windows": windows, "whole": whole}, same_windows=False)
    check_table(found, CLASSES, "ensemble")
    assert found[["first_line", "lines_seen", "final"]].to_numpy().tolist() == [
        [0, 5, False],
        [0, 8, False],
        [0, 10, True],
    ]
    for row, so_far in ((1, [0.2, 0.3, 0.5]), (2, [0.4, 0.3, 0.3])):
        mean = np.sqrt(np.multiply(so_far, [0.1, 0.1, 0.8]))
        np.testing.assert_allclose(found.loc[row, P].astype(float), mean / mean.sum(), rtol=1e-6)


@settings(max_examples=25)
@given(seed=st.integers(0, 99), sizes=st.lists(st.integers(2, 9), min_size=2, max_size=2))
def test_members_with_other_windows_say_what_is_read_of_each(seed: int, sizes: list[int]) -> None:
    """So the mean of both, by the line, is the mean of their readings."""
    rng = np.random.default_rng(seed)
    members = {
        f"{size} lines": table(
            {
                (scan, first): {first + size: simplex(rng)}
                for scan in ("x", "y")
                for first in range(0, 30 - size, size)
            }
        )
        for size in {*sizes, 1}
    }
    found = pooled(members, same_windows=False)
    check_table(found, CLASSES, "ensemble")
    for lines in (9, 20, 30):
        logs = [
            np.log(reading.p_SNC[0])
            for reading in (lines_reading(member, CLASSES, lines) for member in members.values())
            if reading is not None
        ]
        mean_NC = np.exp(np.mean(logs, axis=0))
        reading = lines_reading(found, CLASSES, lines)
        assert reading is not None
        expected = mean_NC / mean_NC.sum(axis=1, keepdims=True)
        np.testing.assert_allclose(reading.p_SNC[0], expected, rtol=1e-5)


def test_windows_that_begin_at_the_same_lines_are_not_the_same() -> None:
    one, other = (
        table({("x", first): {first + size: [0.2, 0.3, 0.5]} for first in (0, 18, 36)})
        for size in (14, 20)
    )
    found = pooled({"one": one, "other": other}, same_windows=False)
    assert found["first_line"].unique().tolist() == [0]
    assert found["lines_seen"].tolist() == [14, 20, 32, 38, 50, 56]


def test_a_member_that_lost_a_window_is_refused() -> None:
    windows = table({("x", 0): {5: [0.2, 0.3, 0.5]}, ("x", 5): {10: [0.2, 0.3, 0.5]}})
    with pytest.raises(UserError, match="answer about different samples of a scan, but have the"):
        pooled({"one": windows, "other": windows.iloc[:1]})


def test_members_with_other_scans_are_refused() -> None:
    one, other = (table({(scan, 0): {10: [0.2, 0.3, 0.5]}}) for scan in ("x", "y"))
    with pytest.raises(UserError, match="of 'other' and 'one' only one answers about scan 'x'"):
        pooled({"one": one, "other": other})


def test_members_with_other_classes_are_refused() -> None:
    whole = table({("x", 0): {10: [0.2, 0.3, 0.5]}})
    with pytest.raises(UserError, match="'other' has other classes than 'one'"):
        pooled({"one": whole, "other": whole.rename(columns={"p_c": "p_d"})})


def test_the_same_tables_give_the_same_bytes(tmp_path: Path) -> None:
    members = {}
    for k, name in enumerate(("one", "other")):
        members[name] = tmp_path / f"{name}.parquet"
        drawn([10, 20], k).to_parquet(members[name])
    written = []
    for run in ("first", "second"):
        out = tmp_path / run / "predictions.parquet"
        combine({**SPEC, "fold": 2, "seed": 3}, members, CLASSES, out)
        written.append(out.read_bytes())
    assert written[0] == written[1]
    record = json.loads((tmp_path / "second/predict.json").read_text())
    assert set(record["inputs"]) == {"one", "other"}


def test_members_that_were_asked_nothing_make_an_ensemble_that_was_asked_nothing(
    tmp_path: Path,
) -> None:
    members = {name: tmp_path / f"{name}.parquet" for name in ("one", "other")}
    for path in members.values():
        drawn([10], 0).iloc[:0].to_parquet(path)
    combine(SPEC, members, CLASSES, tmp_path / "unlabelled.parquet")
    found = pd.read_parquet(tmp_path / "unlabelled.parquet")
    assert found.empty
    assert set(P) <= set(found.columns)
    drawn([10], 0).to_parquet(members["one"])
    with pytest.raises(UserError, match="the table has no rows"):
        combine(SPEC, members, CLASSES, tmp_path / "unlabelled.parquet")
