"""What a process that computes on the CPU asks of OpenMP and of the C library, each worth a factor in speed."""

import contextlib
import ctypes
import os


def wait_without_spinning() -> None:
    """Let idle threads of OpenMP sleep: spinning, they take the cores from simulator workers and from each other.

    Must be set before torch is imported. A value from the environment wins.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def keep_freed_memory() -> None:
    """Ask glibc to keep what tensors free instead of handing it back to the system after every step.

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
