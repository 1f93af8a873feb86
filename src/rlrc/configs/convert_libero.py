"""Options of `convert-libero`."""

from pathlib import Path

from pydantic import Field

from rlrc.config import Config
from rlrc.configs.collect import CameraDtype


class ConvertLiberoConfig(Config):
    """Convert LIBERO's published demonstrations into a LeRobotDataset."""

    source: Path
    """Folder of LIBERO's HDF5 files, one such file, or the folder of a LeRobotDataset."""
    image_key: str = "observation.images.image"
    """Camera to take from a LeRobotDataset."""
    image_size: int = Field(default=224, ge=16, le=2048)
    """Side of the pictures in pixels."""
    camera: CameraDtype = "image"
    """Form in which pictures are stored: as images without loss, or as video, which is smaller."""
