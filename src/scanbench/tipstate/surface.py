"""A surface under a tip of one or more apexes: from atoms to constant-current heights.

Lengths are in Å, angles in radians. Nothing here knows of scan lines, time or noise (`simulate`).

The tunnelling model is that of Tersoff and Hamann, Phys. Rev. B 31, 805 (1985): an apex is a sphere
of radius R whose s-wave sees the sample's density of states at its centre of curvature, so that it
draws the current exp(2κR) Σ exp(−2κ r) over the surface atoms at distances r from that centre.
Apexes add up. A constant-current height is then (1/2κ) ln of a sum of exponentials: how finely a
tip resolves the surface follows from its radius and gap alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float32]

BLOCK = 2**15
"""Pairs of a tip position and an atom worked on at once."""
NEGLIGIBLE = 1e-4
"""An atom that would carry less than this share of the current of the nearest one is left out."""

TOLERANCE = 0.02
"""A height whose last step was smaller than this, Å, is right to a tenth of it."""


@dataclass(frozen=True, kw_only=True)
class Apex:
    """One protrusion of a tip.

    Parameters
    ----------
    x, y
        Lateral position in the tip, Å.
    height
        Position of its end relative to the foremost one, Å; negative: further from the sample.
    radius
        Radius of curvature, Å. A single atom is about 0 to 2 Å, a blunt tip tens of Å.
    decay
        Inverse decay length κ of the wave function, 1/Å: 0.512 √(φ/eV), so 1.1 for a clean tip
        and less for a contaminated one.
    """

    x: float = 0.0
    y: float = 0.0
    height: float = 0.0
    radius: float = 1.0
    decay: float = 1.1


Tip = tuple[Apex, ...]


@dataclass(frozen=True)
class Cell:
    """A rectangular unit cell, such as that of one dimer.

    Parameters
    ----------
    across, along
        Its sides, Å.
    basis
        Where its tunnelling centres lie from its middle, ((across, along, height), …), Å.
    """

    across: float
    along: float
    basis: tuple[tuple[float, float, float], ...]

    def points(
        self, across: int = 24, along: int = 8
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return points of the cell, across and along, each [along, across], in Å."""
        u = np.arange(across) * (self.across / across)
        v = np.arange(along) * (self.along / along)
        return np.meshgrid(u, v)


