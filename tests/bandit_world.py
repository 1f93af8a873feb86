"""A bandit in the form of `rlrc.envs`: an action pays if it points to +x, whatever the colour of the picture says."""

import numpy as np

from rlrc.envs.world import Reading, WorldSpec
from rlrc.policies.dim import dims

STEPS = 4
THRESHOLD = 0.01


class Bandit:
    """The level of progress is whether the last action was paid, so an episode succeeds by its last one."""

    def __init__(self, image_size: int) -> None:
        self.image_size = image_size

    def reset(self, split: str, variant: str, episode_id: int) -> Reading:
        self.rng, self.told = np.random.default_rng(episode_id), np.zeros(6, np.float32)
        self.told[0] = episode_id
        return self._reading(False)

    def step(self, action: np.ndarray) -> Reading:
        self.told[1] += 1
        return self._reading(bool(action[0] > THRESHOLD))

    def draw(self, camera: str) -> np.ndarray:
        colour = self.rng.integers(0, 256, 3, dtype=np.uint8)
        return np.broadcast_to(colour, (self.image_size, self.image_size, 3))

    def _reading(self, success: bool) -> Reading:
        return Reading("put carrot on plate", np.zeros(8, np.float32), self.told.copy(), success, success, False)


SPEC = WorldSpec(
    name="bandit",
    factory=Bandit,
    cameras=("front",),
    state=dims("a b c d e f g h"),
    environment_state_names=tuple("abcdef"),
    action=dims("x y z roll pitch yaw gripper"),
    action_low=(-1.0,) * 7,
    action_high=(1.0,) * 7,
    max_episode_steps=STEPS,
    control_hz=5.0,
    variants={"main": "main"},
)


def spec(name: str) -> WorldSpec:
    return SPEC
