"""Pages opened from the disk in a real browser without a network."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any


def chromium() -> str | None:
    """Find a browser of the system: playwright's own would be a download."""
    names = ("chromium", "chromium-browser", "google-chrome")
    found = (shutil.which(name) for name in names)
    return os.environ.get("SCANBENCH_CHROMIUM") or next((path for path in found if path), None)


class Visit:
    """A page opened from the disk, and all that it said and asked for."""

    def __init__(self, browser: Any, path: Path, width: int) -> None:
        self.context = browser.new_context(viewport={"width": width, "height": 900}, offline=True)
        self.page = self.context.new_page()
        self.said: list[str] = []
        self.asked: list[str] = []
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("dialog", lambda dialog: (self.said.append("dialog"), dialog.dismiss()))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.goto(path.as_uri())
        self.page.wait_for_load_state("load")
