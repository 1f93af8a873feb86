"""Options of `convert-libero`."""

from pathlib import Path
from typing import Literal

from pydantic import Field

from rlrc.config import Config
from rlrc.configs.collect import CameraDtype


class ConvertLiberoConfig(Config):
    """Convert LIBERO's published demonstrations into a LeRobotDataset."""

    source: Path
    """Folder of LIBERO's HDF5 files, one such file, or the folder of a LeRobotDataset."""
    cameras: tuple[Literal["front", "wrist"], ...] = Field(default=("front",), min_length=1, max_length=2)
    """Cameras to take: the one in front of the robot, the one on its hand, or both."""
    image_key: str = "observation.images.image"
    """Name of the front camera in a LeRobotDataset."""
    wrist_image_key: str = "observation.images.wrist_image"
    """Name of the wrist camera in a LeRobotDataset."""
    image_size: int = Field(default=224, ge=16, le=2048)
    """Side of the pictures in pixels."""
    camera: CameraDtype = "image"
    """Form in which pictures are stored: as images without loss, or as video, which is smaller."""
