"""Compiles the C++ of this room for this processor, and keeps the library in the user's cache folder.

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
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rlrc.errors import UserError
from rlrc.files import atomic_path, cache_folder
from rlrc.packed.cpu.processor import Level, level
from rlrc.progress import say

HERE = Path(__file__).parent
SOURCES = (HERE / "product.cpp", HERE / "decode.cpp")
HEADERS = tuple(sorted(HERE.glob("*.h")))
COMPILER = shlex.split(os.environ.get("CXX") or "g++")
FLAGS = ("-O3", "-ffp-contract=off", "-std=c++17", "-shared", "-fPIC", "-fopenmp")
DIGEST_BYTES = hashlib.sha256().digest_size


def missing() -> str | None:
    """Return why the kernels cannot be used on this machine, or None if they can; they are compiled if they were not
    yet."""
    return _load()[1]


def library() -> ctypes.CDLL:
    """The compiled code; only where `missing()` is None."""
    loaded, reason = _load()
    assert loaded is not None, reason
    return loaded


def identity(level: Level) -> str:
    """Return a hash of the code of the kernels, and of how it is compiled for a level."""
    code = [path.read_text() for path in (*HEADERS, *SOURCES)]
    text = "\n".join([*code, *COMPILER, *FLAGS, *level.flags])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@lru_cache(maxsize=1)
def _load() -> tuple[ctypes.CDLL | None, str | None]:
    """The compiled library, or why there is none."""
    best = level()
    if isinstance(best, str):
        return None, best
    name = f"kernels-{best.name}-{identity(best)}.so"
    with suppress(OSError, RuntimeError):  # there is no such file, or this user has no home
        return _declare(_open(cache_folder() / name)), None
    if shutil.which(COMPILER[0]) is None:
        return None, f"there is no C++ compiler ('{COMPILER[0]}'; Debian and Ubuntu: apt-get install g++)"
    try:
        return _declare(_compiled(name, best)), None
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


def _compiled(name: str, level: Level) -> ctypes.CDLL:
    """Compile for a level, keep the library for processes to come, and load it.

    Raises:
        OSError: there is no folder for temporary files, or none that libraries may be loaded from.
        subprocess.CalledProcessError: the compiler failed.
    """
    with TemporaryDirectory(prefix="rlrc-kernels-") as folder:
        fresh = Path(folder) / name
        subprocess.run(
            [*COMPILER, *FLAGS, *level.flags, *SOURCES, "-o", fresh], capture_output=True, text=True, check=True
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


def _declare(library: ctypes.CDLL) -> ctypes.CDLL:
    pointer, size, flag = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int
    weight: list[Any] = [pointer, pointer, pointer, size, size, size, size]
    library.packed_product.argtypes = [*weight, flag, pointer, size, pointer, pointer, flag]
    library.decode_token.argtypes = [pointer, size, pointer, flag]
    library.packed_product.restype = library.decode_token.restype = None
    return library
