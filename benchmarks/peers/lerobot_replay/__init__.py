"""A world and a robot for LeRobot that show given observations and keep the actions that they get.

LeRobot imports this through `--env.discover_packages_path=lerobot_replay`, or `--robot.` alike. While a chunk is played
they show other observations, so that whoever asked for these would get other actions.
"""

from dataclasses import dataclass, field
from typing import Any

import gymnasium as gym
import numpy as np
from lerobot.configs.types import FeatureType, PolicyFeature
from lerobot.envs.configs import EnvConfig
from lerobot.robots import Robot, RobotConfig
from lerobot.utils.constants import ACTION, OBS_IMAGES, OBS_STATE

ACTION_SIZE = 7


class Replay:
    """Shows the observations `rows` of a file, each for one chunk, and writes actions to the rows of another."""

    def __init__(self, observations: str, answers: str, rows: list[int]) -> None:
        with np.load(observations) as asked:
            self.front, self.wrist, self.state = asked["front"], asked["wrist"], asked["state"]
            self.texts, self.horizon = [str(text) for text in asked["text"]], int(asked["horizon"])
        self.answers = np.lib.format.open_memmap(answers, "r+")
        self.rows, self.steps = rows, 0

    @property
    def row(self) -> int:
        return self.rows[self.steps // self.horizon % len(self.rows)]

    def look(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Pictures of both cameras, and the state."""
        if self.steps % self.horizon:
            return 255 - self.front[self.row], 255 - self.wrist[self.row], -self.state[self.row]
        return self.front[self.row], self.wrist[self.row], self.state[self.row]

    def play(self, action: np.ndarray) -> None:
        self.answers[self.row, self.steps % self.horizon] = action
        self.steps += 1


# -- for lerobot-eval --------------------------------------------------------------------------------------------------


@EnvConfig.register_subclass("replay")
@dataclass
class ReplayEnvConfig(EnvConfig):
    observations: str = ""
    answers: str = ""
    features: dict[str, PolicyFeature] = field(
        default_factory=lambda: {
            ACTION: PolicyFeature(FeatureType.ACTION, (ACTION_SIZE,)),
            "agent_pos": PolicyFeature(FeatureType.STATE, (8,)),
            "pixels/front": PolicyFeature(FeatureType.VISUAL, (96, 96, 3)),
            "pixels/wrist": PolicyFeature(FeatureType.VISUAL, (96, 96, 3)),
        }
    )
    features_map: dict[str, str] = field(
        default_factory=lambda: {
            ACTION: ACTION,
            "agent_pos": OBS_STATE,
            "pixels/front": f"{OBS_IMAGES}.front",
            "pixels/wrist": f"{OBS_IMAGES}.wrist",
        }
    )

    @property
    def gym_id(self) -> str:
        return "rlrc/Replay-v0"

    @property
    def gym_kwargs(self) -> dict[str, str]:
        return {"observations": self.observations, "answers": self.answers}


class ReplayEnv(gym.Env):
    """The episode of seed n shows the observations 2n and 2n + 1."""

    metadata = {"render_fps": 10, "render_modes": ["rgb_array"]}  # noqa: RUF012 (gymnasium's own form)
    render_mode = "rgb_array"

    def __init__(self, observations: str, answers: str) -> None:
        self._replay = Replay(observations, answers, [0])
        picture = gym.spaces.Box(0, 255, self._replay.front.shape[1:], np.uint8)
        self.observation_space = gym.spaces.Dict(
            {
                "pixels": gym.spaces.Dict({"front": picture, "wrist": picture}),
                "agent_pos": gym.spaces.Box(-np.inf, np.inf, (8,), np.float32),
            }
        )
        self.action_space = gym.spaces.Box(-np.inf, np.inf, (ACTION_SIZE,), np.float32)
        self._max_episode_steps = 2 * self._replay.horizon

    @property
    def task_description(self) -> str:
        return self._replay.texts[self._replay.row]

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        if seed is not None:
            self._replay.rows = [(2 * seed + i) % len(self._replay.texts) for i in (0, 1)]
        self._replay.steps = 0
        return self._look(), {}

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self._replay.play(action)
        ends = self._replay.steps == self._max_episode_steps
        return self._look(), 0.0, False, ends, {"is_success": ends}

    def render(self) -> np.ndarray:
        return self._replay.look()[0]

    def _look(self) -> dict[str, Any]:
        front, wrist, state = self._replay.look()
        return {"pixels": {"front": front, "wrist": wrist}, "agent_pos": state}


# LeRobot looks for the task at the world itself, where no wrapper may stand in front of it.
gym.register("rlrc/Replay-v0", ReplayEnv, order_enforce=False)


# -- for lerobot-record ------------------------------------------------------------------------------------------------


@RobotConfig.register_subclass("replay")
@dataclass
class ReplayRobotConfig(RobotConfig):
    observations: str = ""
    answers: str = ""
    text: str = ""
    """Only observations with this instruction are shown."""


class ReplayRobot(Robot):
    """Its cameras have other names than the policy's."""

    config_class = ReplayRobotConfig
    name = "replay"

    def __init__(self, config: ReplayRobotConfig) -> None:
        super().__init__(config)
        self._replay = Replay(config.observations, config.answers, [0])
        self._replay.rows = [row for row, text in enumerate(self._replay.texts) if text == config.text]
        self.cameras = {"top": None, "gripper": None}
        self.is_connected = False
        self.is_calibrated = True

    is_connected = is_calibrated = False  # properties of the base class, which are attributes here

    @property
    def observation_features(self) -> dict[str, Any]:
        numbers = {f"joint_{i}.pos": float for i in range(8)}
        return numbers | dict.fromkeys(self.cameras, self._replay.front.shape[1:])

    @property
    def action_features(self) -> dict[str, Any]:
        return {f"joint_{i}.pos": float for i in range(ACTION_SIZE)}

    def get_observation(self) -> dict[str, Any]:
        front, wrist, state = self._replay.look()
        numbers = {f"joint_{i}.pos": float(number) for i, number in enumerate(state)}
        return numbers | {"top": front, "gripper": wrist}

    def send_action(self, action: dict[str, Any]) -> dict[str, Any]:
        self._replay.play(np.array([action[f"joint_{i}.pos"] for i in range(ACTION_SIZE)], np.float32))
        return action

    def connect(self, calibrate: bool = True) -> None:
        self.is_connected = True

    def disconnect(self) -> None:
        self.is_connected = False

    def calibrate(self) -> None:
        """Nothing to do."""

    def configure(self) -> None:
        """Nothing to do."""
