"""Files that are either whole or absent: write aside, fsync, rename."""

import errno
import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

import psutil

from rlrc.errors import UserError
from rlrc.ownership import LEFTOVER, Owned, is_proven, remove_files, remove_folder, require_own, require_plain

REMEMBERED_BYTES = 2**22
"""Files from this size on are hashed once for all processes."""
SETTLED_NS = 2 * 10**9
"""Least age in nanoseconds of a file's last change: a clock may tick too slowly to tell a younger one from one that
comes now."""


def cache_folder() -> Path:
    """Folder for everything that rlrc builds, decodes or fetches once for this machine."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rlrc"


@contextmanager
def atomic_path(path: Path, owned: Owned | None = None) -> Iterator[Path]:
    """Yield a sibling path to write a file or folder to; it takes the place of `path` only when the block succeeds.

    Args:
        owned: what a folder at `path` must be to be replaced, unless it is empty; None where a file is written.

    Raises:
        UserError: `path` is a link or a folder that rlrc did not write, or the disk is full. Nothing half-written
            stays.
    """
    _require_replaceable(path, owned)
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(path, owned)
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    if os.path.lexists(aside):
        raise UserError(f"{aside}: rlrc would write here and something else is there; move it away")
    try:
        yield aside
        _fsync_tree(aside)
        _require_replaceable(path, owned)
        _replace(aside, path, owned)
    except Exception as error:
        # Libraries that write in native code (safetensors, Arrow) wrap the system's error in their own.
        if is_disk_full(error):
            raise UserError(f"{path}: the disk is full, nothing was written; free some space and run again") from error
        raise
    finally:
        _remove(aside)


def is_disk_full(error: BaseException) -> bool:
    """Return whether an error of the system, or of a library that hands it on, says that the disk is full."""
    return getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "No space left" in str(error)


def require_space(path: Path, nbytes: int) -> None:
    """Fail before a long write, not in the middle of it.

    Raises:
        UserError: the disk that will hold `path` has less than `nbytes` free.
    """
    existing = next(place for place in (path.absolute(), *path.absolute().parents) if place.exists())
    free = shutil.disk_usage(existing).free
    if free < nbytes:
        raise UserError(f"{path}: the disk is full: {nbytes:,} bytes are needed and {free:,} are free")


def write_text(path: Path, text: str) -> None:
    with atomic_path(path) as aside:
        aside.write_text(text)


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def sha256_file(path: Path) -> str:
    """Hash of a file's contents; read once, for as long as its size and its times stay what they are."""
    status = path.stat()
    state = status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
    return _sha256(path.absolute(), *state)


@lru_cache(maxsize=4096)
def _sha256(path: Path, inode: int, size: int, mtime_ns: int, ctime_ns: int) -> str:
    if size < REMEMBERED_BYTES:
        return _read_sha256(path)
    text = f"{path}\0{inode}\0{size}\0{mtime_ns}\0{ctime_ns}"
    record = hashes_folder() / hashlib.sha256(text.encode()).hexdigest()
    with suppress(OSError, ValueError):
        known = record.read_text()
        if re.fullmatch("[0-9a-f]{64}", known):
            return known
    found = _read_sha256(path)
    if time.time_ns() - max(mtime_ns, ctime_ns) > SETTLED_NS:
        with suppress(OSError):  # without a record, or with a torn one, it is read again the next time
            record.parent.mkdir(parents=True, exist_ok=True)
            record.write_text(found)
    return found


def _read_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hashes_folder() -> Path:
    """Return the folder in which the hashes of large files are remembered from one process to the next."""
    return cache_folder() / "hashes"


def sha256_tree(folder: Path) -> str:
    """Hash of the names and contents of all files below `folder`, also of those that links lead to."""
    digest = hashlib.sha256()
    for path in sorted(_files_below(folder, ())):
        digest.update(f"{path.relative_to(folder)}\0{sha256_file(path)}\n".encode())
    return digest.hexdigest()


def _files_below(folder: Path, above: tuple[Path, ...]) -> Iterator[Path]:
    """All files below `folder`; a link that leads back to a folder above it is not followed again."""
    here = folder.resolve()
    if here in above:
        return
    for path in folder.iterdir():
        if path.is_dir():
            yield from _files_below(path, (*above, here))
        elif path.is_file():
            yield path


def _require_replaceable(path: Path, owned: Owned | None) -> None:
    """
    Raises:
        UserError: `path` is a link, or a folder of which rlrc cannot prove that it wrote all of it.
    """
    require_plain(path)
    if not path.is_dir():
        if owned is not None and path.exists():
            raise UserError(f"{path} holds something else: it is a file, and a folder would be written here")
        return
    if owned is None:
        raise UserError(f"{path}: this is a folder, and a file would be written here; move it away")
    if not any(path.iterdir()):
        return
    if not is_proven(path, owned):
        raise UserError(f"{path} holds something else; choose another folder, or delete it first")
    require_own(path, owned.files)


def _remove_leftovers(path: Path, owned: Owned | None) -> None:
    """Remove what a process that was killed while writing `path` has left beside it."""
    for leftover in path.parent.iterdir():
        match = LEFTOVER.fullmatch(leftover.name)
        if match is None or match[1] != path.name or leftover.is_symlink() or _is_writing(int(match[2])):
            continue
        if leftover.is_file():
            if leftover.suffix == ".tmp":  # rlrc moves only folders off
                leftover.unlink()
        elif owned is not None and leftover.is_dir():
            if leftover.suffix == ".old" and not path.exists() and is_proven(leftover, owned):
                leftover.rename(path)  # killed before the new one had taken its place
            else:
                remove_files(leftover, owned.files)


def _is_writing(pid: int) -> bool:
    """Return whether the process with this number may still be writing; our own was another's before (in
    containers)."""
    return pid != os.getpid() and psutil.pid_exists(pid)


def _remove(aside: Path) -> None:
    """Remove what this process has written aside."""
    if aside.is_dir() and not aside.is_symlink():
        shutil.rmtree(aside)
    else:
        aside.unlink(missing_ok=True)


def _replace(aside: Path, path: Path, owned: Owned | None) -> None:
    """Rename `aside` over `path`; a folder in the way is moved off first, since rename cannot replace a full one."""
    if path.is_dir():
        old = path.with_name(f".{path.name}.{os.getpid()}.old")
        path.rename(old)
        aside.rename(path)
        remove_folder(old, owned.files if owned else ())
    else:
        aside.replace(path)
    fsync(path.parent)


def _fsync_tree(path: Path) -> None:
    if path.is_dir():
        for child in path.iterdir():
            _fsync_tree(child)
    fsync(path)


def fsync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
