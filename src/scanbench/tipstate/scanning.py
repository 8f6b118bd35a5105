"""One simulated STM scan of H:Si(100)-2×1, with the truth about the tip on every line.

A scan is made in the order in which an instrument makes it: a surface with its defects (`surface`),
a tip in a known state that may change on the way (`tip`), a frame that drifts and creeps, the
constant-current height under it, the feedback that lags behind, noise, and a plane that was not
levelled. Heights and currents leave this module in SI units; inside, lengths are in Å as in
`surface`. Axes: L lines, D directions (forward, backward), P pixels, all in acquisition order.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.signal import lfilter, lfilter_zi

from scanbench.tipstate.materials import MATERIALS, SurfaceParameters, make_surface
from scanbench.tipstate.surface import Surface, Tip, constant_current_height

ANGSTROM = 1e-10
Array = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class ScanParameters:
    """Everything about one scan but its noise.

    Parameters
    ----------
    label
        Class of the scan.
    tip, new_tip
        Tip at the start, and the one it turns into (or flickers with); None: it stays.
    state, new_state
        What each resolves.
    change_line, change_pixel
        Where the tip changes for good; None: it does not.
    unstable
        Whether the tip flickers between its two forms.
    gap
        Distance at the set-point, Å, from H:Si(100); see `Material.approach`.
    length_change
        Height jump of the tip when it changes, Å.
    surface
        The surface.
    lines, pixels
        Planned size.
    measured_lines
        Lines measured before the scan was broken off, or all.
    width, height
        Lengths of the axes, Å.
    centre
        Middle of the frame on the surface, Å.
    drift
        Velocity of the frame, Å/s (x, y).
    creep
        Displacement by creep per decade of time, Å (x, y).
    slow_direction
        ``up`` or ``down``.
    line_time
        Time of one line in one direction, s.
    feedback_time
        Time constant of the height feedback, s.
    overshoot
        By how much the feedback overshoots a step, as a share of the step; 0: not at all.
    noise
        White height noise, rms, Å.
    flicker, flicker_exponent
        Height noise whose power falls with the frequency to this exponent; rms about the mean of
        each line, Å.
    line_offset
        Height jumps between lines, rms, Å.
    hum
        Amplitude of 50 Hz pick-up, Å.
    streaks
        Number of short streaks: adsorbed atoms that move under the tip.
    chatter, chatter_height, chatter_pixels
        An atom at the tip that comes and goes: how often per line and direction, mean height (Å)
        and mean length (pixels) of its excursions.
    chatter_from, chatter_to
        First line on which it does, and the one after the last.
    crashes, crash_height, crash_pixels
        Number of losses of the tunnelling contact, height to which the tip runs (Å) and mean time
        until it is back (pixels).
    tilt
        Slope of the sample plane (x, y).
    bias, setpoint
        Sample bias in V, current in A.
    """

    label: str
    tip: Tip
    new_tip: Tip | None = None
    state: str
    new_state: str | None = None
    change_line: int | None = None
    change_pixel: int = 0
    unstable: bool = False
    gap: float = 3.8
    length_change: float = 0.0
    surface: SurfaceParameters
    lines: int
    pixels: int
    measured_lines: int
    width: float
    height: float
    centre: tuple[float, float] = (0.0, 0.0)
    drift: tuple[float, float] = (0.0, 0.0)
    creep: tuple[float, float] = (0.0, 0.0)
    slow_direction: str = "down"
    line_time: float = 0.2
    feedback_time: float = 0.0
    overshoot: float = 0.0
    noise: float = 0.0
    flicker: float = 0.0
    flicker_exponent: float = 1.0
    line_offset: float = 0.0
    hum: float = 0.0
    streaks: int = 0
    chatter: float = 0.0
    chatter_height: float = 0.0
    chatter_pixels: float = 1.0
    chatter_from: int = 0
    chatter_to: int = 0
    crashes: int = 0
    crash_height: float = 0.0
    crash_pixels: float = 1.0
    tilt: tuple[float, float] = (0.0, 0.0)
    bias: float = -2.0
    setpoint: float = 2e-11


@dataclass(frozen=True)
class SimulatedScan:
    """A scan and the truth about it.

    Parameters
    ----------
    forward_LP, backward_LP
        Heights, m, in acquisition order; lines that were not measured are NaN.
    forward_current_LP, backward_current_LP
        Tunnelling current, A.
    state_L
        State of the tip on each line; a line on which it flickers is ``defect``.
    change_line
        Line on which the tip changed for good, or None.
    parameters
        What the scan was made from.
    """

    forward_LP: NDArray[np.float32]
    backward_LP: NDArray[np.float32]
    forward_current_LP: NDArray[np.float32]
    backward_current_LP: NDArray[np.float32]
    state_L: NDArray[np.str_]
    change_line: int | None
    parameters: ScanParameters


def frame(parameters: ScanParameters) -> tuple[Array, Array]:
    """Return where each pixel lies on the surface, x and y [lines, pixels], in Å.

    Drift moves the frame steadily, creep by the logarithm of the time since the frame was reached.
    """
    p = parameters
    time_LP = 2 * p.line_time * (np.arange(p.lines)[:, None] + np.arange(p.pixels) / (2 * p.pixels))
    creeping_LP = np.log10(1 + time_LP / p.line_time)
    x_P = ((np.arange(p.pixels) + 0.5) / p.pixels - 0.5) * p.width
    y_L = ((np.arange(p.lines) + 0.5) / p.lines - 0.5) * p.height
    if p.slow_direction == "down":
        y_L = -y_L
    x_LP = p.centre[0] + x_P + p.drift[0] * time_LP + p.creep[0] * creeping_LP
    y_LP = p.centre[1] + y_L[:, None] + p.drift[1] * time_LP + p.creep[1] * creeping_LP
    return x_LP, y_LP


def simulate_scan(parameters: ScanParameters, rng: np.random.Generator) -> SimulatedScan:
    """Scan a surface.

    Parameters
    ----------
    parameters
        The surface, the tip, the frame, and how strong each disturbance is.
    rng
        The source of noise and of the instants at which an unstable tip flickers.

    Returns
    -------
    SimulatedScan
        Heights, currents and the truth.
    """
    p = parameters
    x_LP, y_LP = frame(p)
    reach = max(math.hypot(a.x, a.y) for a in (*p.tip, *(p.new_tip or ())))
    radius = float(np.hypot(x_LP, y_LP).max()) + reach + 30
    surface = make_surface(p.surface, radius)

    # which tip: False the first, True the new one, [lines, forward/backward, pixels in time order]
    new_LDP = np.zeros((p.lines, 2, p.pixels), bool)
    if p.change_line is not None:
        new_LDP.reshape(-1)[p.change_line * 2 * p.pixels + p.change_pixel :] = True
    if p.unstable:
        new_LDP = _flicker_between(p, rng)
    wanted_LDP = _heights(surface, p, x_LP, y_LP, new_LDP)
    rise_LP = surface.band_bending(x_LP, y_LP)
    wanted_LDP += np.stack([rise_LP, rise_LP[:, ::-1]], 1)
    wanted_LDP += p.tilt[0] * np.stack([x_LP, x_LP[:, ::-1]], 1)
    wanted_LDP += p.tilt[1] * y_LP[:, None, :1]
    wanted_LDP += np.where(new_LDP, p.length_change, 0.0)
    _add_streaks(wanted_LDP, p, rng)
    _add_chatter(wanted_LDP, p, rng)
    crashed_L = _add_crashes(wanted_LDP, p, rng)

    # Vibration and the tip's own noise are followed by the feedback, the electronics' are not.
    wanted_LDP += rng.normal(scale=p.noise, size=wanted_LDP.shape)
    height_LDP = _follow(wanted_LDP, p)
    decay = p.tip[0].decay
    error_LDP = np.clip(2 * decay * (wanted_LDP - height_LDP), -20, 6)
    current_LDP = p.setpoint * np.exp(error_LDP)  # the preamplifier saturates: hence the clip
    current_LDP += rng.normal(scale=0.02 * p.setpoint, size=current_LDP.shape)
    height_LDP += _slow_noise(p, rng)
    height_LDP += rng.normal(scale=0.1 * p.noise, size=height_LDP.shape)

    states = np.array([p.state, p.new_state or p.state, "defect"])
    state_L = states[new_LDP[:, 1, -1].astype(int)]
    if p.unstable:
        state_L[new_LDP.any((1, 2)) != new_LDP.all((1, 2))] = "defect"
    state_L[crashed_L] = "defect"
    for values_LDP in (height_LDP, current_LDP):
        values_LDP[p.measured_lines :] = np.nan
    height_LDP *= ANGSTROM
    return SimulatedScan(
        forward_LP=height_LDP[:, 0].astype(np.float32),
        backward_LP=height_LDP[:, 1].astype(np.float32),
        forward_current_LP=current_LDP[:, 0].astype(np.float32),
        backward_current_LP=current_LDP[:, 1].astype(np.float32),
        state_L=state_L,
        change_line=p.change_line,
        parameters=p,
    )


def levelled(heights_LP: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return heights less the straight line that fits each line best, as images often are shown.

    A line that was not measured stays NaN.
    """
    x_P = np.linspace(-1, 1, heights_LP.shape[1])
    z_LP = heights_LP - heights_LP.mean(axis=1, keepdims=True, dtype=np.float64)
    slope_L = z_LP @ x_P / (x_P @ x_P)
    flat_LP: NDArray[np.float32] = (z_LP - slope_L[:, None] * x_P).astype(np.float32)
    return flat_LP


