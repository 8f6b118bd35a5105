import shutil
import subprocess

import numpy as np
import pytest
from instrument_files import real
from PIL import Image

from scanbench.errors import UserError
from scanbench.tipstate.fetch import (
    IMAGES,
    SCORE_SHEET,
    fetch,
    pixel_sha256,
    read_table,
    verify,
    write_table,
)
from scanbench.tipstate.readers.png import orange_map


def image(path, seed):
    levels = np.random.default_rng(seed).integers(0, 255, (6, 8))
    Image.fromarray(orange_map()[levels]).save(path)


@pytest.fixture
def layout(tmp_path):
    """Return a folder with the repository's layout."""
    folder = tmp_path / "toolbox"
    (folder / IMAGES).mkdir(parents=True)
    for seed in range(3):
        image(folder / IMAGES / f"scan {seed}.png", seed)
    sheet = folder / SCORE_SHEET
    sheet.parent.mkdir()
    sheet.write_bytes(b"scores")
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
    assert (tmp_path / "out" / SCORE_SHEET).read_bytes() == b"scores"
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


def test_the_table_is_written_alike_for_the_same_images(layout, tmp_path):
    for name in ("a.gz", "b.gz"):
        write_table(layout / IMAGES, tmp_path / name)
    assert (tmp_path / "a.gz").read_bytes() == (tmp_path / "b.gz").read_bytes()


def test_the_package_knows_the_4189_real_images():
    table = read_table()
    assert len(table) == 4189
    folder = real("h-si100", IMAGES)
    for name in list(table)[::300]:
        assert pixel_sha256(folder / name) == table[name]
