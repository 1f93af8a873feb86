"""Processes of a pool end when they should, also where one dies with what the others wait for."""

import inspect
import os
import time
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import pytest

from rlrc.jobs import job_pool


def wait_for(path: Path) -> None:
    while not path.exists():
        time.sleep(0.01)


def work_for_long(begun: Path) -> None:
    begun.touch()
    time.sleep(300)


def die_while_sending(other_begun: Path) -> None:
    """As a process that is killed while it writes its result: the lock of the queue stays taken for ever."""
    other_begun.with_name("taken").touch()
    wait_for(other_begun)
    callers = [call.frame.f_locals for call in inspect.stack()]
    queue = next(names["result_queue"] for names in callers if "result_queue" in names)
    queue._wlock.acquire()
    os._exit(1)


@pytest.mark.timeout(60)
def test_nobody_waits_for_the_lock_of_a_dead_process(tmp_path: Path) -> None:
    with pytest.raises(BrokenProcessPool), job_pool(2) as pool:
        # Python watches the process of the first job from the start, and that of the second from the next event on.
        dead = pool.submit(die_while_sending, tmp_path / "begun")
        wait_for(tmp_path / "taken")  # else the second process might take the first job
        pool.submit(work_for_long, tmp_path / "begun")
        dead.result()
