import numpy as np
import pandas as pd
import pytest
from prediction_data import CLASSES, LINES, held_out, scans, table, write_split, write_store

from scanbench.errors import UserError
from scanbench.predictions import (
    HeldOut,
    check_against,
    check_same_rows,
    check_table,
    class_columns,
    lines_reading,
    read_experiment,
    scan_reading,
    window_reading,
)

P = class_columns(CLASSES)
EVERY = scans()
WINDOWS = tuple((first, (first + 8,)) for first in range(0, 25, 4))
ROLLING = ((0, (8, 16, 24, 32)),)


def refused(error: pytest.ExceptionInfo[UserError], *words: str) -> None:
    message = str(error.value)
    assert "\n" not in message
    for word in words:
        assert word in message


# --- what is refused ---------------------------------------------------------------------------


@pytest.mark.parametrize("column", ["scan_id", "label", "final", "lines_seen", "p_rows"])
def test_a_missing_column_is_named(column):
    with pytest.raises(UserError) as error:
        check_table(table(EVERY, skill=1).drop(columns=column), CLASSES, "t.parquet")
    refused(error, "t.parquet", f"column {column!r} is missing")


def test_a_column_of_a_foreign_class_is_named():
    with pytest.raises(UserError) as error:
        check_table(table(EVERY, skill=1).assign(p_steps=0.0), CLASSES, "t.parquet")
    refused(error, "'p_steps'", "other classes")


def _set(column: str, value: object):
    def change(frame: pd.DataFrame) -> pd.DataFrame:
        frame.loc[5, column] = value
        return frame

    return change


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_set("p_rows", np.nan), "NaN or infinite"),
        (_set("p_rows", np.inf), "NaN or infinite"),
        (_set("p_rows", 0.9999), "do not sum to 1"),
        (lambda f: f.assign(p_rows=f["p_rows"] - 2, p_atoms=f["p_atoms"] + 2), "negative prob"),
        (_set("first_line", -1), "negative first_line"),
        (_set("lines_seen", 0), "lines_seen not past first_line"),
        (_set("final", False), "'final' must mark the last answer"),
        (_set("group", None), "'group' has empty cells"),
        (lambda f: f.astype({"seed": float}), "'seed' must hold whole numbers"),
        (lambda f: f.astype({"final": int}), "'final' must hold true/false"),
        (lambda f: f.assign(p_rows="much"), "'p_rows' must hold floats"),
        (lambda f: pd.concat([f, f.iloc[[5]]], ignore_index=True), "stands there twice"),
        (lambda f: f.iloc[:0], "has no rows"),
    ],
)
def test_a_malformed_table_is_refused_in_one_line(change, words):
    with pytest.raises(UserError) as error:
        check_table(change(table(EVERY, skill=1)), CLASSES, "t.parquet")
    refused(error, "t.parquet", words)


def test_a_bad_row_is_named_by_scan_and_seed():
    frame = _set("p_rows", np.nan)(table(EVERY, skill=1, seed=3))
    with pytest.raises(UserError) as error:
        check_table(frame, CLASSES, "t.parquet")
    refused(error, "scan 'scan 0005' (seed 3")


TRUTH = held_out(EVERY, 2)
TESTED = EVERY.loc[sorted(TRUTH.folds[0]["test"])]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda f: f.assign(fold=1), ["fold 1 is not in split.json, which has 1"]),
        (_set("scan_id", "scan 9999"), ["'scan 9999'", "not in the store"]),
        (_set("label", 3), ["has label 3 but 1 in the store"]),
        (_set("group", "session 00"), ["has group session 00 but session 04"]),
        (_set("lines_seen", LINES + 1), [f"more lines than the scan has ({LINES})"]),
        (lambda f: f.iloc[2:], ["2 test scan(s) of fold 0", "seed 0", "'scan 0032'"]),
        (
            lambda f: pd.concat([f, table(EVERY.iloc[:1], skill=1)]),
            ["'scan 0000'", "in train of fold 0", "leakage"],
        ),
    ],
)
def test_a_table_that_disagrees_with_store_or_split_is_refused(change, words):
    with pytest.raises(UserError) as error:
        check_against(change(table(TESTED, skill=1)), TRUTH, "experiment 'vit'")
    refused(error, "experiment 'vit'", *words)


def test_a_seed_that_lacks_a_fold_is_refused():
    truth = held_out(EVERY, 2)
    first = EVERY["group"] == "session 00"
    other = {"train": frozenset(EVERY.index[~first]), "test": frozenset(EVERY.index[first])}
    truth = HeldOut(classes=CLASSES, scans=EVERY, folds=(*truth.folds, other))
    frame = pd.concat(
        [
            table(TESTED, skill=1, seed=0, fold=0),
            table(EVERY[first], skill=1, seed=0, fold=1),
            table(TESTED, skill=1, seed=1, fold=0),
        ]
    )
    with pytest.raises(UserError) as error:
        check_against(frame, truth, "experiment 'vit'")
    refused(error, "seed 1 lacks fold 1")


