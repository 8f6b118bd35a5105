"""Snakemake's SLURM executor, but for one thing: a user's mistake is not run again.

More memory and time do not mend a wrong label table, and each retry waits in the queue. Snakemake
knows retries by rule only, so the executor says that such a job has had its last attempt.
"""

from pathlib import Path
from typing import Any

import snakemake_executor_plugin_slurm as slurm
from snakemake_executor_plugin_slurm import ExecutorSettings, common_settings
from snakemake_interface_executor_plugins.executors.base import SubmittedJobInfo

from scanbench.failures import mistakes

__all__ = ["Executor", "ExecutorSettings", "common_settings"]


class Executor(slurm.Executor):
    """Submit jobs to SLURM; run again what failed, unless it said what the user must mend."""

    def report_job_error(
        self, job_info: SubmittedJobInfo, msg: str | None = None, **kwargs: Any
    ) -> None:
        """Report that a job failed, for the last time if the user must mend something.

        SLURM's own log is asked, which is another for each attempt.
        """
        log = (job_info.aux or {}).get("slurm_logfile")
        if log and mistakes(Path(log)):
            # The setter would also scale the resources for an attempt that will not come.
            job_info.job._attempt = job_info.job.restart_times + 1
        super().report_job_error(job_info, msg, **kwargs)
