"""Simulated data sets: sessions of H:Si(100)-2×1 scans in Nanonis files, with labels and truth.

Scans of one session share surface orientation, noise, drift and range of sizes, and some are
repeats of the same spot with the same tip, as in real sessions: that is why groups matter. Every
scan has a random stream of its own, so that any order or number of workers gives the same bytes.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Generator, Mapping
from contextlib import closing
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import datetime, timedelta
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from scanbench.errors import UserError
from scanbench.files import canonical_json, replacing_folder
from scanbench.processes import worker_pool
from scanbench.tipstate import CLASSES
from scanbench.tipstate.materials import MATERIALS, SurfaceParameters
from scanbench.tipstate.scanning import (
    ANGSTROM,
    ScanParameters,
    SimulatedScan,
    levelled,
    simulate_scan,
)
from scanbench.tipstate.sxm import Channel, Header, write_sxm
from scanbench.tipstate.tip import draw_tip, resolution

__all__ = [
    "ScanParameters",
    "ScanPlan",
    "SimulatedScan",
    "Spec",
    "counts_of",
    "draw_parameters",
    "plan_scans",
    "simulate",
    "simulate_scan",
]

STATES = (0.15, 0.35, 0.25, 0.25)
"""Shares of the states, in the order of `CLASSES`, that a tip has before or after it changes."""
SEPARATIONS = {
    "atoms": (3.4, 3.7),
    "asymmetry/dimer": (3.1, 3.7),
    "rows": (2.6, 3.5),
    "defect": (2.6, 3.7),
}
"""Least and largest distance of the tunnelling centres of a dimer, Å, in scans of a state.

