"""The verb `cache`, and the folder that holds the caches of frames: its contents, its limit, and what is removed first.

    rlrc cache                        # what is there
    rlrc cache --clear                # remove it

All caches together take at most RLRC_FRAME_CACHE_GB gigabytes (10^9 bytes; 20 unless that variable says otherwise, 0
keeps nothing). A new one for which there is no room makes room: those that were used longest ago are removed first,
and never one that a process uses. What is not a cache in that folder is left alone.
"""

import functools
import math
import os
import re
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlrc.configs.cache import CacheConfig
from rlrc.data.frame_files import DATA, HEADER, INDEX, LOCK, FrameFiles, Header, Produce, lock
from rlrc.errors import UserError, shorten
from rlrc.files import cache_folder, is_disk_full
from rlrc.progress import say
from rlrc.reading import read_model
from rlrc.tables import print_table

LIMIT_VARIABLE, DEFAULT_LIMIT_GB = "RLRC_FRAME_CACHE_GB", 20.0
MOST_GB = 10**9
_KEY = re.compile("[0-9a-f]{32}")


def cache(config: CacheConfig, out: Path) -> dict[str, Any]:
    """Print what is kept, or remove it; `out` is not used, since all runs share the caches.

    Returns:
        The folder, the limit in bytes, the caches that are there now, and how many were removed.
    """
    before = kept()
    removed = sum(remove(one) for one in before) if config.clear else 0
    now = kept()
    rows = [[one.describe(), readable(one.nbytes), _day(one.used)] for one in now]
    if rows:
        print_table(f"Frames in {folder()}", ["frames of", "size", "last used"], rows)
    if config.clear:
        say(f"{removed} caches of frames were removed" + (f"; {len(now)} are in use and stay" if now else ""))
    else:
        say(f"{readable(sum(one.nbytes for one in now))} of at most {readable(limit_bytes())} in {folder()}")
    caches = [{"frames_of": one.describe(), "bytes": one.nbytes, "folder": str(one.folder)} for one in now]
    return {"folder": str(folder()), "limit_bytes": limit_bytes(), "removed": removed, "caches": caches}


def folder() -> Path:
    return cache_folder() / "frames"


def limit_bytes() -> int:
    """Return the bytes that all caches together may take.

    Raises:
        UserError: the environment variable is no number that this can be.
    """
    text = os.environ.get(LIMIT_VARIABLE) or str(DEFAULT_LIMIT_GB)
    try:
        limit = float(text)
    except ValueError:
        limit = math.nan
    if not 0 <= limit <= MOST_GB:
        raise UserError(
            f"{LIMIT_VARIABLE} must be a number of gigabytes from 0 to {MOST_GB:,}, and is '{shorten(text)}'"
        )
    return round(limit * 1e9)


def readable(nbytes: float) -> str:
    """1500000 -> '1.5 MB': powers of 1000, as the limit is counted."""
    return f"{nbytes / 1e9:.1f} GB" if nbytes >= 1e9 else f"{nbytes / 1e6:.1f} MB"


@dataclass(frozen=True)
class Kept:
    """A cache on the disk, whole or not."""

    folder: Path
    header: Header | None
    """Header of the cache; None where it is damaged."""
    nbytes: int
    used: float
    """Time when it was last opened, in seconds since 1970."""

    def describe(self) -> str:
        if self.header is None:
            return "unknown (damaged)"
        header = self.header
        kind = "JPEG" if header.kind == "jpeg" else "raw"
        return f"{header.dataset}: {header.frames:,} of {header.height} x {header.width} px, {kind}"


def kept() -> list[Kept]:
    """The caches on the disk, the one that was used longest ago first."""
    found = []
    for path in sorted(folder().glob("*/" + LOCK)):
        if _KEY.fullmatch(path.parent.name) and not path.parent.is_symlink():
            try:
                found.append(_examine(path.parent))
            except FileNotFoundError:  # another process has removed it
                continue
    return sorted(found, key=lambda one: one.used)


