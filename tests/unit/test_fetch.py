import shutil
import subprocess

import numpy as np
import pandas as pd
import pytest
from instrument_files import real
from PIL import Image

from scanbench.errors import UserError
from scanbench.tipstate.fetch import (
    COLUMNS,
    IMAGES,
    MARKS,
    SCORE_SHEET,
    SHEETS,
    fetch,
    pixel_sha256,
    read_table,
    score_sha256,
    verify,
    write_table,
)
from scanbench.tipstate.readers.png import orange_map


def image(path, seed):
    levels = np.random.default_rng(seed).integers(0, 255, (6, 8))
    Image.fromarray(orange_map()[levels]).save(path)


def workbook(path, scores, *, first=0):
    """Write a score sheet of three images; `scores` [3, columns], rows from the `first` on."""
    order = [(first + k) % 3 for k in range(3)]
    frame = pd.DataFrame(scores, columns=COLUMNS, index=[f"scan {k}.png" for k in range(3)])
    with pd.ExcelWriter(path) as book:
        for sheet in SHEETS[first:] + SHEETS[:first]:
            frame.iloc[order].rename_axis("Name").to_excel(book, sheet_name=sheet)


SCORES_3K = np.arange(24).reshape(3, 8) / 7


@pytest.fixture
def layout(tmp_path):
    """Return a folder with the repository's layout."""
    folder = tmp_path / "toolbox"
    (folder / IMAGES).mkdir(parents=True)
    for seed in range(3):
        image(folder / IMAGES / f"scan {seed}.png", seed)
    sheet = folder / SCORE_SHEET
    sheet.parent.mkdir()
    workbook(sheet, SCORES_3K)
    (folder / "Code").mkdir()
    (folder / "Code" / "not wanted.m").write_text("x")
    return folder


@pytest.fixture
def table(layout):
    return {path.name: pixel_sha256(path) for path in (layout / IMAGES).iterdir()}


def git(folder, *arguments):
    identity = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    done = subprocess.run(
        ["git", "-C", str(folder), *identity, *arguments],
        check=True,
        capture_output=True,
        text=True,
    )
    return done.stdout.strip()


@pytest.fixture
def repository(layout, table):
    """Return a repository whose wanted commit is not its newest, and that commit.

    It asks for `table` so that this holds the images before the newer commit changed them.
    """
    git(layout, "init", "--quiet")
    git(layout, "config", "uploadpack.allowAnySHA1InWant", "true")
    git(layout, "config", "uploadpack.allowFilter", "true")
    git(layout, "add", ".")
    git(layout, "commit", "--quiet", "-m", "wanted")
    commit = git(layout, "rev-parse", "HEAD")
    image(layout / IMAGES / "scan 0.png", 99)
    git(layout, "commit", "--quiet", "-am", "newer, not wanted")
    return f"file://{layout}", commit


def test_exactly_the_pinned_commit_and_the_two_folders_are_fetched(repository, table, tmp_path):
    url, commit = repository
    verified = fetch(tmp_path / "out", repository=url, commit=commit, table=table)
    assert (verified.matched, verified.unlisted, verified.absent) == (3, [], [])
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["Database", IMAGES]
    sheet = tmp_path / "toolbox" / SCORE_SHEET
    assert (tmp_path / "out" / SCORE_SHEET).read_bytes() == sheet.read_bytes()
    assert verify(tmp_path / "out", table).matched == 3


def test_a_commit_that_is_not_there_leaves_nothing_behind(repository, table, tmp_path):
    with pytest.raises(UserError, match="git fetch failed"):
        fetch(tmp_path / "out" / "data", repository=repository[0], commit="0" * 40, table=table)
    assert list((tmp_path / "out").iterdir()) == []


def test_a_repository_that_is_not_there_is_one_clear_line(table, tmp_path):
    with pytest.raises(UserError, match="check the network, or name a local clone") as error:
        fetch(tmp_path / "out", repository=f"file://{tmp_path}/none", table=table)
    assert "\n" not in str(error.value)


def test_a_local_copy_is_verified_and_copied(layout, table, tmp_path):
    assert fetch(tmp_path / "out", layout, table=table).matched == 3
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["Database", IMAGES]


def test_a_changed_pixel_names_the_file_and_leaves_nothing(layout, table, tmp_path):
    image(layout / IMAGES / "scan 1.png", 50)
    with pytest.raises(UserError, match=r"scan 1\.png: its pixels are not those"):
        fetch(tmp_path / "out", layout, table=table)
    assert not (tmp_path / "out").exists()


def test_a_broken_image_names_the_file(layout, table):
    (layout / IMAGES / "scan 1.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(UserError, match=r"scan 1\.png: broken PNG"):
        verify(layout, table)


def test_the_same_pixels_compressed_anew_or_with_a_palette_still_match(layout, table):
    path = layout / IMAGES / "scan 2.png"
    before = path.read_bytes()
    with Image.open(path) as opened:
        opened.convert("RGB").quantize(256, dither=Image.Dither.NONE).save(path)
    assert path.read_bytes() != before
    assert verify(layout, table).matched == 3


def test_images_beyond_the_table_are_listed_and_missing_ones_too(layout, table):
    image(layout / IMAGES / "extra.png", 7)
    (layout / IMAGES / "scan 0.png").unlink()
    verified = verify(layout, table)
    assert (verified.matched, verified.unlisted, verified.absent) == (
        2,
        ["extra.png"],
        ["scan 0.png"],
    )


def test_another_layout_is_refused(layout, table):
    shutil.rmtree(layout / "Database")
    with pytest.raises(UserError, match="lacks 'Database"):
        verify(layout, table)


@pytest.fixture
def scores(layout):
    return score_sha256(layout / SCORE_SHEET)


def test_an_edited_score_names_the_image_and_leaves_nothing(layout, table, scores, tmp_path):
    edited = SCORES_3K.copy()
    edited[1, 4] += 0.001
    workbook(layout / SCORE_SHEET, edited)
    with pytest.raises(UserError, match=r"xlsx: the scores of scan 1\.png are not those"):
        fetch(tmp_path / "out", layout, table=table, scores=scores)
    assert not (tmp_path / "out").exists()


def test_a_workbook_saved_anew_still_matches(layout, table, scores):
    before = (layout / SCORE_SHEET).read_bytes()
    workbook(layout / SCORE_SHEET, SCORES_3K * (1 + 1e-15), first=1)
    assert (layout / SCORE_SHEET).read_bytes() != before
    assert verify(layout, table, scores).matched == 3


def test_scores_of_absent_and_unlisted_images_are_not_asked_for(layout, table, scores):
    (layout / IMAGES / "scan 0.png").unlink()
    del scores["scan 1.png"]
    edited = SCORES_3K.copy()
    edited[:2] += 1
    workbook(layout / SCORE_SHEET, edited)
    assert verify(layout, table, scores).matched == 2


def test_the_table_is_written_alike_for_the_same_images(table, tmp_path):
    for name, hashes in (("a.gz", table), ("b.gz", dict(reversed(table.items())))):
        write_table(hashes, tmp_path / name)
    assert (tmp_path / "a.gz").read_bytes() == (tmp_path / "b.gz").read_bytes()


def test_the_package_knows_the_4189_real_images():
    table = read_table()
    assert len(table) == 4189
    folder = real("h-si100", IMAGES)
    for name in list(table)[::300]:
        assert pixel_sha256(folder / name) == table[name]


def test_the_package_knows_the_scores_of_the_real_images():
    scores = read_table(MARKS)
    assert scores.keys() == read_table().keys()
    assert score_sha256(real("h-si100", SCORE_SHEET)) == scores
