"""What a process asks of its system: of OpenMP and the C library, each worth a factor in speed, and of its parent."""

import contextlib
import ctypes
import os
import signal
import threading
import time


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
    trim_threshold, top_pad, mmap_threshold = -1, -2, -3  # M_* in malloc.h
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL("libc.so.6").mallopt
        mallopt(trim_threshold, 2**31 - 1)
        mallopt(top_pad, 2**28)
        mallopt(mmap_threshold, 2**30)


def end_with(parent: int) -> None:
    """Kill this process within a second of its parent's death, however that came about.

    A job that outlived a killed run would go on writing to the folder in which the next run resumes it.
    """

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()
