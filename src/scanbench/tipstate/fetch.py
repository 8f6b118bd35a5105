"""The public H:Si(100) images: get them from their repository, and check every pixel.

4,189 STM images of H:Si(100) with volunteers' labels, by O. M. Gordon and co-workers (Gordon et
al. 2020, arXiv 1907.13401), GPL-3. Git checks every object that it downloads against the commit
hash below. Beyond that, `h_si100.sha256.csv.gz` holds, for each image, the SHA-256 of its decoded
pixels, so a local copy whose PNG files were compressed anew still counts as the same images.
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

REPOSITORY = "https://github.com/OGordon100/SPM-Toolbox.git"
COMMIT = "9b3c75b8cc36360686c6e2f23aaaee3c59db4dc2"
IMAGES = "Images (Flat)"
SCORE_SHEET = LABEL_TABLES["spm-toolbox"]
SCORES = str(PurePosixPath(SCORE_SHEET).parent)

_LARGEST_IMAGE = 2**24


@dataclass(frozen=True, kw_only=True)
class Verified:
    """What was checked.

    Parameters
    ----------
    matched
        Images whose pixels are those of the table.
    unlisted
        Images that the table does not know: accepted, and vouched for by git's hashes only.
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


def write_table(folder: Path, out: Path) -> None:
    """Write the table of pixel hashes of all PNGs in a folder; the same images, the same bytes."""
    rows = [(path.name, pixel_sha256(path)) for path in sorted(folder.glob("*.png"))]
    with out.open("wb") as raw, gzip.GzipFile("", "wb", 9, raw, mtime=0) as file:
        file.write("".join(f"{','.join(row)}\n" for row in [("file", "sha256"), *rows]).encode())


def read_table() -> dict[str, str]:
    """Return the package's table: file name of an image → SHA-256 of its pixels."""
    packed = (files("scanbench.tipstate") / "h_si100.sha256.csv.gz").read_bytes()
    rows = csv.DictReader(gzip.decompress(packed).decode().splitlines())
    return {row["file"]: row["sha256"] for row in rows}


def verify(folder: Path, table: Mapping[str, str] | None = None) -> Verified:
    """Check a folder with the repository's layout against the table of pixel hashes.

    Parameters
    ----------
    folder
        Holds `Images (Flat)/*.png` and the score sheet.
    table
        File name → SHA-256 of its pixels; by default the package's own.

    Returns
    -------
    Verified
        How many images match, and which are unlisted or absent.

    Raises
    ------
    UserError
        If the layout is another, or the pixels of a listed image differ.
    """
    table = read_table() if table is None else table
    for name in (IMAGES, SCORE_SHEET):
        if not (folder / name).exists():
            raise UserError(f"{folder}: lacks {name!r}; give a clone of {REPOSITORY}")
    images = sorted((folder / IMAGES).glob("*.png"))
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
    table
        See `verify`.

    Returns
    -------
    Verified
        See `verify`.

    Raises
    ------
    UserError
        If the download fails or an image is not the published one.
    """
    with replacing_folder(out) as part:
        if local is not None:
            verified = verify(local, table)
            for name in (IMAGES, SCORES):
                shutil.copytree(local / name, part / name)
        else:
            with tempfile.TemporaryDirectory(dir=part.parent, prefix=".clone-") as clone:
                _download(Path(clone), repository, commit)
                verified = verify(Path(clone), table)
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