@pytest.fixture
def files(tmp_path):
    store = write_store(tmp_path / "store.h5", EVERY)
    split = write_split(tmp_path / "split.json", TRUTH, store)
    return tmp_path, HeldOut.load(store, split)


def test_store_and_split_are_read_as_they_were_written(files):
    _, loaded = files
    assert loaded.classes == CLASSES
    assert loaded.folds == TRUTH.folds
    assert (loaded.scans == EVERY).all(axis=None)


def test_runs_are_read_from_folders_or_files(files):
    folder, truth = files
    (folder / "run").mkdir()
    table(TESTED, skill=1, seed=0).to_parquet(folder / "run" / "predictions.parquet")
    table(TESTED, skill=1, seed=1).to_parquet(folder / "one.parquet")
    runs = [folder / "run", folder / "one.parquet"]
    together = read_experiment("vit", runs, CLASSES, truth)
    assert sorted(together["seed"].unique()) == [0, 1]
    assert len(together) == 2 * len(TESTED)


def test_the_same_run_given_twice_is_refused(files):
    folder, truth = files
    path = folder / "one.parquet"
    table(TESTED, skill=1).to_parquet(path)
    with pytest.raises(UserError) as error:
        read_experiment("vit", [path, path], CLASSES, truth)
    refused(error, "'vit'", "stands there twice")


@pytest.mark.parametrize(
    ("content", "words"), [(None, "no such file"), (b"", "no Parquet"), (b"PAR1??", "no Parquet")]
)
def test_a_file_that_is_missing_or_broken_is_named(files, content, words):
    folder, truth = files
    path = folder / "broken.parquet"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError) as error:
        read_experiment("vit", [path], CLASSES, truth)
    refused(error, "experiment 'vit'", "broken.parquet", words)


def test_an_experiment_without_runs_is_refused(files):
    with pytest.raises(UserError, match="no table of predictions is listed"):
        read_experiment("vit", [], CLASSES, files[1])


# --- the scan reading --------------------------------------------------------------------------


def test_the_scan_reading_of_a_rolling_model_is_its_last_answer():
    frame = table(EVERY, skill=1, samples=ROLLING)
    reading = scan_reading(frame, CLASSES)
    last = frame[frame["lines_seen"] == LINES].sort_values("scan_id")
    assert (reading.p_SNC[0] == last[P].to_numpy()).all()
    assert reading.scan_id_N.tolist() == last["scan_id"].tolist()


def test_the_scan_reading_of_a_window_model_is_the_mean_over_windows():
    frame = table(EVERY, skill=1, samples=WINDOWS)
    reading = scan_reading(frame, CLASSES)
    mean = frame.groupby("scan_id")[P].mean().sort_index()
    assert np.allclose(reading.p_SNC[0], mean.to_numpy(), rtol=1e-9, atol=0)
    assert reading.p_SNC.shape == (1, len(EVERY), 4)


def test_only_final_answers_of_windows_enter_the_scan_reading():
    inner = tuple((first, (first + 2, first + 8)) for first in range(0, 25, 8))
    frame = table(EVERY, skill=1, samples=inner)
    reading = scan_reading(frame, CLASSES)
    mean = frame[frame["final"]].groupby("scan_id")[P].mean().sort_index()
    assert np.allclose(reading.p_SNC[0], mean.to_numpy(), rtol=1e-9, atol=0)


def test_a_constant_answer_stays_constant_however_many_windows_a_scan_has():
    every = EVERY.assign(n_lines=[8 + i % 25 for i in range(len(EVERY))])
    every["n_lines"] = every["n_lines"].clip(upper=LINES)
    frame = table(every, skill=1, samples=WINDOWS)
    frame[P] = [0.0879, 0.4390, 0.1691, 0.3040]
    p_NC = scan_reading(frame, CLASSES).p_SNC[0]
    assert len(np.unique(p_NC, axis=0)) == 1


def test_the_order_of_rows_in_the_files_does_not_matter():
    frame = table(EVERY, skill=1, samples=WINDOWS)
    shuffled = frame.sample(frac=1, random_state=0)
    assert np.allclose(
        scan_reading(frame, CLASSES).p_SNC, scan_reading(shuffled, CLASSES).p_SNC, atol=1e-12
    )
    ours, theirs = (lines_reading(f, CLASSES, 20) for f in (frame, shuffled))
    assert np.allclose(ours.p_SNC, theirs.p_SNC, atol=1e-12)


# --- the progressive reading -------------------------------------------------------------------


