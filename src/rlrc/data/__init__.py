"""Demonstrations: recording them, keeping them as LeRobotDataset v3.0, and serving them in batches."""

from rlrc.data.demonstrations import Demonstrations

__all__ = ["Demonstrations"]
