"""The record of a job, and a results folder whose every byte it accounts for."""

from __future__ import annotations

import hashlib
import json
import shutil
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from recorded_study import Study, write

from scanbench import records, sources
from scanbench.cli import main
from scanbench.errors import UserError
from scanbench.files import sha256_of
from scanbench.records import FOLDER, _digest, read_record, recorded
from scanbench.verification import delete, verify


@pytest.fixture
def study(tmp_path: Path) -> Study:
    return Study(tmp_path)


def test_a_record_tells_of_all_that_was_read_and_written(study: Study) -> None:
    record = read_record(study.results / FOLDER / "render.json")
    # One of them was promised; the others are known because they were put in their place.
    written = {"figures/lines.pdf", "figures/lines.svg", "render.json"}
    assert record.outputs == {name: sha256_of(study.results / name) for name in written}
    read = {"scores/metrics.csv", "runs/0/weights", "runs/1/weights"}
    assert record.inputs == {name: sha256_of(study.results / name) for name in read}
    assert record.command == "scanbench render figures/lines.svg"
    trained = read_record(study.results / FOLDER / "train1.json")
    assert trained.seeds == {"seed": 1}
    ingested = read_record(study.results / FOLDER / "ingest.json")
    assert ingested.raw == {str(path): sha256_of(path) for path in sorted(study.raw.iterdir())}
    assert set(ingested.outputs) == {"data/d/scans/manifest.csv", "data/d/scans/shard.npz"}


def test_the_same_job_writes_the_same_record(tmp_path: Path) -> None:
    texts = set()
    for name in ("one", "two"):
        folder = Study(tmp_path / name).results / FOLDER
        texts.add((folder / "evaluate.json").read_bytes())
    assert len(texts) == 1


def test_whole_results_verify_wherever_they_lie(study: Study, tmp_path: Path) -> None:
    found = verify(study.results)
    assert (found.faults, found.notes, found.files, found.records) == ([], [], 11, 6)
    moved = shutil.move(study.results, tmp_path / "elsewhere" / "archive")
    shutil.rmtree(study.raw)
    found = verify(moved)
    assert found.faults == []
    assert [note.rpartition(": ")[2] for note in found.notes] == ["not checked"]


FILES = (
    "data/d/scans/manifest.csv",
    "data/d/scans/shard.npz",
    "data/d/store.h5",
    "runs/0/weights",
    "scores/metrics.csv",
    "figures/lines.pdf",
)


@pytest.mark.parametrize("name", FILES)
def test_one_changed_byte_is_found_and_so_is_a_missing_file(study: Study, name: str) -> None:
    path = study.results / name
    whole = path.read_bytes()
    path.write_bytes(bytes([whole[0] ^ 1]) + whole[1:])
    assert study.faults() == [name]
    path.write_bytes(whole)
    assert study.faults() == []
    path.unlink()
    assert study.faults() == [name]


def test_swapped_weights_are_both_named(study: Study) -> None:
    first, second = (study.results / f"runs/{seed}/weights" for seed in (0, 1))
    other = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(other)
    assert study.faults() == ["runs/0/weights", "runs/1/weights"]


def test_what_was_made_from_replaced_files_is_stale(study: Study) -> None:
    weights = study.results / "runs/1/weights"
    study.job(
        "train", ["data/d/store.h5"], ["runs/1/weights"], lambda: write(weights, "!") and None, 1
    )
    figure, table = verify(study.results).faults
    assert (figure.path, table.path) == ("figures/lines.pdf", "scores/metrics.csv")
    assert "made from another runs/1/weights" in table.what


