import re

import numpy as np
import openpyxl
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from instrument_files import real

from scanbench.errors import UserError
from scanbench.tipstate import CLASSES
from scanbench.tipstate.labels import (
    H_SI100_MERGE,
    Label,
    ScoreSheet,
    _decide,
    match,
    read_score_sheet,
    read_table,
)

COLUMNS = ("Asymmetries", "Individual Atoms", "Dimers", "Rows", "Tip Change", "Bad/Blurry")


def csv(path, text):
    path.write_text(text, encoding="utf-8")
    return path


def sheet(path, rows, agreement=None, order=COLUMNS):
    """Write a workbook of score rows, given in the order of COLUMNS."""
    names = [f"scan{i}.png" for i in range(len(rows))]
    scores = pd.DataFrame(rows, columns=COLUMNS)[list(order)]
    scores.insert(0, "No. Responses", 2)
    scores.insert(0, "Name", names)
    mean = pd.DataFrame({"Name": names, "Mean": agreement or [1.0] * len(rows)})
    with pd.ExcelWriter(path) as book:
        scores.to_excel(book, sheet_name="Mean_Score", index=False)
        scores.to_excel(book, sheet_name="Weighted_Score", index=False)
        mean.to_excel(book, sheet_name="Agreement_Score", index=False)
    return path


def test_a_table_is_read_with_its_optional_columns(tmp_path):
    path = csv(tmp_path / "a.csv", "scan,label,group,change_line\na,rows,mon,12\nb,,tue,\n")
    labels = read_table(path, CLASSES)
    assert labels["a"] == Label(label="rows", group="mon", change_line=12, row=2)
    assert labels["b"] == Label(group="tue", row=3)


def test_csv_tsv_and_xlsx_are_the_same_table(tmp_path):
    frame = pd.DataFrame({"scan": ["a", "007"], "label": ["rows", "atoms"]})
    frame.to_csv(tmp_path / "a.csv", index=False, encoding="utf-8-sig")
    frame.to_csv(tmp_path / "a.tsv", index=False, sep="\t")
    frame.to_excel(tmp_path / "a.xlsx", index=False)
    tables = [read_table(tmp_path / name, CLASSES) for name in ("a.csv", "a.tsv", "a.xlsx")]
    assert tables[0] == tables[1] == tables[2]
    assert list(tables[0]) == ["a", "007"]


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_a_csv_is_read_whatever_separates_its_cells(tmp_path, separator):
    rows = [("scan", "label", "change_line"), ("a", "rows", "7"), ("b", "asymmetry/dimer", "")]
    path = csv(tmp_path / "a.csv", "".join(separator.join(row) + "\n" for row in rows))
    labels = read_table(path, CLASSES)
    assert labels["a"] == Label(label="rows", change_line=7, row=2)
    assert labels["b"] == Label(label="asymmetry/dimer", row=3)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("scan,label\na,row\n", r"row 2: label 'row' is not one of atoms, .* `classes: "),
        ("scan,label\na,rows\na,atoms\n", r"row 3: a was given otherwise in row 2"),
        ("scan,label,group\na,rows,x\na,rows,y\n", r"row 3: a was given otherwise in row 2"),
        ("scan,label\n,rows\n", "row 2: names no scan"),
        ("scan,lable\na,rows\n", "lacks the column 'label'; it has scan, lable"),
        ("scan,label,sesion\na,rows,x\n", "unknown column 'sesion'"),
        ("scan,label,change_line\na,rows,-3\n", "change_line '-3' is not a line number"),
        ("scan,label,change_line\na,rows,1.5\n", "change_line '1.5' is not a line number"),
        ("scan,label,change_line\na,rows,²\n", "change_line '²' is not a line number"),
        ("scan;label;change_line\na;rows;1,5\n", "change_line '1,5' is not a line number"),
        ("scan,label\na,rows,1\n", "rows have more cells than its header"),
        ("", "is empty; give a header, `scan,label`, and a row for each scan"),
        ("\n\n", "is empty; give a header"),
        ("\ufeff", "is empty; give a header"),
    ],
)
def test_a_wrong_table_names_its_row_and_the_mend(tmp_path, text, message):
    path = csv(tmp_path / "a.csv", text)
    with pytest.raises(UserError, match=message) as error:
        read_table(path, CLASSES)
    assert str(error.value).startswith(str(path))
    assert "\n" not in str(error.value)


