"""The surfaces that can be simulated: their cells, and pieces of them with defects.

- ``h-si100``: H:Si(100)-2×1, dimer rows. Dimer bond 2.40 Å in theory (J. E. Northrup, Phys. Rev. B
  44, 1419 (1991)), 2.47 ± 0.02 Å by X-ray diffraction (Surf. Sci. 453, 18 (2000)).
- ``au111``: Au(111)-22×√3, the herringbone: pairs of ridges 63 Å apart and 0.20 Å high, whose
  direction turns at elbows some 125 Å apart (J. V. Barth et al., Phys. Rev. B 42, 9307 (1990)).
- ``graphite``: the (0001) face, of whose two atoms a cell the one without a neighbour below stands
  out (D. Tománek and S. G. Louie, Phys. Rev. B 37, 8327 (1988)): a triangular lattice, 2.46 Å.

Lengths are in Å, angles in radians.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from scanbench.tipstate.surface import Cell, Lattice, Surface

Array = NDArray[np.float64]

SILICON_CELL = 5.431
"""Lattice constant of silicon, Å."""
DIMER_SPACING = SILICON_CELL / math.sqrt(2)
"""Distance of neighbouring dimers along a row, 3.84 Å."""
ROW_SPACING = 2 * DIMER_SPACING
"""Distance of neighbouring dimer rows, 7.68 Å."""
HYDROGEN_SEPARATION = 3.5
"""Distance of the two H of a dimer, Å: Si-H bonds of 1.50 Å, leaning outward by some 20°, add a
good 1.0 Å to the dimer bond."""
GOLD_CELL = 4.078
"""Lattice constant of gold, Å."""
GRAPHITE_CELL = 2.46
"""In-plane lattice constant of graphite, Å."""
GRAPHITE_ASYMMETRY = 1.0
"""How much lower the atom with a neighbour below looks, Å: it lacks states at the Fermi level."""


@dataclass(frozen=True, kw_only=True)
class Material:
    """What one surface is like.

    Parameters
    ----------
    title
        Its name for readers.
    layer
        Height of a single-layer step, Å.
    turn
        By how much the lattice of the next layer is turned, radians.
    dangling
        Whether it has bonds that can be left dangling.
    cell
        Its unit cell; the argument is the distance of the tunnelling centres of a dimer.
    approach
        How much nearer than to H:Si(100) a tip comes, Å. One s-wave at the same distance would show
        next to nothing of a close-packed metal or of graphite, whose atoms are seen 0.1 Å and more
        high, since tips have other orbitals (C. J. Chen, Phys. Rev. Lett. 65, 448 (1990)) and press
        on what is soft (J. M. Soler et al., Phys. Rev. Lett. 57, 444 (1986)).
    relief
        Height of its atoms over positions (across, along), Å: a reconstruction.
    """

    title: str
    layer: float
    turn: float = 0.0
    dangling: bool = False
    approach: float = 0.0
    cell: Callable[[float], Cell]
    relief: Callable[[Array, Array], Array] | None = None


def dimer_cell(separation: float) -> Cell:
    """Return the 2×1 cell of H:Si(100) whose two tunnelling centres are so far apart (Å)."""
    half = separation / 2
    return Cell(ROW_SPACING, DIMER_SPACING, ((-half, 0.0, 0.0), (half, 0.0, 0.0)))


def _gold_cell(_: float) -> Cell:
    """Two atoms of a close-packed layer, along the rows and across them."""
    across = GOLD_CELL / math.sqrt(2)
    along = math.sqrt(3) * across
    return Cell(across, along, ((0.0, 0.0, 0.0), (across / 2, along / 2, 0.0)))


def _graphite_cell(_: float) -> Cell:
    across, along = GRAPHITE_CELL, math.sqrt(3) * GRAPHITE_CELL
    low = -GRAPHITE_ASYMMETRY
    return Cell(
        across,
        along,
        (
            (0.0, 0.0, 0.0),
            (across / 2, along / 2, 0.0),
            (0.0, along / 3, low),
            (across / 2, -along / 6, low),
        ),
    )


HERRINGBONE_PERIOD = 22 * GOLD_CELL / math.sqrt(2)
"""Distance of the pairs of ridges, Å."""
HERRINGBONE_HEIGHT = 0.2
"""Height of a ridge, Å."""
RIDGES = (-0.2, 0.2)
"""Where the ridges of a pair stand, in periods: hcp stacking between them, fcc outside."""
RIDGE_WIDTH = 0.07
"""Standard deviation of a ridge's profile, in periods."""
ELBOW_SPACING = 125.0
"""Distance of neighbouring elbows along the stripes' mean direction, Å."""
ELBOW_TILT = math.radians(30)
"""Half the angle by which the stripes turn at an elbow."""


def herringbone(across: ArrayLike, along: ArrayLike) -> Array:
    """Return the height of the herringbone over positions across and along its mean direction, Å.

    Barth et al., Phys. Rev. B 42, 9307 (1990): ridges between fcc and hcp stacking, in domains
    whose stripes enclose 120°.
    """
    u, v = np.asarray(across, np.float64), np.asarray(along, np.float64)
    zigzag = np.abs((v / ELBOW_SPACING) % 2 - 1) * ELBOW_SPACING * math.tan(ELBOW_TILT)
    phase = (u - zigzag) * math.cos(ELBOW_TILT) / HERRINGBONE_PERIOD
    rise = np.zeros(phase.shape)
    for ridge in RIDGES:
        away = (phase - ridge + 0.5) % 1 - 0.5
        rise += HERRINGBONE_HEIGHT * np.exp(-0.5 * (away / RIDGE_WIDTH) ** 2)
    return rise


