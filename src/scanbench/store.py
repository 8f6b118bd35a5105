"""The scan store: one HDF5 file with every scan of a data set at one size.

Axes are scans *N*, lines *L* (slow axis) and pixels *P* (fast axis), in acquisition order. The
file's layout is described in `docs/formats.md`; `scanbench.convert` writes it.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, get_args

import h5py
import hdf5plugin  # its import registers the store's compression with HDF5
import numpy as np
from numpy.typing import ArrayLike, NDArray
from tqdm import tqdm

from scanbench.errors import UserError, did_you_mean, first_line
from scanbench.files import parse_json, sha256_of

SCHEMA_VERSION = 1
FloatArray = NDArray[np.float32]
Normalisation = Literal["none", "line", "scan"]

#: What `none` divides heights by, so that a network gets numbers of order one: an ångström, a
#: picoampere. Any other unit is left as it is.
NATURAL = {"m": 1e-10, "A": 1e-12}

# A deviation at most this, relative to the largest magnitude, is float32 rounding and no signal.
CONSTANT = 4 * float(np.finfo(np.float32).eps)

_BLOCK = 64  # scans verified at once
_TEXTS = ("scan_id", "group", "file_sha256", "excluded", "scan_sha256")
#: Kind of number or text of each data set, and its axes.
_LAYOUT = {
    "scans": ("f", "NLP"),
    "n_lines": ("i", "N"),
    "label": ("i", "N"),
    "change_line": ("i", "N"),
    "line_mean": ("f", "NL"),
    "line_std": ("f", "NL"),
    "scan_mean": ("f", "N"),
    "scan_std": ("f", "N"),
    **dict.fromkeys(_TEXTS, ("S", "N")),
}
#: HDF5's own deflate, shuffle and Fletcher-32, and bitshuffle with LZ4.
_FILTERS = (
    h5py.h5z.FILTER_DEFLATE, h5py.h5z.FILTER_SHUFFLE, h5py.h5z.FILTER_FLETCHER32,
    hdf5plugin.Bitshuffle.filter_id,
)  # fmt: skip
#: Pixels that a scan may have; it bounds what reading one can cost.
_LARGEST_SCAN = 2**26
#: Whatever h5py makes of a damaged file.
_BROKEN = (OSError, KeyError, ValueError, TypeError, RuntimeError, AttributeError, OverflowError)


def line_statistics(x_NLP: FloatArray, n_lines_N: ArrayLike) -> dict[str, FloatArray]:
    """Return mean and standard deviation of each line, and of each scan's measured lines.

    A standard deviation within float32 rounding of the values (`CONSTANT` times the largest
    magnitude), or too small for float32, is given as 1: what is constant becomes 0, never NaN.

    Parameters
    ----------
    x_NLP
        Heights, 0 past `n_lines_N`.
    n_lines_N
        Measured lines of each scan.

    Returns
    -------
    dict
        `line_mean`, `line_std` float32 [N, L] (0 and 1 past `n_lines_N`), `scan_mean`, `scan_std`
        float32 [N].
    """
    n, lines, _ = x_NLP.shape
    measured_NL = np.arange(lines) < np.asarray(n_lines_N)[:, None]
    result = empty_statistics(n, lines)
    x64_NLP = x_NLP.astype(np.float64)
    mean_NL = x64_NLP.mean(axis=2)
    x64_NLP -= mean_NL[..., None]
    variance_NL = np.einsum("nlp,nlp->nl", x64_NLP, x64_NLP) / x_NLP.shape[2]
    largest_NL = np.abs(x_NLP).max(axis=2)
    result["line_mean"][...] = mean_NL * measured_NL
    result["line_std"][...] = np.where(measured_NL, _guarded(variance_NL, largest_NL), 1)

    # Lines of a scan have the same number of pixels: its variance is the mean of the lines'
    # variances plus the variance of the lines' means.
    count_N = np.maximum(measured_NL.sum(axis=1), 1)
    scan_mean_N = (mean_NL * measured_NL).sum(axis=1) / count_N
    between_NL = (mean_NL - scan_mean_N[:, None]) ** 2
    variance_N = ((variance_NL + between_NL) * measured_NL).sum(axis=1) / count_N
    result["scan_mean"][...] = scan_mean_N
    result["scan_std"][...] = _guarded(variance_N, largest_NL.max(axis=1))
    return result


def empty_statistics(n: int, lines: int) -> dict[str, FloatArray]:
    """Return the statistics of scans without measured lines: means 0, deviations 1."""
    return {
        "line_mean": np.zeros((n, lines), "<f4"),
        "line_std": np.ones((n, lines), "<f4"),
        "scan_mean": np.zeros(n, "<f4"),
        "scan_std": np.ones(n, "<f4"),
    }


def _guarded(variance: NDArray[np.float64], largest: NDArray[Any]) -> NDArray[np.float64]:
    """Return standard deviations with those that mean "constant" set to 1."""
    std = np.sqrt(variance)
    constant = (std <= CONSTANT * largest) | (std < np.finfo(np.float32).tiny)
    return np.where(constant, 1.0, std)


def sha256_of_scan(x_LP: FloatArray) -> str:
    """Return the SHA-256 of a scan's float32 bytes (little-endian)."""
    return hashlib.sha256(np.ascontiguousarray(x_LP, "<f4").data).hexdigest()


