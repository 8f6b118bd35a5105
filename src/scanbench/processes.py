"""Signals and processes: a stage that is told to stop does so with one line and leaves no trace."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from types import FrameType


class Stopped(BaseException):
    """The process was told to stop, by Ctrl-C or by who manages it.

    No `Exception`, so that nothing takes it for an error to go on after, and no
    `KeyboardInterrupt`, on which Lightning would end the process itself.
    """

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        self.signum = signum


def _stop(signum: int, frame: FrameType | None) -> None:
    raise Stopped(signum)


@contextmanager
def stoppable() -> Iterator[None]:
    """Let SIGINT and SIGTERM raise `Stopped` in the main thread, so that what is open is closed."""
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, _stop) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


@contextmanager
def worker_pool(workers: int, start_method: str | None = None) -> Iterator[ProcessPoolExecutor]:
    """Give a pool of processes; when its owner fails or is stopped, no further task is begun.

    Parameters
    ----------
    workers
        Number of processes.
    start_method
        How they start, of `multiprocessing`; None: its default.
    """
    context = multiprocessing.get_context(start_method)
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_as_worker)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def _as_worker() -> None:
    """Leave Ctrl-C, which a terminal sends to all processes, to the owner of the pool."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
