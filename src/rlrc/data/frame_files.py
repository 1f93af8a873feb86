"""The files of one cache of frames: made by one process, continued after a kill, read by many.

A cache is a folder. `frames.bin` holds the frames one after the other, raw or as JPEG. `index.bin` says where each one
lies: a frame counts as done when it stands there, and it is written there only after its bytes have reached the disk.
`header.json` says what the frames are. Who makes the cache holds its `lock` alone (fcntl.flock), who reads it shares
the lock, and who wants to remove it must have it alone, so nothing that is in use is ever removed.
"""

import fcntl
import hashlib
import os
import time
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Literal

import av
import numpy as np
import PIL
from pydantic import Field

from rlrc.errors import UserError
from rlrc.progress import bar, say
from rlrc.reading import FileModel, read_model

HEADER, INDEX, DATA, LOCK = "header.json", "index.bin", "frames.bin", "lock"
FLUSH_BYTES, FLUSH_SECONDS = 64 * 2**20, 10.0
"""Largest amount of work that a killed process loses: the bytes and the seconds since it last wrote to the index."""

Kind = Literal["raw", "jpeg"]
Produced = Generator[tuple[int, np.ndarray | bytes]]
"""(row, what is kept of its frame): the frame itself where it is kept raw, or its JPEG."""
Produce = Callable[[np.ndarray], Produced]
"""Given some rows, yields each of them once, in any order."""


class Damaged(Exception):
    """The files of a cache do not fit together."""


@dataclass(frozen=True)
class Spec:
    """A description of the frames that a cache holds; two caches with the same spec hold the same bytes."""

    identity: str
    """Identity of the pictures that the frames are made from."""
    frames: int
    height: int
    width: int
    kind: Kind

    @property
    def key(self) -> str:
        """Name of the cache's folder. Other releases of the libraries may decode to other bits."""
        parts = [1, PIL.__version__, av.__version__, *asdict(self).values()]
        return hashlib.sha256("\0".join(map(str, parts)).encode()).hexdigest()[:32]

    @property
    def frame_bytes(self) -> int:
        """Bytes of a frame that is not compressed."""
        return self.height * self.width * 3


class Header(FileModel):
    """The contents of `header.json`."""

    format: Literal[1]
    dataset: str
    """Name of the dataset, as people call it."""
    planned_bytes: int = Field(ge=0)
    """Bytes of all frames, as expected before they were made."""
    identity: str
    frames: int = Field(ge=1)
    height: int = Field(ge=1)
    width: int = Field(ge=1)
    kind: Kind

    @property
    def spec(self) -> Spec:
        return Spec(self.identity, self.frames, self.height, self.width, self.kind)


