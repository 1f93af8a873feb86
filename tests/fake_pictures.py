"""Pictures without a dataset: each is drawn from its row's number. As a program, it opens frames of them.

python fake_pictures.py COUNT SECONDS      prints the frames' hash, how they are kept and which rows were decoded
"""

import hashlib
import json
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Self

import numpy as np

from rlrc.data.frames import open_frames

SIZE = (40, 56)
SEEN = (24, 32)


class FakePictures:
    """`count` pictures of noise on a slope; decoding one takes `seconds`."""

    size = SIZE

    def __init__(self, count: int, seconds: float = 0.0, name: str = "fake") -> None:
        self._count, self._seconds, self._name = count, seconds, name
        self.decoded: list[int] = []

    def __len__(self) -> int:
        return self._count

    def decode(self, rows: Sequence[int]) -> Iterator[tuple[int, np.ndarray]]:
        for row in sorted(rows, key=lambda row: row % 7):  # in an order of its own
            time.sleep(self._seconds)
            self.decoded.append(row)
            yield row, picture(row)

    def identity(self) -> str:
        return f"{self._name}, {self._count} pictures"

    def take(self, rows: np.ndarray) -> Self:
        raise NotImplementedError


def picture(row: int) -> np.ndarray:
    noise = np.random.default_rng(row).integers(0, 20, (*SIZE, 3))
    return (noise + np.linspace(0, 190, SIZE[1])[:, None]).astype(np.uint8)


if __name__ == "__main__":
    pictures = FakePictures(int(sys.argv[1]), float(sys.argv[2]))
    frames = open_frames(pictures, SEEN, "fake")
    content = frames[np.arange(len(frames))]
    print(json.dumps([hashlib.sha256(content.tobytes()).hexdigest(), frames.kind, sorted(pictures.decoded)]))
