"""One episode of PutOnPlateInScene25 at a time, as `rlrc.envs.vector` wants it.

All poses are in the frame of the robot's base. It stands on the table, z up; x points from the robot over the table.
"""

from functools import cache

import numpy as np
from PIL import Image
from scipy.spatial.transform import Rotation

from rlrc.envs.maniskill.simulator import full_precision, start
from rlrc.envs.putonplate import files
from rlrc.envs.putonplate.episodes import BASE, find_episode
from rlrc.envs.world import Reading

STATE = ("x", "y", "z", "rx", "ry", "rz", "opening")
"""The gripper: position (m), rotation vector from pointing down (rad), and the sum of the fingers' positions (m)."""
ENVIRONMENT_STATE = (
    *STATE,
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


class PutOnPlate:
    """The world of one environment.

    The action is dx, dy, dz (m) and Euler angles (rad, R = Rx Ry Rz), along the axes of the base and relative to the
    commanded pose, then the gripper: above 0.5 open, else closed.

    Args:
        image_size: side of the pictures in px.
        official: render at 640 x 480 px as published, and resize as policies' processors do (PIL, bicubic); otherwise
            render the same view with `image_size` px right away, which is faster.

    Raises:
        UserError: a file of the simulator is missing, ManiSkill is not installed, or nothing can draw.
    """

    def __init__(self, image_size: int, official: bool = False) -> None:
        files.require()
        render_backend = start()
        from rlrc.envs.putonplate import task

        self._image_size = image_size
        self._camera = task.CAMERA
        width, height = (task.WIDTH, task.HEIGHT) if official else (image_size, image_size)
        self._task = task.PutOnPlate(
            width, height, whole_scene=False, sim_backend="physx_cpu", render_backend=render_backend
        )

    def reset(self, split: str, variant: str, episode_id: int) -> Reading:
        """Start the episode that these three name."""
        self.episode = find_episode(split, variant, episode_id)
        models = files.objects()[self.episode.object], files.plates()[self.episode.plate]
        self._instruction = self.episode.wording.format(object=models[0].name, plate=models[1].name)
        self._vertices, self._plate_vertices = (_vertices(model) for model in models)
        with full_precision():
            self._observation, info = self._task.reset(
                seed=0, options={"episodes": [self.episode], "reconfigure": True}
            )
            return self._read(info)

    def step(self, action: np.ndarray) -> Reading:
        """One control step (0.2 s) with an action (7,)."""
        gripper = 1.0 if action[6] > 0.5 else -1.0
        with full_precision():
            self._observation, _, _, _, info = self._task.step(np.append(action[:6], gripper))
            return self._read(info)

    def draw(self) -> np.ndarray:
        """The camera's picture with its background, uint8 (S,S,3)."""
        picture = self._observation["sensor_data"][self._camera]["rgb"][0].cpu().numpy()
        size = (self._image_size, self._image_size)
        if picture.shape[:2] == size:
            return picture
        return np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.BICUBIC))

    def _read(self, info: dict) -> Reading:
        gripper, command = (_pose_vector(pose.raw_pose[0].cpu().numpy()) for pose in self._poses())
        opening = float(self._task.agent.robot.get_qpos()[0, -2:].sum())
        item = _in_base(self._vertices, self._task.object_pose.raw_pose[0].cpu().numpy())
        plate = _in_base(self._plate_vertices, self._task.plate_pose.raw_pose[0].cpu().numpy())
        middle, yaw = _narrow_side(item[:, :2], near=command[5])
        plate_middle = (plate[:, :2].min(axis=0) + plate[:, :2].max(axis=0)) / 2
        success = bool(info["success"][0])
        state = np.append(gripper, opening).astype(np.float32)
        privileged = [
            *command,
            *middle,
            item[:, 2].min(),
            item[:, 2].max(),
            np.sin(yaw),
            np.cos(yaw),
            *plate_middle,
            plate[:, 2].max(),
            float(info["held"][0]),
            float(success),
        ]
        return Reading(
            instruction=self._instruction,
            state=state,
            environment_state=np.concatenate([state, np.array(privileged, np.float32)]),
            success=success,
            grasped=bool(info["grasped"][0]),
            consecutive_grasp=bool(info["consecutive_grasp"][0]),
        )

    def _poses(self) -> tuple:
        return self._task.gripper_pose, self._task.commanded_pose


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
