"""Episodes of PutOnPlateInScene25, as `rlrc.envs.vector` wants them: one at a time, or many in one simulation.

All poses are in the frame of the robot's base. It stands on the table, z up; x points from the robot over the table.
"""

from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image
from scipy.spatial.transform import Rotation

from rlrc.envs.maniskill.simulator import full_precision, start, start_physx_on_gpu
from rlrc.envs.putonplate import files
from rlrc.envs.putonplate.episodes import BASE, find_episode
from rlrc.envs.world import ALONG_BASE, IN_BASE, Reading
from rlrc.policies.dim import dims

if TYPE_CHECKING:
    import torch

CAMERAS = ("front",)
"""The published camera, which is the only one."""
STATE = (
    *dims("x y z", "m", IN_BASE),
    *dims("rx ry rz", "rad", "rotation vector, from pointing down"),
    *dims("opening", "m", "sum of the fingers' positions"),
)
"""The gripper's pose and opening."""
ACTION = (
    *dims("x y z", "m", ALONG_BASE),
    *dims("roll pitch yaw", "rad", f"Euler XYZ, {ALONG_BASE}"),
    *dims("gripper", "", "1 opens, 0 closes"),
)
"""Relative to the pose that the controller is commanded to take."""
ENVIRONMENT_STATE = (
    *(dim.name for dim in STATE),
    *("command_x", "command_y", "command_z", "command_rx", "command_ry", "command_rz"),
    *("object_x", "object_y", "object_bottom", "object_top"),
    *("grasp_sin", "grasp_cos"),
    *("plate_x", "plate_y", "plate_top"),
    *("held", "on_plate"),
)
"""Privileged: the gripper and where the controller wants it; the middle of the named object's smallest rectangle on
the table, its lowest and highest point (m), and the gripper's nearest yaw across its narrow side (sine, cosine);
the named plate's middle and top (m); whether both fingers hold the object, whether it is on the plate (1 or 0)."""

DOWN = Rotation.from_euler("y", 90, degrees=True)
"""The gripper's orientation when it points down with its fingers opening along y."""
_BASE_FROM_WORLD = Rotation.from_euler("z", 180, degrees=True)
_SQUARE = 1.15
"""A rectangle with sides of nearly equal length can be grasped across either."""


class Simulation:
    """`num_envs` episodes of one split and variant, which start together.

    The action is `ACTION`; the gripper opens above 0.5 and closes else.

    Args:
        image_size: side of the pictures in px.
        official: render at 640 x 480 px as published, and resize as policies' processors do (PIL, bicubic); otherwise
            render the same view with `image_size` px right away, which is faster.
        on_gpu: simulate on a GPU; on the CPU `num_envs` is 1. The scene is built once there and things settle together,
            so how an episode goes may depend a little on those before and beside it.

    Raises:
        UserError: a file of the simulator is missing, ManiSkill is not installed, or nothing can draw or simulate.
    """

    def __init__(self, image_size: int, num_envs: int, official: bool = False, on_gpu: bool = False) -> None:
        files.require()
        render_backend = start()
        if on_gpu:
            start_physx_on_gpu()
        from rlrc.envs.putonplate import task

        self._image_size = image_size
        self._cameras = {CAMERAS[0]: task.CAMERA}
        width, height = (task.WIDTH, task.HEIGHT) if official else (image_size, image_size)
        self._rebuild = not on_gpu
        self._task = task.PutOnPlate(
            width,
            height,
            whole_scene=on_gpu,
            num_envs=num_envs,
            sim_backend="physx_cuda" if on_gpu else "physx_cpu",
            render_backend=render_backend,
        )

    def reset(self, split: str, variant: str, episode_ids: Sequence[int]) -> list[Reading]:
        """Start the episodes with these ids."""
        episodes = [find_episode(split, variant, id_) for id_ in episode_ids]
        objects = [files.objects()[episode.object] for episode in episodes]
        plates = [files.plates()[episode.plate] for episode in episodes]
        self._instructions = [
            episode.wording.format(object=item.name, plate=plate.name)
            for episode, item, plate in zip(episodes, objects, plates, strict=True)
        ]
        self._vertices = [(_vertices(item), _vertices(plate)) for item, plate in zip(objects, plates, strict=True)]
        with full_precision():
            self._observation, info = self._task.reset(
                seed=0, options={"episodes": episodes, "reconfigure": self._rebuild}
            )
            return self._read(info)

    def step(self, actions: np.ndarray) -> list[Reading]:
        """One control step (0.2 s) with actions (N,7)."""
        gripper = np.where(actions[:, 6:] > 0.5, 1.0, -1.0)
        with full_precision():
            self._observation, _, _, _, info = self._task.step(np.concatenate([actions[:, :6], gripper], axis=1))
            return self._read(info)

    def draw(self, camera: str) -> np.ndarray:
        """The camera's pictures with their backgrounds, uint8 (N,S,S,3)."""
        pictures = self._observation["sensor_data"][self._cameras[camera]]["rgb"].cpu().numpy()
        size = (self._image_size, self._image_size)
        if pictures.shape[1:3] == size:
            return pictures
        return np.stack([np.asarray(Image.fromarray(p).resize(size, Image.Resampling.BICUBIC)) for p in pictures])

    def close(self) -> None:
        """Free what it holds, on a GPU too."""
        self._task.close()

    def _read(self, info: dict[str, "torch.Tensor"]) -> list[Reading]:
        told = {name: info[name].tolist() for name in ("success", "grasped", "consecutive_grasp", "held")}
        task = self._task
        poses = (task.gripper_pose, task.commanded_pose, task.object_pose, task.plate_pose)
        gripper, command, item, plate = (pose.raw_pose.cpu().numpy() for pose in poses)
        openings = task.agent.robot.get_qpos()[:, -2:].sum(dim=1).tolist()
        readings = []
        for n, (instruction, vertices) in enumerate(zip(self._instructions, self._vertices, strict=True)):
            state = np.append(_pose_vector(gripper[n]), openings[n]).astype(np.float32)
            things = _in_base(vertices[0], item[n]), _in_base(vertices[1], plate[n])
            held, success = told["held"][n], told["success"][n]
            privileged = _privileged(_pose_vector(command[n]), *things, held, success)
            readings.append(
                Reading(
                    instruction=instruction,
                    state=state,
                    environment_state=np.concatenate([state, privileged]),
                    success=success,
                    grasped=told["grasped"][n],
                    consecutive_grasp=told["consecutive_grasp"][n],
                )
            )
        return readings