def test_what_changes_while_a_job_reads_it_makes_no_record(study: Study) -> None:
    store = study.results / "data/d/store.h5"

    def replaced(text: str) -> None:
        store.write_text(text)  # by another process: the job itself did not put it there
        write(study.results / "runs/2/weights", "made of another")

    job = ("train", ["data/d/store.h5"], ["runs/2/weights"])
    whole = store.read_text()
    with pytest.raises(UserError, match=r"store\.h5: changed while train ran, .* run again"):
        study.job(*job, lambda: replaced("another"), 2)
    assert not (study.results / FOLDER / "train2.json").exists()
    # Another run that writes the same bytes changes nothing.
    write(store, whole)
    study.job(*job, lambda: replaced(whole), 2)
    assert study.faults() == []


def test_what_changes_after_it_was_hashed_and_before_the_job_begins_makes_no_record(
    study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed = records.hashes

    def then_replaced(paths: Sequence[Path], what: str) -> dict[Path, str]:
        found = hashed(paths, what)
        if what == "hash what train reads":
            write(study.results / "data/d/store.h5", "another")
        return found

    monkeypatch.setattr(records, "hashes", then_replaced)
    with pytest.raises(UserError, match=r"store\.h5: changed while train ran"):
        study.job("train", ["data/d/store.h5"], ["runs/2/weights"], None, 2)
    assert not (study.results / FOLDER / "train2.json").exists()


def test_a_folder_that_another_run_replaces_is_waited_for(study: Study) -> None:
    scans = study.results / "data/d/scans"
    away = scans.rename(scans.with_name("away"))
    back = threading.Timer(0.2, lambda: away.rename(scans))
    back.start()
    try:
        study.job("convert", ["data/d/scans"], ["data/d/store.h5"])
    finally:
        back.join()
    assert study.faults() == []


#: Records and a file that they tell of: beside it, above it, named by parts of its path.
PLACES = [
    ("simulate/simulated", "data/simulated/source/session-000/scan-0000.sxm"),
    ("copies/simulated/copies", "data/simulated/copies/copies.h5"),
    ("split/simulated/sessions", "data/simulated/splits/sessions.json"),
    ("runs/simulated/sessions/cnn/fold0-seed0/train",
     "runs/simulated/sessions/cnn/fold0-seed0/weights.safetensors"),
    ("runs/simulated/sessions/cnn/fold0-seed0/export-fp32",
     "runs/simulated/sessions/cnn/fold0-seed0/onnx/fp32.onnx"),
    ("tuning/simulated/sessions/cnn/fold0/choose",
     "tuning/simulated/sessions/cnn/fold0/chosen.json"),
    ("evaluate/simulated", "comparisons/simulated/scores/metrics.csv"),
    ("attribute/explained/cnn/fold0-seed0",
     "explanations/explained/attributions/cnn/fold0-seed0/attributions.parquet"),
    ("tip-changes/found/cnn/fold0-seed0", "tip-changes/found/scores/cnn/fold0-seed0.parquet"),
]  # fmt: skip


@pytest.mark.parametrize(("record", "name"), PLACES)
def test_no_job_begins_on_a_damaged_file_wherever_its_record_lies(
    study: Study, record: str, name: str
) -> None:
    def job(stage: str, reads: list[str], writes: str) -> None:
        recorded(
            lambda: write(study.results / writes, writes),
            command=[stage],
            config={},
            inputs=[study.results / read for read in reads],
            outputs=[study.results / writes],
            results=study.results,
            record=study.results / FOLDER / f"{record if stage == 'make' else stage}.json",
        )

    job("make", [], name)
    job("use", [name], "used/first")
    write(study.results / name, "damaged")
    with pytest.raises(UserError, match="is damaged: its SHA-256"):
        job("use", [name], "used/second")


def test_a_source_that_changes_while_a_job_runs_makes_no_record(
    study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "scanbench"
    write(root / "files.py", "old = 1")
    monkeypatch.setattr(sources, "ROOT", root)

    def edited() -> None:
        write(root / "files.py", "new = 1")
        write(study.results / "runs/2/weights", "made by the old")

    with pytest.raises(UserError, match="a source of train: changed while train ran"):
        study.job("train", ["data/d/store.h5"], ["runs/2/weights"], edited, 2)
    assert not (study.results / FOLDER / "train2.json").exists()


def test_a_record_of_what_looks_like_a_page_is_no_other_for_it(study: Study) -> None:
    record = study.results / FOLDER / "train2.json"
    recorded(
        lambda: write(study.results / "runs/2/weights", "2") and None,
        command=["train"],
        config={"title": "</script>"},
        inputs=[],
        outputs=[study.results / "runs/2/weights"],
        results=study.results,
        record=record,
    )
    content = json.loads(record.read_text())
    # As the first versions of schema 1 sealed it.
    seal = content.pop("sha256")
    text = json.dumps(content, sort_keys=True, ensure_ascii=False, allow_nan=False)
    assert seal == hashlib.sha256(text.encode()).hexdigest()


def test_an_edited_raw_file_is_named(study: Study) -> None:
    write(study.raw / "b.sxm", "edited")
    assert study.faults() == [str(study.raw / "b.sxm")]
    (study.raw / "a.sxm").unlink()
    assert study.faults() == [str(study.raw / name) for name in ("a.sxm", "b.sxm")]


def test_files_without_record_are_named_but_for_messages_and_times(study: Study) -> None:
    for name in ("logs/train.log", "benchmarks/train.tsv", "README.md", "report-quick.html"):
        write(study.results / name, "")
    assert study.faults() == []
    write(study.results / "figures/foreign.svg", "")
    assert study.faults() == ["figures/foreign.svg"]
    write(study.results / "figures/another.svg", "")
    assert study.faults() == ["figures/"]
    (study.results / FOLDER / "convert.json").unlink()
    assert study.faults() == ["data/d/store.h5", "figures/"]


def test_delete_makes_way_for_a_new_run_and_leaves_all_else(
    study: Study, capsys: pytest.CaptureFixture[str]
) -> None:
    write(study.results / "data/d/scans/shard.npz", "damaged")
    write(study.results / "data/d/foreign.npz", "mine")
    write(study.results / "figures/lines.pdf", "damaged")
    write(study.raw / "a.sxm", "edited")
    # As Snakemake marks a folder that a job wrote.
    write(study.results / "data/d/scans/.snakemake_timestamp", "")
    assert main(["verify", str(study.results), "--delete"]) == 1
    assert capsys.readouterr().out.endswith("7 files deleted: run again\n")
    left = {path.relative_to(study.results).as_posix() for path in study.results.rglob("*.*")}
    assert {name for name in left if not name.startswith(FOLDER)} == {
        "data/d/foreign.npz", "data/d/store.h5", "scores/metrics.csv",
    }  # fmt: skip
    assert not (study.results / "data/d/scans").exists()
    assert {path.name for path in study.raw.iterdir()} == {"a.sxm", "b.sxm"}


def test_what_a_finished_run_read_is_made_again_by_its_reader(study: Study) -> None:
    write(study.results / "data/d/store.h5", "damaged")
    delete(study.results, verify(study.results))
    first, *rest = verify(study.results).faults
    assert (first.path, rest) == ("data/d/store.h5", [])
    assert first.mend == f"run again, with --forcerun results/{FOLDER}/train0.json"


def test_delete_leaves_what_another_job_wrote_since(study: Study) -> None:
    for stage in ("simulate", "fetch"):
        study.job(stage, [], ["data/e/a.csv", f"data/e/{stage}.csv"])
    write(study.results / "data/e/simulate.csv", "damaged")
    found = verify(study.results)
    assert {fault.job for fault in found.faults} == {None, f"{FOLDER}/simulate.json"}
    delete(study.results, found)
    assert (study.results / "data/e/a.csv").read_text() == "fetch None"
    assert study.faults() == []


def test_a_temporary_output_may_be_gone_and_no_other(study: Study) -> None:
    outputs = ["trial/weights", "trial/history.csv"]
    study.job("trial", ["data/d/store.h5"], outputs, temporary=["weights"])
    assert study.faults() == []
    (study.results / "trial/weights").unlink()
    assert study.faults() == []
    (study.results / "trial/history.csv").unlink()
    assert study.faults() == ["trial/history.csv"]


def test_of_two_records_of_one_file_the_older_is_named(study: Study) -> None:
    study.job("combine", ["data/d/store.h5"], ["runs/1/weights"])
    assert study.faults() == ["figures/lines.pdf", "records/train1.json", "scores/metrics.csv"]


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Study:
    return Study(tmp_path_factory.mktemp("one"))


@given(at=st.integers(0), bit=st.integers(0, 7))
def test_any_changed_bit_of_a_record_is_seen(one: Study, at: int, bit: int) -> None:
    whole = (one.results / FOLDER / "evaluate.json").read_bytes()
    at %= len(whole)
    path = one.results.parent / "changed.json"
    path.write_bytes(whole[:at] + bytes([whole[at] ^ (1 << bit)]) + whole[at + 1 :])
    try:
        read_record(path)
    except UserError:
        return
    assert json.loads(path.read_bytes()) == json.loads(whole)  # only white space has no meaning


@given(at=st.integers(0, 10_000), bit=st.integers(0, 7))
def test_a_changed_bit_of_a_record_names_that_record_alone(one: Study, at: int, bit: int) -> None:
    path = one.results / FOLDER / "train1.json"
    whole = path.read_bytes()
    at %= len(whole)
    try:
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << bit]) + whole[at + 1 :])
        assert one.faults() == [f"{FOLDER}/train1.json"]
    finally:
        path.write_bytes(whole)


