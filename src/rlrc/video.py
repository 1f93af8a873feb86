"""Rollout videos: H.264 in MP4, which every browser plays."""

from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image

from rlrc.errors import UserError
from rlrc.files import atomic_path

VISIBLE_SIDE = 256
"""Policies look through cameras too small for people; frames are enlarged to at least this many pixels a side."""

X264 = {"crf": "26", "preset": "veryfast"}


def write_video(path: Path, frames: Iterable[np.ndarray], fps: float) -> None:
    """Write frames uint8 (H, W, 3), all of one size, as yuv420p with even sides."""
    with atomic_path(path) as aside, av.open(aside, "w", format="mp4", options={"movflags": "faststart"}) as container:
        stream = None
        for frame in frames:
            image = enlarge(frame)
            if stream is None:
                stream = container.add_stream("libx264", Fraction(fps).limit_denominator(1000), options=X264)
                stream.pix_fmt = "yuv420p"
                stream.height, stream.width = image.shape[:2]
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        if stream is None:
            raise UserError(f"{path}: a video needs at least one frame")
        container.mux(stream.encode())


def read_video(path: Path) -> tuple[np.ndarray, float]:
    """All frames, uint8 (T, H, W, 3), and how many there are a second."""
    with av.open(path) as container:
        frames = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
        rate = container.streams.video[0].average_rate
        assert rate is not None
        return frames, float(rate)


def enlarge(frame: np.ndarray) -> np.ndarray:
    """Scale uint8 (H, W, 3) up by a whole factor until it is large enough to look at; sides come out even."""
    height, width = frame.shape[:2]
    factor = max(1, -(-VISIBLE_SIDE // min(height, width)))
    size = (width * factor // 2 * 2, height * factor // 2 * 2)
    return np.asarray(Image.fromarray(frame).resize(size, Image.Resampling.LANCZOS))
