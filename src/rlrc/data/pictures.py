"""Pictures of a dataset: the place of each row's picture, and how it is decoded when it is asked for."""

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol, Self

import numpy as np


class Pictures(Protocol):
    """The pictures of one camera, one a row. Several threads may decode at the same time."""

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels, as stored."""
        ...

    def __len__(self) -> int: ...

    def decode(self, rows: Sequence[int]) -> Iterator[tuple[int, np.ndarray]]:
        """Yield (row, picture uint8 (H, W, 3)) once for each of `rows`, in the order that is fastest to decode.

        Little is held in memory at once.

        Raises:
            UserError: a picture is missing, cannot be decoded, has another size, or holds no colours. The message
                names file, episode and frame.
        """
        ...

    def identity(self) -> str:
        """Hash of what the pictures are read from: names, sizes and times of the files, camera, place of each row."""
        ...

    def take(self, rows: np.ndarray) -> Self:
        """Return only the pictures of the rows of these numbers, or of this mask."""
        ...


def by_file(files: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Each file's number and where in `files`, int64 (T,), it stands, ascending."""
    order = np.argsort(files, kind="stable")
    numbers, first = np.unique(files[order], return_index=True)
    yield from zip(numbers.tolist(), np.split(order, first[1:]), strict=True)


def identity_of(files: Sequence[Path], *places: str | float | np.ndarray) -> str:
    """Hash of files (names, sizes and times, not contents) and of what tells the place of each row in them."""
    digest = hashlib.sha256()
    for file in files:
        status = file.stat()
        digest.update(f"{file.absolute()}\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
    for place in places:
        digest.update(np.ascontiguousarray(place).tobytes() if isinstance(place, np.ndarray) else f"{place}\n".encode())
    return digest.hexdigest()
