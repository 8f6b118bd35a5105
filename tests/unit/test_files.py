import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scanbench.errors import UserError
from scanbench.files import (
    SMALL,
    canonical_json,
    files_digest,
    replacing,
    replacing_folder,
    sha256_of,
    write_json,
)

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=8,
)  # fmt: skip


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_appears_whole(tmp_path: Path) -> None:
    with replacing(tmp_path / "new" / "a.txt") as part:
        assert part.name == "a.txt"
        part.write_text("whole")
        assert not (tmp_path / "new" / "a.txt").exists()
    assert (tmp_path / "new" / "a.txt").read_text() == "whole"
    assert names(tmp_path / "new") == ["a.txt"]


def test_a_failed_writer_leaves_what_stood_there(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("old")
    writer = replacing(tmp_path / "a.txt")
    writer.__enter__().write_text("half")
    assert writer.__exit__(RuntimeError, RuntimeError(), None) is False
    assert (tmp_path / "a.txt").read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def test_a_folder_takes_the_place_of_the_old_one_as_a_whole(tmp_path: Path) -> None:
    (tmp_path / "f").mkdir()
    (tmp_path / "f" / "old").write_text("")
    writer = replacing_folder(tmp_path / "f", marker=".")
    (writer.__enter__() / "half").write_text("")
    assert writer.__exit__(RuntimeError, RuntimeError(), None) is False
    assert names(tmp_path / "f") == ["old"]
    with replacing_folder(tmp_path / "f", marker=".") as part:
        (part / "new").write_text("")
    assert names(tmp_path / "f") == ["new"]
    assert names(tmp_path) == ["f"]


def test_a_folder_of_somebody_else_is_not_replaced(tmp_path: Path) -> None:
    own = tmp_path / "thesis"
    own.mkdir()
    (own / "chapter.tex").write_text("x")
    refused = pytest.raises(UserError, match="thesis: exists and would be replaced, but was not")
    with refused, replacing_folder(own, marker="ingest.json"):
        pass
    assert names(own) == ["chapter.tex"]
    (own / "chapter.tex").rename(own / "ingest.json")
    with replacing_folder(own, marker="ingest.json") as part:
        (part / "ingest.json").write_text("y")
    assert (own / "ingest.json").read_text() == "y"


def test_files_and_folders_get_the_permissions_that_the_umask_gives(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        with replacing(tmp_path / "a") as part:
            # As safetensors does.
            os.close(os.open(part, os.O_CREAT | os.O_WRONLY, 0o600))
        with replacing_folder(tmp_path / "f", marker=".") as folder:
            (folder / "b").write_text("")
    finally:
        os.umask(before)
    modes = [(tmp_path / name).stat().st_mode & 0o777 for name in ("a", "f", "f/b")]
    assert modes == [0o640, 0o750, 0o640]


WRITES = """
import sys, time
from pathlib import Path
from scanbench.files import replacing, replacing_folder
with replacing(Path(sys.argv[1], "a.txt")), replacing_folder(Path(sys.argv[1], "f"), marker="."):
    print("writing", flush=True)
    time.sleep(60)
"""


def test_the_next_writer_removes_what_a_killed_one_left_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / ".a.txt.mine.part").mkdir()
    with subprocess.Popen(
        [sys.executable, "-c", WRITES, str(tmp_path)], stdout=subprocess.PIPE, text=True
    ) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "writing\n"
        with replacing(tmp_path / "a.txt") as part:
            part.write_text("of another writer")
        assert len(names(tmp_path)) == 4  # the living writer keeps its parts
        writer.kill()
    with replacing(tmp_path / "a.txt") as part:
        part.write_text("")
    assert [name[:3] for name in names(tmp_path)] == [".a.", ".f.", "a.t"]
    with replacing_folder(tmp_path / "f", marker="."):
        pass
    assert names(tmp_path) == [".a.txt.mine.part", "a.txt", "f"]


@given(PLAIN)
def test_equal_values_have_equal_text(value: object) -> None:
    assert canonical_json(value) == canonical_json(value)
    assert canonical_json({"a": 1, "b": value}) == canonical_json({"b": value, "a": 1})


def test_nan_is_no_json() -> None:
    with pytest.raises(ValueError, match="JSON"):
        canonical_json(float("nan"))


def test_canonical_json_ends_no_script_of_a_page() -> None:
    value = {"<b>": "</script><script>alert(1)</script>", "n": [1, "<"]}
    assert "<" not in canonical_json(value)
    assert json.loads(canonical_json(value)) == value


def test_hash_and_json_are_of_the_bytes(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"b": 1, "a": "é"})
    text = (tmp_path / "a.json").read_bytes()
    assert text == '{\n "a": "é",\n "b": 1\n}\n'.encode()
    assert sha256_of(tmp_path / "a.json") == hashlib.sha256(text).hexdigest()


@pytest.fixture
def session(tmp_path: Path) -> Path:
    (tmp_path / "session").mkdir()
    (tmp_path / "session" / "small.sxm").write_bytes(b"1")
    (tmp_path / "session" / "large.sxm").write_bytes(bytes(SMALL + 1))
    return tmp_path / "session"


@pytest.mark.parametrize(
    ("name", "content"),
    [("new.sxm", b"1"), ("small.sxm", b"22"), ("small.sxm", b"2"), ("large.sxm", b"2" * SMALL)],
)
def test_the_digest_of_files_sees_them_come_grow_and_be_replaced(
    session: Path, name: str, content: bytes
) -> None:
    before = files_digest(session.parent)
    (session / name).write_bytes(content)
    assert files_digest(session.parent) != before


def test_the_digest_of_files_sees_a_large_file_replaced_by_one_of_its_size(session: Path) -> None:
    before = files_digest(session.parent), files_digest(session / "large.sxm")
    (session / "large.sxm").write_bytes(b"2" * (SMALL + 1))
    assert files_digest(session.parent) != before[0]
    assert files_digest(session / "large.sxm") != before[1]


def test_the_digest_of_files_sees_them_go_but_no_touch_and_nothing_hidden(session: Path) -> None:
    before = files_digest(session.parent)
    os.utime(session / "small.sxm", (1, 1))
    (session / ".git").mkdir()
    (session / ".git" / "index").write_text("1")
    assert files_digest(session.parent) == before
    (session / "small.sxm").unlink()
    assert files_digest(session.parent) != before


def test_the_digest_of_nothing_is_that_of_an_empty_folder(tmp_path: Path) -> None:
    assert files_digest(tmp_path / "nowhere") == files_digest(tmp_path)
