"""A small dataset with two cameras and a state, for policies that read them."""

from pathlib import Path
from typing import Any

import numpy as np

from rlrc.data.lerobot import write_dataset

FRAMES = 7
"""Frames of each of the two episodes."""


def two_cameras(path: Path) -> Path:
    """Two episodes of noise, written to `path`."""
    random = np.random.default_rng(3)
    with write_dataset(path, fps=5, robot_type="none") as writer:
        for task in ("put carrot on plate", "put red cube on plate"):
            columns: dict[str, Any] = {
                f"observation.images.{camera}": random.integers(0, 256, (FRAMES, 32, 32, 3), np.uint8)
                for camera in ("wrist", "front")
            }
            columns["observation.state"] = random.uniform(-1, 1, (FRAMES, 8)).astype(np.float32)
            columns["action"] = random.uniform(-0.05, 0.05, (FRAMES, 7)).astype(np.float32)
            writer.append(task, columns)
    return path
