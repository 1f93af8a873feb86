"""Settings of a process's system: of OpenMP and the C library, of signals, and of its parent."""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType

from rlrc.errors import UserError

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""Ctrl-C, a polite request to end, and the end of the terminal."""
LAUNCH = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_PORT")
"""Environment variables that `accelerate launch` and torchrun set for their processes, all of them numbers."""
_ON_OFF = ["enable", "enabled", "on", "true", "1", "disable", "disabled", "off", "false", "0"]
OPENGL = ["", "egl", "glfw", "osmesa", *_ON_OFF]
"""Values of MUJOCO_GL with which MuJoCo can be imported."""


class Stopped(KeyboardInterrupt):
    """A signal asks the process to end; cleaned up after as after Ctrl-C."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number

    def __str__(self) -> str:
        return "interrupted" if self.number == signal.SIGINT else f"ended by {signal.Signals(self.number).name}"


class _Signals:
    """This process's answer to signals. At the first one it ends at once as long as it has nothing to clean up, and
    else a `Stopped` is raised in its main thread. Only Ctrl-C is heard a second time."""

    cleans_up = False
    stopped: Stopped | None = None
    quiet = False

    def handle(self, number: int, _frame: FrameType | None) -> None:
        self.stopped = Stopped(number)
        if not self.cleans_up:
            if not self.quiet:
                os.write(2, f"rlrc: {self.stopped}\n".encode())
            os._exit(128 + number)
        for other in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(other, signal.SIG_IGN)
        raise self.stopped


_signals = _Signals()


def handle_signals(quiet: bool = False) -> None:
    """Let Ctrl-C, SIGTERM and SIGHUP end this process with one line (or none, if `quiet`) and status 128 + signal.

    A signal that is ignored stays so, as under nohup.
    """
    _signals.quiet = quiet
    for number in SIGNALS:
        if signal.getsignal(number) not in (signal.SIG_IGN, None):
            signal.signal(number, _signals.handle)


@contextlib.contextmanager
def cleaning_up() -> Iterator[None]:
    """Let signals raise `Stopped` within the block, so that what was begun is cleaned up."""
    before, _signals.cleans_up = _signals.cleans_up, True
    try:
        yield
    finally:
        _signals.cleans_up = before


def stopped() -> Stopped | None:
    """The signal that asked this process to end, also where a library made another error of it."""
    return _signals.stopped


@contextlib.contextmanager
def shielded(*numbers: int) -> Iterator[None]:
    """Keep these signals from processes that are started within the block; this process hears them afterwards."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def check_environment() -> None:
    """Check the environment variables that libraries read and stumble over.

    Raises:
        UserError: one has a value that cannot be.
    """
    for name in LAUNCH:
        _number(name)
    if rank() >= world_size():
        raise UserError(
            f"RANK is {rank()} and WORLD_SIZE is {world_size()}: ranks are counted from 0 up to WORLD_SIZE - 1"
        )
    if (value := os.environ.get("MUJOCO_GL", "").lower().strip()) not in OPENGL:
        raise UserError(f"MUJOCO_GL is '{value}': set it to egl, osmesa or glfw, or leave it out")


def rank() -> int:
    """The number of this process among those that `accelerate launch` started; 0 is the one that writes."""
    return _number("RANK") or 0


def world_size() -> int:
    """Return the number of processes that `accelerate launch` started."""
    return _number("WORLD_SIZE", least=1) or 1


def _number(name: str, least: int = 0) -> int | None:
    text = os.environ.get(name)
    if text is None:
        return None
    if not (text.isascii() and text.isdecimal() and len(text) < 10 and int(text) >= least):
        raise UserError(f"the environment variable {name} is '{text}': it must be a number from {least} on; unset it")
    return int(text)


def prepare_for_torch() -> None:
    """Put into the environment what makes PyTorch fast; `import rlrc` does it, and values that are there already win.

    Idle threads of OpenMP shall sleep: spinning, they take the cores from simulator workers and from each other. OpenMP
    reads this once, when torch is imported; where torch came first, only child processes get it.
    Large tensors shall lie in large pages, where Linux has them ready: with small ones a product waits for address
    translations (decoding in 4 bits took 1.13 times as long). PyTorch reads this when it first takes memory.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")


def keep_freed_memory() -> None:
    """Ask glibc to keep what tensors free instead of handing it back to the system after every step.

    For verbs that repeat a step many times; one that walks through large tensors of many sizes would fragment memory.
    Training otherwise maps the same pages again and again, a cost that all its threads wait for. Same effect as
    the environment variables MALLOC_TRIM_THRESHOLD_, MALLOC_TOP_PAD_ and MALLOC_MMAP_THRESHOLD_, which are read only
    at process start. Other C libraries are left alone.
    """
    import ctypes

    trim_threshold, top_pad, mmap_threshold = -1, -2, -3  # M_* in malloc.h
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL("libc.so.6").mallopt
        mallopt(trim_threshold, 2**31 - 1)
        mallopt(top_pad, 2**28)
        mallopt(mmap_threshold, 2**30)


def end_with_parent() -> None:
    """Kill this process, which multiprocessing started, as soon as its parent is dead, however that came about.

    A job that outlived a killed run would go on writing to the folder in which the next run resumes it.
    """
    from multiprocessing import parent_process

    parent = parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()


def fill_standard_streams() -> None:
    """Open /dev/null in place of each standard stream that is closed. The next file that is opened would take its
    number otherwise, and get what is meant for the console."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)


def silence_stdout() -> None:
    """Write to nobody from now on, as nobody reads: what is still buffered would fail when the process ends."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