class PutOnPlate:
    """The world of one environment, simulated on the CPU; see `Simulation`."""

    def __init__(self, image_size: int, official: bool = False) -> None:
        self._simulation = Simulation(image_size, 1, official)

    def reset(self, split: str, variant: str, episode_id: int) -> Reading:
        """Start the episode that these three name."""
        self._gripper = 1.0  # open
        return self._simulation.reset(split, variant, [episode_id])[0]

    def step(self, action: np.ndarray) -> Reading:
        """One control step with an action (7,)."""
        self._gripper = float(action[6])
        return self._simulation.step(action[None])[0]

    def wait(self, ticks: int) -> Reading:
        """So many control steps without a command."""
        still = np.append(np.zeros(6), self._gripper).astype(np.float32)
        return [self._simulation.step(still[None])[0] for _ in range(ticks)][-1]

    def draw(self, camera: str) -> np.ndarray:
        """The camera's picture, uint8 (S,S,3)."""
        picture: np.ndarray = self._simulation.draw(camera)[0]
        return picture


def _privileged(command: np.ndarray, item: np.ndarray, plate: np.ndarray, held: bool, success: bool) -> np.ndarray:
    """Return `ENVIRONMENT_STATE` after `STATE`, from the commanded pose (6,) and the corners (V,3) of object and
    plate."""
    middle, yaw = _narrow_side(item[:, :2], near=command[5])
    plate_middle = (plate[:, :2].min(axis=0) + plate[:, :2].max(axis=0)) / 2
    values = [
        *command,
        *middle,
        item[:, 2].min(),
        item[:, 2].max(),
        np.sin(yaw),
        np.cos(yaw),
        *plate_middle,
        plate[:, 2].max(),
        float(held),
        float(success),
    ]
    return np.array(values, np.float32)


@cache
def _vertices(model: files.Model) -> np.ndarray:
    """The corners (V,3) of a model's collision mesh, m."""
    lines = (line.split() for line in model.collision.read_text().splitlines())
    return np.array([[float(x) for x in line[1:4]] for line in lines if line[:1] == ["v"]])


def _pose_vector(pose: np.ndarray) -> np.ndarray:
    """Position and rotation vector from pointing down (6,) of a pose (x, y, z, and w, x, y, z of a quaternion)."""
    turn = Rotation.from_quat(pose[3:], scalar_first=True) * DOWN.inv()
    return np.concatenate([pose[:3], turn.as_rotvec()])


def _in_base(vertices: np.ndarray, pose: np.ndarray) -> np.ndarray:
    """Points (V,3) of a thing, in the robot's base frame, by its pose in the world."""
    turn = Rotation.from_quat(pose[3:], scalar_first=True)
    return _BASE_FROM_WORLD.apply(turn.apply(vertices) + pose[:3] - BASE)


def _narrow_side(points: np.ndarray, near: float) -> tuple[np.ndarray, float]:
    """The middle (2,) of the smallest rectangle around points (V,2), and the gripper's yaw across its narrow side.

    The grasp is the same after half a turn, and after a quarter where the rectangle is nearly a square: the yaw (rad)
    is the one nearest to `near`, so that a gripper on its way does not change its mind.
    """
    import cv2

    middle, (width, height), degrees = cv2.minAreaRect(points.astype(np.float32))
    along = np.deg2rad(degrees) + (0.0 if width >= height else np.pi / 2)
    period = np.pi / 2 if max(width, height) < _SQUARE * min(width, height) else np.pi
    return np.array(middle), near + float((along - near + period / 2) % period - period / 2)
