"""Frames of a dataset at the size that a policy sees: kept on the disk once they are decoded, or decoded when needed.

What one reads depends on the dataset and on the limit of the caches (see `cache.py`) alone, never on what else is on
the disk: frames are kept raw if that is within the limit, as JPEG of high quality if that is, and else not at all. A
dataset that would be kept, but for which there is no room now, is decoded when needed, to the same bits: one that would
be kept as JPEG passes through JPEG then, too.
"""

import contextlib
import io
import os
import queue
import threading
import weakref
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol, TypeVar

import numpy as np
from PIL import Image

from rlrc.data import cache
from rlrc.data.frame_files import FrameFiles, Kind, Produced, Spec
from rlrc.data.pictures import Pictures
from rlrc.errors import UserError
from rlrc.pixels import resize
from rlrc.progress import say

JPEG_QUALITY = 95
SAMPLES = 32
"""Pictures, evenly spread, from which the bytes of all are estimated as JPEG."""
THREADS = min(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1, 8)
"""Threads that decode; each may hold the pictures that a video decoder looks back at, 50 MB for 1080p."""

T = TypeVar("T")


class Frames(Protocol):
    """N frames of one size, uint8 (N, H, W, 3)."""

    size: tuple[int, int]
    """Height and width in pixels."""
    kind: Kind
    """Kind of the frames: they are exact, or have passed through JPEG."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        """The frames of `rows`, integers (B,): a new array uint8 (B, H, W, 3)."""
        ...


def open_frames(pictures: Pictures, size: tuple[int, int] | None, dataset: str) -> Frames:
    """Frames for training, which reads all of them many times: from the cache, which is made first where needed.

    Args:
        size: height and width that the policy sees; None: as they are stored.
        dataset: what people call it, for messages.

    Raises:
        UserError: a picture is missing, or the limit is no number.
    """
    size = size or pictures.size
    kind, planned_bytes = _choose(pictures, size, dataset)
    decoded = DecodedFrames(pictures, size, kind)
    if planned_bytes is None:
        return decoded
    files = FrameFiles(cache.folder(), _spec(pictures, size, kind))
    try:
        descriptor = cache.obtain(files, dataset, planned_bytes, decoded.produce)
        if descriptor is not None:
            return (RawFrames if kind == "raw" else JpegFrames)(files, descriptor)
    except OSError as error:
        say(
            f"{dataset}: frames cannot be kept in {cache.folder()} ({error.strerror or error}); "
            "they are decoded as they are needed, which is slower"
        )
    return decoded


def read_frames(pictures: Pictures, rows: np.ndarray, size: tuple[int, int] | None) -> np.ndarray:
    """A few frames, uint8 (B, H, W, 3), exact and without a cache; arguments as `open_frames`.

    Raises:
        UserError: a picture is missing.
    """
    return DecodedFrames(pictures, size or pictures.size, "raw")[rows]


class RawFrames:
    """Frames in a file that is mapped into memory: reading them is as fast as from an array."""

    kind: Kind = "raw"

    def __init__(self, files: FrameFiles, descriptor: int) -> None:
        self.size = files.spec.height, files.spec.width
        self._frames = np.asarray(np.memmap(files.data, np.uint8, "r", shape=(files.spec.frames, *self.size, 3)))
        weakref.finalize(self, os.close, descriptor)

    def __len__(self) -> int:
        return len(self._frames)

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        return self._frames[rows]


class JpegFrames:
    """Frames as JPEG in a file, decoded by a few threads."""

    kind: Kind = "jpeg"

    def __init__(self, files: FrameFiles, descriptor: int) -> None:
        self.size = files.spec.height, files.spec.width
        index = files.index()
        assert index is not None
        self._index = index
        self._path = files.data
        self._data = os.open(files.data, os.O_RDONLY)
        self._threads = ThreadPoolExecutor(THREADS)
        for handle in (self._data, descriptor):
            weakref.finalize(self, os.close, handle)

    def __len__(self) -> int:
        return len(self._index)

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        frames = np.empty((len(rows), *self.size, 3), np.uint8)
        for number, frame in enumerate(self._threads.map(self._read, rows)):
            frames[number] = frame
        return frames

    def _read(self, row: int) -> np.ndarray:
        offset, length = self._index[row].tolist()
        try:
            return _from_jpeg(os.pread(self._data, length, offset))
        except OSError as error:  # Pillow's own errors are among them
            raise UserError(
                f"{self._path}: frame {row} is damaged; run `rlrc cache --clear`, then this again"
            ) from error


class DecodedFrames:
    """Frames that are decoded each time they are asked for."""

    def __init__(self, pictures: Pictures, size: tuple[int, int], kind: Kind) -> None:
        self.size, self.kind = size, kind
        self._pictures = pictures

    def __len__(self) -> int:
        return len(self._pictures)

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        return decode_rows(self._pictures, rows, self.size, self._frame)

    def produce(self, rows: np.ndarray) -> Produced:
        """Yield each of `rows` and what is kept of its frame, in any order."""
        return in_threads(self._pictures, rows, self._keep)

    def _keep(self, picture: np.ndarray) -> np.ndarray | bytes:
        frame = resize(picture, self.size)
        return frame if self.kind == "raw" else _to_jpeg(frame)

    def _frame(self, picture: np.ndarray) -> np.ndarray:
        kept = self._keep(picture)
        return _from_jpeg(kept) if isinstance(kept, bytes) else kept


def decode_rows(
    pictures: Pictures, rows: np.ndarray, size: tuple[int, int], work: Callable[[np.ndarray], np.ndarray]
) -> np.ndarray:
    """Decode the pictures of `rows`, integers (B,), and return what `work` makes of each, uint8 (B, *size, 3).

    Raises:
        UserError: a picture is missing.
    """
    wanted, place = np.unique(rows, return_inverse=True)
    frames = np.empty((len(wanted), *size, 3), np.uint8)
    missing = set(wanted.tolist())
    for row, frame in in_threads(pictures, wanted, work):
        frames[np.searchsorted(wanted, row)] = frame
        missing.discard(row)
    if missing:
        raise UserError(f"the picture of row {min(missing)} is missing")
    return frames[place]


def in_threads(
    pictures: Pictures, rows: Sequence[int] | np.ndarray, work: Callable[[np.ndarray], T]
) -> Generator[tuple[int, T]]:
    """Decode `rows` in a few threads, each of which takes a run of them, and yield (row, work(picture)) as they come.

    Pillow and PyAV let go of the interpreter while they decode, so threads do. Little is held at once.
    """
    parts = [part for part in np.array_split(np.asarray(rows), THREADS) if len(part)]
    results: queue.Queue[tuple[int, T] | BaseException | None] = queue.Queue(4 * THREADS)
    stop = threading.Event()

    def put(item: tuple[int, T] | BaseException | None) -> None:
        waits = True
        while waits and not stop.is_set():
            with contextlib.suppress(queue.Full):
                results.put(item, timeout=0.1)
                waits = False

    def run(part: np.ndarray) -> None:
        try:
            for row, picture in pictures.decode(part.tolist()):
                put((row, work(picture)))
                if stop.is_set():
                    return
            put(None)
        except BaseException as error:
            put(error)

    threads = [threading.Thread(target=run, args=(part,), daemon=True) for part in parts]
    for thread in threads:
        thread.start()
    try:
        running = len(threads)
        while running:
            item = results.get()
            if isinstance(item, BaseException):
                raise item
            if item is None:
                running -= 1
            else:
                yield item
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def _choose(pictures: Pictures, size: tuple[int, int], dataset: str) -> tuple[Kind, int | None]:
    """Choose how frames are kept, and return the bytes that all take; None: they are too many to be kept."""
    limit = cache.limit_bytes()
    raw_bytes = _spec(pictures, size, "raw").frame_bytes * len(pictures)
    if raw_bytes <= limit:
        return "raw", raw_bytes
    jpeg_bytes = _jpeg_bytes(pictures, size) if limit else 0
    if 0 < jpeg_bytes <= limit:
        say(f"{dataset}: frames are kept as JPEG, since they would take {cache.readable(raw_bytes)} as they are")
        return "jpeg", jpeg_bytes
    say(
        f"{dataset}: frames are decoded as they are needed; they would take {cache.readable(raw_bytes)}, "
        + (f"or {cache.readable(jpeg_bytes)} as JPEG, " if limit else "")
        + f"and {cache.readable(limit)} are allowed ({cache.LIMIT_VARIABLE})"
    )
    return "raw", None


def _jpeg_bytes(pictures: Pictures, size: tuple[int, int]) -> int:
    """Return the bytes that all frames take as JPEG: as estimated when the cache was made, or from a few of them."""
    if (planned := FrameFiles(cache.folder(), _spec(pictures, size, "jpeg")).planned_bytes()) is not None:
        return planned
    rows = np.unique(np.linspace(0, len(pictures) - 1, SAMPLES).round().astype(int))
    sizes = [len(frame) for _, frame in DecodedFrames(pictures, size, "jpeg").produce(rows)]
    return round(len(pictures) * sum(sizes) / len(sizes))


def _spec(pictures: Pictures, size: tuple[int, int], kind: Kind) -> Spec:
    return Spec(pictures.identity(), len(pictures), *size, kind)


def _to_jpeg(frame: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(frame).save(file, "JPEG", quality=JPEG_QUALITY, subsampling="4:4:4")
    return file.getvalue()


def _from_jpeg(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