The bias decides which orbitals carry the current: those of the Si (2.4 apart) merge to a row, those
of the H (3.5 apart, and leaning outward) show as atoms.
"""
VISIBLE = 0.3
"""Noise is at most this share of the corrugation that a label rests on; else nobody could tell."""
#: What each scan was simulated with, in the folder of its data set.
PARAMETERS = "parameters.csv"
DEFECTS = {"blunt": 0.2, "dirty": 0.3, "unstable": 0.15, "change": 0.25, "crash": 0.1}
"""Shares of the ways in which a tip can be bad; ``blunt`` includes tips that draw ghosts."""


@dataclass(frozen=True, kw_only=True)
class Spec:
    """A data set to simulate; every field may be given in the config.

    Parameters
    ----------
    surface
        `h-si100`, `au111` or `graphite`.
    scans, sessions
        Number of scans and of sessions (groups) that they are spread over.
    pixels, lines
        Sizes to choose from, per session, of the fast and the slow axis; `lines` empty: square.
    shares
        Share of each class. The default is that of the study in which columns were merged by index.
    seed
        The same seed gives the same bytes, whatever the order or number of workers.
    width_nm
        Least and largest length of the fast axis; log-uniform between.
    pixel_nm
        No scan is coarser than this, so that its lattice can be seen.
    noise_pm
        Least and largest height noise (rms) of a session; log-uniform between.
    drift_nm_per_min
        Thermal drift (rms) of a session.
    tilt_deg
        Residual tilt (rms) of the sample plane.
    gap_angstrom
        Least and largest distance between tip and atoms at the set-point, on H:Si(100); tips come
        nearer to other surfaces (`materials.Material.approach`).
    margin
        No tip is drawn that would be in another state if the thresholds of its states were so many
        times lower or higher; 1 draws tips at a threshold too, which no observer can tell.
    adsorbates_per_nm2, dangling_per_nm2, missing_per_nm2, charges_per_nm2
        Typical density of adsorbed clusters, dangling bonds (of H:Si(100) only), missing dimers or
        atoms, and charges below the surface.
    step_share
        Share of scans wider than 6 nm that show a step.
    repeat_share
        Chance that a scan repeats the spot and tip of an earlier one of its session and class.
    aborted_share
        Share of scans that were broken off.
    levelled
        Whether each line is written less its straight line fit, as the public images are.
    workers
        Processes to use.
    """

    surface: str = "h-si100"
    scans: int = 200
    sessions: int = 10
    pixels: tuple[int, ...] = (128, 256)
    lines: tuple[int, ...] = ()
    shares: Mapping[str, float] = field(
        default_factory=lambda: {
            "atoms": 0.088,
            "asymmetry/dimer": 0.439,
            "rows": 0.169,
            "defect": 0.304,
        }
    )
    seed: int = 0
    width_nm: tuple[float, float] = (3.0, 20.0)
    pixel_nm: float = 0.12
    noise_pm: tuple[float, float] = (0.05, 1.0)
    drift_nm_per_min: float = 0.2
    tilt_deg: float = 0.05
    gap_angstrom: tuple[float, float] = (3.2, 3.9)
    margin: float = 1.5
    adsorbates_per_nm2: float = 0.007
    dangling_per_nm2: float = 0.007
    missing_per_nm2: float = 0.007
    charges_per_nm2: float = 0.05
    step_share: float = 0.15
    repeat_share: float = 0.3
    aborted_share: float = 0.03
    levelled: bool = True
    workers: int = 1

    def __post_init__(self) -> None:
        checks = {
            "surface": self.surface in MATERIALS,
            "scans": self.scans >= 1,
            "sessions": 1 <= self.sessions <= self.scans,
            "pixels": len(self.pixels) > 0 and min(self.pixels) >= 8,
            "lines": min(self.lines, default=8) >= 8,
            "shares": set(self.shares) == set(CLASSES)
            and min(self.shares.values()) >= 0
            and sum(self.shares.values()) > 0,
            "seed": self.seed >= 0,
            "workers": self.workers >= 1,
            "pixel_nm": self.pixel_nm > 0,
            "margin": self.margin >= 1,
        }
        for name in ("width_nm", "noise_pm", "gap_angstrom"):
            value = getattr(self, name)
            checks[name] = len(value) == 2 and 0 < value[0] <= value[1]
        if self.surface in MATERIALS:
            checks["gap_angstrom"] &= self.gap_angstrom[0] > MATERIALS[self.surface].approach
        for name in ("repeat_share", "aborted_share", "step_share"):
            checks[name] = 0 <= getattr(self, name) <= 1
        for name in ("drift_nm_per_min", "tilt_deg"):
            checks[name] = getattr(self, name) >= 0
        for name in (
            "adsorbates_per_nm2",
            "dangling_per_nm2",
            "missing_per_nm2",
            "charges_per_nm2",
        ):
            checks[name] = 0 <= getattr(self, name) <= 0.5
        for name, good in checks.items():
            if not good:
                value = getattr(self, name)
                raise UserError(f"simulate: {name}: {value!r} is out of range (docs/simulation.md)")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Spec:
        """Make a spec of plain values, such as a part of the config.

        Raises
        ------
        UserError
            If a key is unknown, or a value of the wrong type or out of range.
        """
        kinds = {f.name: f.type for f in fields(cls)}
        plain: dict[str, Any] = {}
        for key, value in values.items():
            if key not in kinds:
                known = ", ".join(sorted(kinds))
                raise UserError(f"simulate: unknown key {key!r}; known are {known}")
            plain[key] = tuple(value) if isinstance(value, list) else value
            if not _fits(plain[key], str(kinds[key])):
                raise UserError(f"simulate: {key}: {value!r} must be {_WORDS[str(kinds[key])]}")
        return cls(**plain)


_WORDS = {
    "int": "a whole number",
    "float": "a number",
    "str": "a text",
    "bool": "true or false",
    "tuple[int, ...]": "a list of whole numbers",
    "tuple[float, float]": "a list of two numbers",
    "Mapping[str, float]": "a number for each class",
}


def _fits(value: Any, kind: str) -> bool:
    """Tell whether a plain value is of a field's type; NaN and infinity are no numbers."""
    match kind:
        case "str":
            return isinstance(value, str)
        case "bool":
            return isinstance(value, bool)
        case "int":
            return isinstance(value, int) and not isinstance(value, bool)
        case "float":
            return _fits(value, "int") or (isinstance(value, float) and math.isfinite(value))
        case "Mapping[str, float]":
            return isinstance(value, Mapping) and all(_fits(v, "float") for v in value.values())
        case _:
            of = "int" if "int" in kind else "float"
            return isinstance(value, tuple) and all(_fits(item, of) for item in value)


@dataclass(frozen=True, kw_only=True)
class _Session:
    """What the scans of a session have in common."""

    angle: float
    noise: float
    flicker: float
    flicker_exponent: float
    line_offset: float
    drift: tuple[float, float]
    widths: tuple[float, float]
    pixels: int
    lines: int
    line_time: float
    lag_pixels: float
    overshoot: float
    chatter: float
    dirt: float
    bias: float
    setpoint: float


@dataclass(frozen=True)
class ScanPlan:
    """One scan to be made.

    Parameters
    ----------
    scan, session
        Running numbers.
    label
        Class.
    twin
        The scan whose spot and tip this one has: an earlier one, or itself.
    """

    scan: int
    session: int
    label: str
    twin: int

    @property
    def name(self) -> str:
        """File stem, unique in the data set."""
        return f"scan-{self.scan:04d}"

    @property
    def group(self) -> str:
        """Folder of the session."""
        return f"session-{self.session:03d}"