class Store:
    """A store opened for reading.

    Can be sent to other processes (each opens the file anew) and closes with `with`.

    Parameters
    ----------
    path
        The HDF5 file.

    Attributes
    ----------
    study, unit, channel
        Text; `channel` is empty where the scans do not tell.
    ingest
        Options that ingest read the scans with; empty where they are not recorded.
    manifest_sha256
        Of the manifest that the scans were listed in.
    classes
        Class names in the order of the label indices.
    n_lines, label, change_line
        Integers [N].
    scan_id, group, file_sha256, scan_sha256, excluded
        Text [N].

    Raises
    ------
    UserError
        If the file is missing, no HDF5, damaged, incomplete or of another schema.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._file: Any = None
        file = self._open()
        complaint = f"{self.path}: not a scan store"
        try:
            told = dict(file.attrs)
            if "schema_version" not in told:
                raise UserError(
                    f"{complaint} (no schema_version); make one with `scanbench convert`"
                )
            found = int(told["schema_version"])
            if found != SCHEMA_VERSION:
                raise UserError(
                    f"{self.path}: schema_version {found}, but this version reads "
                    f"{SCHEMA_VERSION}; convert the scans again"
                )
            if int(told.get("complete", 0)) != 1:
                raise UserError(f"{self.path}: was not written to its end; convert the scans again")
            self.study = _text(told["study"])
            self.unit = _text(told["unit"])
            self.channel = _text(told.get("channel", ""))
            self.ingest: dict[str, Any] = parse_json(_text(told.get("ingest", "{}")))
            self.manifest_sha256 = _text(told.get("manifest_sha256", ""))
            self.classes: list[str] = parse_json(_text(told["classes"]))
            if not isinstance(self.ingest, dict):
                raise ValueError("ingest is no JSON object")
            if not isinstance(self.classes, list) or not all(
                isinstance(name, str) for name in self.classes
            ):
                raise ValueError("classes are no list of names")
            self.shape: tuple[int, int, int] = file["scans"].shape
            self._checked("scans")
            self.n_lines: NDArray[np.int32] = self._checked("n_lines")[...]
            self.label: NDArray[np.int16] = self._checked("label")[...]
        except _BROKEN as error:
            raise UserError(f"{complaint} ({first_line(error)}); convert the scans again") from None

    def _open(self) -> Any:
        if self._file is None:
            if not self.path.is_file():
                raise UserError(f"{self.path}: no such file; make it with `scanbench convert`")
            try:
                self._file = h5py.File(self.path, "r")
            except OSError as error:
                raise UserError(
                    f"{self.path}: not an HDF5 file, or truncated ({first_line(error)}); "
                    "convert the scans again"
                ) from None
        return self._file

    def __len__(self) -> int:
        """Return the number of scans."""
        return self.shape[0]

    @property
    def lines(self) -> int:
        """Lines of a whole scan."""
        return self.shape[1]

    @property
    def pixels(self) -> int:
        """Pixels of a line."""
        return self.shape[2]

    @cached_property
    def scan_id(self) -> NDArray[np.str_]:
        """Names of the scans [N]."""
        return self._texts("scan_id")

    @cached_property
    def group(self) -> NDArray[np.str_]:
        """Session of each scan [N]."""
        return self._texts("group")

    @cached_property
    def excluded(self) -> NDArray[np.str_]:
        """Why a labelled scan is not used [N]; empty if it is."""
        return self._texts("excluded")

    @cached_property
    def file_sha256(self) -> NDArray[np.str_]:
        """SHA-256 of each scan's source file [N]."""
        return self._texts("file_sha256")

    @cached_property
    def scan_sha256(self) -> NDArray[np.str_]:
        """SHA-256 of each scan's float32 bytes [N]."""
        return self._texts("scan_sha256")

    @cached_property
    def change_line(self) -> NDArray[np.int32]:
        """Line of a known tip change [N]; −1: none or unknown."""
        return self._dataset("change_line")

    @cached_property
    def statistics(self) -> dict[str, FloatArray]:
        """`line_mean`, `line_std` [N, L], `scan_mean`, `scan_std` [N]."""
        return {name: self._dataset(name) for name in empty_statistics(0, 0)}

    @cached_property
    def sha256(self) -> str:
        """SHA-256 of the file."""
        return sha256_of(self.path)

    def _checked(self, name: str) -> h5py.Dataset:
        """Return a data set of this very file that is what it should be, and costs what it says.

        Raises
        ------
        ValueError
            If it is anything else; other kinds of `_BROKEN` if the file is damaged.
        """
        file = self._open()
        kind, axes = _LAYOUT[name]
        link = file.get(name, getlink=True)
        if not isinstance(link, h5py.HardLink):
            raise ValueError(f"{name} is {'missing' if link is None else 'a link'}")
        dataset = file[name]
        if not isinstance(dataset, h5py.Dataset) or dataset.external or dataset.is_virtual:
            raise ValueError(f"{name} is no array of this file")
        if dataset.dtype.kind != kind:
            raise ValueError(f"{name} holds {dataset.dtype}")
        if len(axes) != dataset.ndim or dataset.shape != self.shape[: len(axes)]:
            raise ValueError(f"{name} has shape {dataset.shape} in a store of {self.shape}")
        pipeline = dataset.id.get_create_plist()
        for k in range(pipeline.get_nfilters()):
            if pipeline.get_filter(k)[0] not in _FILTERS:
                raise ValueError(f"{name} is packed by a filter that no store uses")
        if axes == "NLP":
            if math.prod(self.shape[1:]) > _LARGEST_SCAN:
                raise ValueError(f"a scan has {self.shape[1:]} pixels")
            if dataset.chunks not in (None, (1, *self.shape[1:])):
                raise ValueError(f"scans are stored in chunks of {dataset.chunks}")
        # These are not compressed: no small file promises more than it holds.
        elif dataset.id.get_storage_size() < dataset.nbytes:
            raise ValueError(f"{name} was not written to its end")
        return dataset

    def _dataset(self, name: str) -> Any:
        try:
            return self._checked(name)[...]
        except _BROKEN as error:
            raise UserError(
                f"{self.path}: {name} is damaged ({first_line(error)}); convert the scans again"
            ) from None

    def _texts(self, name: str) -> NDArray[np.str_]:
        try:
            return np.char.decode(self._dataset(name), "utf-8")
        except UnicodeDecodeError:
            raise UserError(f"{self.path}: {name} is no text; convert the scans again") from None

    def index_of(self, scan_ids: Sequence[str]) -> NDArray[np.int64]:
        """Return where the scans stand in the store.

        Raises
        ------
        UserError
            Naming the first that does not.
        """
        try:
            return np.array([self._position[name] for name in scan_ids], np.int64)
        except KeyError as error:
            raise UserError(f"{self.path}: holds no scan {error.args[0]!r}") from None

    @cached_property
    def _position(self) -> dict[str, int]:
        return {str(name): k for k, name in enumerate(self.scan_id)}

    def read(
        self,
        indices: ArrayLike,
        normalisation: Normalisation | None = None,
        out: FloatArray | None = None,
    ) -> FloatArray:
        """Read scans by their position, normalised as models get them or as they stand.

        Parameters
        ----------
        indices
            Positions [M], in any order.
        normalisation
            None: as stored, in `unit`. `none`: divided by a constant of the unit (`NATURAL`), the
            same for each scan of every store. `line`: each line to mean 0 and deviation 1 (causal).
            `scan`: the same over all measured lines. Lines that were not measured are 0 in each.
        out
            float32 [M, L, P] to fill instead of a new array.

        Returns
        -------
        ndarray
            float32 [M, L, P], all finite.

        Raises
        ------
        UserError
            If a scan's bytes are damaged.
        """
        if normalisation is not None and normalisation not in get_args(Normalisation):
            hint = did_you_mean(normalisation, get_args(Normalisation))
            raise UserError(f"normalisation: {normalisation!r} is unknown; {hint}")
        indices = np.asarray(indices, np.int64)
        if out is None:
            out = np.empty((len(indices), *self.shape[1:]), np.float32)
        assert indices.size == 0 or (indices.min() >= 0 and indices.max() < len(self))
        assert out.dtype == np.float32
        assert out.flags.c_contiguous
        # HDF5's own calls: h5py's slicing would take twice as long as decompressing a scan. One for
        # each run of neighbours.
        scans = self._open()["scans"].id
        in_file = scans.get_space()
        starts = np.flatnonzero(np.diff(indices, prepend=-2) != 1)
        for start, end in pairwise([*starts.tolist(), len(indices)]):
            first, block = int(indices[start]), (end - start, *self.shape[1:])
            try:
                in_file.select_hyperslab((first, 0, 0), block)
                in_memory = h5py.h5s.create_simple(block)
                scans.read(in_memory, in_file, out[start:end], h5py.h5t.NATIVE_FLOAT)
            except OSError:
                raise UserError(
                    f"{self.path}: scans {first} to {first + end - start - 1} are damaged; see "
                    "`scanbench store verify` and convert the scans again"
                ) from None
        if normalisation == "none":
            out /= np.float32(NATURAL.get(self.unit, 1.0))
        elif normalisation is not None:
            mean = self.statistics[f"{normalisation}_mean"][indices]
            std = self.statistics[f"{normalisation}_std"][indices]
            shape = (*mean.shape, 1, 1)[:3]
            out -= mean.reshape(shape)
            out /= std.reshape(shape)
            if normalisation == "scan":
                for x_LP, n_lines in zip(out, self.n_lines[indices], strict=True):
                    x_LP[n_lines:] = 0
        return out

    def close(self) -> None:
        """Close the file; the next read opens it again."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_file": None}


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def verify(path: str | Path) -> list[str]:
    """Check a store against its own checksums, shapes and rules.

    Returns
    -------
    list of str
        One line for each problem; empty if there is none.
    """
    try:
        with Store(path) as store:
            return list(_problems(store))
    except UserError as error:
        return [str(error).removeprefix(f"{path}: ")]


def _problems(store: Store) -> Iterator[str]:
    n, lines, _ = store.shape
    for name in _LAYOUT:
        if name != "scans":
            store._dataset(name)  # a missing or damaged one ends here, with its name

    names, counts = np.unique(store.scan_id, return_counts=True)
    yield from (
        f"scan_id: {str(name)!r} stands {count} times"
        for name, count in zip(names, counts, strict=True)
        if count > 1
    )
    for name, low, high in (
        ("n_lines", 0, lines),
        ("label", -1, len(store.classes) - 1),
        ("change_line", -1, lines - 1),
    ):
        values = store._dataset(name)
        for row in np.flatnonzero((values < low) | (values > high)):
            yield f"{name}: {values[row]} for scan {store.scan_id[row]}, outside {low} to {high}"
    for row in np.flatnonzero((store.excluded != "") & (store.label >= 0)):
        yield f"label: scan {store.scan_id[row]} is excluded ({store.excluded[row]}) but has one"

    for first in tqdm(range(0, n, _BLOCK), desc="verify", unit="block", mininterval=0.5):
        readable, rows = [], []
        for k in range(first, min(first + _BLOCK, n)):
            try:
                readable.append(store.read([k])[0])
                rows.append(k)
            except UserError:
                yield f"scans: scan {store.scan_id[k]} cannot be read: its bytes are damaged"
        if rows:
            yield from _block_problems(store, np.array(rows), np.stack(readable))


def _block_problems(store: Store, rows: NDArray[np.int64], x_NLP: FloatArray) -> Iterator[str]:
    n_lines_N = np.clip(store.n_lines[rows], 0, store.lines)
    finite_N = np.isfinite(x_NLP.reshape(len(rows), -1).sum(axis=1))
    expected = line_statistics(np.where(finite_N[:, None, None], x_NLP, 0), n_lines_N)
    for k, row in enumerate(rows):
        name = store.scan_id[row]
        if sha256_of_scan(x_NLP[k]) != store.scan_sha256[row]:
            yield f"scans: scan {name} does not match its scan_sha256"
        if not finite_N[k]:
            yield f"scans: scan {name} holds values that are not finite"
            continue
        if x_NLP[k, n_lines_N[k] :].any():
            yield f"scans: scan {name} is not 0 past its {n_lines_N[k]} lines"
        for key, values in expected.items():
            if not np.allclose(store.statistics[key][row], values[k], rtol=1e-5, atol=0):
                yield f"{key}: scan {name} does not match its heights"
