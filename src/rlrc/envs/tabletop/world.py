"""One tabletop episode at a time: "put {object} on {plate}" at 5 Hz with 7-D end-effector delta actions.

The action (`ACTION`) is a translation and a rotation vector, then the gripper: open where positive, else closed.
Nothing is welded or teleported: the object is held by friction between the fingers or not at all.
"""

from collections.abc import Callable

import mujoco
import numpy as np

from rlrc.envs.tabletop.arm import DOWN, FINGER_TRAVEL, Arm, Pose, rotation_matrix, rotation_vector, site_pose
from rlrc.envs.tabletop.render import painter
from rlrc.envs.tabletop.scene import BELT_TOP, FINGERS, TIMESTEP, compile_scene
from rlrc.envs.tabletop.tables import texture
from rlrc.envs.tabletop.variants import MOVE_STEP, Belt, Episode, draw_episode
from rlrc.envs.world import ALONG_BASE, IN_BASE, GraspLatch, Reading
from rlrc.policies.dim import dims

SUBSTEPS = 25
RAMP = 5
"""Parts of a control step over which the joint targets move to their new place."""
CONTROL_HZ = 1 / (SUBSTEPS * TIMESTEP)
START = Pose(np.array([0.26, 0.0, 0.16]), DOWN)
"""Pose in which the hand starts, except in the variant ee-pose."""

CAMERAS = ("front", "wrist")
"""The main camera, which sees the table and the arm, and one that is fixed to the hand and looks along the fingers."""
STATE = (
    *dims("x y z", "m", IN_BASE),
    *dims("rx ry rz", "rad", "rotation vector, from pointing down"),
    *dims("opening", "m", "distance between the fingers"),
)
"""The hand's pose and opening."""
ACTION = (
    *dims("x y z", "m", ALONG_BASE),
    *dims("roll pitch yaw", "rad", f"rotation vector, {ALONG_BASE}"),
    *dims("gripper", "", "1 opens, -1 closes"),
)
ENVIRONMENT_STATE = (
    *(dim.name for dim in STATE),
    *("object_x", "object_y", "object_z", "object_tilt"),
    *("grasp_sin", "grasp_cos"),
    *("plate_x", "plate_y", "plate_z"),
    *("held", "on_plate"),
)
"""Privileged: the hand, the named object's underside (m) and its axis' lean (rad), the yaw of the hand that grasps it
(sine and cosine), the named plate's top (m), whether both fingers hold the object, whether the plate bears it."""

_GRASP_FORCE, _PLATE_FORCE = 0.5, 0.03
"""Thresholds of force (N): those of ManiSkill for this task."""
_SETTLE_STEPS = 12


