"""Files in numbered series: a new one begins when the current one has reached its size limit."""

from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rlrc.data import format as fmt
from rlrc.errors import UserError

VIDEO_OPTIONS = {"crf": "18", "g": "2", "bf": "0", "preset": "veryfast"}
"""A keyframe every other frame, as in LeRobot's own encoder, because training reads frames in random order."""


class _Series:
    """The place of the current file: chunk 0 file 0, chunk 0 file 1, ..."""

    def __init__(self, root: Path, pattern: str, megabytes: int) -> None:
        self._root = root
        self._pattern = pattern
        self._limit = megabytes * 1024**2
        self._number = -1

    def place(self) -> dict[str, int]:
        chunk, file = divmod(self._number, fmt.FILES_PER_CHUNK)
        return {"chunk_index": chunk, "file_index": file}

    def path(self) -> Path:
        return self._root / self._pattern.format(**self.place())

    def full(self) -> bool:
        if self._number < 0:
            return True
        # A video encoder looks ahead: after few frames there may be nothing of the file yet.
        return self.path().exists() and self.path().stat().st_size >= self._limit

    def next(self) -> Path:
        self._number += 1
        self.path().parent.mkdir(parents=True, exist_ok=True)
        return self.path()


class ParquetSeries:
    """The tables of the episodes, one row group each."""

    def __init__(self, root: Path) -> None:
        self._series = _Series(root, fmt.DATA_PATH, fmt.DATA_FILE_MB)
        self._writer: pq.ParquetWriter | None = None

    def append(self, table: pa.Table) -> dict[str, int]:
        """Write an episode and return where it is."""
        if self._writer is None or self._series.full():
            self.close()
            self._writer = pq.ParquetWriter(self._series.next(), table.schema)
        self._writer.write_table(table)
        return {f"data/{name}": number for name, number in self._series.place().items()}

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


class VideoSeries:
    """The frames of one camera, episode after episode, as H.264 in MP4."""

    def __init__(self, root: Path, key: str, fps: int) -> None:
        pattern = fmt.VIDEO_PATH.replace("{video_key}", key)
        self._series = _Series(root, pattern, fmt.VIDEO_FILE_MB)
        self._fps = fps
        self._container: Any = None
        self._stream: Any = None
        self._frames = 0

    def append(self, images: np.ndarray) -> dict[str, float]:
        """Encode an episode's uint8 (T, H, W, 3) and return where it is, its time in the file in seconds.

        Raises:
            UserError: a side is odd, which the format cannot hold.
        """
        if images.shape[1] % 2 or images.shape[2] % 2:
            raise UserError(f"video needs even sides, got {images.shape[1]} x {images.shape[2]}; store images instead")
        if self._container is None or self._series.full():
            self.close()
            self._open(self._series.next(), *images.shape[1:3])
        start = self._frames
        for image in images:
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts = self._frames
            self._container.mux(self._stream.encode(frame))
            self._frames += 1
        return self._series.place() | {"from_timestamp": start / self._fps, "to_timestamp": self._frames / self._fps}

    def close(self) -> None:
        if self._container is not None:
            self._container.mux(self._stream.encode())
            self._container.close()

    def _open(self, path: Path, height: int, width: int) -> None:
        self._container = av.open(path, "w")
        self._stream = self._container.add_stream("libx264", rate=self._fps, options=VIDEO_OPTIONS)
        self._stream.pix_fmt = "yuv420p"
        self._stream.height, self._stream.width = height, width
        self._frames = 0