def _rng(spec: Spec, *purpose: int) -> np.random.Generator:
    return np.random.default_rng(np.random.SeedSequence([spec.seed, *purpose]))


def counts_of(spec: Spec) -> dict[str, int]:
    """Return the number of scans of each class: largest remainders, no wanted class left empty."""
    total = sum(spec.shares.values())
    wanted = {name: spec.scans * spec.shares[name] / total for name in CLASSES}
    counts = {name: math.floor(wanted[name]) for name in CLASSES}
    by_remainder = sorted(CLASSES, key=lambda name: counts[name] - wanted[name])
    for name in by_remainder[: spec.scans - sum(counts.values())]:
        counts[name] += 1
    for name in CLASSES:
        largest = max(counts, key=lambda name: counts[name])
        if wanted[name] > 0 and counts[name] == 0 and counts[largest] > 1:
            counts[name] += 1
            counts[largest] -= 1
    return counts


def plan_scans(spec: Spec) -> list[ScanPlan]:
    """Deal the classes to the sessions like cards, then shuffle each session."""
    rng = _rng(spec, 0)
    deck = [name for name, count in counts_of(spec).items() for _ in range(count)]
    plans: list[ScanPlan] = []
    for session in range(spec.sessions):
        hand = deck[session :: spec.sessions]
        rng.shuffle(hand)
        earlier: dict[str, int] = {}
        for label in hand:
            scan = len(plans)
            repeated = label in earlier and rng.random() < spec.repeat_share
            twin = earlier[label] if repeated else scan
            plans.append(ScanPlan(scan, session, label, twin))
            earlier[label] = twin
    return plans


def _log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    return math.exp(rng.uniform(math.log(low), math.log(high)))


def _draw_session(spec: Spec, session: int) -> _Session:
    rng = _rng(spec, 1, session)
    pick = int(rng.integers(len(spec.pixels)))
    pixels = spec.pixels[pick]
    lines = int(rng.choice(spec.lines)) if spec.lines else pixels
    noise = _log_uniform(rng, *spec.noise_pm) / 100
    narrowest, widest = spec.width_nm
    middle = narrowest * (widest / narrowest) ** (rng.random() ** 3)  # mostly close-ups
    return _Session(
        angle=rng.uniform(0, math.pi),
        noise=noise,
        flicker=noise * _log_uniform(rng, 1, 8),
        flicker_exponent=rng.uniform(0.8, 1.6),
        line_offset=noise * rng.uniform(0.2, 2),
        drift=tuple(rng.normal(scale=spec.drift_nm_per_min / 6, size=2).tolist()),
        widths=(max(narrowest, middle / 2), min(widest, 1.5 * middle)),
        pixels=pixels,
        lines=lines,
        line_time=_log_uniform(rng, 0.08, 0.5),
        lag_pixels=_log_uniform(rng, 0.5, 5) * pixels / 128,
        overshoot=float(rng.choice([0.0, rng.uniform(0.05, 0.5)])),
        chatter=float(rng.random() < 0.3) * _log_uniform(rng, 0.1, 20),
        dirt=rng.lognormal(0.0, 0.7),
        bias=float(rng.choice([-1, 1]) * rng.uniform(1.2, 2.5)),
        setpoint=rng.uniform(1e-11, 1e-10),
    )


def _draw_tips(
    spec: Spec, label: str, kind: str, gap: float, angle: float, rng: np.random.Generator
) -> tuple[dict[str, Any], float]:
    """Draw the tips of a scan in the states that its label says, and the dimers' separation."""
    if kind in ("", "blunt", "dirty"):
        states = [label]
    else:  # contact is lost with a tip of any state; the others are two tips in turn
        states = rng.choice(CLASSES, 1 if kind == "crash" else 2, replace=False, p=STATES).tolist()
    ranges = [SEPARATIONS[state] for state in states]
    separation = rng.uniform(max(low for low, _ in ranges), min(high for _, high in ranges))
    try:
        tips = [draw_tip(state, gap, angle, separation, rng, spec.margin) for state in states]
    except ValueError as error:
        raise UserError(f"simulate: gap_angstrom: {error}; lower it, or margin") from error
    drawn: dict[str, Any] = {"tip": tips[0], "state": states[0]}
    if len(tips) == 2:
        drawn |= {"new_tip": tips[1], "new_state": states[1]}
    return drawn, separation


