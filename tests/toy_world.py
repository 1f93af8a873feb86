"""A world without physics: the hand goes where the action says, and success is being near a target."""

from typing import Any

import gymnasium as gym
import numpy as np

from rlrc.envs.world import WorldSpec
from rlrc.policies.dim import dims

STEPS = 12
FPS = 5
RADIUS = 0.02


SPEC = WorldSpec(
    name="toy",
    factory=None,  # the environment below runs it
    cameras=("front",),
    state=(),
    environment_state_names=tuple("xyzabc"),
    action=dims("x y z roll pitch yaw gripper"),
    action_low=(-1.0,) * 7,
    action_high=(1.0,) * 7,
    max_episode_steps=STEPS,
    control_hz=FPS,
    variants={"main": "main"},
)


class ToyWorld(gym.vector.VectorEnv):
    """The contract of `rlrc.envs` over points in space; an episode's target is drawn from its id and split."""

    metadata = {"render_fps": FPS}  # noqa: RUF012
    world_spec = SPEC
    max_episode_steps = STEPS

    def __init__(self, num_envs: int) -> None:
        self.num_envs = num_envs
        self.closed_by_user = False

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[dict, dict]:
        assert options is not None and len(options["episode_ids"]) == self.num_envs
        self.instructions = tuple(instruction(int(id_)) for id_ in options["episode_ids"])
        self.targets = np.stack([target(options["split"], int(id_)) for id_ in options["episode_ids"]])
        self.hands = np.zeros((self.num_envs, 3), np.float32)
        self.step_count = 0
        return self._observation(), self._info()

    def step(self, actions: np.ndarray) -> tuple[dict, np.ndarray, np.ndarray, np.ndarray, dict]:
        assert actions.shape == (self.num_envs, 7) and actions.dtype == np.float32
        self.hands = self.hands + actions[:, :3]
        self.step_count += 1
        info = self._info()
        over = np.full(self.num_envs, self.step_count == STEPS)
        return self._observation(), info["success"].astype(np.float32), np.zeros_like(over), over, info

    def step_async(self, actions: np.ndarray, waits: np.ndarray, commanded: np.ndarray) -> None:
        assert not waits.any() and commanded.all()
        self.actions = actions

    def step_wait(self) -> tuple[dict, np.ndarray, np.ndarray, np.ndarray, dict]:
        return self.step(self.actions)

    def close(self, **_: Any) -> None:
        self.closed_by_user = True

    def _observation(self) -> dict[str, Any]:
        images = np.zeros((self.num_envs, 96, 96, 3), np.uint8)
        images[:, :, :, 0] = 20 * self.step_count
        images[:, :48, :, 1] = np.clip(600 * self.targets[:, :1, None] + 100, 0, 255)
        return {"images": {"front": images}, "instruction": self.instructions}

    def _info(self) -> dict[str, np.ndarray]:
        distance = np.linalg.norm(self.hands - self.targets, axis=1)
        return {
            "success": distance < RADIUS,
            "grasped": distance < 2 * RADIUS,
            "environment_state": np.concatenate([self.hands, self.targets], axis=1).astype(np.float32),
        }


def target(split: str, episode_id: int) -> np.ndarray:
    return np.random.default_rng([len(split), ord(split[0]), episode_id]).uniform(-0.1, 0.1, 3)


def instruction(episode_id: int) -> str:
    return "put carrot on plate"