def test_a_damaged_record_is_all_that_is_named(study: Study) -> None:
    path = study.results / FOLDER / "train0.json"
    path.write_text(path.read_text().replace('"seed": 0', '"seed": 3'))
    (fault,) = verify(study.results).faults
    assert fault.path == "records/train0.json"
    assert fault.what == "is damaged: it does not match its own checksum"
    assert delete(study.results, verify(study.results)) == 2
    assert not (study.results / "runs/0").exists()


def test_a_record_that_points_out_of_the_folder_is_refused(study: Study) -> None:
    path = study.results / FOLDER / "convert.json"
    for content in ("[" * 100_000, "[]", "{}", '{"schema_version": 0}', '{"schema_version": 1}'):
        path.write_text(content)
        with pytest.raises(UserError, match=r"record|damaged"):
            read_record(path)
    path = study.results / FOLDER / "evaluate.json"
    content = json.loads(path.read_bytes())
    content["outputs"] = {"../../etc/passwd": "0" * 64}
    del content["sha256"]
    path.write_text(json.dumps({**content, "sha256": _digest(content)}))
    with pytest.raises(UserError, match="outside the results folder"):
        read_record(path)


def test_a_job_that_did_not_write_what_it_promised_is_refused(study: Study) -> None:
    with pytest.raises(UserError, match=r"missing\.h5: convert should have written it"):
        study.job("convert", [], ["data/missing.h5"], lambda: None)
    with pytest.raises(UserError, match=r"lacking\.h5: missing: train needs it"):
        study.job("train", ["data/lacking.h5"], ["weights"])


def test_verify_on_the_command_line(study: Study, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(study.results)]) == 0
    assert "every checksum holds: 11 files" in capsys.readouterr().out
    write(study.results / "scores/metrics.csv", "better")
    assert main(["verify", str(study.results)]) == 1
    first, last = capsys.readouterr().out.splitlines()
    assert first.startswith("scores/metrics.csv: its SHA-256 is ")
    assert first.endswith(": verify --delete, then run again")
    assert last.startswith(f"{study.results}: 1 fault in ")
    assert main(["verify", str(study.raw)]) == 2
    assert "kept no records" in capsys.readouterr().err