MATERIALS = {
    "h-si100": Material(
        title="H:Si(100)-2x1",
        layer=SILICON_CELL / 4,
        turn=math.pi / 2,
        dangling=True,
        cell=dimer_cell,
    ),
    "au111": Material(
        title="Au(111)-22xsqrt(3)",
        layer=GOLD_CELL / math.sqrt(3),
        approach=2.6,
        cell=_gold_cell,
        relief=herringbone,
    ),
    "graphite": Material(title="graphite(0001)", layer=3.35, approach=2.8, cell=_graphite_cell),
}
"""The surfaces by the names that a config gives them."""


@dataclass(frozen=True, kw_only=True)
class SurfaceParameters:
    """How a piece of surface looks; densities are per nm².

    Parameters
    ----------
    material
        One of `MATERIALS`.
    angle
        Direction across the rows, radians.
    separation
        Distance of the tunnelling centres of a dimer, Å: that of the Si (2.4) or of the H (3.5), or
        between the two, as the bias decides.
    missing, dangling, adsorbates
        Density of missing dimers, dangling bonds (a lost H: bright) and adsorbed clusters.
    charges
        Density of charges below the surface.
    step
        Height of the step in layers: 0 (none), 1 (dimer rows turn by 90°) or 2.
    seed
        What is where: the same numbers give the same surface.
    """

    material: str = "h-si100"
    angle: float
    separation: float
    missing: float
    dangling: float
    adsorbates: float
    charges: float
    step: int
    seed: int


def make_surface(parameters: SurfaceParameters, radius: float) -> Surface:
    """Build the surface within `radius` (Å) of the origin.

    The origin always lies on the upper terrace, which is the one that `parameters.angle` describes.
    """
    p, material = parameters, MATERIALS[parameters.material]
    rng = np.random.default_rng(p.seed)
    area = (2 * radius / 10) ** 2  # nm², as densities are
    upper = _terrace(p, material, p.angle, radius)
    heights_CS = upper.heights_RDS.reshape(-1, len(upper.cell.basis))  # a view: C cells
    x_CS, y_CS = (sites.reshape(heights_CS.shape) for sites in upper.sites())

    # What is missing bares the next layer: both atoms of a dimer, one of any other cell.
    for cell in rng.integers(len(heights_CS), size=rng.poisson(p.missing * area)):
        heights_CS[cell, : None if material.dangling else 1] -= material.layer
    charges = [np.empty((0, 4))]
    if material.dangling:
        # An unsaturated bond, though an electronic state, looks like an atom that stands out by
        # about 1.5 Å; where it is negative, in a dark halo.
        for cell in rng.integers(len(heights_CS), size=rng.poisson(p.dangling * area)):
            side = rng.integers(2)
            heights_CS[cell, side] = rng.uniform(1.0, 1.8)
            halo = (-rng.uniform(0.0, 0.5), rng.uniform(6.0, 20.0))
            charges.append(np.array([[x_CS[cell, side], y_CS[cell, side], *halo]]))
    buried = rng.poisson(p.charges * area)
    place, width = rng.uniform(-radius, radius, (buried, 2)), rng.uniform(6, 30, buried)
    charges.append(np.column_stack([place, rng.normal(scale=0.15, size=buried), width]))

    clusters = [np.empty((0, 3))]
    for _ in range(rng.poisson(p.adsorbates * area)):
        atoms = 1 + int(rng.lognormal(1.0, 1.0))  # mostly a few, now and then a heap of debris
        spread = rng.uniform(0.5, 2.0) * math.sqrt(atoms)
        cluster = np.empty((atoms, 3))
        cluster[:, :2] = rng.uniform(-radius, radius, 2) + rng.normal(scale=spread, size=(atoms, 2))
        cluster[:, 2] = rng.uniform(0.6, 2.2) * atoms**0.3 * rng.uniform(0.6, 1.0, atoms)
        clusters.append(cluster)
    adsorbates_N3 = np.concatenate(clusters)

    if p.step == 0:
        return Surface((upper,), adsorbates_N3, np.concatenate(charges))
    lower = _terrace(p, material, p.angle + p.step % 2 * material.turn, radius)
    edge = _StepEdge.draw(rng, radius)
    upper.heights_RDS[~edge.above(*upper.sites())] = -np.inf
    lower.heights_RDS[:] -= p.step * material.layer
    lower.heights_RDS[edge.above(*lower.sites())] = -np.inf
    low = ~edge.above(adsorbates_N3[:, 0], adsorbates_N3[:, 1])
    adsorbates_N3[low, 2] -= p.step * material.layer
    return Surface((upper, lower), adsorbates_N3, np.concatenate(charges))


def _terrace(p: SurfaceParameters, material: Material, angle: float, radius: float) -> Lattice:
    """Return a perfect terrace that covers the circle of `radius`, reconstructed if it is so."""
    cell = material.cell(p.separation)
    shape = (2 * math.ceil(radius / cell.across) + 3, 2 * math.ceil(radius / cell.along) + 3, 1)
    heights_RDS = np.tile(np.array(cell.basis, np.float32)[:, 2], shape)
    terrace = Lattice(angle, cell, heights_RDS)
    if material.relief is not None:
        x, y = terrace.sites()
        cos, sin = math.cos(angle), math.sin(angle)
        heights_RDS += material.relief(x * cos + y * sin, y * cos - x * sin).astype(np.float32)
    return terrace


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
