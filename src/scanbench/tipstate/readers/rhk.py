"""RHK `.sm4`, by sm4file.

The library turns every page so that row 0 is the top of the screen and pixel 0 its left, for pages
scanned to the left too, which are mirrored here into acquisition order. The file does not tell
whether the slow axis ran up or down: the top line is taken as the first.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from sm4file import sm4_file
from sm4file.sm4_file import (
    RhkPageDataType,
    RhkPageType,
    RhkScanType,
    Sm4FileAll,
    Sm4PageHeaderDefault,
)
from sm4file.sm4_object_types import StringData

from scanbench.tipstate.readers.raw import RawScan, ReadOptions, bound, bound_file, refusal

_MOST_PAGES = 16


class _Unread:
    """What the library makes of a file's parameters, a zlib stream that may be of any length."""

    @classmethod
    def from_buffer(cls, *_: Any) -> _Unread:
        """Read nothing: nothing here needs them."""
        return cls()


setattr(sm4_file, "Prm", _Unread)  # noqa: B010


class _File(Sm4FileAll):
    """The library's file, read from memory: of a disk it asks for as much as the file promises."""

    def read_sm4_file(self, file: Any) -> None:
        """Read a file that is no larger than `bound_file` allows."""
        super().read_sm4_file(io.BytesIO(file.read()))  # type: ignore[arg-type]


def read(path: Path, options: ReadOptions) -> list[RawScan]:
    """Read the topography (or current) images of an RHK file, one scan per page and direction."""
    # The library reads every page before any size can be checked; some pages are spectra.
    bound_file(path, _MOST_PAGES, options)
    wanted = (
        RhkPageType.RHK_PAGE_CURRENT if options.wants_current else RhkPageType.RHK_PAGE_TOPOGRAPHIC
    )
    pages: list[Any] = [
        page
        for page in _File(str(path)).pages
        if page.page_data_type == RhkPageDataType.RHK_DATA_IMAGE
        and isinstance(page.header, Sm4PageHeaderDefault)
    ]
    chosen = [page for page in pages if page.header.page_type == wanted]
    if not chosen:
        found = ", ".join(page.header.page_type.name for page in pages) or "no image"
        raise refusal(path, f"has no page for channel {options.channel}, only {found}")
    scans = []
    seen: set[str] = set()
    for page in chosen:
        header = page.header
        bound(path, header.y_size, header.x_size, options)
        texts = next((o for o in header.page_header_objects if isinstance(o, StringData)), None)
        # An aborted scan states how many lines it completed; the others hold whatever was there.
        completed = texts.completed_line_count if texts is not None else ""
        lines = int(completed) if completed.isdigit() and int(completed) else header.y_size
        heights = page.data.data[:lines]
        backward = header.scan_type == RhkScanType.RHK_SCAN_LEFT
        if backward:
            heights = heights[:, ::-1]
        direction = "backward" if backward else "forward"
        scans.append(
            RawScan(
                heights_LP=heights,
                planned_lines=header.y_size,
                width_m=abs(header.x_scale * header.x_size),
                height_m=abs(header.y_scale * header.y_size),
                line_time_s=header.period * header.x_size or None,
                bias_v=header.bias,
                current_a=header.current,
                channel=page.label,
                unit=texts.z_units if texts is not None else "",
                direction="backward" if backward else "forward",
                part=str(page.page_id) if direction in seen else "",
            )
        )
        seen.add(direction)
    return scans
