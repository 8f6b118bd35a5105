"""What is wrong with a configuration file is told with its name and the line."""

from __future__ import annotations

from pathlib import Path

import pytest

from scanbench.config_files import check, main
from scanbench.errors import UserError


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("targets: [a]\ndatasets:\n  b: {c: 1\nd: 2\n", r" line 4: is no YAML \(.*\); mend it"),
        ("targets: [a]\n  seeds: 3\n", r" line 2: is no YAML \(.*\); mend it there or in a line"),
        ("a:\n\tb: 1\n", r" line 2: is no YAML \(.*\); indent with spaces, not with tabs"),
        ("a: *b\n", r" line 1: is no YAML \(.*undefined alias"),
        ("a: !!python/object:os.system {}\n", r" line 1: is no YAML \(.*constructor"),
        ("a:\n  b: 1\nc: 2\na:\n  d: 3\n", " line 4: key 'a' stands in line 1 already, and one of"),
        ("a:\n- {b: 1,\n   b: 2}\n", " line 3: key 'b' stands in line 2 already"),
        ('{"a": 1,\n "a": 2}', " line 2: key 'a' stands in line 1 already"),
        ("", ": holds nothing; write keys at its top"),
        ("# to be written\n", ": holds nothing; write keys at its top"),
        ("- a\n- b\n", ": holds no keys but a list; write keys"),
        ("a: \x00\n", r": is no YAML \(.*character"),
        ("[" * 5000, ": is no YAML"),
        ("a: 2024-02-30\n", r": is no YAML \(.*day"),
        ("a: !!int x\n", ": is no YAML"),
        ("a: !!timestamp x\n", ": is no YAML"),
    ],
)
def test_a_mistake_is_told_with_file_and_line(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "my.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=f"my.yaml{said}") as told:
        check(path)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    "text",
    [
        "{}\n", "a: 1\n", '{\n\t"a": 1}\n', "\ufeffa: 1\n",
        # What is taken over from elsewhere may be said otherwise, and keys of other mappings alike.
        "a: &x {b: 1}\nc:\n  <<: *x\n  b: 2\nd: {<<: *x, b: 3}\n",
    ],
)  # fmt: skip
def test_what_snakemake_reads_is_no_mistake(tmp_path: Path, text: str) -> None:
    path = tmp_path / "my.yaml"
    path.write_text(text, encoding="utf-8")
    check(path)


def test_files_are_checked_in_turn_and_the_first_mistake_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good, bad, latin = (tmp_path / name for name in ("good.yaml", "bad.yaml", "latin.yaml"))
    good.write_text("a: 1\n")
    bad.write_text("a: [\n")
    latin.write_bytes("title: Größe\n".encode("latin-1"))
    assert main([str(good), str(good)]) == 0
    assert capsys.readouterr().err == ""
    assert main([str(good), str(bad), str(latin)]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"scanbench: error: {bad} line 2: is no YAML")
    assert said.count("\n") == 1
    assert main([str(latin)]) == 2
    assert "latin.yaml: is not UTF-8 text; save it as UTF-8" in capsys.readouterr().err
    assert main([str(tmp_path / "none.yaml")]) == 2
    assert "none.yaml: no such configuration file" in capsys.readouterr().err
    assert main([str(tmp_path)]) == 2
    assert f"{tmp_path}: cannot be read (Is a directory); name a file" in capsys.readouterr().err
