"""A process that keeps one core busy, as a robot's cameras and drivers do. It imports no more than it needs."""

import multiprocessing
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.synchronize import Event

import psutil

from rlrc.process import end_with_parent


@contextmanager
def busy_core() -> Iterator[Callable[[], float]]:
    """Keep one core busy within the block. Yields a function that says what share of a core the process has had."""
    context = multiprocessing.get_context("spawn")
    started = context.Event()
    process = context.Process(target=spin, args=(started,), daemon=True)
    process.start()
    started.wait()
    watched, before = psutil.Process(process.pid), time.perf_counter()
    used = sum(watched.cpu_times()[:2])
    try:
        yield lambda: (sum(watched.cpu_times()[:2]) - used) / (time.perf_counter() - before)
    finally:
        process.kill()
        process.join()


def spin(started: Event) -> None:
    """Add numbers until the process is ended."""
    end_with_parent()
    started.set()
    number = 0
    while True:
        number += 1