@pytest.mark.parametrize(("lines", "answer"), [(8, 8), (15, 8), (16, 16), (31, 24), (99, 32)])
def test_the_lines_reading_is_the_latest_answer_by_then(lines, answer):
    frame = table(EVERY, skill=1, samples=ROLLING)
    reading = lines_reading(frame, CLASSES, lines)
    expected = frame[frame["lines_seen"] == answer].sort_values("scan_id")
    assert (reading.p_SNC[0] == expected[P].to_numpy()).all()


@pytest.mark.parametrize(("lines", "windows"), [(8, 1), (14, 2), (20, 4), (99, 7)])
def test_a_window_model_answers_with_the_mean_of_the_windows_that_have_ended(lines, windows):
    frame = table(EVERY, skill=1, samples=WINDOWS)
    reading = lines_reading(frame, CLASSES, lines)
    ended = frame[frame["first_line"] <= 4 * (windows - 1)]
    expected = ended.groupby("scan_id")[P].mean().sort_index()
    assert np.allclose(reading.p_SNC[0], expected.to_numpy(), rtol=1e-9, atol=0)


@pytest.mark.parametrize("samples", [WINDOWS, ROLLING])
def test_the_lines_reading_ends_where_the_scan_reading_stands(samples):
    frame = table(scans(partial=12), skill=1, samples=samples)
    at_end, whole = lines_reading(frame, CLASSES, LINES), scan_reading(frame, CLASSES)
    assert (at_end.p_SNC == whole.p_SNC).all()
    assert (at_end.scan_id_N == whole.scan_id_N).all()


@pytest.mark.parametrize(("lines", "ended"), [(8, 1), (15, 1), (20, 2), (31, 3), (99, 4)])
def test_answers_inside_a_window_do_not_count(lines, ended):
    asked_each_line = tuple((first, range(first + 1, first + 9)) for first in range(0, 25, 8))
    frame = table(EVERY, skill=1, samples=asked_each_line)
    reading = lines_reading(frame, CLASSES, lines)
    counted = frame[frame["final"] & (frame["first_line"] < 8 * ended)]
    expected = counted.groupby("scan_id")[P].mean().sort_index()
    assert np.allclose(reading.p_SNC[0], expected.to_numpy(), rtol=1e-9, atol=0)
    assert lines_reading(frame, CLASSES, 7) is None


def test_there_is_no_point_before_every_scan_has_an_answer():
    assert lines_reading(table(EVERY, skill=1, samples=ROLLING), CLASSES, 7) is None
    assert lines_reading(table(EVERY, skill=1), CLASSES, LINES - 1) is None


def test_a_scan_that_is_shorter_keeps_its_last_answer():
    every = scans(partial=12)
    frame = table(every, skill=1, samples=ROLLING)
    reading = lines_reading(frame, CLASSES, 24)
    row = reading.scan_id_N.tolist().index("scan 0003")
    last = frame[(frame["scan_id"] == "scan 0003") & frame["final"]]
    assert last["lines_seen"].tolist() == [12]
    assert (reading.p_SNC[0, row] == last[P].to_numpy()[0]).all()


# --- windows, and rows between experiments -----------------------------------------------------


def test_the_window_reading_holds_each_window_and_no_whole_scan_model():
    reading = window_reading(table(EVERY, skill=1, samples=WINDOWS), CLASSES)
    assert reading.p_SNC.shape == (1, len(EVERY) * len(WINDOWS), 4)
    assert reading.scans == len(EVERY)
    assert window_reading(table(EVERY, skill=1, samples=ROLLING), CLASSES) is None


def test_seeds_with_different_windows_are_refused():
    frame = pd.concat(
        [
            table(EVERY, skill=1, seed=0, samples=WINDOWS),
            table(EVERY, skill=1, seed=1, samples=WINDOWS[:-1]),
        ]
    )
    with pytest.raises(UserError, match="seeds 0 and 1 have answers for different"):
        window_reading(frame, CLASSES)


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (table(EVERY, skill=1, seed=1), "seed 0 is in 'a' but not in 'b'"),
        (table(EVERY.iloc[1:], skill=1), "scan 'scan 0000' is in 'a' but not in 'b'"),
        (table(EVERY, skill=1, fold=1), "scan and fold ('scan 0000', 0) is in 'a' but not in 'b'"),
    ],
)
def test_experiments_with_other_rows_are_not_compared(other, words):
    readings = {
        "a": scan_reading(table(EVERY, skill=1), CLASSES),
        "b": scan_reading(other, CLASSES),
    }
    with pytest.raises(UserError) as error:
        check_same_rows(readings)
    refused(error, words)


def test_experiments_with_the_same_scans_are_compared_whatever_their_windows():
    check_same_rows(
        {
            "a": scan_reading(table(EVERY, skill=1), CLASSES),
            "b": scan_reading(table(EVERY, skill=1, samples=WINDOWS), CLASSES),
        }
    )