class Tabletop:
    """The world of one environment; `rlrc.envs.vector` runs many."""

    def __init__(self, image_size: int, draw: Callable[[str, str, int], Episode] = draw_episode) -> None:
        self._image_size = image_size
        self._draw_episode = draw
        self._arm = Arm()

    def reset(self, split: str, variant: str, episode_id: int) -> Reading:
        """Start the episode that these three name."""
        return self.lay(self._draw_episode(split, variant, episode_id))

    def lay(self, episode: Episode) -> Reading:
        """Lay the table of an episode, put the hand at its start and let things settle."""
        self.episode = episode
        self.model = compile_scene(episode.objects, episode.receptacles, episode.belt is not None)
        self.data = mujoco.MjData(self.model)
        self._tcp = self.model.site("tcp").id
        for index, (x, y) in enumerate(self.episode.receptacle_positions):
            self.data.mocap_pos[self.model.body(f"plate{index}").mocapid[0]] = [x, y, 0.0]
        for index, (x, y) in enumerate(self.episode.object_positions):
            self._put_object(index, np.array([x, y, self.episode.object_yaws[index]]))
        joints = self._arm.place(_start(self.episode.start_offset))
        self.data.qpos[:8] = [*joints, FINGER_TRAVEL, FINGER_TRAVEL]
        self.data.ctrl[:7] = [*joints, FINGER_TRAVEL]
        if episode.belt is not None:
            self._start_belt(episode.belt)
        mujoco.mj_step(self.model, self.data, nstep=_SETTLE_STEPS)
        self._steps = 0
        self._grasp = GraspLatch()
        return self._read()

    def step(self, action: np.ndarray) -> Reading:
        """One control step (0.2 s) with an action (7,)."""
        joints = self._arm.move(action[:6].astype(np.float64), site_pose(self.data, self._tcp))
        self.data.ctrl[6] = FINGER_TRAVEL if action[6] > 0 else 0.0
        # A target that jumps would fling the hand off at 45 g, and out of it whatever it holds.
        for targets in np.linspace(self.data.ctrl[:6], joints, RAMP + 1)[1:]:
            self.data.ctrl[:6] = targets
            mujoco.mj_step(self.model, self.data, nstep=SUBSTEPS // RAMP)
        self._steps += 1
        if self.episode.moved_to is not None and self._steps == MOVE_STEP:
            self._put_object(0, self.episode.moved_to)
            mujoco.mj_forward(self.model, self.data)
        self._grasp.update(self._held())
        return self._read()

    def wait(self, ticks: int) -> Reading:
        """Let the world run on for so many times 8 ms. The arm holds the pose that it was last sent to."""
        mujoco.mj_step(self.model, self.data, nstep=ticks)
        return self._read()

    def draw(self, camera: str) -> np.ndarray:
        """A camera's picture with the variant's blend, uint8 (S,S,3). Noise differs from step to step, and between
        cameras."""
        self.model.geom_matid[self.model.geom("table").id] = self.model.material(f"table{self.episode.table}").id
        image = painter(self._image_size).draw(self.model, self.data, camera)
        return self._blended(image, camera)

    def _put_object(self, index: int, pose: np.ndarray) -> None:
        """Put the object at rest on the table, or on the belt, at (x, y, yaw)."""
        joint = self.data.joint(f"object{index}")
        height = 0.0005 + (0.0 if self.episode.belt is None else BELT_TOP)
        joint.qpos[:] = [pose[0], pose[1], height, np.cos(pose[2] / 2), 0.0, 0.0, np.sin(pose[2] / 2)]
        joint.qvel[:] = 0.0

    def _start_belt(self, belt: Belt) -> None:
        """Let the belt run at its speed, and with it what lies on it."""
        self.model.body_pos[self.model.body("belt").id, 0] = belt.x
        self.data.joint("belt").qvel[:] = belt.speed
        self.data.actuator("belt").ctrl[:] = belt.speed
        for index in range(len(self.episode.objects)):
            self.data.joint(f"object{index}").qvel[1] = belt.speed

    def _read(self) -> Reading:
        hand = site_pose(self.data, self._tcp)
        state = np.concatenate(
            [hand.position, rotation_vector(hand.rotation @ DOWN.T), [self.data.qpos[FINGERS].sum()]]
        )
        item, plate = self.data.body("object0"), self.data.body("plate0")
        receptacle = self.episode.receptacles[0]
        axes = item.xmat.reshape(3, 3)
        grasp = _grasp_yaw(float(np.arctan2(axes[1, 0], axes[0, 0])), self.episode.objects[0].symmetry)
        aside = float(np.linalg.norm(item.xpos[:2] - plate.xpos[:2]))
        left, right, borne = self.data.sensordata.reshape(3, 3)
        on_plate = aside <= receptacle.radius and float(np.linalg.norm(borne)) > _PLATE_FORCE
        touched = max(np.linalg.norm(left), np.linalg.norm(right)) >= _GRASP_FORCE
        privileged = np.concatenate(
            [
                state,
                item.xpos,
                [np.arccos(np.clip(axes[2, 2], -1.0, 1.0))],
                [np.sin(grasp), np.cos(grasp)],
                plate.xpos[:2],
                [receptacle.height],
                [self._held(), on_plate],
            ]
        )
        return Reading(
            instruction=self.episode.instruction,
            state=state.astype(np.float32),
            environment_state=privileged.astype(np.float32),
            success=on_plate and not touched,
            grasped=self._grasp.grasped,
            consecutive_grasp=self._grasp.consecutive_grasp,
        )

    def _held(self) -> bool:
        """Return whether both fingers squeeze the object: forces along the axis on which the fingers open."""
        opening_axis = self.data.site_xmat[self._tcp].reshape(3, 3)[:, 1]
        squeezes = self.data.sensordata.reshape(3, 3)[:2] @ opening_axis
        return bool(np.abs(squeezes).min() >= _GRASP_FORCE)

    def _blended(self, image: np.ndarray, camera: str) -> np.ndarray:
        """A camera's picture with this episode's noise or texture laid over it."""
        strength = self.episode.strength
        match self.episode.blend:
            case "none":
                return image
            case "noise":
                seed = self.episode.noise_seed, self._steps, CAMERAS.index(camera)
                noise = np.random.default_rng(seed)
                over = image + noise.normal(0.0, 255 * strength, image.shape)
            case "whole":
                over = (1 - strength) * image + strength * self._texture()
            case "objects":
                mask = painter(self._image_size).foreground(self.model, self.data, camera)[..., None]
                over = image + strength * mask * (self._texture() - image.astype(float))
        return np.clip(np.round(over), 0, 255).astype(np.uint8)

    def _texture(self) -> np.ndarray:
        """The episode's unseen texture, stretched over the picture."""
        pixels = texture(self.episode.texture)
        rows = np.arange(self._image_size) * len(pixels) // self._image_size
        return pixels[rows][:, rows]


def _start(offset: np.ndarray) -> Pose:
    return Pose(START.position + offset[:3], rotation_matrix(offset[3:]) @ START.rotation)


def _grasp_yaw(object_yaw: float, symmetry: int) -> float:
    """The hand's yaw (rad) that grasps an object, the equal one nearest to 0."""
    if symmetry == 0:
        return 0.0
    period = 2 * np.pi / symmetry
    return (object_yaw + period / 2) % period - period / 2
