"""The reward of RL4VLA (Liu et al. 2025) and RLRC: the step difference of a level of progress."""

import numpy as np

from rlrc.config import Config


class RewardTerms(Config):
    """What each bit of progress is worth."""

    grasped: float = 0.1
    """The object has been grasped in this episode."""
    consecutive_grasp: float = 0.0
    """It has been held for five control steps in a row (RL4VLA: 0.1, RLRC: not used)."""
    success: float = 1.0
    """It rests on the plate, released, and has been grasped in this episode."""

    def level(self, grasped: np.ndarray, consecutive_grasp: np.ndarray, success: np.ndarray) -> np.ndarray:
        """The level of progress, float32 in the shape of the bool flags.

        The reward of a step is its level minus the one before; an episode starts at level 0, so that its rewards add up
        to its last level. Flags are latched by the world (true once it has happened), except success.
        """
        level = (
            self.grasped * grasped.astype(np.float64)
            + self.consecutive_grasp * consecutive_grasp
            + self.success * (success & grasped)
        )
        return level.astype(np.float32)
