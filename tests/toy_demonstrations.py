"""Demonstrations that can be learned by heart: the colour of the picture says what to do."""

from pathlib import Path

import numpy as np

from rlrc.data.demonstrations import Demonstrations

FRAMES = 24


def toy_demonstrations() -> Demonstrations:
    generator = np.random.default_rng(0)
    levels = generator.uniform(size=(FRAMES, 3))
    images = np.broadcast_to((255 * levels).astype(np.uint8)[:, None, None], (FRAMES, 96, 96, 3))
    directions = np.where(levels[:, :1] > 0.5, 1.0, -1.0) * [0.03, 0.02, 0.01, 0.1, 0.2, 0.3, 1.0]
    return Demonstrations(
        path=Path("toy"),
        images=np.ascontiguousarray(images),
        state=np.zeros((FRAMES, 8), np.float32),
        environment_state=None,
        actions=directions.astype(np.float32),
        tasks=["put carrot on plate", "put red cube on plate"],
        task_index=np.arange(FRAMES) % 2,
        episode_index=np.arange(FRAMES) // 6,
        fps=5,
    )