def _heights(
    surface: Surface, p: ScanParameters, x_LP: Array, y_LP: Array, new_LDP: NDArray[np.bool_]
) -> Array:
    """Constant-current heights in time order; each tip is computed only on the lines it scans."""
    heights_LDP = np.empty(new_LDP.shape)
    for tip, used_LDP in ((p.tip, ~new_LDP), (p.new_tip, new_LDP)):
        lines = np.flatnonzero(used_LDP.any(axis=(1, 2)))
        if tip is None or lines.size == 0:
            continue
        gap = p.gap - MATERIALS[p.surface.material].approach
        forward = constant_current_height(surface, tip, x_LP[lines], y_LP[lines], gap)
        both = np.stack([forward, forward[:, ::-1]], axis=1)
        heights_LDP[lines] = np.where(used_LDP[lines], both, heights_LDP[lines])
    return heights_LDP


def _flicker_between(p: ScanParameters, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Random telegraph signal with dwell times from a few pixels to tens of lines."""
    total = p.lines * 2 * p.pixels
    dwell = p.pixels * 10 ** rng.uniform(-1.0, 1.5)
    switches = rng.random(total) < 1 / dwell
    return (np.cumsum(switches) % 2 == 1).reshape(p.lines, 2, p.pixels)


def _add_streaks(wanted_LDP: Array, p: ScanParameters, rng: np.random.Generator) -> None:
    for _ in range(p.streaks):
        line, direction = rng.integers(p.lines), rng.integers(2)
        start, length = rng.integers(p.pixels), 1 + int(rng.exponential(0.15 * p.pixels))
        wanted_LDP[line, direction, start : start + length] += rng.normal(scale=0.3)


def _add_chatter(wanted_LDP: Array, p: ScanParameters, rng: np.random.Generator) -> None:
    """Two-level noise: an atom that joins the tip lifts it until it leaves again."""
    series = wanted_LDP[p.chatter_from : p.chatter_to].reshape(-1)  # a view: on over a line's end
    number = rng.poisson(p.chatter * 2 * (p.chatter_to - p.chatter_from))
    starts = rng.integers(series.size, size=number) if series.size else ()
    for start, length in zip(starts, rng.exponential(p.chatter_pixels, number), strict=True):
        series[start : start + 1 + int(length)] += p.chatter_height * rng.exponential()


def _add_crashes(
    wanted_LDP: Array, p: ScanParameters, rng: np.random.Generator
) -> NDArray[np.bool_]:
    """Let the tip run off to and fro, as the feedback does without contact; tell on which lines."""
    series = wanted_LDP.reshape(-1)
    lost = np.zeros(series.size, bool)
    for _ in range(p.crashes):
        start = rng.integers(p.measured_lines * 2 * p.pixels)
        length = 1 + int(rng.exponential(p.crash_pixels))
        away = np.cumsum(rng.random(length) < 4 / length) % 2  # in contact now and then
        extent = len(series[start : start + length])
        series[start : start + length] += rng.choice([-1, 1]) * p.crash_height * away[:extent]
        lost[start : start + length] = True
    crashed_L: NDArray[np.bool_] = np.any(lost.reshape(wanted_LDP.shape), axis=(1, 2))
    return crashed_L


def _follow(wanted_LDP: Array, p: ScanParameters) -> Array:
    """Linear feedback: first order with a time constant, or second order if it overshoots."""
    if p.feedback_time == 0:
        return wanted_LDP.copy()
    pace = p.line_time / p.pixels / p.feedback_time
    if p.overshoot == 0:
        poles = np.array([math.exp(-pace)])
    else:  # damping ratio of an oscillator whose step response overshoots so far
        damping = -math.log(p.overshoot) / math.hypot(math.pi, math.log(p.overshoot))
        root = np.exp(pace * complex(-damping, math.sqrt(1 - damping**2)))
        poles = np.array([root, root.conjugate()])
    a = np.poly(poles).real
    b = [a.sum()]
    series = wanted_LDP.reshape(-1)
    followed, _ = lfilter(b, a, series, zi=lfilter_zi(b, a) * series[0])
    followed_LDP: Array = followed.reshape(wanted_LDP.shape)
    return followed_LDP


def _slow_noise(p: ScanParameters, rng: np.random.Generator) -> Array:
    """Noise that grows towards low frequencies, mains hum and line offsets, in time order."""
    total = p.lines * 2 * p.pixels
    frequency = np.fft.rfftfreq(total)
    frequency[0] = np.inf
    spectrum = rng.normal(size=frequency.size) + 1j * rng.normal(size=frequency.size)
    spectrum /= frequency ** (p.flicker_exponent / 2)
    series = np.fft.irfft(spectrum, total)
    series *= p.flicker / math.sqrt(series.reshape(-1, p.pixels).var(axis=1).mean())
    time = np.arange(total) * (p.line_time / p.pixels)
    series += p.hum * np.sin(2 * np.pi * 50 * time + rng.uniform(0, 2 * np.pi))
    noise_LDP: Array = series.reshape(p.lines, 2, p.pixels)
    return noise_LDP + rng.normal(scale=p.line_offset, size=(p.lines, 2, 1))
