"""The reward of RL4VLA (Liu et al. 2025) and RLRC: the step difference of a level of progress."""

import numpy as np

from rlrc.configs.rl import RewardTerms


def level(terms: RewardTerms, grasped: np.ndarray, consecutive_grasp: np.ndarray, success: np.ndarray) -> np.ndarray:
    """The level of progress, float32 in the shape of the bool flags.

    The reward of a step is its level minus the one before; an episode starts at level 0, so that its rewards add up to
    its last level. Flags are latched by the world (true once it has happened), except success.
    """
    total = (
        terms.grasped * grasped.astype(np.float64)
        + terms.consecutive_grasp * consecutive_grasp
        + terms.success * (success & grasped)
    )
    return total.astype(np.float32)