def test_a_table_in_another_encoding_is_told_so(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes("scan,label\n5µm,rows\n".encode("latin-1"))
    with pytest.raises(UserError, match=r"a.csv: is not UTF-8 text; save it as CSV UTF-8, or as"):
        read_table(path, CLASSES)


def test_a_row_given_twice_alike_is_no_contradiction(tmp_path):
    path = csv(tmp_path / "a.csv", "scan,label\na,rows\na,rows\n")
    assert len(read_table(path, CLASSES)) == 1


def test_broken_missing_and_foreign_tables_are_refused(tmp_path):
    (tmp_path / "a.xlsx").write_bytes(b"PK no workbook")
    for name, message in (
        ("a.xlsx", "cannot be read as a label table"),
        ("b.csv", "no such label table"),
        ("c.ods", r"is \.csv, \.tsv or \.xlsx"),
    ):
        if name == "c.ods":
            (tmp_path / name).touch()
        with pytest.raises(UserError, match=message):
            read_table(tmp_path / name, CLASSES)


def test_a_workbook_without_a_cell_is_empty(tmp_path):
    book = openpyxl.Workbook()
    book.create_sheet("Mean_Score")
    book.save(tmp_path / "a.xlsx")
    with pytest.raises(UserError, match=r"a\.xlsx: is empty; give a header, `scan,label`"):
        read_table(tmp_path / "a.xlsx", CLASSES)
    with pytest.raises(UserError, match=r"a\.xlsx Mean_Score: is empty; give the sheet"):
        read_score_sheet(tmp_path / "a.xlsx", ScoreSheet(), CLASSES)


def test_the_columns_of_the_sheet_are_named_and_never_indexed(tmp_path):
    rows = np.eye(6).tolist()
    expected = ["asymmetry/dimer", "atoms", "asymmetry/dimer", "rows", "defect", "defect"]
    for n, order in enumerate((COLUMNS, COLUMNS[::-1])):
        path = sheet(tmp_path / f"{n}.xlsx", rows, order=order)
        labels = read_score_sheet(path, ScoreSheet(), CLASSES)
        assert [label.label for label in labels.values()] == expected


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        ({}, ["rows", "tie", "tie", "no label above threshold", "low"]),
        ({"rule": "sum"}, ["rows", "asymmetry/dimer", "tie", "no label above threshold", "low"]),
        ({"ties": "first"}, ["rows", "asymmetry/dimer", "rows", "no label above threshold", "low"]),
        ({"threshold": 0.3}, ["rows", "tie", "tie", "atoms", "low"]),
        ({"threshold": 0.9}, ["rows", *["no label above threshold"] * 3, "low"]),
    ],
)
def test_the_policy_decides_merges_thresholds_and_ties(tmp_path, policy, expected):
    rows = [
        [0, 0, 0.2, 1, 0, 0.9],
        [0.5, 0, 0.5, 0.5, 0, 0],  # two columns of one class against one of another
        [0, 0, 0, 0.6, 0.6, 0],
        [0, 0.4, 0, 0, 0, 0],
        [0, 1, 0, 0, 0, 0],
    ]
    path = sheet(tmp_path / "a.xlsx", rows, agreement=[1, 1, 1, 1, 0.3])
    labels = read_score_sheet(path, ScoreSheet(min_agreement=0.4, **policy), CLASSES)
    got = [label.label or label.excluded for label in labels.values()]
    assert got == [("low agreement" if text == "low" else text) for text in expected]
    assert all(bool(label.label) != bool(label.excluded) for label in labels.values())


def test_scores_and_responses_are_kept_unmerged(tmp_path):
    path = sheet(tmp_path / "a.xlsx", [[0.25, 0, 0.5, 1, 0, 0]])
    label = read_score_sheet(path, ScoreSheet(), CLASSES)["scan0.png"]
    assert label.responses == 2
    assert label.scores == dict(zip(COLUMNS, [0.25, 0, 0.5, 1, 0, 0], strict=True))


@given(st.lists(st.integers(0, 6).map(lambda n: n / 6), min_size=4, max_size=4))
def test_a_label_is_always_the_one_best_class(scores):
    index, excluded = _decide(np.array(scores), 1.0, ScoreSheet(threshold=0))
    if index is None:
        assert excluded == ("tie" if max(scores) > 0 else "no label above threshold")
        assert scores.count(max(scores)) > 1
    else:
        assert excluded == ""
        assert [i for i, score in enumerate(scores) if score == max(scores)] == [index]


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        ({"sheet": "Score"}, "labels.sheet: 'Score' is not one of"),
        ({"rule": "mean"}, "labels.rule: 'mean' is not one of"),
        ({"ties": "last"}, "labels.ties: 'last' is not one of"),
        ({"threshold": "1e-3"}, "labels.threshold: '1e-3' is not a number"),
        ({"threshold": True}, "labels.threshold: True is not a number"),
        ({"min_agreement": -1}, "labels.min_agreement: -1 is not a number of 0 or more"),
    ],
)
def test_wrong_policies_are_told_by_key(policy, message):
    with pytest.raises(UserError, match=re.escape(message)):
        ScoreSheet(**policy)


