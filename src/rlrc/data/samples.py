"""Demonstrated moments as a policy meets them: what it sees there, and the chunk of actions that followed."""

import numpy as np
import torch

from rlrc.data.demonstrations import Demonstrations
from rlrc.data.frames import read_frames
from rlrc.policies.contract import Observation, Policy


def observe(demonstrations: Demonstrations, rows: np.ndarray, policy: Policy) -> Observation:
    """What the policy sees in the frames `rows`, integers (N,); pictures are decoded anew, without a cache.

    Raises:
        UserError: a picture is missing.
    """
    images = {policy.spec.cameras[0]: read_frames(demonstrations.pictures, rows, policy.frame_size)}
    return Observation(images, [demonstrations.instruction(row) for row in rows])


def chunks(demonstrations: Demonstrations, rows: np.ndarray, policy: Policy) -> tuple[torch.Tensor, torch.Tensor]:
    """The actions that follow the frames `rows`, integers (N,), normalised by the policy's statistics.

    Returns:
        actions float32 (N, H, D), and bool (N, H), true where a chunk goes on after its episode has ended; there it
        repeats the last action.
    """
    steps = rows[:, None] + np.arange(policy.spec.horizon)
    ends = demonstrations.episode_ends[rows][:, None]
    padded = steps >= ends
    actions = policy.to_normalised(demonstrations.actions[np.minimum(steps, ends - 1)])
    return torch.from_numpy(actions), torch.from_numpy(padded)
