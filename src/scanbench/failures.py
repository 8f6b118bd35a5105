"""What failed in a run of the workflow, said in its last lines."""

import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scanbench.errors import MISTAKE

#: What SLURM writes into the log of a job that it kills for memory; its state need not tell.
MEMORY = re.compile(r"exceeded (job|step) memory limit|oom[-_ ]kill", re.IGNORECASE)

#: What a state of SLURM means for the one who reads it; `{rule}` is the rule's name.
STATES = {
    "OUT_OF_MEMORY": "killed for memory: raise mem_mb of {rule} in profiles/slurm/config.yaml",
    "TIMEOUT": "out of time: raise runtime of {rule} in profiles/slurm/config.yaml",
    "CANCELLED": "cancelled",
    "NODE_FAIL": "its node failed",
}

#: What Snakemake logs at Ctrl-C, and how the log of a job ends that it ended.
INTERRUPTED = "Terminating processes on user request"
ENDED = re.compile(r"KeyboardInterrupt|scanbench: stopped by SIGINT\b.*")
STOPPED = "stopped by Ctrl-C; run again to go on"


def mistakes(log: Path) -> list[str]:
    """List what a user must mend, as the commands of a job said in its log.

    Returns
    -------
    list of str
        The messages of `UserError`, each once, without the name of the program; none if the file
        cannot be read.
    """
    said = [line.removeprefix(MISTAKE) for line in _lines(log) if line.startswith(MISTAKE)]
    return list(dict.fromkeys(said))


def _lines(log: Path) -> list[str]:
    """Return the lines of a log that are not empty; none if it cannot be read."""
    try:
        text = log.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    return [line.strip() for line in text.splitlines() if line.strip()]


@dataclass(frozen=True)
class Failure:
    """A job that failed, and why as far as it is known.

    Parameters
    ----------
    rule
        Name of the rule.
    logs
        Its log, then that of SLURM if it ran there.
    said
        What the executor says of it.
    """

    rule: str
    logs: tuple[str, ...]
    said: str

    def cause(self, interrupted: bool = False) -> str:
        """Return the mistake to mend, or the state in which SLURM left the job, or its last words.

        Parameters
        ----------
        interrupted
            Whether the run was stopped by Ctrl-C, which explains a job without last words.
        """
        for log in self.logs:
            if found := mistakes(Path(log)):
                return "; ".join(found)
        state = "".join(re.findall(r"status is: '(\w+)'", self.said))
        if any(MEMORY.search(line) for log in self.logs for line in _lines(Path(log))):
            state = "OUT_OF_MEMORY"
        if state in STATES:
            return STATES[state].format(rule=self.rule)
        words = _lines(Path(self.logs[0])) if self.logs else []
        last = words[-1] if words else " ".join(self.said.split())
        if ENDED.fullmatch(last) or (interrupted and not last):
            return STOPPED
        return last or "no reason is known"

    def line(self, interrupted: bool = False) -> str:
        """Return rule, cause and log as one line; see `cause`."""
        log = self.logs[0] if self.logs else "none"
        return f"{self.rule}: {self.cause(interrupted)}; log: {log}"


class Failures(logging.Handler):
    """Remember which jobs failed and have not succeeded since, from what Snakemake logs."""

    def __init__(self) -> None:
        super().__init__()
        self._of_job: dict[int, Failure] = {}
        self._interrupted = False

    def emit(self, record: logging.LogRecord) -> None:
        """Take note of an event of Snakemake."""
        told: dict[str, Any] = vars(record)
        event = getattr(told.get("event"), "name", None)
        if event == "JOB_FINISHED":
            self._of_job.pop(told["job_id"], None)
        elif event == "GROUP_ERROR":
            members = told["job_error_info"]
            failure = _of_group(told["groupid"], members, told["aux_logs"])
            self._of_job.update({member["jobid"]: failure for member in members})
        elif event == "JOB_ERROR" and not told["indent"]:  # the jobs of a group are indented
            said = str(told["rule_msg"] or "")
            self._of_job[told["jobid"]] = Failure(told["rule_name"], _paths(told["log"]), said)
        elif record.getMessage().startswith(INTERRUPTED):
            self._interrupted = True

    def lines(self) -> list[str]:
        """Give one line for each job that failed for good, in the order of their failures."""
        failed = dict.fromkeys(self._of_job.values())
        return [failure.line(self._interrupted) for failure in failed]


def _of_group(name: str, members: Sequence[Mapping[str, Any]], logs: Iterable[Any]) -> Failure:
    """Return the failure of a group of jobs: that of the one with a mistake, if there is one."""
    for member in members:
        paths = _paths(member["log"])
        if any(mistakes(Path(path)) for path in paths):
            return Failure(member["rule_name"], paths, "")
    rules = ", ".join(sorted({member["rule_name"] for member in members}))
    return Failure(f"group {name} ({rules})", _paths(logs), "")


def _paths(logs: Iterable[Any]) -> tuple[str, ...]:
    return tuple(map(str, logs))