def test_wrong_merges_are_told(tmp_path):
    path = sheet(tmp_path / "a.xlsx", [[0, 0, 0, 1, 0, 0]])
    for merge, message in (
        ({"row": ["Rows"]}, "'row' is not a class"),
        ({"rows": ["Row"]}, "lacks the column 'Row'"),
        ({"rows": ["Rows"], "atoms": ["Rows"]}, "'Rows' stands in two classes"),
    ):
        with pytest.raises(UserError, match=message):
            read_score_sheet(path, ScoreSheet(merge=merge), CLASSES)


def test_a_score_that_is_no_number_names_its_cell(tmp_path):
    path = sheet(tmp_path / "a.xlsx", [[0, 0, 0, 1, 0, 0], [0, 0, 0, "many", 0, 0]])
    with pytest.raises(UserError, match=r"Mean_Score row 3: Rows is 'many', not a number"):
        read_score_sheet(path, ScoreSheet(), CLASSES)


SCANS = [("a", "x/a.sxm"), ("a:backward", "x/a.sxm"), ("y/b", "y/b.sxm"), ("z/b", "z/b.sxm")]
FILES = ["x/a.sxm", "y/b.sxm", "z/b.sxm", "x/broken.sxm"]


@pytest.mark.parametrize("name", ["a", "a.sxm", "x/a.sxm", "x/a", "./x/a.sxm", r"x\a.sxm"])
def test_a_row_that_names_a_file_in_any_way_labels_all_its_scans(tmp_path, name):
    found, _ = match(tmp_path, {name: Label(label="rows")}, SCANS, FILES)
    assert set(found) == {"a", "a:backward"}


def test_a_row_that_names_a_scan_labels_it_alone(tmp_path):
    found, _ = match(tmp_path, {"a:backward": Label(label="rows")}, SCANS, FILES)
    assert set(found) == {"a:backward"}
    found, _ = match(tmp_path, {"y/b": Label(label="rows")}, SCANS, FILES)
    assert set(found) == {"y/b"}


@pytest.mark.parametrize("order", [1, -1])
def test_a_scan_with_a_row_of_its_own_does_not_take_that_of_its_file(tmp_path, order):
    rows = [("a", Label(label="rows", row=2)), ("a:backward", Label(label="atoms", row=3))]
    found, _ = match(tmp_path, dict(rows[::order]), SCANS, FILES)
    assert {scan: label.label for scan, label in found.items()} == {
        "a": "rows",
        "a:backward": "atoms",
    }


def test_a_label_of_a_file_that_could_not_be_read_is_no_mistake(tmp_path):
    assert match(tmp_path, {"broken": Label(label="rows")}, SCANS, FILES) == ({}, 0)


def test_rows_without_a_scan_are_errors_or_counted(tmp_path):
    labels = {"c": Label(label="rows", row=7)}
    with pytest.raises(UserError, match=r"row 7: no scan c is there.* named as x/a\.sxm"):
        match(tmp_path, labels, SCANS, FILES)
    assert match(tmp_path, labels, SCANS, FILES, "ignore") == ({}, 1)


def test_ambiguous_and_contradicting_names_are_errors(tmp_path):
    with pytest.raises(UserError, match=r"row 3: b may be y/b\.sxm or z/b\.sxm; give the path"):
        match(tmp_path, {"b": Label(label="rows", row=3)}, SCANS, FILES)
    labels = {"a": Label(label="rows", row=2), "a.sxm": Label(label="atoms", row=3)}
    with pytest.raises(UserError, match=r"row 3: a\.sxm was given otherwise in row 2"):
        match(tmp_path, labels, SCANS, FILES)


def test_the_real_sheet_has_a_unique_maximum_for_about_four_fifths_of_its_images():
    (path,) = real("h-si100", "Database").glob("*.xlsx")
    labels = read_score_sheet(path, ScoreSheet(), CLASSES)
    shares = pd.Series([label.label for label in labels.values()]).value_counts()
    assert len(labels) == 4189
    assert shares.drop("").to_dict() == {
        "defect": 1351,
        "asymmetry/dimer": 1273,
        "rows": 538,
        "atoms": 175,
    }
    assert tuple(H_SI100_MERGE) == CLASSES
