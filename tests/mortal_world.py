"""The bandit in a process that can be lost once, or whenever an episode with a certain id has taken two steps."""

import os
import signal
from dataclasses import replace
from functools import partial
from pathlib import Path

import bandit_world
import numpy as np
from bandit_world import Bandit

from rlrc.envs.world import Reading, WorldSpec

FATAL_EPISODE = 3
"""Of a hundred; it is the only one in which the world dies."""


class Mortal(Bandit):
    """Ends its process in the second step of the fatal episode, as long as the file `lost` does not exist."""

    def __init__(self, image_size: int, lost: Path) -> None:
        super().__init__(image_size)
        self.lost = lost

    def reset(self, split: str, variant: str, episode_id: int) -> Reading:
        self.fatal, self.steps = episode_id % 100 == FATAL_EPISODE, 0
        return super().reset(split, variant, episode_id)

    def step(self, action: np.ndarray) -> Reading:
        self.steps += 1
        if self.fatal and self.steps == 2 and not self.lost.exists():
            self.lost.touch()
            os.kill(os.getpid(), signal.SIGSEGV)
        return super().step(action)


def mortal(lost: Path) -> WorldSpec:
    return replace(bandit_world.SPEC, factory=partial(Mortal, lost=lost))
