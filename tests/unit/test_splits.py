"""Splits keep groups whole, balance classes, and refuse what cannot be divided."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scans_folder import heights, write_scans

from scanbench.convert import convert
from scanbench.errors import UserError
from scanbench.split_file import PARTS, read_split
from scanbench.splits import Keys, make_split, partition, write_split
from scanbench.store import Store

CLASSES = ["atoms", "rows"]


def make_store(folder: Path, order: np.ndarray | None = None, **columns) -> Path:
    n = len(columns["label"])
    scans = heights(n, lines=8, pixels=8)
    columns = {"scan_id": [f"scan{k:03d}" for k in range(n)], **columns}
    order = np.arange(n) if order is None else order
    columns = {name: [values[k] for k in order] for name, values in columns.items()}
    write_scans(folder / "scans", [scans[k] for k in order], **columns)
    convert({"classes": CLASSES, "lines": 8, "pixels": 8}, folder / "scans", folder / "store.h5")
    return folder / "store.h5"


def sessions(n: int, groups: int) -> dict[str, list[str]]:
    rng = np.random.default_rng(5)
    return {
        "group": [f"session{k % groups}" for k in range(n)],
        "label": [CLASSES[int(k)] for k in rng.random(n) < 0.4],
    }


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    columns = sessions(80, 9)
    columns["label"][7] = ""
    columns["excluded"] = ["tie" if k == 11 else "" for k in range(80)]
    columns["planned_lines"] = [8] * 80
    with Store(make_store(tmp_path_factory.mktemp("splits"), **columns)) as opened:
        yield opened


SPECS = [
    {"scheme": "kfold", "folds": 3},
    {"scheme": "kfold", "folds": 4, "seed": 7, "validation_fraction": 0.3},
    {"scheme": "fixed", "test_fraction": 0.3},
    {"scheme": "fixed", "test_groups": ["session2", "session5"]},
    {"scheme": "random", "folds": 5},
]


@pytest.mark.parametrize("spec", SPECS)
def test_parts_are_disjoint_and_exhaustive(store, spec):
    split = make_split(spec, store)
    usable = set(store.scan_id.tolist()) - {"scan007", "scan011"}
    for fold in split["folds"]:
        names = [name for part in PARTS for name in fold[part]]
        assert len(names) == len(set(names))
        assert set(names) == usable
        assert all(fold[part] for part in PARTS)
    if spec["scheme"] != "fixed":
        tested = [name for fold in split["folds"] for name in fold["test"]]
        assert sorted(tested) == sorted(usable)


@pytest.mark.parametrize("spec", SPECS)
def test_groups_are_whole_unless_the_scheme_is_random(store, spec):
    split = make_split(spec, store)
    group = dict(zip(store.scan_id.tolist(), store.group.tolist(), strict=True))
    shared = [
        {group[name] for name in fold[a]} & {group[name] for name in fold[b]}
        for fold in split["folds"]
        for a, b in (("train", "test"), ("train", "validation"), ("validation", "test"))
    ]
    assert any(shared) == (spec["scheme"] == "random")
    assert [sorted(groups) for groups in shared] == [row["shared_groups"] for row in split["audit"]]


def test_named_test_groups_are_the_test_part(store):
    split = make_split({"scheme": "fixed", "test_groups": ["session2", "session5"]}, store)
    tested = store.index_of(split["folds"][0]["test"])
    assert set(store.group[tested].tolist()) == {"session2", "session5"}


@pytest.mark.parametrize("spec", SPECS)
def test_counts_are_those_of_the_folds(store, spec):
    split = make_split(spec, store)
    for row in split["counts"]:
        inside = store.index_of(split["folds"][row["fold"]][row["part"]])
        assert row["scans"] == len(inside)
        assert row["groups"] == len(set(store.group[inside].tolist()))
        assert [row[name] for name in CLASSES] == np.bincount(
            store.label[inside], minlength=2
        ).tolist()


def test_the_split_does_not_depend_on_the_order_of_the_scans(tmp_path):
    columns = sessions(40, 7)
    shuffled = np.random.default_rng(0).permutation(40)
    with (
        Store(make_store(tmp_path / "a", **columns)) as a,
        Store(make_store(tmp_path / "b", shuffled, **columns)) as b,
    ):
        for spec in ({"scheme": "kfold", "folds": 3}, {"scheme": "random", "folds": 3}):
            assert make_split(spec, a)["folds"] == make_split(spec, b)["folds"]


def test_the_seed_decides(store):
    spec = {"scheme": "kfold", "folds": 3}
    assert make_split(spec, store) == make_split(spec, store)
    assert make_split({**spec, "seed": 1}, store)["folds"] != make_split(spec, store)["folds"]


@settings(deadline=None, max_examples=40)
@given(data=st.data(), parts=st.integers(2, 4))
def test_partition_keeps_groups_whole_and_no_part_empty(data, parts):
    groups = data.draw(st.integers(parts, 12))
    group = np.array(
        [*range(groups), *data.draw(st.lists(st.integers(0, groups - 1), max_size=40))]
    )
    label = np.array(
        data.draw(st.lists(st.integers(0, 2), min_size=len(group), max_size=len(group)))
    )
    shares = np.arange(1, parts + 1) / sum(range(1, parts + 1))
    part = partition(group, label, shares, 3, [0])
    assert set(part.tolist()) == set(range(parts))
    assert all(len(set(part[group == g].tolist())) == 1 for g in range(groups))


def test_partition_balances_classes_as_well_as_the_best_of_all_assignments():
    rng = np.random.default_rng(2)
    count = rng.integers(0, 12, (8, 3)) + 1
    group = np.repeat(np.arange(8), count.sum(axis=1))
    label = np.concatenate([np.repeat(np.arange(3), row) for row in count])
    target = count.sum(axis=0) / 2

    def imbalance(part_of_group):
        first = count[np.asarray(part_of_group) == 0].sum(axis=0)
        return 2 * ((first - target) ** 2 / target).sum()

    best = min(imbalance([(code >> g) & 1 for g in range(8)]) for code in range(1, 255))
    part = partition(group, label, np.array([0.5, 0.5]), 3, [0])
    assert imbalance([part[group == g][0] for g in range(8)]) <= best + 1e-9


def test_scans_with_too_few_lines_are_left_out(tmp_path):
    columns = {**sessions(40, 6), "planned_lines": [16 if k % 4 == 0 else 8 for k in range(40)]}
    with Store(make_store(tmp_path, **columns)) as store:
        split = make_split({"scheme": "kfold", "folds": 2, "min_lines": 5}, store)
        names = {name for part in PARTS for name in split["folds"][0][part]}
        assert names == {f"scan{k:03d}" for k in range(40) if k % 4}
        with pytest.raises(UserError, match="lower min_lines"):
            make_split({"min_lines": 9}, store)


def test_scans_without_any_label_are_told_so(tmp_path):
    columns = {**sessions(12, 6), "label": [""] * 12}
    with (
        Store(make_store(tmp_path, **columns)) as store,
        pytest.raises(UserError, match=r"no scan has a label; name a label table"),
    ):
        make_split({}, store)


@pytest.mark.parametrize(
    ("groups", "labels", "spec", "says"),
    [
        (
            1,
            "aarr",
            {"scheme": "kfold", "folds": 2},
            "1 group for 2 folds; lower splits.own.folds",
        ),
        (
            1,
            "aarr",
            {"scheme": "kfold", "folds": 2},
            r"datasets\.mine\.ingest\.group \(table, ",
        ),
        (1, "aarr", {"scheme": "fixed"}, "one group only"),
        (1, "aarr", {"scheme": "fixed"}, "an array `groups` in the NPZ or .mat"),
        (3, "arar" * 3, {"scheme": "kfold", "folds": 5}, "3 groups for 5 folds"),
        (2, "arar" * 3, {"scheme": "kfold", "folds": 2}, "leaves 1 group to train"),
        (
            4,
            "arar",
            {"scheme": "kfold", "folds": 2},
            r"\(1 group\); lower splits\.own\.folds, ",
        ),
        (6, "aaaaaaaa", {"scheme": "kfold", "folds": 3}, "no scan of class 'rows' in the train"),
        (4, "arararar", {"scheme": "fixed", "test_groups": ["sesion1"]}, "did you mean 'session1'"),
        (4, "arararar", {"scheme": "fixed", "test_groups": []}, "test_groups: is empty"),
        (4, "arararar", {"scheme": "kfolds"}, "did you mean 'kfold'"),
        (4, "arararar", {"fold": 3}, "unknown key 'fold'"),
    ],
)
def test_what_cannot_be_divided_is_refused(tmp_path, groups, labels, spec, says):
    columns = {
        "group": [f"session{k % groups}" for k in range(len(labels))],
        "label": [{"a": "atoms", "r": "rows"}[letter] for letter in labels],
    }
    with Store(make_store(tmp_path, **columns)) as store:
        with pytest.raises(UserError, match=says) as caught:
            make_split(spec, store, Keys("mine", "own"))
        assert "\n" not in str(caught.value)
        assert "…" not in str(caught.value)


def test_missing_classes_can_be_allowed(tmp_path):
    columns = {"group": [f"session{k % 6}" for k in range(8)], "label": ["atoms"] * 8}
    with Store(make_store(tmp_path, **columns)) as store:
        spec = {"scheme": "kfold", "folds": 3, "allow_missing_classes": True}
        assert all(row["rows"] == 0 for row in make_split(spec, store)["counts"])


# --------------------------------------------------------------------------------- the file


@pytest.fixture
def split_file(store, tmp_path):
    write_split({"scheme": "kfold", "folds": 3}, store.path, tmp_path / "split.json")
    return tmp_path / "split.json"


def test_a_split_file_reads_back(store, split_file):
    assert read_split(split_file, store) == make_split({"scheme": "kfold", "folds": 3}, store)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"schema_version": 9}, "schema_version 1"),
        ({"folds": []}, "folds is empty"),
        ({"classes": None}, "classes is missing"),
        ({"store_sha256": "0"}, "made from another store"),
        ({"folds": [{"train": ["a"], "test": ["a"], "validation": []}]}, "scan 'a' stands twice"),
        ({"folds": [{"train": ["a"], "test": ["b"]}]}, "must have train, validation, test"),
        ({"folds": [{"train": ["a"], "test": [3], "validation": []}]}, "must be text"),
        ({"folds": [{"train": ["a"], "test": [], "validation": []}]}, "no scan 'a'"),
    ],
)
def test_a_wrong_split_file_is_refused(store, split_file, change, says):
    split_file.write_text(json.dumps({**json.loads(split_file.read_text()), **change}))
    with pytest.raises(UserError, match=says):
        read_split(split_file, store)


def test_a_split_file_that_is_none_is_refused(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        read_split(tmp_path / "none.json")
    (tmp_path / "text.json").write_text("{")
    with pytest.raises(UserError, match="not JSON"):
        read_split(tmp_path / "text.json")
