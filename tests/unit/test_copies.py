"""Copies of scans are what they say, and the audit of a split of them shouts."""

from pathlib import Path

import numpy as np
import pytest
from scans_folder import heights, write_scans

from scanbench.convert import convert
from scanbench.copies import NOISE, copied, named, original, write_copies
from scanbench.errors import UserError
from scanbench.files import sha256_of
from scanbench.splits import make_split
from scanbench.store import Store, verify

N, LINES = 40, 24


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("copies")
    labels = [("atoms", "rows")[k % 2] for k in range(N)]
    labels[3] = ""
    scans = [x[: LINES - 6 * (k == 5)] for k, x in enumerate(heights(N, LINES, LINES))]
    write_scans(
        folder / "scans", scans, label=labels, planned_lines=LINES,
        group=[f"session{k // 4}" for k in range(N)],
        change_line=[7 if k == 5 else "" for k in range(N)],
    )  # fmt: skip
    spec = {"study": "tipstate", "classes": ["atoms", "rows"], "lines": LINES, "pixels": LINES}
    convert(spec, folder / "scans", folder / "store.h5")
    write_copies({"copies": 4, "seed": 1}, folder / "store.h5", folder / "copies.h5")
    return folder / "store.h5", folder / "copies.h5"


def test_each_labelled_scan_stands_there_with_its_copies_in_a_valid_store(stores) -> None:
    assert verify(stores[1]) == []
    with Store(stores[0]) as before, Store(stores[1]) as after:
        assert len(after) == 5 * (N - 1) + 1
        for i, name in enumerate(before.scan_id):
            for k in range(5 if before.label[i] >= 0 else 1):
                j = int(after.index_of([named(str(name), k)])[0])
                for column in ("label", "group", "file_sha256", "n_lines"):
                    assert getattr(after, column)[j] == getattr(before, column)[i]
                n, std = before.n_lines[i], before.statistics["scan_std"][i]
                plain = copied(before.read([i])[0, :n], k)
                noise = (after.read([j])[0, :n] - plain) / std
                assert noise.std() == pytest.approx(NOISE if k else 0, rel=0.2)
                assert not after.read([j])[0, n:].any()
        assert (after.study, after.classes, after.unit) == ("tipstate", ["atoms", "rows"], "m")


def test_the_four_first_copies_are_the_mirror_images_and_the_scan_itself() -> None:
    x_LP = np.arange(6, dtype="f4").reshape(2, 3)
    assert copied(x_LP, 1).tolist() == [[2, 1, 0], [5, 4, 3]]
    assert copied(x_LP, 2).tolist() == [[3, 4, 5], [0, 1, 2]]
    assert copied(x_LP, 3).tolist() == [[5, 4, 3], [2, 1, 0]]
    assert copied(x_LP, 4).tolist() == x_LP.tolist()


def test_a_tip_change_moves_with_the_lines(stores) -> None:
    with Store(stores[1]) as after:
        lines = [int(after.change_line[after.index_of([named("scan005", k)])[0]]) for k in range(4)]
    assert lines == [7, 7, 18 - 7, 18 - 7]


def test_names_of_copies_lead_back() -> None:
    assert named("a~b", 0) == "a~b"
    assert original(named("a~b", 3)) == "a~b"


def test_the_same_scans_and_seed_give_the_same_bytes(stores, tmp_path: Path) -> None:
    for seed in (1, 2):
        write_copies({"copies": 4, "seed": seed}, stores[0], tmp_path / f"{seed}.h5")
    assert sha256_of(tmp_path / "1.h5") == sha256_of(stores[1]) != sha256_of(tmp_path / "2.h5")


def test_the_audit_shouts_and_that_of_whole_sessions_does_not(stores) -> None:
    with Store(stores[1]) as after:
        leaky = make_split({"scheme": "copies", "folds": 4, "copies": 4}, after)
    with Store(stores[0]) as before:
        honest = make_split({"scheme": "kfold", "folds": 4}, before)
    for fold in range(4):
        [loud], [quiet] = (
            [row for row in s["audit"] if (row["fold"], row["parts"]) == (fold, "train/test")]
            for s in (leaky, honest)
        )
        tested = len(leaky["folds"][fold]["test"])
        assert loud["shared_files"] > 0.5 * tested / 2
        assert loud["near_duplicate_scans"] > 0.1 * tested
        assert len(loud["shared_groups"]) > 0.5 * N / 4
        assert (quiet["shared_files"], quiet["near_duplicates"], quiet["shared_groups"]) == (
            0,
            0,
            [],
        )


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ({"copy": 3}, "unknown key 'copy'; did you mean 'copies'?"),
        ({"copies": 0}, "copies is 0; give a whole number above 0"),
    ],
)
def test_a_wrong_option_is_named(stores, tmp_path: Path, spec: dict, says: str) -> None:
    with pytest.raises(UserError, match="copies: ") as error:
        write_copies(spec, stores[0], tmp_path / "x.h5")
    assert says in str(error.value)


def test_a_scan_that_is_named_like_a_copy_is_refused(tmp_path: Path) -> None:
    write_scans(tmp_path / "scans", heights(2), scan_id=["a", "a~1"])
    convert({"lines": 24, "pixels": 20}, tmp_path / "scans", tmp_path / "store.h5")
    with pytest.raises(UserError, match="scan 'a~1' is named like a copy"):
        write_copies({}, tmp_path / "store.h5", tmp_path / "x.h5")
