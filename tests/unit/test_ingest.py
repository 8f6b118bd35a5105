import os
import re
import shutil

import numpy as np
import pandas as pd
import pytest
from instrument_files import createc, ramp, real
from PIL import Image

from scanbench.errors import UserError
from scanbench.scans import iterate_heights, read_manifest
from scanbench.tipstate.ingest import IngestOptions, ingest
from scanbench.tipstate.readers.png import orange_map
from scanbench.tipstate.sxm import Channel, Header, write_sxm


def sxm(path, z=None, seed=0):
    z = ramp(8, 6) * (seed + 1) if z is None else z
    header = Header(width_m=1e-9, height_m=1e-9, line_time_s=1, bias_v=1, setpoint_a=1e-10)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_sxm(path, header, {"Z": Channel(unit="m", forward_LP=z, backward_LP=z[:, ::-1])})
    return path


@pytest.fixture
def folder(tmp_path):
    """Return a data folder with two sessions, something broken and something foreign."""
    data = tmp_path / "data"
    for n in range(4):
        sxm(data / f"day{n // 2}" / f"scan{n}.sxm", seed=n)
    (data / "day0" / "broken.sxm").write_bytes(b"SCANIT_END")
    (data / "day0" / "empty.dat").touch()
    (data / "notes.txt").write_text("warm")
    return data


def table(path, rows):
    pd.DataFrame(rows).to_csv(path, index=False)
    return path


def test_every_file_is_listed_as_read_refused_or_ignored(folder, tmp_path):
    summary = ingest({}, folder, None, tmp_path / "out")
    status = {file: (kind, reason) for file, kind, reason in summary.inventory}
    assert {file: kind for file, (kind, _) in status.items()} == {
        "day0/broken.sxm": "refused",
        "day0/empty.dat": "refused",
        "day0/scan0.sxm": "read",
        "day0/scan1.sxm": "read",
        "day1/scan2.sxm": "read",
        "day1/scan3.sxm": "read",
        "notes.txt": "ignored",
    }
    assert status["day0/empty.dat"][1] == "is empty"
    assert all(reason for kind, reason in status.values() if kind != "read")
    rejected = pd.read_csv(tmp_path / "out" / "rejected.csv")
    assert rejected["file"].tolist() == ["day0/broken.sxm", "day0/empty.dat"]
    listed = pd.read_csv(tmp_path / "out" / "inventory.csv", keep_default_na=False)
    assert [tuple(row) for row in listed.to_numpy()] == summary.inventory


def test_the_folder_holds_what_the_files_held(folder, tmp_path):
    summary = ingest({"directions": ["forward", "backward"]}, folder, None, tmp_path / "out")
    manifest = read_manifest(tmp_path / "out")
    assert (summary.scans, summary.groups) == (8, 2)
    assert manifest["scan_id"].tolist()[:3] == ["scan0", "scan0:backward", "scan1"]
    assert manifest["group"].tolist() == ["day0"] * 4 + ["day1"] * 4
    heights = list(iterate_heights(tmp_path / "out", manifest))
    np.testing.assert_array_equal(heights[4], ramp(8, 6) * 3)
    np.testing.assert_array_equal(heights[5], ramp(8, 6)[:, ::-1] * 3)


