"""Pictures that lie in the parquet files of a dataset, one by one, or in image files that these name."""

import io
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, UnidentifiedImageError

from rlrc.data.pictures import by_file, identity_of
from rlrc.data.tables import Rows
from rlrc.errors import UserError, shorten
from rlrc.reading import open_parquet, require_file

BATCH = 32
"""Compressed pictures that are read at once."""
MAX_FILE_BYTES = 2**28
FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "PPM")
COLOUR_MODES = {"RGB", "RGBA", "RGBX", "P", "PA", "L", "LA", "1", "CMYK", "YCbCr"}
"""Pillow's modes of 8 bits a channel; what measures depth has 16 or 32."""


@dataclass(frozen=True)
class ImagePictures:
    """Pictures of one camera, each compressed by itself (see `pictures.Pictures`)."""

    root: Path
    key: str
    size: tuple[int, int]
    rows: Rows

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, rows: np.ndarray) -> Self:
        return replace(self, rows=self.rows.take(rows))

    def identity(self) -> str:
        files = [self.rows.files[number] for number in np.unique(self.rows.file)]
        return identity_of(files, "images", self.key, *self.size, self.rows.file, self.rows.place)

    def decode(self, rows: Sequence[int]) -> Iterator[tuple[int, np.ndarray]]:
        wanted = np.asarray(rows, np.int64)
        wanted = wanted[np.argsort(self.rows.place[wanted], kind="stable")]
        for number, here in by_file(self.rows.file[wanted]):
            yield from self._decode_file(self.rows.files[number], wanted[here])

    def _decode_file(self, path: Path, rows: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
        places = self.rows.place[rows]
        with open_parquet(path) as file:
            if self.key not in file.schema_arrow.names:
                raise UserError(
                    f"{path}: there is no column '{self.key}', and info.json tells of a camera of that name"
                )
            first = 0
            for group in range(file.num_row_groups):
                count = file.metadata.row_group(group).num_rows
                here = slice(*np.searchsorted(places, [first, first + count]))
                if here.start < here.stop:
                    for row, value in self._read_group(file, group, rows[here], places[here] - first):
                        yield row, self._decode(path, row, value)
                first += count

    def _read_group(
        self, file: pq.ParquetFile, group: int, rows: np.ndarray, places: np.ndarray
    ) -> Iterator[tuple[int, pa.Scalar]]:
        """The stored values of the rows that lie at `places` of a row group, both ascending."""
        first = 0
        for batch in file.iter_batches(BATCH, row_groups=[group], columns=[self.key], use_threads=False):
            column = batch.column(batch.schema.get_field_index(self.key))
            left, right = np.searchsorted(places, [first, first + len(batch)])
            for at in range(left, right):
                yield int(rows[at]), column[int(places[at]) - first]
            first += len(batch)
            if right == len(places):
                return

    def _decode(self, path: Path, row: int, value: pa.Scalar) -> np.ndarray:
        where = f"{path}: column '{self.key}', {self.rows.name(row)}"
        try:
            data = self._bytes(where, row, value)
            with warnings.catch_warnings():
                warnings.simplefilter("error", Image.DecompressionBombWarning)
                with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                    self._require_colours(where, image)
                    return np.asarray(image.convert("RGB"))
        except UserError:
            raise
        except UnidentifiedImageError as error:
            raise UserError(f"{where}: the picture is none of {', '.join(FORMATS)}") from error
        except Exception as error:  # Pillow's decoders raise errors of many kinds
            raise UserError(f"{where}: the picture cannot be decoded ({shorten(str(error))})") from error

    def _bytes(self, where: str, row: int, value: pa.Scalar) -> bytes:
        """The compressed picture: stored itself, or in the file that is named."""
        stored = value.as_py()
        if isinstance(stored, dict):
            stored = stored.get("bytes") if stored.get("bytes") is not None else stored.get("path")
        if isinstance(stored, bytes):
            return stored
        if not isinstance(stored, str):
            raise UserError(f"{where}: there is no picture, neither its bytes nor the path of its file")
        file = self._file(where, row, stored)
        try:
            require_file(file, MAX_FILE_BYTES)
        except UserError as error:
            raise UserError(f"{where}: {error}") from error
        return file.read_bytes()

    def _file(self, where: str, row: int, stored: str) -> Path:
        """A path with folders is one below the dataset; a mere name lies where lerobot keeps an episode's images."""
        path = PurePosixPath(stored)
        if path.is_absolute() or ".." in path.parts:
            raise UserError(f"{where}: path '{shorten(stored)}' leads out of the dataset's folder")
        if len(path.parts) > 1:
            return self.root / path
        episode = int(self.rows.episode[row])
        folders = [self.root / "images" / self.key / f"episode{mark}{episode:06d}" for mark in "_-"]
        return next((folder for folder in folders if folder.is_dir()), folders[0]) / path

    def _require_colours(self, where: str, image: Image.Image) -> None:
        if image.mode not in COLOUR_MODES:
            raise UserError(f"{where}: a picture of mode {image.mode} is one of depth, and a colour camera is needed")
        if (image.height, image.width) != self.size:
            raise UserError(
                f"{where}: the picture has {image.height} x {image.width} pixels, and info.json tells of "
                f"{self.size[0]} x {self.size[1]}"
            )
