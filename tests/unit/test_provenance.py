"""Where a result comes from, told without telling of the machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from scanbench.provenance import command_line


def test_the_whole_command_is_kept_without_paths_of_the_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    below = str(tmp_path / "results" / "store.h5")
    arguments = ["train", "--spec", '{"fold": 0}', below, "splits/a.json", f"--out={below}"]
    expected = (
        """scanbench train --spec '{"fold": 0}' results/store.h5 splits/a.json """
        "--out=results/store.h5"
    )
    assert command_line(arguments) == expected
    told = command_line(["ingest", "/elsewhere/user/scans", "--labels=/elsewhere/user/a b.csv"])
    assert told == "scanbench ingest '…/scans' '--labels=…/a b.csv'"
