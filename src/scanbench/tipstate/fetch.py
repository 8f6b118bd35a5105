"""The public H:Si(100) images: get them from their repository, and check every pixel and score.

4,189 STM images of H:Si(100) with volunteers' labels, by O. M. Gordon and co-workers (Gordon et
al. 2020, arXiv 1907.13401), GPL-3. Git checks every object that it downloads against the commit
hash below. Beyond that, `h_si100.sha256.csv.gz` holds, for each image, the SHA-256 of its decoded
pixels, so a local copy whose PNG files were compressed anew still counts as the same images; and
`h_si100.scores.csv.gz` holds that of its scores, so a workbook that was saved anew counts too.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image
from tqdm import tqdm

from scanbench.errors import UserError
from scanbench.files import replacing_folder
from scanbench.tipstate import LABEL_TABLES
from scanbench.tipstate.labels import read_frame

REPOSITORY = "https://github.com/OGordon100/SPM-Toolbox.git"
COMMIT = "9b3c75b8cc36360686c6e2f23aaaee3c59db4dc2"
IMAGES = "Images (Flat)"
SCORE_SHEET = LABEL_TABLES["spm-toolbox"]
SCORES = str(PurePosixPath(SCORE_SHEET).parent)
#: Sheets and columns of the workbook that labels come from.
SHEETS = ("Mean_Score", "Weighted_Score", "Agreement_Score")
COLUMNS = (
    "No. Responses",
    "Asymmetries",
    "Individual Atoms",
    "Dimers",
    "Rows",
    "Tip Change",
    "Bad/Blurry",
    "Mean",
)
#: The package's tables of hashes: of pixels, and of scores.
PIXELS, MARKS = "h_si100.sha256.csv.gz", "h_si100.scores.csv.gz"

_LARGEST_IMAGE = 2**24


@dataclass(frozen=True, kw_only=True)
class Verified:
    """What was checked.

    Parameters
    ----------
    matched
        Images whose pixels are those of the table.
    unlisted
        Images that the table does not know: accepted, and vouched for by git's hashes only. So are
        their scores.
    absent
        Images of the table that are not there.
    """

    matched: int
    unlisted: list[str]
    absent: list[str]


def pixel_sha256(path: Path) -> str:
    """Return the SHA-256 of an image's shape and RGB pixels.

    The hash is of the text `HEIGHTxWIDTHx3:` followed by uint8 [height, width, 3], row by row, so
    it does not depend on palette or compression.
    """
    try:
        with Image.open(path, formats=["PNG"]) as image:
            if image.width * image.height > _LARGEST_IMAGE:
                raise UserError(f"{path}: {image.width} × {image.height} pixels is no scan")
            rgb = np.asarray(image.convert("RGB"))
    except (OSError, ValueError, SyntaxError) as error:
        raise UserError(f"{path}: broken PNG ({error}); fetch it again") from error
    height, width, _ = rgb.shape
    return hashlib.sha256(f"{height}x{width}x3:".encode() + rgb.tobytes()).hexdigest()


def score_sha256(path: Path) -> dict[str, str]:
    """Return the SHA-256 of the scores of each image in a score sheet.

    The hash is of the image's rows in `SHEETS`, in their order: the name of the sheet and, by name,
    the values of those `COLUMNS` that it has, numbers to 12 digits. So it depends neither on the
    order of rows and columns nor on the program that saved the workbook.
    """
    texts: dict[str, str] = {}
    for sheet in SHEETS:
        for row in read_frame(path, sheet).to_dict("records"):
            image = str(row.get("Name", ""))
            values = ",".join(f"{c}={_canonical(row[c])}" for c in COLUMNS if c in row)
            texts[image] = f"{texts.get(image, '')}{sheet}:{values}\n"
    return {image: hashlib.sha256(text.encode()).hexdigest() for image, text in texts.items()}


def _canonical(value: str) -> str:
    try:
        return f"{float(value):.12g}"
    except ValueError:
        return value


def write_table(hashes: Mapping[str, str], out: Path) -> None:
    """Write a table of hashes by image; the same hashes, the same bytes."""
    lines = ["file,sha256\n", *(f"{name},{hashes[name]}\n" for name in sorted(hashes))]
    with out.open("wb") as raw, gzip.GzipFile("", "wb", 9, raw, mtime=0) as file:
        file.write("".join(lines).encode())


def read_table(name: str = PIXELS) -> dict[str, str]:
    """Return a table of the package (`PIXELS` or `MARKS`): file name of an image → SHA-256."""
    packed = (files("scanbench.tipstate") / name).read_bytes()
    rows = csv.DictReader(gzip.decompress(packed).decode().splitlines())
    return {row["file"]: row["sha256"] for row in rows}


def verify(
    folder: Path,
    table: Mapping[str, str] | None = None,
    scores: Mapping[str, str] | None = None,
) -> Verified:
    """Check a folder with the repository's layout against the tables of hashes.

    Parameters
    ----------
    folder
        Holds `Images (Flat)/*.png` and the score sheet.
    table
        File name → SHA-256 of its pixels; by default the package's own.
    scores
        File name → SHA-256 of its scores; by default the package's own. Empty: not checked.

    Returns
    -------
    Verified
        How many images match, and which are unlisted or absent.

    Raises
    ------
    UserError
        If the layout is another, or the pixels or scores of a listed image differ.
    """
    table = read_table() if table is None else table
    scores = read_table(MARKS) if scores is None else scores
    for name in (IMAGES, SCORE_SHEET):
        if not (folder / name).exists():
            raise UserError(f"{folder}: lacks {name!r}; give a clone of {REPOSITORY}")
    images = sorted((folder / IMAGES).glob("*.png"))
    found = score_sha256(folder / SCORE_SHEET) if scores else {}
    for path in images:
        if path.name in scores and found.get(path.name) != scores[path.name]:
            raise UserError(
                f"{folder / SCORE_SHEET}: the scores of {path.name} are not those that were "
                "published; fetch it again"
            )
    unlisted = []
    for path in tqdm(images, desc="verify", mininterval=0.5):
        if path.name not in table:
            unlisted.append(path.name)
        elif pixel_sha256(path) != table[path.name]:
            raise UserError(f"{path}: its pixels are not those that were published; fetch it again")
    absent = sorted(table.keys() - {path.name for path in images})
    return Verified(matched=len(images) - len(unlisted), unlisted=unlisted, absent=absent)


def fetch(
    out: Path,
    local: Path | None = None,
    *,
    repository: str = REPOSITORY,
    commit: str = COMMIT,
    table: Mapping[str, str] | None = None,
    scores: Mapping[str, str] | None = None,
) -> Verified:
    """Make the images and their score sheet stand in a folder, verified.

    Parameters
    ----------
    out
        Folder to write; it appears whole and verified, or not at all.
    local
        Folder with the repository's layout, to be copied; None downloads.
    repository
        Git repository to download from.
    commit
        Its full commit hash; nothing else is fetched.
    table, scores
        See `verify`; the scores of a local folder only, as git checks those that it downloads.

    Returns
    -------
    Verified
        See `verify`.

    Raises
    ------
    UserError
        If the download fails, or an image or its scores are not the published ones.
    """
    with replacing_folder(out, marker=IMAGES) as part:
        if local is not None:
            verified = verify(local, table, scores)
            for name in (IMAGES, SCORES):
                shutil.copytree(local / name, part / name)
        else:
            with tempfile.TemporaryDirectory(dir=part.parent, prefix=".clone-") as clone:
                _download(Path(clone), repository, commit)
                # The commit's hash vouches for the workbook.
                verified = verify(Path(clone), table, scores={})
                for name in (IMAGES, SCORES):
                    (Path(clone) / name).replace(part / name)
    return verified


def _download(clone: Path, repository: str, commit: str) -> None:
    """Check out two folders of exactly one commit; git verifies each object against its hash."""

    def git(*arguments: str) -> str:
        try:
            done = subprocess.run(
                ["git", "-C", str(clone), *arguments],
                check=True,
                capture_output=True,
                stdin=subprocess.DEVNULL,
                text=True,
                errors="replace",
            )
        except FileNotFoundError as error:
            raise UserError("git: not installed; install it, or name a local clone") from error
        except subprocess.CalledProcessError as error:
            reason = (error.stderr.strip().splitlines() or ["no reason given"])[-1]
            raise UserError(
                f"{repository}: git {arguments[0]} failed ({reason}); "
                "check the network, or name a local clone"
            ) from error
        return done.stdout.strip()

    git("init", "--quiet")
    git("remote", "add", "origin", repository)
    git("sparse-checkout", "set", "--no-cone", f"/{IMAGES}/", f"/{SCORES}/")
    git("fetch", "--quiet", "--depth", "1", "--filter=blob:none", "origin", commit)
    # The images themselves come here, as the checkout asks for the blobs of the two folders.
    git("checkout", "--quiet", "--detach", commit)
    assert git("rev-parse", "HEAD") == commit
