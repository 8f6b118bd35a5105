"""The state of a tip: what it resolves of a perfect surface, and tips drawn in a given state.

A tip's state is measured, not declared: its constant-current image of one unit cell, without noise
or defects, decides the class. A label is therefore true whatever the noise hides from an observer.
Lengths are in Å.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from scanbench.tipstate import CLASSES
from scanbench.tipstate.materials import dimer_cell
from scanbench.tipstate.surface import (
    Apex,
    Tip,
    constant_current_height,
    perfect_surface,
    tunnelling_current,
)

ATOM_SPLIT = 0.01
"""Both atoms of a dimer show if the saddle between them is at least this deep, Å …"""
ATOM_SHARE = 0.15
"""… and at least this share of the corrugation across the rows: a picture shows its largest."""
ATOM_BALANCE = 0.35
"""… and the lower one rises at least this share of the higher one above the deepest trough."""
DIMER_CORRUGATION = 0.01
"""Dimers show if the height varies along the row by at least this, Å …"""
DIMER_SHARE = 0.25
"""… and at least this share of the corrugation across the rows."""
ROW_CORRUGATION = 0.015
"""Rows show if the row-averaged height varies across them by at least this, Å."""
GHOST_DISTANCE = 9.0
"""Apexes further apart than this draw everything twice, Å."""
GHOST_SHARE = 0.12
"""… if the further ones carry at least this share of the current."""


@dataclass(frozen=True)
class Resolution:
    """What a tip resolves of the perfect surface.

    Parameters
    ----------
    rows
        Peak-to-valley height of the profile across the rows, averaged along them, Å.
    dimers
        Largest peak-to-valley height along a row, Å.
    split
        Depth of the saddle between the two atoms of a dimer, below the lower one, Å.
    balance
        Height of the lower atom over that of the higher, above the deepest trough; 0 to 1.
    ghosts
        Share of the current through apexes more than `GHOST_DISTANCE` from the strongest.
    """

    rows: float
    dimers: float
    split: float
    balance: float
    ghosts: float

    @property
    def state(self) -> str:
        """The class of a tip that resolves this much."""
        return self._state_at(1.0)

    def is_clear(self, margin: float) -> bool:
        """Tell whether the state is the same with every threshold `margin` times lower or higher.

        Parameters
        ----------
        margin
            1 or more; 1: even a tip at a threshold is clear.
        """
        return self._state_at(1 / margin) == self.state == self._state_at(margin)

    def _state_at(self, factor: float) -> str:
        """Return the class if every threshold were `factor` times what it is."""
        if self.ghosts >= factor * GHOST_SHARE:
            return "defect"
        if self.dimers >= factor * max(DIMER_CORRUGATION, DIMER_SHARE * self.rows):
            both = self.split >= factor * max(ATOM_SPLIT, ATOM_SHARE * self.rows)
            both &= self.balance >= factor * ATOM_BALANCE
            return "atoms" if both else "asymmetry/dimer"
        return "rows" if self.rows >= factor * ROW_CORRUGATION else "defect"


def cell_image(
    tip: Tip, gap: float, angle: float = 0.0, separation: float = 3.0
) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    """Return the constant-current heights of one unit cell, [along, across] the row, Å."""
    cell = dimer_cell(separation)
    u, v = cell.points()
    cos, sin = math.cos(angle), math.sin(angle)
    image: np.ndarray[tuple[int, int], np.dtype[np.float64]] = constant_current_height(
        perfect_surface(cell, angle), tip, u * cos - v * sin, u * sin + v * cos, gap
    )
    return image


def resolution(tip: Tip, gap: float, angle: float = 0.0, separation: float = 3.0) -> Resolution:
    """Measure what a tip resolves.

    Parameters
    ----------
    tip
        Its apexes.
    gap
        Distance at the set-point, Å.
    angle
        Direction across the rows in the tip's frame, radians: an uneven tip resolves more one way.
    separation
        Distance of the tunnelling centres of a dimer, Å.
    """
    image = cell_image(tip, gap, angle, separation)
    profile = image[image.max(axis=1).argmax()]  # across the row, through the highest point
    peaks = np.flatnonzero((profile > np.roll(profile, 1)) & (profile >= np.roll(profile, -1)))
    split = balance = 0.0
    if len(peaks) == 2:
        first, second = peaks
        around = np.roll(profile, -first)  # starts at one peak; the image is periodic
        saddles = around[: second - first].min(), around[second - first :].min()
        low, high = sorted(profile[peaks])
        split = low - max(saddles)
        balance = (low - min(saddles)) / (high - min(saddles))

    shares = np.array([_share(apex, gap, separation) for apex in tip])
    shares /= shares.sum()
    main = tip[int(shares.argmax())]
    far = [math.hypot(apex.x - main.x, apex.y - main.y) > GHOST_DISTANCE for apex in tip]
    return Resolution(
        rows=float(np.ptp(image.mean(axis=0))),
        dimers=float(np.ptp(image, axis=0).max()),
        split=float(split),
        balance=float(balance),
        ghosts=float(shares[far].sum()),
    )


def _share(apex: Apex, gap: float, separation: float) -> float:
    cell = dimer_cell(separation)
    u, v = (points.ravel() for points in cell.points(across=6, along=3))
    z = np.full(u.size, gap)
    return float(tunnelling_current(perfect_surface(cell), (apex,), u, v, z).mean())


_WORTH_TRYING = {
    "atoms": (0.0, 1.5, 0.25),
    "asymmetry/dimer": (0.0, 3.0, 0.75),
    "rows": (1.0, 12.0, 0.6),
    "defect": (3.0, 40.0, 0.6),
}
"""For each state the least and largest radius (Å) and the chance of each further apex.

They overlap, and only save draws: what the tip resolves decides.
"""

_MOST_TRIES = 400


def draw_tip(
    state: str,
    gap: float,
    angle: float,
    separation: float,
    rng: np.random.Generator,
    margin: float = 1.0,
) -> Tip:
    """Draw a tip at random until one is in the wanted state.

    Parameters
    ----------
    state
        One of `CLASSES`.
    gap, angle, separation
        As in `resolution`.
    rng
        The source of chance.
    margin
        How clear the state must be; see `Resolution.is_clear`.

    Raises
    ------
    ValueError
        If no tip is: even a single atom resolves little across a wide gap.
    """
    assert state in CLASSES, state
    for _ in range(_MOST_TRIES):
        tip = _any_tip(*_WORTH_TRYING[state], rng)
        found = resolution(tip, gap, angle, separation)
        if found.state == state and found.is_clear(margin):
            return tip
    raise ValueError(f"no tip in state {state!r} at a gap of {gap:.1f} Å")


def _any_tip(sharpest: float, bluntest: float, further: float, rng: np.random.Generator) -> Tip:
    decay = rng.uniform(0.9, 1.15)
    apexes = [Apex(radius=rng.uniform(sharpest, bluntest), decay=decay)]
    while len(apexes) < 5 and rng.random() < further:
        distance, direction = rng.lognormal(math.log(5.0), 0.7), rng.uniform(0, 2 * math.pi)
        apexes.append(
            Apex(
                x=distance * math.cos(direction),
                y=distance * math.sin(direction),
                height=-rng.exponential(0.5),
                radius=rng.uniform(sharpest, bluntest),
                decay=decay,
            )
        )
    return tuple(apexes)
