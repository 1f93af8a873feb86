"""`meta/info.json` of a LeRobotDataset: which version it has, what it holds and where its files lie."""

import re
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from rlrc.data import format as fmt
from rlrc.errors import UserError, shorten
from rlrc.reading import FileModel, read_object, validate

Count = Annotated[int, Field(strict=True, ge=0, le=10**9)]
Length = Annotated[int, Field(strict=True, ge=0, le=2**20)]

MAX_SIDE = 8192
"""Pixels along a side of a picture."""
_DEPTH_FORMAT = re.compile(r"^(gray|y)(9|1\d)|^grayf")


class Feature(FileModel):
    """A feature as `info.json` describes it."""

    dtype: str = Field(max_length=100)
    shape: list[Length] = Field(max_length=8)
    names: Any = None
    info: dict[str, Any] | None = None
    video_info: dict[str, Any] | None = None

    @property
    def is_camera(self) -> bool:
        return self.dtype in ("image", "video")

    def is_depth(self, key: str) -> bool:
        """Return whether a camera is known to measure depth: by a flag, its name, its channels or its pixel format."""
        about = {
            name.removeprefix("video."): value
            for name, value in {**(self.video_info or {}), **(self.info or {})}.items()
        }
        return bool(
            about.get("is_depth_map")
            or key.lower().endswith("depth")
            or (len(self.shape) == 3 and 1 in (self.shape[0], self.shape[2]))
            or _DEPTH_FORMAT.search(str(about.get("pix_fmt")))
        )

    def picture_size(self, where: str) -> tuple[int, int]:
        """Height and width of a colour camera's pictures.

        Raises:
            UserError: the shape is not that of pictures.
        """
        sides = self.shape
        if len(sides) == 3 and sides[2] in (3, 4) and not (sides[0] in (3, 4) and self._channels_first):
            height, width = sides[:2]
        elif len(sides) == 3 and sides[0] in (3, 4):
            height, width = sides[1:]
        else:
            raise UserError(
                f"{where}: shape {shorten(str(sides))} is not that of colour pictures, such as [480, 640, 3]"
            )
        if not (1 <= height <= MAX_SIDE and 1 <= width <= MAX_SIDE):
            raise UserError(f"{where}: pictures of {height} x {width} pixels; sides from 1 to {MAX_SIDE} can be read")
        return height, width

    @property
    def _channels_first(self) -> bool:
        return isinstance(self.names, list) and bool(self.names) and str(self.names[0]).startswith("channel")


class Info(FileModel):
    """The fields of `info.json` that reading needs."""

    codebase_version: str
    fps: float = Field(strict=True, gt=0, le=10_000)
    """Control steps a second."""
    total_episodes: Count
    total_frames: Count
    chunks_size: Annotated[int, Field(strict=True, ge=1, le=10**9)] = fmt.FILES_PER_CHUNK
    data_path: str = Field(max_length=300)
    video_path: str | None = Field(default=None, max_length=300)
    features: dict[str, Feature] = Field(max_length=10_000)


def read_info(dataset: Path) -> Info:
    """Read `meta/info.json`.

    Raises:
        UserError: it is missing or malformed, or the dataset has a version that is not read.
    """
    path = dataset / fmt.INFO_PATH
    values = read_object(path)
    version = values.get("codebase_version")
    if not isinstance(version, str) or version not in fmt.VERSIONS:
        known = ", ".join(fmt.VERSIONS)
        raise UserError(
            f"{path}: 'codebase_version' is {shorten(repr(version))}, and LeRobotDataset {known} can be read; "
            "convert the dataset with the scripts of lerobot"
        )
    return validate({"data_path": fmt.VERSIONS[version], **values}, Info, str(path))