@dataclass(frozen=True)
class Lattice:
    """A domain, periodic with its array: an array of one cell is the perfect surface.

    Parameters
    ----------
    angle
        Direction of the cell's first axis (across the dimer rows), from the x axis, radians.
    cell
        Its unit cell.
    heights_RDS
        Height of each of S centres a cell, Å, by [row, cell along the row, centre]; −inf where
        there is no atom. Cell [R // 2, D // 2] is at the origin.
    """

    angle: float
    cell: Cell
    heights_RDS: Floats

    def sites(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the x and y of every centre, each [R, D, S], in Å."""
        rows, dimers, _ = self.heights_RDS.shape
        basis_S3 = np.array(self.cell.basis)
        u, v = np.broadcast_arrays(
            (np.arange(rows) - rows // 2)[:, None, None] * self.cell.across + basis_S3[:, 0],
            (np.arange(dimers) - dimers // 2)[None, :, None] * self.cell.along + basis_S3[:, 1],
        )
        cos, sin = math.cos(self.angle), math.sin(self.angle)
        return u * cos - v * sin, u * sin + v * cos


@dataclass(frozen=True)
class Surface:
    """What the tip scans.

    Parameters
    ----------
    lattices
        Domains; at a single-layer step there are two, a quarter turn apart.
    adsorbates_N3
        Atoms off the lattice, [N, (x, y, height)], Å.
    charges_N4
        Charges that bend the bands: [N, (x, y, rise, width)], Å.
    """

    lattices: tuple[Lattice, ...]
    adsorbates_N3: NDArray[np.float64]
    charges_N4: NDArray[np.float64]

    def band_bending(self, x_N: ArrayLike, y_N: ArrayLike) -> NDArray[np.float64]:
        """Return by how much charges raise or lower a constant-current image, Å.

        A charge shifts the states that tunnelling sees, over a screening length and whatever the
        tip: a negative dangling bond stands in a dark halo, a buried dopant in a faint cloud
        (M. B. Haider et al., Phys. Rev. Lett. 102, 046805 (2009)). Each is a Gaussian here.

        Parameters
        ----------
        x_N, y_N
            Positions of any common shape, Å.
        """
        x_N, y_N = np.asarray(x_N, np.float64), np.asarray(y_N, np.float64)
        rise_N = np.zeros(x_N.shape)
        for x, y, rise, width in self.charges_N4:
            rise_N += rise * np.exp(-((x_N - x) ** 2 + (y_N - y) ** 2) / (2 * width**2))
        return rise_N


def perfect_surface(cell: Cell, angle: float = 0.0) -> Surface:
    """Return the endless flat surface without defects."""
    heights_RDS = np.array(cell.basis, np.float32)[None, None, :, 2]
    return Surface((Lattice(angle, cell, heights_RDS),), np.empty((0, 3)), np.empty((0, 4)))


def tunnelling_current(
    surface: Surface, tip: Tip, x_N: ArrayLike, y_N: ArrayLike, z_N: ArrayLike
) -> NDArray[np.float64]:
    """Return the current, in units of one atom's at zero distance, for tip positions in Å.

    Parameters
    ----------
    surface, tip
        What is scanned and with what.
    x_N, y_N
        Lateral positions of the tip.
    z_N
        Height of the tip's foremost end (`Apex.height` 0) above the upper terrace's atoms.
    """
    x_N, y_N, z_N = (np.asarray(a, np.float32) for a in (x_N, y_N, z_N))
    current_N = np.zeros(x_N.size)
    for apex in tip:
        centre_N = z_N + np.float32(apex.radius - apex.height)
        ax_N, ay_N = x_N + np.float32(apex.x), y_N + np.float32(apex.y)
        for lattice in surface.lattices:
            current_N += _lattice_current(lattice, apex, ax_N, ay_N, centre_N)
        reach = _reach(apex, centre_N, surface.lattices)
        atoms = surface.adsorbates_N3.astype(np.float32)
        seen = (atoms[:, 0] > ax_N.min() - reach) & (atoms[:, 0] < ax_N.max() + reach)
        seen &= (atoms[:, 1] > ay_N.min() - reach) & (atoms[:, 1] < ay_N.max() + reach)
        for x, y, height in atoms[seen]:
            near = np.flatnonzero((np.abs(ax_N - x) < reach) & (np.abs(ay_N - y) < reach))
            squared = (ax_N[near] - x) ** 2 + (ay_N[near] - y) ** 2 + (centre_N[near] - height) ** 2
            current_N[near] += _decayed(squared, apex)
    return current_N


def _decayed(squared_distance: Floats, apex: Apex) -> Floats:
    distance = np.sqrt(squared_distance)
    distance -= np.float32(apex.radius)
    distance *= np.float32(-2 * apex.decay)
    decayed: Floats = np.exp(distance, out=distance)
    return decayed


def _lowest(lattice: Lattice) -> float:
    """Return the height of the lowest atom, Å; 0 where there is none."""
    heights = lattice.heights_RDS[np.isfinite(lattice.heights_RDS)]
    return float(heights.min()) if heights.size else 0.0


def _reach(apex: Apex, z_N: Floats, lattices: Sequence[Lattice]) -> float:
    """Return the lateral distance beyond which atoms count for nothing."""
    near = float(z_N.mean())
    if near < apex.radius:  # below the upper terrace's atoms: over a lower one
        near = max(near - min(map(_lowest, lattices), default=0.0), apex.radius)
    return math.sqrt((near - math.log(NEGLIGIBLE) / (2 * apex.decay)) ** 2 - near**2)


def _lattice_current(
    lattice: Lattice, apex: Apex, x_N: Floats, y_N: Floats, z_N: Floats
) -> NDArray[np.float64]:
    """Sum over the K tunnelling centres near each of N points, in blocks that stay in the cache."""
    cos, sin = np.float32(math.cos(lattice.angle)), np.float32(math.sin(lattice.angle))
    u_N, v_N = x_N * cos + y_N * sin, y_N * cos - x_N * sin
    across, along = np.float32(lattice.cell.across), np.float32(lattice.cell.along)
    row_N = np.rint(u_N / across).astype(np.int32)
    dimer_N = np.rint(v_N / along).astype(np.int32)
    u_N -= row_N * across  # now relative to the middle of the nearest cell
    v_N -= dimer_N * along

    rows, dimers, sides = lattice.heights_RDS.shape
    reach = math.ceil(4 * _reach(apex, z_N, (lattice,))) / 4
    row_K, dimer_K, side_K = _neighbours(lattice.cell, reach)
    # wrapped around, so that a neighbour is a fixed step away in memory
    pad_u, pad_v = int(row_K.max()), int(dimer_K.max())
    padding = ((pad_u, pad_u), (pad_v, pad_v), (0, 0))
    heights = np.pad(lattice.heights_RDS, padding, mode="wrap").reshape(-1)
    stride = dimers + 2 * pad_v
    site_N = (row_N + rows // 2) % rows * stride + (dimer_N + dimers // 2) % dimers
    step_K1 = (((row_K + pad_u) * stride + dimer_K + pad_v) * sides + side_K)[:, None]
    basis_S3 = np.array(lattice.cell.basis)
    u_K1 = (row_K * lattice.cell.across + basis_S3[side_K, 0]).astype(np.float32)[:, None]
    v_K1 = (dimer_K * lattice.cell.along + basis_S3[side_K, 1]).astype(np.float32)[:, None]
    current_N = np.empty(x_N.shape)
    block = max(1, BLOCK // len(row_K))
    for start in range(0, x_N.size, block):
        part = slice(start, start + block)
        height_KN = heights[sides * site_N[part] + step_K1]
        squared_KN = (z_N[part] - height_KN) ** 2
        squared_KN += (u_N[part] - u_K1) ** 2
        squared_KN += (v_N[part] - v_K1) ** 2
        current_N[part] = _decayed(squared_KN, apex).sum(axis=0)
    return current_N


@lru_cache(maxsize=256)
def _neighbours(cell: Cell, reach: float) -> tuple[NDArray[np.int32], ...]:
    """Return row, cell along it and centre, each [K], of all that matter in cell (0, 0)."""
    basis_S3 = np.array(cell.basis)
    # Half a cell more: a centre may lie at the border of its cell, the point at the other.
    far_u = math.ceil(reach / cell.across + 0.5)
    far_v = math.ceil(reach / cell.along + 0.5)
    row, dimer, side = np.meshgrid(
        np.arange(-far_u, far_u + 1, dtype=np.int32),
        np.arange(-far_v, far_v + 1, dtype=np.int32),
        np.arange(len(basis_S3), dtype=np.int32),
        indexing="ij",
    )
    across = np.abs(row * cell.across + basis_S3[side, 0]) - cell.across / 2
    along = np.abs(dimer * cell.along + basis_S3[side, 1]) - cell.along / 2
    near = np.hypot(np.maximum(across, 0), np.maximum(along, 0)) <= reach
    return row[near], dimer[near], side[near]


def constant_current_height(
    surface: Surface, tip: Tip, x_N: ArrayLike, y_N: ArrayLike, gap: float
) -> NDArray[np.float64]:
    """Return the height at which the tip draws its set-point current, Å.

    The set-point is the mean current on the perfect surface at height `gap`, so heights are around
    zero on a flat terrace. ln I is nearly linear in z, so a few chord steps with the slope of the
    flat surface, d ln I / dz = −2κ · 2κr / (1 + 2κr) at r = gap + radius, find the height.

    Parameters
    ----------
    surface, tip
        What is scanned and with what.
    x_N, y_N
        Lateral positions, Å, of any common shape.
    gap
        Distance between the tip's foremost end and the atoms, Å.
    """
    x_N, y_N = np.asarray(x_N, np.float64), np.asarray(y_N, np.float64)
    shape, x_N, y_N = x_N.shape, x_N.ravel(), y_N.ravel()
    setpoint = _setpoint(tip, gap, surface.lattices[0].cell)
    decay = 2 * max(apex.decay for apex in tip)
    far = decay * (gap + min(apex.radius for apex in tip))
    steepness = decay * far / (1 + far)
    z_N = np.full(x_N.shape, gap)
    moving = np.arange(x_N.size)
    for _ in range(6):  # flat terraces need two passes, step edges and adsorbates the rest
        current = tunnelling_current(surface, tip, x_N[moving], y_N[moving], z_N[moving])
        rise = np.log(current / setpoint) / steepness
        z_N[moving] += rise
        moving = moving[np.abs(rise) > TOLERANCE]
        if moving.size == 0:
            break
    return (z_N - gap).reshape(shape)


def _setpoint(tip: Tip, gap: float, cell: Cell) -> float:
    u, v = (points.ravel() for points in cell.points())
    return float(tunnelling_current(perfect_surface(cell), tip, u, v, np.full(u.size, gap)).mean())
