"""Demonstrations: recording them, keeping it as LeRobotDataset v3.0, and serving it in batches."""

from rlrc.data.demonstrations import Demonstrations

__all__ = ["Demonstrations"]
