"""Omicron MATRIX `.Z_mtrx` and `.I_mtrx` with their `.mtrx` index, by access2thematrix.

The library turns all traces to the instrument's screen, with line 0 at the bottom: backward lines
are mirrored, and the second (`down`) frame is turned upside down. Here they are turned back.
"""

from __future__ import annotations

from pathlib import Path

from access2thematrix import MtrxData

from scanbench.tipstate.readers.raw import (
    RawScan,
    ReadOptions,
    bound,
    bound_file,
    number,
    refusal,
)

_MOST_TRACES = 4


def read(path: Path, options: ReadOptions) -> list[RawScan]:
    """Read the two (or, with a frame on the way back, four) scans of a MATRIX image file."""
    stem, dashes, _ = path.name.rpartition("--")
    if not dashes:
        raise refusal(path, "is not named SESSION--RUN_CYCLE.CHANNEL_mtrx; restore its name")
    index = path.with_name(f"{stem}_0001.mtrx")
    if not index.exists():
        raise refusal(path, f"lacks its index {index.name}; copy it beside the file")
    if (path.suffix.lower() == ".i_mtrx") != options.wants_current:
        raise refusal(path, f"is not of channel {options.channel}")
    # The library reads image and index whole before any size can be checked.
    bound_file(path, _MOST_TRACES, options)
    bound_file(index, _MOST_TRACES, options)
    file = MtrxData()
    _, message = file.open(str(path))
    if file.param["BREF"] != path.name:
        raise refusal(path, f"is not listed in its index {index.name} ({message})")
    if not file.axis or file.object_type != "image":
        raise refusal(path, f"holds no readable image ({message})")

    def parameter(name: str) -> float | None:
        return number(file.param.get(f"EEPA::{name}", [None])[0])

    planned_lines, pixels = int(file.axis[2][2]), int(file.scan.shape[2])
    bound(path, planned_lines, pixels, options)
    pixel_time_s = parameter("XYScanner.Raster_Time")
    channel, unit = file.channel_name_and_unit
    both_frames = any(trace.endswith("down") for trace in file.traces)
    scans = []
    for trace in file.traces:
        image, _ = file.select_image(trace)
        direction, slow_direction = trace.split("/")
        # The library hands lines out bottom first and pixels left first.
        heights = image.data
        if slow_direction == "down":
            heights = heights[::-1]
        if direction == "backward":
            heights = heights[:, ::-1]
        scans.append(
            RawScan(
                heights_LP=heights,
                planned_lines=planned_lines,
                width_m=float(file.axis[0][1]),
                height_m=float(file.axis[1][1]),
                line_time_s=None if pixel_time_s is None else pixel_time_s * pixels,
                bias_v=parameter("GapVoltageControl.Voltage"),
                current_a=parameter("Regulator.Setpoint_1"),
                channel=channel,
                unit=unit,
                direction="backward" if direction == "backward" else "forward",
                slow_direction="down" if slow_direction == "down" else "up",
                part="down" if both_frames and slow_direction == "down" else "",
            )
        )
    return scans
