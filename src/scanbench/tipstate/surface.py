"""H:Si(100)-2×1 under a tip of one or more apexes: from atoms to constant-current heights.

Lengths are in Å, angles in radians. Nothing here knows of scan lines, time or noise (`simulate`).

The tunnelling model is that of Tersoff and Hamann, Phys. Rev. B 31, 805 (1985): an apex is a sphere
of radius R whose s-wave sees the sample's density of states at its centre of curvature, so that it
draws the current exp(2κR) Σ exp(−2κ r) over the surface atoms at distances r from that centre.
Apexes add up. A constant-current height is then (1/2κ) ln of a sum of exponentials: how finely a
tip resolves the surface follows from its radius and gap alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float32]

SILICON_CELL = 5.431
"""Lattice constant of silicon, Å."""
DIMER_SPACING = SILICON_CELL / math.sqrt(2)
"""Distance of neighbouring dimers along a row, 3.84 Å."""
ROW_SPACING = 2 * DIMER_SPACING
"""Distance of neighbouring dimer rows, 7.68 Å."""
LAYER = SILICON_CELL / 4
"""Height of a single-layer step, 1.36 Å."""
DIMER_BOND = 2.4
"""Si-Si bond of a hydrogenated dimer, Å: 2.40 in theory (Northrup, Phys. Rev. B 44, 1419 (1991)),
2.47 ± 0.02 by X-ray diffraction (Surf. Sci. 453, 18 (2000))."""
HYDROGEN_SEPARATION = 3.5
"""Distance of the two H of a dimer, Å: Si-H bonds of 1.50 Å, leaning outward by some 20°, add a
good 1.0 Å to the dimer bond."""

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
class Lattice:
    """A domain of dimer rows, periodic with its array: a 1×1×2 array is the perfect surface.

    Parameters
    ----------
    angle
        Direction of the axis across the rows, from the x axis, radians.
    separation
        Distance of the two tunnelling centres of a dimer, Å.
    heights_RDS
        Height of each centre, Å, by [row, dimer, side]; −inf where there is no atom. Site
        [R // 2, D // 2] is at the origin.
    """

    angle: float
    separation: float
    heights_RDS: Floats

    def sites(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the x and y of every centre, each [R, D, 2], in Å."""
        rows, dimers, _ = self.heights_RDS.shape
        u = (np.arange(rows) - rows // 2)[:, None, None] * ROW_SPACING + np.array(
            [-0.5, 0.5]
        ) * self.separation
        v = (np.arange(dimers) - dimers // 2)[None, :, None] * DIMER_SPACING
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
    """

    lattices: tuple[Lattice, ...]
    adsorbates_N3: NDArray[np.float64]


def perfect_surface(angle: float = 0.0, separation: float = 3.0) -> Surface:
    """Return the endless flat surface without defects."""
    return Surface((Lattice(angle, separation, np.zeros((1, 1, 2), np.float32)),), np.empty((0, 3)))


@dataclass(frozen=True, kw_only=True)
class SurfaceParameters:
    """How a piece of surface looks; densities are per nm².

    Parameters
    ----------
    angle
        Direction across the rows, radians.
    separation
        Distance of the tunnelling centres of a dimer, Å: that of the Si (2.4) or of the H (3.5), or
        between the two, as the bias decides.
    missing, dangling, adsorbates
        Density of missing dimers, dangling bonds (a lost H: bright) and adsorbed clusters.
    step
        Height of the step in layers: 0 (none), 1 (rows turn by 90°) or 2.
    seed
        What is where: the same numbers give the same surface.
    """

    angle: float
    separation: float
    missing: float
    dangling: float
    adsorbates: float
    step: int
    seed: int


def make_surface(parameters: SurfaceParameters, radius: float) -> Surface:
    """Build the surface within `radius` (Å) of the origin.

    The origin always lies on the upper terrace, which is the one that `parameters.angle` describes.
    """
    rng = np.random.default_rng(parameters.seed)
    area = (2 * radius / 10) ** 2  # nm², as densities are
    shape = (2 * math.ceil(radius / ROW_SPACING) + 3, 2 * math.ceil(radius / DIMER_SPACING) + 3, 2)
    heights_RDS = np.zeros(shape, np.float32)
    sites = shape[0] * shape[1]

    # A missing dimer bares the second layer; an unsaturated bond, though an electronic state, looks
    # like an atom that stands out by about 1.5 Å.
    for site in rng.integers(sites, size=rng.poisson(parameters.missing * area)):
        heights_RDS.reshape(sites, 2)[site] = -LAYER
    for site in rng.integers(sites, size=rng.poisson(parameters.dangling * area)):
        heights_RDS.reshape(sites, 2)[site, rng.integers(2)] = rng.uniform(1.0, 1.8)

    clusters = [np.empty((0, 3))]
    for _ in range(rng.poisson(parameters.adsorbates * area)):
        atoms = rng.geometric(0.2)  # mostly a few, now and then a heap of debris
        spread = rng.uniform(0.5, 2.0) * math.sqrt(atoms)
        cluster = np.empty((atoms, 3))
        cluster[:, :2] = rng.uniform(-radius, radius, 2) + rng.normal(scale=spread, size=(atoms, 2))
        cluster[:, 2] = rng.uniform(0.6, 2.2) * atoms**0.3 * rng.uniform(0.6, 1.0, atoms)
        clusters.append(cluster)
    adsorbates_N3 = np.concatenate(clusters)

    upper = Lattice(parameters.angle, parameters.separation, heights_RDS)
    if parameters.step == 0:
        return Surface((upper,), adsorbates_N3)
    turn = math.pi / 2 if parameters.step == 1 else 0.0
    lower = Lattice(parameters.angle + turn, parameters.separation, heights_RDS.copy())
    edge = _StepEdge.draw(rng, radius)
    upper.heights_RDS[~edge.above(*upper.sites())] = -np.inf
    beyond = edge.above(*lower.sites())
    lower.heights_RDS[:] = np.where(beyond, -np.inf, lower.heights_RDS - parameters.step * LAYER)
    low = ~edge.above(adsorbates_N3[:, 0], adsorbates_N3[:, 1])
    adsorbates_N3[low, 2] -= parameters.step * LAYER
    return Surface((upper, lower), adsorbates_N3)


@dataclass(frozen=True)
class _StepEdge:
    """A step edge with kinks: a straight line plus a random walk along it."""

    direction: float
    distance: float
    along: NDArray[np.float64]
    wander: NDArray[np.float64]

    @classmethod
    def draw(cls, rng: np.random.Generator, radius: float) -> _StepEdge:
        along = np.arange(-radius, radius + ROW_SPACING, ROW_SPACING)
        kinks = rng.choice([-1, 0, 1], size=along.size, p=[0.15, 0.7, 0.15]) * ROW_SPACING
        wander = np.cumsum(kinks)
        wander -= np.interp(0.0, along, wander)
        direction, distance = rng.uniform(0, 2 * math.pi), rng.uniform(0.1, 0.5) * radius
        return cls(direction, distance, along, wander)

    def above(self, x: ArrayLike, y: ArrayLike) -> NDArray[np.bool_]:
        """Tell which points lie on the upper terrace."""
        x, y = np.asarray(x), np.asarray(y)
        cos, sin = math.cos(self.direction), math.sin(self.direction)
        edge = np.interp(y * cos - x * sin, self.along, self.wander)
        above: NDArray[np.bool_] = x * cos + y * sin < self.distance + edge
        return above


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
        reach = _reach(apex, centre_N)
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


def _reach(apex: Apex, z_N: Floats) -> float:
    """Return the lateral distance beyond which atoms count for nothing."""
    near = float(np.median(z_N))
    return math.sqrt((near - math.log(NEGLIGIBLE) / (2 * apex.decay)) ** 2 - near**2)


def _lattice_current(
    lattice: Lattice, apex: Apex, x_N: Floats, y_N: Floats, z_N: Floats
) -> NDArray[np.float64]:
    """Sum over the K tunnelling centres near each of N points, in blocks that stay in the cache."""
    cos, sin = np.float32(math.cos(lattice.angle)), np.float32(math.sin(lattice.angle))
    u_N, v_N = x_N * cos + y_N * sin, y_N * cos - x_N * sin
    row_N = np.rint(u_N / np.float32(ROW_SPACING)).astype(np.int32)
    dimer_N = np.rint(v_N / np.float32(DIMER_SPACING)).astype(np.int32)
    u_N -= row_N * np.float32(ROW_SPACING)  # now relative to the middle of the nearest dimer
    v_N -= dimer_N * np.float32(DIMER_SPACING)

    rows, dimers, _ = lattice.heights_RDS.shape
    row_K, dimer_K, side_K = _neighbours(lattice, _reach(apex, z_N))
    # wrapped around, so that a neighbour is a fixed step away in memory
    pad_u, pad_v = int(row_K.max()), int(dimer_K.max())
    padding = ((pad_u, pad_u), (pad_v, pad_v), (0, 0))
    heights = np.pad(lattice.heights_RDS, padding, mode="wrap").reshape(-1)
    stride = dimers + 2 * pad_v
    site_N = (row_N + rows // 2) % rows * stride + (dimer_N + dimers // 2) % dimers
    step_K1 = (((row_K + pad_u) * stride + dimer_K + pad_v) * 2 + side_K)[:, None]
    u_K1 = (row_K * ROW_SPACING + (side_K - 0.5) * lattice.separation).astype(np.float32)[:, None]
    v_K1 = (dimer_K * DIMER_SPACING).astype(np.float32)[:, None]
    current_N = np.empty(x_N.shape)
    block = max(1, BLOCK // len(row_K))
    for start in range(0, x_N.size, block):
        part = slice(start, start + block)
        height_KN = heights[2 * site_N[part] + step_K1]
        squared_KN = (z_N[part] - height_KN) ** 2
        squared_KN += (u_N[part] - u_K1) ** 2
        squared_KN += (v_N[part] - v_K1) ** 2
        current_N[part] = _decayed(squared_KN, apex).sum(axis=0)
    return current_N


def _neighbours(lattice: Lattice, reach: float) -> tuple[NDArray[np.int32], ...]:
    """Return row, dimer and side, each [K], of the centres that matter in cell (0, 0)."""
    far_u, far_v = math.ceil(reach / ROW_SPACING), math.ceil(reach / DIMER_SPACING)
    row, dimer, side = np.meshgrid(
        np.arange(-far_u, far_u + 1, dtype=np.int32),
        np.arange(-far_v, far_v + 1, dtype=np.int32),
        np.arange(2, dtype=np.int32),
        indexing="ij",
    )
    across = np.abs(row * ROW_SPACING + (side - 0.5) * lattice.separation) - ROW_SPACING / 2
    along = np.abs(dimer * DIMER_SPACING) - DIMER_SPACING / 2
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
    setpoint = _setpoint(tip, gap, surface.lattices[0].separation)
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


def unit_cell(across: int = 24, along: int = 8) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return points of the 2×1 unit cell, across and along the row, each [along, across], in Å."""
    u = np.arange(across) * (ROW_SPACING / across)
    v = np.arange(along) * (DIMER_SPACING / along)
    return np.meshgrid(u, v)


def _setpoint(tip: Tip, gap: float, separation: float) -> float:
    u, v = (points.ravel() for points in unit_cell())
    return float(
        tunnelling_current(perfect_surface(0.0, separation), tip, u, v, np.full(u.size, gap)).mean()
    )