def _draw_trouble(
    kind: str, measured: int, pixels: int, rng: np.random.Generator
) -> dict[str, Any]:
    """Draw when and how a bad tip fails; a good, a blunt and a dirty one do not."""
    match kind:
        case "crash":
            return {
                "crashes": 1 + int(rng.geometric(0.5)),
                "crash_height": _log_uniform(rng, 3, 100),
                "crash_pixels": _log_uniform(rng, 0.1, 8) * pixels,
            }
        case "change":
            return {
                "length_change": rng.normal(scale=0.5),
                "change_line": int(rng.uniform(0.15, 0.8) * measured),
                "change_pixel": int(rng.integers(pixels)),
            }
        case "unstable":
            return {"length_change": rng.normal(scale=0.15), "unstable": True}
    return {}


def _draw_scan(
    spec: Spec, session: _Session, label: str, rng: np.random.Generator
) -> ScanParameters:
    """Draw a scan of a class; its tip is one that is in the state the label says."""
    coarsest = spec.pixel_nm * session.pixels
    width = min(_log_uniform(rng, *session.widths), coarsest)
    angle = session.angle + rng.integers(2) * math.pi / 2 + rng.normal(scale=math.radians(1))
    gap = rng.uniform(*spec.gap_angstrom)
    lines, pixels = session.lines, session.pixels
    measured = lines
    if rng.random() < spec.aborted_share:
        measured = int(rng.uniform(0.1, 0.9) * lines) + 1

    kind = str(rng.choice(list(DEFECTS), p=list(DEFECTS.values()))) if label == "defect" else ""
    tips, separation = _draw_tips(spec, label, kind, gap, angle, rng)
    trouble = _draw_trouble(kind, measured, pixels, rng)
    quiet = math.inf
    if not kind:
        resolved = resolution(tips["tip"], gap, angle, separation)
        quiet = VISIBLE * (resolved.rows if label == "rows" else resolved.dimers)
    dirt = session.dirt * rng.lognormal(0.0, 0.5)
    if kind == "dirty":  # debris of the tip, or a spot where the surface was never clean
        dirt *= _log_uniform(rng, 3, 100)
    chatter, first, last = session.chatter, 0, lines
    if kind == "unstable" and rng.random() < 0.5:  # in a band of lines
        first, last = sorted(rng.integers(lines + 1, size=2).tolist())
        chatter = _log_uniform(rng, 0.5, 10)
    wide = width > 6
    return ScanParameters(
        label=label,
        **tips,
        **trouble,
        gap=gap,
        surface=SurfaceParameters(
            material=spec.surface,
            angle=angle,
            separation=separation,
            missing=spec.missing_per_nm2 * dirt,
            dangling=spec.dangling_per_nm2 * dirt,
            adsorbates=spec.adsorbates_per_nm2 * dirt,
            charges=spec.charges_per_nm2,
            step=int(rng.choice([1, 2], p=[0.7, 0.3]))
            if wide and rng.random() < spec.step_share
            else 0,
            seed=int(rng.integers(2**63)),
        ),
        lines=lines,
        pixels=pixels,
        measured_lines=measured,
        width=10 * width,
        height=10 * width * lines / pixels,
        drift=session.drift,
        creep=tuple((rng.normal(size=2) * 0.01 * 10 * width).tolist()),
        slow_direction=str(rng.choice(["up", "down"])),
        line_time=session.line_time,
        feedback_time=session.lag_pixels * session.line_time / pixels,
        overshoot=session.overshoot,
        noise=min(session.noise * rng.lognormal(0.0, 0.3), quiet),
        flicker=min(session.flicker * rng.lognormal(0.0, 0.3), quiet),
        flicker_exponent=session.flicker_exponent,
        line_offset=session.line_offset,
        hum=session.noise * rng.uniform(0, 0.3),
        streaks=int(rng.poisson(0.4)),
        chatter=chatter,
        chatter_height=min(_log_uniform(rng, 0.02, 0.4), 3 * quiet),
        chatter_pixels=_log_uniform(rng, 0.003, 0.1) * pixels,
        chatter_from=first,
        chatter_to=last,
        tilt=tuple(np.radians(rng.normal(scale=spec.tilt_deg, size=2)).tolist()),
        bias=session.bias,
        setpoint=session.setpoint,
    )


def draw_parameters(spec: Spec, plan: ScanPlan) -> ScanParameters:
    """Draw what a planned scan is made from; a repeat differs by where its frame lies."""
    session = _draw_session(spec, plan.session)
    parameters = _draw_scan(spec, session, plan.label, _rng(spec, 2, plan.twin))
    if plan.twin == plan.scan:
        return parameters
    rng = _rng(spec, 3, plan.scan)
    shift = rng.normal(scale=0.05 * parameters.width, size=2)
    return replace(parameters, centre=(float(shift[0]), float(shift[1])))