def _examine(path: Path) -> Kept:
    files = [path / name for name in (HEADER, INDEX, DATA)]
    nbytes = sum(file.lstat().st_size for file in files if file.exists())
    try:
        header = read_model(path / HEADER, Header)
    except UserError:
        header = None
    planned = header.planned_bytes if header else 0
    return Kept(path, header, max(nbytes, planned), (path / LOCK).stat().st_mtime)


def remove(one: Kept) -> bool:
    """Remove a cache unless a process uses it, and return whether it is gone."""
    descriptor = lock(one.folder, shared=False, waiting=None)
    if descriptor is None:
        return False
    try:
        _delete(one.folder)
    finally:
        os.close(descriptor)
    return True


def obtain(files: FrameFiles, dataset: str, planned_bytes: int, produce: Produce) -> int | None:
    """See that a cache is complete: make it, go on making it, or wait for the process that does.

    Args:
        dataset: what people call it.
        planned_bytes: what the frames will take.

    Returns:
        A descriptor that shares its lock: until it is closed nobody removes the cache. None where there is no room for
        it, which was said.

    Raises:
        OSError: the disk cannot be written to, or its file system has no locks.
        UserError: a picture is missing.
    """
    waiting = functools.cache(lambda: say(f"{dataset}: another process prepares its frames; waiting for it"))
    while True:
        descriptor = lock(files.folder, True, waiting)
        assert descriptor is not None
        if files.is_complete():
            os.utime(descriptor)
            return descriptor
        os.close(descriptor)
        descriptor = lock(files.folder, False, waiting)
        assert descriptor is not None
        try:
            if not files.is_complete() and not _make(files, dataset, planned_bytes, produce):
                _delete(files.folder)
                return None
        except OSError as error:
            if is_disk_full(error):
                _delete(files.folder)  # a full disk needs the room
            raise
        finally:
            os.close(descriptor)


def _make(files: FrameFiles, dataset: str, planned_bytes: int, produce: Produce) -> bool:
    """Make a cache whole, and return whether there was room for it."""
    only_me = lock(folder(), False, lambda: None)
    assert only_me is not None
    try:  # so that two processes do not share out the same room
        if not _make_room(files.folder, dataset, planned_bytes):
            return False
        say(f"{dataset}: {files.spec.frames:,} frames will take {readable(planned_bytes)} in {files.folder}")
        index = files.begin(dataset, planned_bytes)
    finally:
        os.close(only_me)
    files.fill(index, produce, f"frames of {dataset}")
    return True


def _delete(path: Path) -> None:
    """Remove the cache in a folder whose lock is held alone, and the folder unless something else lies in it."""
    for name in (HEADER, INDEX, DATA, LOCK):  # first what makes the others count
        (path / name).unlink(missing_ok=True)
    if not any(path.iterdir()):
        path.rmdir()


def _make_room(own: Path, dataset: str, needed: int) -> bool:
    """Remove caches that were used longest ago until `needed` bytes are within the limit and on the disk, if that is
    possible."""
    limit = limit_bytes()
    others = [one for one in kept() if one.folder != own]
    there = sum(file.stat().st_blocks * 512 for file in own.iterdir() if file.name in (INDEX, DATA))
    total = sum(one.nbytes for one in others)

    def fits() -> bool:
        return total + needed <= limit and needed - there <= shutil.disk_usage(own).free

    for one in others:
        if fits():
            break
        if remove(one):
            say(f"removed the frames of {one.describe()}, last used on {_day(one.used)}, to make room")
            total -= one.nbytes
    if not fits():
        say(
            f"{dataset}: no room for {readable(needed)} of frames in {own.parent} ({readable(total)} are in use, "
            f"{readable(shutil.disk_usage(own).free)} are free); they are decoded as they are needed, which is slower"
        )
    return fits()


def _day(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))
