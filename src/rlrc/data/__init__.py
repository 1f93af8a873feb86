"""What was shown in a world: recording it, keeping it as LeRobotDataset v3.0, and serving it in batches."""

from rlrc.data.demonstrations import Demonstrations

__all__ = ["Demonstrations"]
