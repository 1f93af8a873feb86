"""Demonstrated moments as a policy meets them: what it sees there, and the chunk of actions that followed."""

import numpy as np
import torch

from rlrc.data.demonstrations import Demonstrations
from rlrc.data.frames import read_frames
from rlrc.policies.contract import Policy
from rlrc.policies.values import Observation


def observe(demonstrations: Demonstrations, rows: np.ndarray, policy: Policy) -> Observation:
    """The policy's observation of the frames `rows`, integers (N,); pictures are decoded anew, without a cache.

    Raises:
        UserError: a picture is missing, or a camera that the policy sees.
    """
    images = {
        camera: read_frames(pictures, rows, policy.frame_size)
        for camera, pictures in demonstrations.seen_by(policy.spec.cameras).items()
    }
    instructions = [demonstrations.instruction(row) for row in rows]
    return Observation(images, instructions, states(demonstrations, rows, policy))


def states(demonstrations: Demonstrations, rows: np.ndarray, policy: Policy) -> np.ndarray | None:
    """Proprioception in the frames `rows`, float32 (N, S); None where the policy reads none."""
    if not policy.spec.state:
        return None
    assert demonstrations.state is not None, "require_fit sees to it"
    return demonstrations.state[rows]


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
