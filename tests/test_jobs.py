"""Processes of a pool end when they should, also where one dies with what the others wait for."""

import inspect
import os
import time
from concurrent.futures.process import BrokenProcessPool

import pytest

from rlrc.jobs import job_pool


def die_while_sending() -> None:
    """As a process that is killed while it writes its result: the lock of the queue stays taken for ever."""
    callers = [call.frame.f_locals for call in inspect.stack()]
    queue = next(names["result_queue"] for names in callers if "result_queue" in names)
    queue._wlock.acquire()
    os._exit(1)


@pytest.mark.timeout(60)
def test_nobody_waits_for_the_lock_of_a_dead_process() -> None:
    with pytest.raises(BrokenProcessPool), job_pool(2) as pool:
        pool.submit(time.sleep, 300)
        pool.submit(die_while_sending).result()