def _shallow(parameters: ScanParameters) -> dict[str, Any]:
    return {f.name: getattr(parameters, f.name) for f in fields(parameters)}


def _make(spec: Spec, plan: ScanPlan, folder: Path) -> tuple[ScanPlan, SimulatedScan]:
    parameters = draw_parameters(spec, plan)
    scan = simulate_scan(parameters, _rng(spec, 4, plan.scan))
    p = parameters
    minutes = timedelta(days=plan.session, minutes=30 * (plan.scan + 1))
    header = Header(
        width_m=p.width * ANGSTROM,
        height_m=p.height * ANGSTROM,
        line_time_s=p.line_time,
        bias_v=p.bias,
        setpoint_a=p.setpoint,
        slow_direction=p.slow_direction,
        offset_m=(p.centre[0] * ANGSTROM, p.centre[1] * ANGSTROM),
        started=datetime(2000, 1, 1) + minutes,
        comment=f"simulated {MATERIALS[spec.surface].title}",
    )
    forward_LP, backward_LP = scan.forward_LP, scan.backward_LP
    if spec.levelled:
        forward_LP, backward_LP = levelled(forward_LP), levelled(backward_LP)
    channels = {
        "Z": Channel(unit="m", forward_LP=forward_LP, backward_LP=backward_LP),
        "Current": Channel(
            unit="A",
            forward_LP=scan.forward_current_LP,
            backward_LP=scan.backward_current_LP,
        ),
    }
    write_sxm(folder / plan.group / f"{plan.name}.sxm", header, channels)
    return plan, scan


def simulate(spec: Mapping[str, Any], out: Path) -> None:
    """Write a simulated data set, whole or not at all.

    The folder holds ``session-000/scan-0000.sxm`` …, ``labels.csv`` (``scan,label,group,
    change_line``), ``truth.csv`` (``scan,line,state``, measured lines only) and ``parameters.csv``
    (one row per scan; lengths in Å).

    Parameters
    ----------
    spec
        Fields of `Spec`.
    out
        Folder to write; what stood there is replaced.

    Raises
    ------
    UserError
        If the spec is wrong.
    """
    checked = Spec.from_dict(spec)
    plans = plan_scans(checked)
    labels, truth, parameters = [], [], []
    with (
        replacing_folder(out, marker=PARAMETERS) as folder,
        closing(_made(checked, plans, folder)) as made,
    ):
        for plan, scan in tqdm(made, total=len(plans), desc="simulate", unit="scan"):
            line = "" if scan.change_line is None else scan.change_line
            labels.append([plan.name, plan.label, plan.group, line])
            measured = scan.parameters.measured_lines
            truth += [[plan.name, i, state] for i, state in enumerate(scan.state_L[:measured])]
            parameters.append(_row(plan, scan.parameters))
        _write_csv(folder / "labels.csv", ["scan", "label", "group", "change_line"], labels)
        _write_csv(folder / "truth.csv", ["scan", "line", "state"], truth)
        _write_csv(
            folder / PARAMETERS,
            list(parameters[0]),
            [list(row.values()) for row in parameters],
        )


def _made(
    spec: Spec, plans: list[ScanPlan], folder: Path
) -> Generator[tuple[ScanPlan, SimulatedScan]]:
    if spec.workers == 1:
        yield from map(_make, repeat(spec), plans, repeat(folder))
        return
    with worker_pool(spec.workers) as pool:
        yield from pool.map(_make, repeat(spec), plans, repeat(folder))


def _row(plan: ScanPlan, p: ScanParameters) -> dict[str, Any]:
    """Flatten the parameters of a scan; tips as JSON, lengths in Å."""
    row: dict[str, Any] = {
        "scan": plan.name,
        "group": plan.group,
        "repeat_of": f"scan-{plan.twin:04d}",
    }
    for name, value in _shallow(p).items():
        if name == "surface":
            row |= {f"surface_{key}": item for key, item in asdict(value).items()}
        elif name in ("tip", "new_tip"):
            row[name] = canonical_json([asdict(apex) for apex in value or ()])
        elif isinstance(value, tuple):
            row |= {f"{name}_{axis}": item for axis, item in zip("xy", value, strict=True)}
        else:
            row[name] = "" if value is None else value
    resolved = resolution(p.tip, p.gap, p.surface.angle, p.surface.separation)
    row |= {f"resolved_{key}": item for key, item in asdict(resolved).items()}
    return row


def _write_csv(path: Path, header: list[str], rows: list[list[Any]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)