class FrameFiles:
    """One cache."""

    def __init__(self, folder: Path, spec: Spec) -> None:
        self.folder = folder / spec.key
        self.spec = spec
        self.data = self.folder / DATA

    def index(self) -> np.ndarray | None:
        """Return where each frame lies, int64 (N, 2): its offset and its length in bytes, 0 while it is not done.

        Returns:
            None where no frame is done.

        Raises:
            Damaged: the files do not fit together.
        """
        if any(path.is_symlink() for path in (self.folder, *(self.folder / name for name in (HEADER, INDEX, DATA)))):
            raise Damaged("a link is in its place")
        if not (self.folder / HEADER).exists() or not (self.folder / INDEX).exists():
            return None
        try:
            header = read_model(self.folder / HEADER, Header)
        except UserError as error:
            raise Damaged(str(error)) from error
        if header.spec != self.spec:
            raise Damaged("its header tells of other frames")
        values = np.fromfile(self.folder / INDEX, "<i8")
        if values.size != 2 * self.spec.frames:
            raise Damaged(f"{INDEX} has not the size that it should have")
        index = values.reshape(-1, 2)
        if not index[:, 1].any():
            return None
        self._check(index)
        return index

    def is_complete(self) -> bool:
        """Return whether all frames are done; a damaged cache is not complete."""
        try:
            index = self.index()
        except Damaged:
            return False
        return index is not None and bool(index[:, 1].all())

    def planned_bytes(self) -> int | None:
        """Return the bytes that all frames were expected to take when the cache was begun; None if it was not."""
        try:
            header = read_model(self.folder / HEADER, Header)
        except UserError:
            return None
        return header.planned_bytes if header.spec == self.spec else None

    def begin(self, dataset: str, planned_bytes: int) -> np.ndarray:
        """Prepare the files for the frames that are not done, and return the index; the caller holds the lock alone.

        Raises:
            OSError: the disk is full or cannot be written to.
        """
        try:
            index = self.index()
        except Damaged as damage:
            say(f"{dataset}: the cache of its frames is damaged ({damage}) and is made anew")
            index = None
        if index is None:
            index = np.zeros((self.spec.frames, 2), "<i8")
            self.wipe()
            header = Header(format=1, dataset=dataset, planned_bytes=planned_bytes, **asdict(self.spec))
            (self.folder / HEADER).write_text(header.model_dump_json())
            index.tofile(self.folder / INDEX)
        with self.data.open("ab") as data:
            if self.spec.kind == "jpeg":
                data.truncate(_end(index))  # a killed process may have left frames that the index does not know
            elif hasattr(os, "posix_fallocate"):
                os.posix_fallocate(data.fileno(), 0, planned_bytes)
        return index

    def fill(self, index: np.ndarray, produce: Produce, description: str) -> None:
        """Write all frames that are not done; the caller holds the lock alone. What is done stays if this is cut off.

        Raises:
            OSError: the disk is full or cannot be written to.
            UserError: `produce` leaves a frame out.
        """
        missing = np.flatnonzero(index[:, 1] == 0)
        done = self.spec.frames - len(missing)
        with (
            self.data.open("r+b") as data,
            (self.folder / INDEX).open("r+b") as record,
            closing(produce(missing)) as frames,
            bar(description, self.spec.frames, start=done) as progress,
        ):
            end = recorded = _end(index)
            flushed = time.monotonic()
            fresh: list[int] = []
            try:
                for row, frame in frames:
                    content = frame if isinstance(frame, bytes) else frame.tobytes()
                    offset = row * self.spec.frame_bytes if self.spec.kind == "raw" else end
                    data.seek(offset)
                    data.write(content)
                    index[row] = offset, len(content)
                    fresh.append(row)
                    end += len(content)
                    if end - recorded >= FLUSH_BYTES or time.monotonic() - flushed >= FLUSH_SECONDS:
                        _record(data, record, index, fresh)
                        fresh, recorded, flushed = [], end, time.monotonic()
                    progress.advance()
            finally:
                _record(data, record, index, fresh)
        if not index[:, 1].all():
            raise UserError(f"{description}: the picture of row {int(index[:, 1].argmin())} is missing")

    def wipe(self) -> None:
        """Remove the frames, and what tells of them first. The lock stays."""
        for name in (HEADER, INDEX, DATA):
            (self.folder / name).unlink(missing_ok=True)

    def _check(self, index: np.ndarray) -> None:
        """
        Raises:
            Damaged: a frame that is done does not lie within the data.
        """
        size = self.data.stat().st_size if self.data.exists() else 0
        done = np.flatnonzero(index[:, 1])
        offsets, lengths = index[done].T
        if (offsets < 0).any() or (lengths < 0).any() or (offsets > size - lengths).any():
            raise Damaged(f"{DATA} is shorter than it should be")
        if self.spec.kind == "raw":
            own = (lengths == self.spec.frame_bytes) & (offsets == done * self.spec.frame_bytes)
            if size != self.spec.frames * self.spec.frame_bytes or not own.all():
                raise Damaged(f"{DATA} has not the size that it should have")


def _end(index: np.ndarray) -> int:
    """Return the offset at which the last frame ends."""
    return int(index.sum(axis=1).max())


def _record(data: IO[bytes], record: IO[bytes], index: np.ndarray, rows: list[int]) -> None:
    """Write the places of `rows` to the index, once their bytes are on the disk."""
    data.flush()
    os.fsync(data.fileno())
    for row in rows:
        record.seek(row * index.itemsize * 2)
        record.write(index[row].tobytes())
    record.flush()
    os.fsync(record.fileno())


def lock(folder: Path, shared: bool, waiting: Callable[[], None] | None) -> int | None:
    """Lock the cache in `folder`, which is made where it is missing; closing the descriptor lets go of it.

    Args:
        waiting: called where another process holds the lock, before waiting for it. None: do not wait.

    Returns:
        A descriptor, or None where another process holds the lock and is not waited for.

    Raises:
        OSError: the folder cannot be made, or its file system has no locks.
    """
    path = folder / LOCK
    kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
        except FileNotFoundError:  # the folder was removed just now
            continue
        try:
            try:
                fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
            except BlockingIOError:
                if waiting is None:
                    os.close(descriptor)
                    return None
                waiting()
                fcntl.flock(descriptor, kind)
            if path.exists() and os.path.samestat(path.stat(), os.fstat(descriptor)):
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # the one that held it has removed the cache: there is another lock now