def test_the_same_source_gives_the_same_bytes_however_many_processes_read(
    folder, tmp_path, monkeypatch
):
    monkeypatch.setattr("scanbench.tipstate.ingest.FILES_PER_BATCH", 2)
    for name, workers in (("a", 1), ("b", 1), ("c", 2)):
        ingest({"workers": workers}, folder, None, tmp_path / name)
    a, b, c = (
        {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in "abc"
    )
    assert a == b == c


def test_labels_groups_and_change_lines_come_from_the_table(folder, tmp_path):
    labels = table(
        tmp_path / "labels.csv",
        [
            {"scan": "scan0", "label": "rows", "group": "m", "change_line": ""},
            {"scan": "scan1.sxm", "label": "atoms", "group": "m", "change_line": "3"},
            {"scan": "day1/scan2.sxm", "label": "", "group": "n", "change_line": ""},
            {"scan": "scan3", "label": "defect", "group": "n", "change_line": ""},
            {"scan": "broken", "label": "defect", "group": "n", "change_line": ""},
        ],
    )
    summary = ingest({"group": "table"}, folder, labels, tmp_path / "out")
    manifest = read_manifest(tmp_path / "out").set_index("scan_id")
    assert manifest["label"].to_dict() == {
        "scan0": "rows",
        "scan1": "atoms",
        "scan2": "",
        "scan3": "defect",
    }
    assert manifest["group"].tolist() == ["m", "m", "n", "n"]
    assert manifest.loc["scan1", "change_line"] == 3
    assert summary.labels == {"atoms": 1, "asymmetry/dimer": 0, "rows": 1, "defect": 1}
    assert summary.unlabelled == 1


def test_a_score_sheet_excludes_with_a_reason_and_short_scans_too(tmp_path):
    data = tmp_path / "Images"
    data.mkdir()
    sessions = ["2015Feb11-102853", "2015Feb11-102853", "2015Feb12-090000", "2015Feb12-090000"]
    names = [f"default_{session}_STM--{n}_1.png" for n, session in enumerate(sessions)]
    for n, name in enumerate(names):
        levels = np.random.default_rng(n).integers(0, 255, (3 if n == 3 else 12, 12))
        Image.fromarray(orange_map()[levels]).save(data / name)
    scores = pd.DataFrame({"Name": names, "No. Responses": 2, "Asymmetries": [0, 0, 1, 0]})
    scores["Individual Atoms"] = [1, 0, 0, 0]
    scores["Rows"] = [0, 0, 1, 1]
    for column in ("Dimers", "Tip Change", "Bad/Blurry"):
        scores[column] = 0
    with pd.ExcelWriter(tmp_path / "sheet.xlsx") as book:
        scores.to_excel(book, sheet_name="Mean_Score", index=False)
        scores.assign(Mean=1.0).to_excel(book, sheet_name="Agreement_Score", index=False)
    spec = {"labels": {}, "min_lines": 5}
    summary = ingest(spec, data, tmp_path / "sheet.xlsx", tmp_path / "out")
    manifest = read_manifest(tmp_path / "out")
    assert manifest["label"].tolist() == ["atoms", "", "", "rows"]
    assert manifest["excluded"].tolist() == [
        "",
        "no label above threshold",
        "tie",
        "too few lines",
    ]
    assert manifest["group"].tolist() == sessions
    assert manifest["responses"].tolist() == [2] * 4
    assert manifest["score_Rows"].tolist() == [0, 0, 1, 1]
    assert manifest["planned_lines"].tolist() == [12] * 4
    assert summary.labels["rows"] == 0
    assert summary.excluded == {"no label above threshold": 1, "tie": 1, "too few lines": 1}


@pytest.mark.parametrize(
    ("spec", "groups"),
    [
        ({}, ["day0", "day0", "day1", "day1"]),
        ({"group": "folder"}, ["day0", "day0", "day1", "day1"]),
        ({"group": "scan"}, [f"day{n // 2}/scan{n}.sxm" for n in range(4)]),
        ({"group": "regex", "group_pattern": r"[02]|[13]"}, ["0", "1", "2", "3"]),
        ({"group": "regex", "group_pattern": r"(sc)an(?P<group>\d)"}, ["0", "1", "2", "3"]),
        ({"group": "regex", "group_pattern": r"(sc)an(\d)"}, ["sc"] * 4),
    ],
)
def test_groups_follow_their_rule(folder, tmp_path, spec, groups):
    ingest(spec, folder, None, tmp_path / "out")
    assert read_manifest(tmp_path / "out")["group"].tolist() == groups


@pytest.mark.parametrize("group", ["session", "folder"])
def test_groups_that_part_what_the_table_has_together_are_refused(folder, tmp_path, group):
    """Else scans of one session could be trained on and tested, and nothing would say so."""
    rows = [{"scan": f"scan{n}", "label": "rows", "group": "m"} for n in range(4)]
    labels = table(tmp_path / "labels.csv", rows)
    with pytest.raises(
        UserError,
        match=rf"labels.csv: has scan0 and scan2 in one group, 'm', but ingest.group: {group} puts "
        "them into two, 'day0' and 'day1', .*; set ingest.group to table, or take",
    ):
        ingest({"group": group}, folder, labels, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    ingest({"group": "scan"}, folder, labels, tmp_path / "each")  # parts all scans, and says so


def test_groups_may_be_coarser_than_those_of_the_table(folder, tmp_path):
    rows = [{"scan": f"scan{n}", "label": "rows", "group": f"g{n}"} for n in range(4)]
    ingest({}, folder, table(tmp_path / "labels.csv", rows), tmp_path / "out")
    groups = read_manifest(tmp_path / "out")["group"]
    assert groups.tolist() == ["day0", "day0", "day1", "day1"]


def test_all_directions_of_a_scan_are_one_group(folder, tmp_path):
    spec = {"group": "scan", "directions": ["forward", "backward"]}
    ingest(spec, folder, None, tmp_path / "out")
    groups = read_manifest(tmp_path / "out")["group"]
    assert groups.value_counts().to_dict() == {f"day{n // 2}/scan{n}.sxm": 2 for n in range(4)}


def test_each_scan_of_a_container_may_be_a_group(tmp_path):
    np.savez(tmp_path / "set.npz", images=np.stack([ramp(), 2 * ramp()]))
    ingest({"group": "scan"}, tmp_path / "set.npz", None, tmp_path / "out")
    assert read_manifest(tmp_path / "out")["group"].tolist() == ["set-000000", "set-000001"]


def test_up_and_down_frames_of_a_matrix_file_are_one_group(tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    for name in ("2014Mar01-093225--7_100.Z_mtrx", "2014Mar01-093225_0001.mtrx"):
        shutil.copy(real("raw-spm", "nano-bio+pyMTRX", name), data / name)
    ingest({"group": "scan"}, data, None, tmp_path / "out")
    assert read_manifest(tmp_path / "out")["group"].nunique() == 1


@pytest.mark.parametrize("pattern", ["scan(?P<group>[0-2])?", "scan([0-2])", "scan[0-2]"])
def test_a_file_without_a_group_in_its_name_is_refused_alone_and_unread(folder, tmp_path, pattern):
    (folder / "day1" / "scan3.sxm").write_bytes(b"not read, so this does not matter")
    spec = {"group": "regex", "group_pattern": pattern}
    summary = ingest(spec, folder, None, tmp_path / "out")
    assert read_manifest(tmp_path / "out")["scan_id"].tolist() == ["scan0", "scan1", "scan2"]
    reason = f"ingest.group_pattern {pattern!r} finds no group in its name"
    assert ("day1/scan3.sxm", "refused", reason) in summary.inventory


def test_an_npz_is_a_data_set_of_its_own(tmp_path):
    images = np.stack([ramp(8, 6) * (n + 1) for n in range(3)])
    path = tmp_path / "set.npz"
    np.savez(path, images=images, labels=np.array([3, -1, 0]), groups=np.array(["a", "b", "b"]))
    summary = ingest({}, path, None, tmp_path / "out")
    manifest = read_manifest(tmp_path / "out")
    assert manifest["scan_id"].tolist() == ["set-000000", "set-000001", "set-000002"]
    assert manifest["label"].tolist() == ["defect", "", "atoms"]
    assert manifest["group"].tolist() == ["a", "b", "b"]
    assert (summary.scans, summary.unlabelled) == (3, 1)


def test_labels_under_other_names_are_mapped(tmp_path):
    path = tmp_path / "set.npz"
    np.savez(path, images=np.stack([ramp(), 2 * ramp()]), labels=np.array([0, 1]))
    spec = {"label_names": ["good", "rows"], "label_map": {"good": "atoms"}}
    ingest(spec, path, None, tmp_path / "out")
    assert read_manifest(tmp_path / "out")["label"].tolist() == ["atoms", "rows"]
    with pytest.raises(
        UserError, match=r"label 'good' of set-000000 is not one of atoms.* --classes"
    ):
        ingest({"label_names": ["good", "rows"]}, path, None, tmp_path / "other")


def test_files_of_one_name_are_told_apart_by_their_folder(tmp_path):
    data = tmp_path / "data"
    for day in ("mon", "tue"):
        sxm(data / day / "a.sxm")
    (data / "tue" / "a.dat").write_bytes(createc(np.stack([ramp(), ramp()])))
    ingest({}, data, None, tmp_path / "out")
    ids = read_manifest(tmp_path / "out")["scan_id"].tolist()
    assert ids == ["mon/a", "tue/a.dat", "tue/a.sxm"]


def test_a_scan_id_that_is_there_twice_is_an_error_by_name(tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    for name in ("a.npz", "b.npz"):
        np.savez(data / name, images=ramp()[None], scan_ids=np.array(["same"]))
    with pytest.raises(UserError, match=r"[ab]\.npz: scan_id same is there twice"):
        ingest({}, data, None, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_links_cannot_lead_out_of_the_data_folder(folder, tmp_path):
    outside = sxm(tmp_path / "elsewhere" / "secret.sxm")
    (folder / "link.sxm").symlink_to(outside)
    (folder / "folder").symlink_to(outside.parent)
    summary = ingest({}, folder, None, tmp_path / "out")
    status = {file: (kind, reason) for file, kind, reason in summary.inventory}
    assert status["link.sxm"] == ("ignored", "link that leaves the data folder")
    assert status["folder/"] == ("ignored", "link to a folder")
    assert summary.scans == 4


def test_a_pipe_does_not_hang_ingest(folder, tmp_path):
    os.mkfifo(folder / "pipe.sxm")
    summary = ingest({}, folder, None, tmp_path / "out")
    assert ("pipe.sxm", "ignored", "hidden, or no file") in summary.inventory


def test_what_snakemake_leaves_in_a_folder_changes_nothing(folder, tmp_path):
    before = ingest({}, folder, None, tmp_path / "out").inventory
    (folder / ".snakemake_timestamp").touch()
    assert ingest({}, folder, None, tmp_path / "out").inventory == before


def test_an_aborted_run_leaves_what_stood_there_before(folder, tmp_path):
    ingest({}, folder, None, tmp_path / "out")
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    wrong = table(tmp_path / "labels.csv", [{"scan": "nobody", "label": "rows"}])
    with pytest.raises(UserError, match="row 2: no scan nobody is there"):
        ingest({}, folder, wrong, tmp_path / "out")
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before
    assert [path.name for path in tmp_path.iterdir() if path.name.endswith(".part")] == []


def test_a_table_may_name_more_scans_than_are_there_where_that_is_said(folder, tmp_path):
    rows = [{"scan": "nobody", "label": "rows"}, {"scan": "nobody-else", "label": "atoms"}]
    more = table(tmp_path / "labels.csv", rows)
    summary = ingest({"rows_without_scan": "ignore"}, folder, more, tmp_path / "out")
    assert summary.rows_without_scan == 2
    with pytest.raises(UserError, match="rows_without_scan: 'skip' is not one of error, ignore"):
        ingest({"rows_without_scan": "skip"}, folder, more, tmp_path / "other")


@pytest.mark.parametrize("name", ["scans", "deep/scans", "elsewhere/../scans"])
def test_no_output_is_written_where_the_next_ingest_would_read_it(folder, tmp_path, name):
    with pytest.raises(UserError, match="name a folder outside"):
        ingest({}, folder, None, folder / name)
    (tmp_path / "link").symlink_to(folder)
    with pytest.raises(UserError, match="name a folder outside"):
        ingest({}, folder, None, tmp_path / "link" / name)
    assert not list(folder.rglob("manifest.csv"))


def test_an_earlier_output_is_not_replaced_where_what_is_read_lies_in_it(folder, tmp_path):
    out = tmp_path / "out"
    ingest({}, folder, None, out)
    labels = table(out / "labels.csv", [{"scan": "scan0", "label": "a"}])
    with pytest.raises(UserError, match=r"would be replaced, but holds .*labels\.csv"):
        ingest({"classes": ["a"]}, folder, labels, out)
    shutil.move(folder, out / "raw")
    for source in (out / "raw", out / "raw/day0/scan0.sxm", out):
        with pytest.raises(UserError, match="would be replaced, but holds"):
            ingest({}, source, None, out)
    assert labels.is_file()
    assert (out / "raw/day0/scan0.sxm").is_file()


def test_a_source_without_a_good_scan_is_an_error_that_says_why(tmp_path):
    with pytest.raises(UserError, match="no such data folder or file"):
        ingest({}, tmp_path / "none", None, tmp_path / "out")
    (tmp_path / "data").mkdir()
    with pytest.raises(UserError, match="holds no scan file; known are"):
        ingest({}, tmp_path / "data", None, tmp_path / "out")
    (tmp_path / "data" / "a.sxm").touch()
    with pytest.raises(
        UserError, match=r"none of its files could be read; first: a\.sxm: is empty"
    ):
        ingest({}, tmp_path / "data", None, tmp_path / "out")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"chanel": "Z"}, "ingest.chanel: unknown key; known are channel"),
        ({"labels": {"shet": "a"}}, "ingest.labels.shet: unknown key"),
        ({"directions": "forward"}, "ingest.directions: 'forward' is a text; give a list"),
        ({"directions": ["left"]}, "directions: ('left',); forward and backward are known"),
        ({"directions": []}, "directions: (); forward and backward are known"),
        ({"group": "day"}, "ingest.group: 'day' is not one of"),
        ({"group": "regex"}, "ingest.group_pattern: missing, but group is regex"),
        ({"group_pattern": "x"}, "ingest.group_pattern: of no use with group: session"),
        ({"group": "regex", "group_pattern": "("}, "'(' is no regular expression"),
        ({"min_lines": 0}, "ingest.min_lines: 0 is not a whole number of 1 or more"),
        ({"min_lines": "5"}, "ingest.min_lines: '5' is not a whole number"),
        ({"workers": 1.5}, "ingest.workers: 1.5 is not a whole number"),
        ({"label_map": {"a": "b"}}, "ingest.label_map: 'b' is not one of"),
        ({"colormap": "jet"}, "colormap: 'jet' is not one of orange, grey"),
        ({"max_pixels": -1}, "max_pixels: -1 is negative"),
    ],
)
def test_wrong_options_are_told_by_key(spec, message):
    with pytest.raises(UserError, match=re.escape(message)):
        IngestOptions.from_spec(spec)


def test_missing_groups_and_patterns_name_the_scan(folder, tmp_path):
    with pytest.raises(UserError, match="no group for scan0 in the label table"):
        ingest({"group": "table"}, folder, None, tmp_path / "out")
    with pytest.raises(
        UserError, match=r"none .* read; first: .*ingest\.group_pattern 'q\+' finds"
    ):
        ingest({"group": "regex", "group_pattern": "q+"}, folder, None, tmp_path / "out")


def test_a_label_table_in_the_data_folder_is_no_scan(folder, tmp_path):
    labels = table(folder / "labels.csv", [{"scan": "scan0", "label": "rows"}])
    summary = ingest({}, folder, labels, tmp_path / "out")
    assert ("labels.csv", "ignored", "label table") in summary.inventory


def test_all_real_instrument_files_are_read_but_for_the_two_that_hold_nothing(tmp_path):
    spec = {"directions": ["forward", "backward"], "group": "folder"}
    summary = ingest(spec, real("raw-spm"), None, tmp_path / "out")
    refused = [file.split("/")[1] for file, status, _ in summary.inventory if status == "refused"]
    assert refused == [
        "empty.sxm",
        "default_2013Jun21-111140_STM-STM_AtomManipulation--6_2.Z_mtrx",
    ]
    assert summary.scans == 16


def test_a_matrix_session_is_its_time_stamp(tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    for name in ("2014Mar01-093225--7_100.Z_mtrx", "2014Mar01-093225_0001.mtrx"):
        shutil.copy(real("raw-spm", "nano-bio+pyMTRX", name), data / name)
    ingest({"directions": ["forward"]}, data, None, tmp_path / "out")
    manifest = read_manifest(tmp_path / "out")
    assert manifest["group"].unique().tolist() == ["2014Mar01-093225"]
    assert manifest["scan_id"].tolist() == [
        "2014Mar01-093225--7_100",
        "2014Mar01-093225--7_100:down",
    ]


def test_a_matrix_index_is_listed_with_the_files_that_it_belongs_to(tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    for name in ("2014Mar01-093225--7_100.Z_mtrx", "2014Mar01-093225_0001.mtrx"):
        shutil.copy(real("raw-spm", "nano-bio+pyMTRX", name), data / name)
    (data / "2015Feb11-102853_0001.mtrx").write_text("alone")
    both = {"directions": ["forward", "backward"]}
    assert ingest(both, data, None, tmp_path / "out").inventory == [
        ("2014Mar01-093225--7_100.Z_mtrx", "read", "4 scans"),
        ("2014Mar01-093225_0001.mtrx", "read", "index of 1 MATRIX file"),
        (
            "2015Feb11-102853_0001.mtrx",
            "ignored",
            "MATRIX index without a file of its scans beside it",
        ),
    ]
