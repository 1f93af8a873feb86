"""Processes that work at the same time and end together with the one that started them."""

import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from typing import Any, TypeVar

from rlrc.process import cleaning_up, end_with_parent, handle_signals, shielded, stopped

T = TypeVar("T")


@contextmanager
def job_pool(jobs: int) -> Iterator["JobPool"]:
    """Processes that call functions. They end with this one, and stop at once where a signal ends it or where the
    generator that this is used in is closed, as nobody waits for what they do then."""
    with shielded(signal.SIGHUP):  # multiprocessing's own helper, which starts here, frees what others leave
        pool = JobPool(jobs, get_context("spawn"), initializer=_start_job)
    try:
        yield pool
    except (KeyboardInterrupt, GeneratorExit):
        for process in list((pool._processes or {}).values()):
            process.terminate()
        pool._result_queue._writer.close()  # type: ignore[attr-defined]  # else what was half sent is waited for
        raise
    finally:
        pool.shutdown(cancel_futures=True)


class JobPool(ProcessPoolExecutor):
    """Functions are called so that a signal leaves nothing half-written: a `Stopped` is raised in them."""

    def submit(self, function: Callable[..., T], /, *arguments: Any, **named: Any) -> Any:
        return super().submit(_job, function, *arguments, **named)


def in_fresh_process(function: Callable[..., T], *arguments: Any) -> T:
    """Call a function of a module in a new process, whose memory is that of nobody else, and return its result."""
    with job_pool(1) as fresh:
        result: T = fresh.submit(function, *arguments).result()
    return result


def _start_job() -> None:
    handle_signals(quiet=True)
    end_with_parent()


def _job(function: Callable[..., T], *arguments: Any, **named: Any) -> T:
    try:
        with cleaning_up():
            return function(*arguments, **named)
    finally:
        if (signal_heard := stopped()) is not None:  # to send a result could wait for a lock whose holder is dead
            os._exit(128 + signal_heard.number)
