"""Pictures that are frames of videos: each row has the frame nearest to its time, and never one of another episode."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import av
import numpy as np

from rlrc.data.layout import VideoPlaces
from rlrc.data.pictures import by_file, identity_of
from rlrc.data.tables import Rows
from rlrc.errors import UserError, shorten
from rlrc.reading import require_file

OPTIONS = {"format_whitelist": "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi", "protocol_whitelist": "file"}
"""Formats that hold videos themselves: a playlist could name any file or server."""
SLACK = 1e-4
"""Seconds that a time may be wrong by, being stored as float32."""
REORDERED = 32
"""Frames by which a keyframe's place in the file may come before its time."""


@dataclass(frozen=True)
class VideoPictures:
    """Frames of one camera's videos (see `pictures.Pictures`)."""

    key: str
    size: tuple[int, int]
    rows: Rows
    places: VideoPlaces
    fps: float
    """Control steps a second; a frame may be half a step from its row's time."""

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, rows: np.ndarray) -> Self:
        return replace(self, rows=self.rows.take(rows))

    def identity(self) -> str:
        place = self._place(slice(None))
        files = [self.places.files[number] for number in np.unique(self.places.file[place])]
        windows = (array[place] for array in (self.places.file, self.places.start, self.places.end))
        return identity_of(files, "videos", self.key, *self.size, self.fps, self.rows.timestamp, *windows)

    def decode(self, rows: Sequence[int]) -> Iterator[tuple[int, np.ndarray]]:
        wanted = np.asarray(rows, np.int64)
        for number, here in by_file(self.places.file[self._place(wanted)]):
            path = self.places.files[number]
            with _open(path, self.size) as frames:
                yield from self._decode_file(path, frames, wanted[here])

    def _decode_file(self, path: Path, frames: "_Frames", rows: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
        place = self._place(rows)
        start, end = self.places.start[place], self.places.end[place]
        time = start + self.rows.timestamp[rows]
        # Frames are those of an episode if they are nearer to its span than to what lies beside it.
        low, high = start - frames.duration / 2, end - frames.duration / 2
        tolerance = 0.5 / self.fps + SLACK
        for at in np.argsort(time, kind="stable"):
            row = int(rows[at])
            frame = frames.nearest(time[at], low[at], high[at])
            if frame is None or abs(frame.time - time[at]) > tolerance:
                nearest = "there is none" if frame is None else f"the nearest one is at {frame.time:.3f} s"
                raise UserError(
                    f"{path}: no frame within {tolerance:.3f} s of {self.rows.name(row)}, at {time[at]:.3f} s of the "
                    f"video; in this episode {nearest}"
                )
            yield row, frames.picture(frame)

    def _place(self, rows: Any) -> np.ndarray:
        """Return the number in `places` of the episode of each row."""
        return np.searchsorted(self.places.episode, self.rows.episode[rows])


@contextmanager
def _open(path: Path, size: tuple[int, int]) -> Iterator["_Frames"]:
    """A video; what fails inside the block is told as an error of the file."""
    require_file(path)
    try:
        with av.open(str(path.absolute()), options=OPTIONS) as container:
            if not container.streams.video:
                raise UserError(f"{path}: the file holds no video")
            yield _Frames(path, container, size)
    except (av.FFmpegError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(f"{path}: not a video that can be read ({shorten(reason)})") from error


class _Frames:
    """The frames of a video, asked for in the order of their times; what lies between is skipped where it is long."""

    def __init__(self, path: Path, container: Any, size: tuple[int, int]) -> None:
        self._path, self._container, self._size = path, container, size
        self._stream = container.streams.video[0]
        self.duration = float(1 / self._stream.average_rate) if self._stream.average_rate else 0.0
        """Seconds that a frame is shown."""
        if self._stream.codec_context is None:
            raise UserError(f"{path}: the codec of the video is unknown")
        self._require(self._stream.codec_context)
        base = self._stream.time_base
        entries = self._stream.index_entries or ()
        self._keyframes = np.array(sorted(float(e.timestamp * base) for e in entries if e.is_keyframe))
        self._frames = container.decode(self._stream)
        self._before: Any = None
        self._after: Any = None
        self._ended = False

    def nearest(self, time: float, low: float, high: float) -> Any:
        """The frame nearest to `time` among those from `low` to (not including) `high`, or None."""
        inside = min(max(time, low), math.nextafter(high, -math.inf))
        self._skip_to(inside)
        while not self._ended and (self._after is None or self._after.time < inside):
            self._advance()
        near = [frame for frame in (self._before, self._after) if frame is not None and low <= frame.time < high]
        return min(near, key=lambda frame: abs(frame.time - time), default=None)

    def picture(self, frame: Any) -> np.ndarray:
        """A frame as uint8 (H, W, 3)."""
        self._require(frame)
        if frame.is_corrupt:
            raise UserError(f"{self._path}: the frame at {frame.time:.3f} s is damaged")
        return frame.to_ndarray(format="rgb24")

    def _skip_to(self, time: float) -> None:
        """Go on from the last keyframe that lies well before `time`, if that is further than where we are."""
        target = time - REORDERED * self.duration
        number = int(np.searchsorted(self._keyframes, target, "right")) - 1
        here = -math.inf if self._after is None else self._after.time
        if number > 0 and self._keyframes[number] > here:
            self._restart(target)
            self._advance()
            if self._ended or self._after.time > time - self.duration:
                self._restart(None)  # The index has led too far.

    def _restart(self, time: float | None) -> None:
        base = self._stream.time_base
        offset = (self._stream.start_time or 0) if time is None else int(time / base)
        self._container.seek(offset, stream=self._stream, backward=True)
        self._frames = self._container.decode(self._stream)
        self._before = self._after = None
        self._ended = False

    def _advance(self) -> None:
        frame = next(self._frames, None)
        if frame is None:
            self._ended = True
            return
        if frame.time is None:
            raise UserError(f"{self._path}: a frame of the video has no time")
        self._before, self._after = self._after, frame

    def _require(self, seen: Any) -> None:
        """Check that a frame, or what the file says of all, has the size and holds colours."""
        if (seen.height, seen.width) != self._size:
            height, width = self._size
            raise UserError(
                f"{self._path}: the video has pictures of {seen.height} x {seen.width} pixels, and info.json tells of "
                f"{height} x {width}"
            )
        pixels = seen.format
        if pixels is None:
            raise UserError(f"{self._path}: the format of the video's pictures is unknown")
        if len(pixels.components) == 1 and pixels.components[0].bits > 8 and not pixels.has_palette:
            raise UserError(f"{self._path}: pictures of format {pixels.name} are depth, and a colour camera is needed")
