"""What a failed run says at its end."""

from __future__ import annotations

import logging
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from snakemake_interface_logger_plugins.common import LogEvent

from scanbench.failures import INTERRUPTED, Failures, mistakes

MISTAKE = "scanbench: error: own: nowhere: no such data folder or file"


@pytest.fixture
def logs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """Give the log of a rule and that of SLURM, both empty."""
    monkeypatch.chdir(tmp_path)
    paths = Path("rule.log"), Path("slurm.log")
    for path in paths:
        path.touch()
    return paths


def tell(failures: Failures, event: LogEvent | None, **told: Any) -> None:
    """Log an event as Snakemake does."""
    record = logging.makeLogRecord({"event": event, **told})
    failures.handle(record)


def fail(failures: Failures, jobid: int = 1, said: str | None = None, **told: Any) -> None:
    known = {"rule_name": "train", "log": ["rule.log", "slurm.log"], "indent": False}
    tell(failures, LogEvent.JOB_ERROR, **{**known, "jobid": jobid, "rule_msg": said, **told})


def test_a_mistake_is_told_without_the_name_of_the_program(logs: tuple[Path, Path]) -> None:
    logs[0].write_text(f"reading\n{MISTAKE}\n{MISTAKE}\n")
    assert mistakes(logs[0]) == ["own: nowhere: no such data folder or file"]
    failures = Failures()
    fail(failures, said="SLURM-job '3' failed, SLURM status is: 'FAILED'. And so on.")
    assert failures.lines() == ["train: own: nowhere: no such data folder or file; log: rule.log"]


@pytest.mark.parametrize(
    ("state", "words"),
    [("OUT_OF_MEMORY", "raise mem_mb of train"), ("TIMEOUT", "raise runtime of train")],
)
def test_what_slurm_did_to_a_job_is_told_with_the_mend(
    logs: tuple[Path, Path], state: str, words: str
) -> None:
    logs[0].write_text("epoch 3\n")
    failures = Failures()
    fail(failures, said=f"SLURM-job '3' failed, SLURM status is: '{state}'. And so on.")
    (line,) = failures.lines()
    assert words in line
    assert line.endswith("; log: rule.log")


@pytest.mark.parametrize(
    "line",
    [
        "slurmstepd: error: Exceeded job memory limit",
        "slurmstepd: error: Detected 1 oom_kill event in StepId=7.0.",
        "slurmstepd: error: Detected 1 oom-kill event(s) in StepId=7.batch.",
    ],
)
def test_a_kill_for_memory_is_seen_in_slurms_log(logs: tuple[Path, Path], line: str) -> None:
    logs[1].write_text(f"{line}\nsrun: error: task 0: Killed\n")
    failures = Failures()
    fail(failures, said="SLURM-job '3' failed, SLURM status is: 'FAILED'. And so on.")
    assert "killed for memory" in failures.lines()[0]


def test_a_bug_is_told_by_its_last_words(logs: tuple[Path, Path]) -> None:
    logs[0].write_text("Traceback (most recent call last):\nValueError: 3 is not 4\n\n")
    failures = Failures()
    fail(failures)
    assert failures.lines() == ["train: ValueError: 3 is not 4; log: rule.log"]


def test_a_job_that_succeeds_later_has_not_failed(logs: tuple[Path, Path]) -> None:
    failures = Failures()
    fail(failures, jobid=1)
    fail(failures, jobid=2, rule_name="predict")
    tell(failures, LogEvent.JOB_FINISHED, job_id=1)
    assert [line.split(":")[0] for line in failures.lines()] == ["predict"]


def test_of_a_group_the_job_with_the_mistake_is_named(logs: tuple[Path, Path]) -> None:
    other = Path("other.log")
    other.write_text("done\n")
    logs[0].write_text(f"{MISTAKE}\n")
    members = [
        {"rule_name": "train", "jobid": 1, "log": [str(other)]},
        {"rule_name": "trial", "jobid": 2, "log": ["rule.log"]},
    ]
    group = {"groupid": "trainings", "aux_logs": ["slurm.log"], "job_error_info": members}
    failures = Failures()
    tell(failures, LogEvent.GROUP_ERROR, **group)
    for member in members:
        fail(failures, **{**member, "indent": True})
    assert failures.lines() == ["trial: own: nowhere: no such data folder or file; log: rule.log"]
    logs[0].write_text("killed\n")
    logs[1].write_text("srun: error: task 0: Killed\n")
    tell(failures, LogEvent.GROUP_ERROR, **group)
    assert failures.lines() == [
        "group trainings (train, trial): srun: error: task 0: Killed; log: slurm.log"
    ]


@pytest.mark.parametrize(
    "log",
    [
        "",
        "Traceback (most recent call last):\nKeyboardInterrupt\n",
        "epoch 3\nscanbench: stopped by SIGINT; run again to go on\n",
    ],
    ids=["before its first line", "while it starts", "while it works"],
)
def test_a_job_that_ctrl_c_ended_is_said_to_be_stopped(logs: tuple[Path, Path], log: str) -> None:
    logs[0].write_text(log)
    failures = Failures()
    fail(failures)
    tell(failures, None, msg=f"{INTERRUPTED}, this might take some time.")
    (line,) = failures.lines()
    assert line == "train: stopped by Ctrl-C; run again to go on; log: rule.log"


def test_a_job_that_failed_before_ctrl_c_keeps_its_reason(logs: tuple[Path, Path]) -> None:
    logs[0].write_text(f"{MISTAKE}\n")
    Path("other.log").write_text("ValueError: 3 is not 4\n")
    failures = Failures()
    fail(failures)
    fail(failures, jobid=2, log=["other.log"])
    tell(failures, None, msg=INTERRUPTED)
    mistake, bug = failures.lines()
    assert "nowhere" in mistake
    assert "ValueError: 3 is not 4" in bug


def test_snakemake_says_at_ctrl_c_what_is_listened_for() -> None:
    found = find_spec("snakemake.scheduling.job_scheduler")
    assert found is not None
    assert found.origin is not None
    source = Path(found.origin).read_text(encoding="utf-8")
    ctrl_c = source.partition("except (KeyboardInterrupt, SystemExit):")[2]
    assert INTERRUPTED in ctrl_c[:200]


def test_a_log_that_is_not_there_is_no_error() -> None:
    assert mistakes(Path("nowhere.log")) == []
    failures = Failures()
    fail(failures, log=[], said="SLURM sbatch failed.\n  Invalid account")
    assert failures.lines() == ["train: SLURM sbatch failed. Invalid account; log: none"]
