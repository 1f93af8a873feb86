"""Compiles C++ of our own for this processor, and keeps the library in the user's cache folder.

The folder only saves the few seconds that compiling takes. Where it cannot be used, each process compiles for itself,
so what a policy computes never depends on what lies there. The compiler may not contract a product and a sum into one
rounding, so every compiler gives the same numbers.
"""

import ctypes
import hashlib
import os
import shlex
import shutil
import subprocess
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory

from rlrc.errors import UserError
from rlrc.files import atomic_path, cache_folder
from rlrc.native.processor import Level
from rlrc.progress import say

COMPILER = shlex.split(os.environ.get("CXX") or "g++")
FLAGS = ("-O3", "-ffp-contract=off", "-std=c++17", "-shared", "-fPIC", "-fopenmp")
DIGEST_BYTES = hashlib.sha256().digest_size


@dataclass(frozen=True)
class Native:
    """A library of C++ that is compiled when it is first needed."""

    name: str
    sources: tuple[Path, ...]
    headers: tuple[Path, ...]
    level: Callable[[], Level | str]
    """Returns the instructions for which it is compiled, or why there are none for it."""
    functions: dict[str, tuple[type, ...]]
    """Types of the arguments of each function; none returns anything."""

    def __hash__(self) -> int:
        return hash((self.name, self.sources))

    def missing(self) -> str | None:
        """Return why it cannot be used on this machine, or None if it can; it is compiled if it was not yet."""
        return _load(self)[1]

    def loaded(self) -> ctypes.CDLL:
        """The compiled code; only where `missing()` is None."""
        library, reason = _load(self)
        assert library is not None, reason
        return library

    def identity(self, level: Level) -> str:
        """Return a hash of the code, and of how it is compiled for a level."""
        code = [path.read_text() for path in (*self.headers, *self.sources)]
        text = "\n".join([*code, *COMPILER, *FLAGS, *level.flags])
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def declare(self, library: ctypes.CDLL) -> ctypes.CDLL:
        """Tell ctypes the types of the functions."""
        for name, arguments in self.functions.items():
            function = getattr(library, name)
            function.argtypes, function.restype = arguments, None
        return library


@lru_cache
def _load(native: Native) -> tuple[ctypes.CDLL | None, str | None]:
    """The compiled library, or why there is none."""
    best = native.level()
    if isinstance(best, str):
        return None, best
    name = f"{native.name}-{best.name}-{native.identity(best)}.so"
    with suppress(OSError, RuntimeError):  # there is no such file, or this user has no home
        return native.declare(_open(cache_folder() / name)), None
    if shutil.which(COMPILER[0]) is None:
        return None, f"there is no C++ compiler ('{COMPILER[0]}'; Debian and Ubuntu: apt-get install g++)"
    try:
        return native.declare(_compiled(native, name, best)), None
    except subprocess.CalledProcessError as error:
        return None, f"'{COMPILER[0]}' failed: {(error.stderr.splitlines() or ['no message'])[0]}"
    except OSError as error:
        return None, f"they cannot be compiled or loaded ({error})"


def _open(path: Path) -> ctypes.CDLL:
    """Load the library that a process has kept. Its hash lies behind it, since a torn one could kill this process.

    Raises:
        OSError: there is none, it is damaged, or libraries may not be loaded from there.
    """
    content = path.read_bytes()
    if _digest(content[:-DIGEST_BYTES]) != content[-DIGEST_BYTES:]:
        raise OSError(f"{path} is damaged")
    return ctypes.CDLL(str(path))


def _compiled(native: Native, name: str, level: Level) -> ctypes.CDLL:
    """Compile for a level, keep the library for processes to come, and load it.

    Raises:
        OSError: there is no folder for temporary files, or none that libraries may be loaded from.
        subprocess.CalledProcessError: the compiler failed.
    """
    with TemporaryDirectory(prefix="rlrc-kernels-") as folder:
        fresh = Path(folder) / name
        subprocess.run(
            [*COMPILER, *FLAGS, *level.flags, *native.sources, "-o", fresh], capture_output=True, text=True, check=True
        )
        content = fresh.read_bytes()
        try:
            path = cache_folder() / name
            with atomic_path(path) as aside:
                aside.write_bytes(content + _digest(content))
            return _open(path)
        except (OSError, RuntimeError, UserError) as error:
            say(f"the compiled kernels cannot be kept, so every process compiles them anew: {error}")
            return ctypes.CDLL(str(fresh))  # stays loaded when the file is gone


def _digest(content: bytes) -> bytes:
    return hashlib.sha256(content).digest()
