"""Any task of ManiSkill's whose robot takes 7-D end-effector deltas, one episode at a time."""

import re
from typing import Any

import numpy as np
from scipy.spatial.transform import Rotation

from rlrc.envs.maniskill.simulator import full_precision, import_maniskill, start
from rlrc.envs.world import GraspLatch, Reading
from rlrc.errors import UserError
from rlrc.policies.dim import dims

CONTROL_MODE = "pd_ee_delta_pose"
CAMERAS = ("front",)
"""The task's first camera."""
STATE = (
    *dims("x y z", "m", "in the world frame"),
    *dims("rx ry rz", "rad", "rotation vector, in the world frame"),
    *dims("opening", "m", "sum of the fingers' positions"),
)
"""The gripper."""
ACTION = (*dims("x y z roll pitch yaw"), *dims("gripper", "", "1 opens, -1 closes"))
"""Names of the numbers. The size of a step of 1 depends on the task's robot."""


def max_steps(task: str) -> int:
    """The length of a task's episodes.

    Raises:
        UserError: ManiSkill has no such task, or its files are not on this machine.
    """
    import_maniskill()
    from mani_skill.utils import assets
    from mani_skill.utils.registration import REGISTERED_ENVS

    known = REGISTERED_ENVS.get(task)
    if known is None:
        raise UserError(f"ManiSkill has no task '{task}'; see its documentation for their names, such as PickCube-v1")
    for name in known.asset_download_ids or []:
        sources = assets.DATA_GROUPS.get(name, [name])
        if not all(assets.is_data_source_downloaded(source) for source in sources):
            raise UserError(f"the files of {task} are missing: python -m mani_skill.utils.download_asset {name}")
    return known.max_episode_steps or 100


def instruction(task: str) -> str:
    """Return a task's name in words: "pick cube" for "PickCube-v1"."""
    name = task.rpartition("-v")[0] or task
    return " ".join(re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+", name)).lower()


class AnyTask:
    """The world of one environment; `rlrc.envs.vector` runs many.

    The action is that of ManiSkill's `pd_ee_delta_pose`, from -1 to 1, the gripper open at 1.

    Raises:
        UserError: ManiSkill cannot start here, or the task takes other actions or has no camera.
    """

    def __init__(self, task: str, image_size: int) -> None:
        render_backend = start()
        import gymnasium

        self._instruction = instruction(task)
        try:
            made: Any = gymnasium.make(
                task,
                num_envs=1,
                obs_mode="rgb",
                control_mode=CONTROL_MODE,
                sim_backend="physx_cpu",
                render_backend=render_backend,
                sensor_configs={"width": image_size, "height": image_size},
            )
        except (KeyError, AssertionError, NotImplementedError) as error:
            raise UserError(f"{task} cannot be run with control mode {CONTROL_MODE} and pictures: {error}") from error
        self._env = made.unwrapped
        if self._env.single_action_space.shape != (7,) or not hasattr(self._env.agent, "tcp"):
            raise UserError(f"{task}: its robot takes actions {self._env.single_action_space.shape}, not 7 numbers")

    def reset(self, split: str, variant: str, episode_id: int) -> Reading:
        """The episode whose seed is `episode_id`."""
        if (split, variant) != ("ind", "main"):
            raise UserError(f"{self._instruction}: ManiSkill's tasks have only the split ind and the variant main")
        with full_precision():
            self._observation, info = self._env.reset(seed=episode_id)
        self._grasp = GraspLatch()
        self._gripper = 1.0  # open
        return self._read(info)

    def step(self, action: np.ndarray) -> Reading:
        """One control step with an action (7,)."""
        self._gripper = float(action[6])
        with full_precision():
            self._observation, _, _, _, info = self._env.step(action)
        return self._read(info)

    def wait(self, ticks: int) -> Reading:
        """So many control steps without a command."""
        still = np.append(np.zeros(6), self._gripper).astype(np.float32)
        return [self.step(still) for _ in range(ticks)][-1]

    def draw(self, camera: str) -> np.ndarray:
        """The first camera's picture, uint8 (S,S,3)."""
        assert camera in CAMERAS
        first = next(iter(self._observation["sensor_data"].values()))
        picture: np.ndarray = first["rgb"][0].cpu().numpy()
        return picture

    def _read(self, info: dict) -> Reading:
        self._grasp.update(any(bool(value[0]) for key, value in info.items() if "grasped" in key))
        pose = self._env.agent.tcp.pose.raw_pose[0].cpu().numpy()
        turn = Rotation.from_quat(pose[3:], scalar_first=True).as_rotvec()
        opening = self._env.agent.robot.get_qpos()[0, -2:].sum().cpu().numpy()
        state = np.concatenate([pose[:3], turn, [opening]]).astype(np.float32)
        return Reading(
            instruction=self._instruction,
            state=state,
            environment_state=state.copy(),
            success=bool(info["success"][0]) if "success" in info else False,
            grasped=self._grasp.grasped,
            consecutive_grasp=self._grasp.consecutive_grasp,
        )
