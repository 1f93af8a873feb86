"""One writer in a folder at a time: a lock that the system takes back when its process ends, in whatever way."""

import errno
import fcntl
import os
import shlex
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from rlrc.errors import UserError, shorten
from rlrc.ownership import LOCK
from rlrc.progress import say

NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)
"""Numbers of the errors by which a file system says that it has no locks."""


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep all other processes that ask for the same lock out of `folder`, which must exist.

    Raises:
        UserError: another one is in it; the message says which. Or the folder cannot be written to.
    """
    path = folder / LOCK
    handle = _acquire(path)
    try:
        yield
    finally:
        with suppress(OSError):
            path.unlink()
        os.close(handle)


def _acquire(path: Path) -> int:
    while True:
        try:
            handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise UserError(f"{path.parent}: this folder cannot be written to ({error.strerror})") from error
        try:
            if not _lock(handle, path):
                os.close(handle)
                continue
            os.ftruncate(handle, 0)
            with suppress(OSError):  # a full disk: the lock holds all the same
                os.pwrite(handle, f"process {os.getpid()} on {socket.gethostname()}: {_command()}".encode(), 0)
        except BaseException:
            os.close(handle)
            raise
        return handle


def _lock(handle: int, path: Path) -> bool:
    """Lock an open file; false where the one who held the lock has removed the file meanwhile."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        holder = os.pread(handle, 500, 0).decode(errors="replace") or "another process"
        raise UserError(
            f"{path.parent} is being written by {shorten(holder, 200)}; wait until it ends, or choose another folder"
        ) from error
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        say(f"{path.parent}: this file system has no locks; take care that nothing else writes to the folder")
        return True
    try:
        return os.path.samestat(os.fstat(handle), path.lstat())
    except FileNotFoundError:
        return False


def _command() -> str:
    return shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])[:300]
