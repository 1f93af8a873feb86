"""Demonstrations that can be learned by heart: the colour of the picture says what to do."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np

from rlrc.data.demonstrations import Demonstrations

FRAMES = 24


@dataclass(frozen=True)
class PicturesInMemory:
    """Pictures (see `rlrc.data.pictures.Pictures`) that lie in an array uint8 (T, H, W, 3)."""

    images: np.ndarray

    def __len__(self) -> int:
        return len(self.images)

    @property
    def size(self) -> tuple[int, int]:
        return self.images.shape[1], self.images.shape[2]

    def decode(self, rows: Sequence[int]) -> Iterator[tuple[int, np.ndarray]]:
        return ((row, self.images[row]) for row in rows)

    def identity(self) -> str:
        return str(hash(self.images.tobytes()))

    def take(self, rows: np.ndarray) -> Self:
        return type(self)(self.images[rows])


def toy_demonstrations() -> Demonstrations:
    generator = np.random.default_rng(0)
    levels = generator.uniform(size=(FRAMES, 3))
    images = np.broadcast_to((255 * levels).astype(np.uint8)[:, None, None], (FRAMES, 96, 96, 3))
    directions = np.where(levels[:, :1] > 0.5, 1.0, -1.0) * [0.03, 0.02, 0.01, 0.1, 0.2, 0.3, 1.0]
    return Demonstrations(
        path=Path("toy"),
        pictures={"front": PicturesInMemory(np.ascontiguousarray(images))},
        state=np.zeros((FRAMES, 8), np.float32),
        environment_state=None,
        actions=directions.astype(np.float32),
        tasks=["put carrot on plate", "put red cube on plate"],
        task_index=np.arange(FRAMES) % 2,
        episode_index=np.arange(FRAMES) // 6,
        fps=5,
    )
