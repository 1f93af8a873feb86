"""PutOnPlateInScene25 of RL4VLA (Liu et al. 2025), written anew for ManiSkill 3: "put {object} on {plate}".

Everything is batched over `num_envs`, so that it also runs in ManiSkill's simulation on a GPU, where all of a batch
starts together. On the CPU there is one environment, and its scene is built anew for each episode from what is in play:
then an episode goes the same way to the last bit whatever ran before it, and nothing unseen is simulated or drawn.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import sapien
import torch
from mani_skill.agents.registration import register_agent
from mani_skill.envs.sapien_env import BaseEnv
from mani_skill.envs.tasks.digital_twins.bridge_dataset_eval.base_env import WidowX250SBridgeDatasetFlatTable
from mani_skill.utils import sapien_utils
from mani_skill.utils.geometry.rotation_conversions import quaternion_to_matrix
from mani_skill.utils.structs import Actor, Pose
from mani_skill.utils.structs.types import SimConfig
from sapien.physx import PhysxMaterial

from rlrc.envs.putonplate import files
from rlrc.envs.putonplate.episodes import BASE, CONTROL_HZ, MOVE_STEP, Episode, numbered_episode
from rlrc.envs.putonplate.pictures import Overlay
from rlrc.envs.world import CONSECUTIVE_STEPS

CAMERA = "3rd_view_camera"
WIDTH, HEIGHT = 640, 480
"""Size of the published camera's picture in px; the camera is that of the Bridge dataset."""
INTRINSIC = np.array([[623.588, 0.0, 319.501], [0.0, 623.588, 239.545], [0.0, 0.0, 1.0]])
SIMULATION_HZ = 500

_AWAY = BASE + np.array([0.0, 0.0, 1.0])
"""Position at which the robot is kept while things settle (m)."""
_TURNED = [0.0, 0.0, 0.0, 1.0]
_READY = np.array([-0.01840777, 0.0398835, 0.22242722, -0.00460194, 1.36524296, 0.00153398, 0.037, 0.037])
_SETTLE_STEPS, _LONG_SETTLE_STEPS, _MOVE_STEPS = 50, 600, 50
_STILL_LINEAR, _STILL_ANGULAR = 1e-3, 1e-2
"""Speeds (m/s and rad/s) below which things have settled."""
_FRICTION = 1.0
_ASIDE_TOLERANCE, _HEIGHT_TOLERANCE, _CONTACT_FORCE = 0.01, 0.05, 0.03
"""Limits of success: distances aside and in height (m), and a contact force (N)."""
_CORNERS = torch.tensor([[x, y, z] for x in (-0.5, 0.5) for y in (-0.5, 0.5) for z in (-0.5, 0.5)])


@register_agent()
class WidowX(WidowX250SBridgeDatasetFlatTable):
    """ManiSkill's WidowX-250S with its camera, from our own folder of files."""

    uid = "rlrc_widowx250s_flat_table"

    @property
    def urdf_path(self) -> str:
        return str(files.folder() / files.ROBOT)


class PutOnPlate(BaseEnv):
    """`reset(options={"episodes": [Episode] * num_envs, "reconfigure": bool})` starts all of a batch.

    Args:
        whole_scene: build all objects and plates and park those not in play aside, as RL4VLA does and as several
            environments must; otherwise the scene holds what is in play and every reset must reconfigure.

    Action (num_envs,7): dx, dy, dz in m and Euler angles in rad (R = Rx Ry Rz), along the axes of the robot's base and
    relative to the commanded pose, then the gripper, 1 open to -1 closed. Info, bool (num_envs,): `success` as of this
    step, `grasped` and `consecutive_grasp` latched, `held` as of this step.
    """

    SUPPORTED_OBS_MODES = ("rgb+segmentation",)
    SUPPORTED_REWARD_MODES = ("none",)

    def __init__(self, width: int, height: int, whole_scene: bool, **options: Any) -> None:
        self._overlay = Overlay(width, height)
        self._whole_scene = whole_scene
        self.episodes: Sequence[Episode] = ()
        scale = np.array([[width / WIDTH], [height / HEIGHT], [1.0]])
        camera = {"width": width, "height": height, "intrinsic": INTRINSIC * scale, "shader_pack": "default"}
        super().__init__(robot_uids=WidowX, sensor_configs={CAMERA: camera}, **options)

    @property
    def _default_sim_config(self) -> SimConfig:
        return SimConfig(sim_freq=SIMULATION_HZ, control_freq=CONTROL_HZ, spacing=20)

    def _load_agent(self, options: dict) -> None:
        super()._load_agent(options, sapien.Pose(p=_AWAY, q=_TURNED))

    def _load_scene(self, options: dict) -> None:
        for robot in self.agent.robot._objs:
            sapien_utils.set_articulation_render_material(robot, specular=0.9, roughness=0.3)
        builder = self.scene.create_actor_builder()
        stage, upright = str(files.folder() / files.STAGE), sapien.Pose(q=[0.707, 0.707, 0, 0])
        builder.add_nonconvex_collision_from_file(stage, pose=upright)
        builder.add_visual_from_file(stage, pose=upright)  # Covered by the background, but hides what is below it.
        builder.initial_pose = sapien.Pose([2.0634, 2.8313, 0.0])
        builder.build_static(name="arena")
        episodes = self._episodes(options)
        objects = {e.object for e in episodes} | {e.other_object for e in episodes if e.other_object is not None}
        plates = {e.plate for e in episodes} | {e.other_plate for e in episodes if e.other_plate is not None}
        every = self._whole_scene
        self._objects = {
            i: self._build(m, _parked(1.0, i)) for i, m in enumerate(files.objects()) if every or i in objects
        }
        self._plates = {
            i: self._build(m, _parked(2.0, i)) for i, m in enumerate(files.plates()) if every or i in plates
        }

    def _build(self, model: files.Model, parked: np.ndarray) -> Actor:
        builder = self.scene.create_actor_builder()
        material = PhysxMaterial(static_friction=_FRICTION, dynamic_friction=_FRICTION, restitution=0.0)
        builder.add_multiple_convex_collisions_from_file(
            filename=str(model.collision), material=material, density=model.density
        )
        builder.add_visual_from_file(filename=str(model.visual))
        builder.initial_pose = sapien.Pose(parked[:3], parked[3:])
        return builder.build(name=model.folder.name)

    def _load_lighting(self, options: dict) -> None:
        self.scene.set_ambient_light([0.3, 0.3, 0.3])
        self.scene.add_directional_light([0, 0, -1], [2.2, 2.2, 2.2], shadow=False)
        self.scene.add_directional_light([-1, -0.5, -1], [0.7, 0.7, 0.7])
        self.scene.add_directional_light([1, 1, -1], [0.7, 0.7, 0.7])

    def _after_reconfigure(self, options: dict) -> None:
        things = [actor._objs[0].per_scene_id for actor in (*self._objects.values(), *self._plates.values())]
        robot = [link._objs[0].entity.per_scene_id for link in self.agent.robot.get_links()]
        self._foreground_ids = torch.tensor(things + robot, dtype=torch.int16)

    def _episodes(self, options: dict) -> Sequence[Episode]:
        """Episodes that were asked for. ManiSkill also resets by itself when it is made."""
        return options.get("episodes") or [numbered_episode("main", "train", n) for n in range(self.num_envs)]

    def _initialize_episode(self, env_idx: torch.Tensor, options: dict) -> None:
        assert len(env_idx) == self.num_envs, "things settle together: start all of a batch"
        self.episodes = episodes = self._episodes(options)
        self._overlay.choose(episodes, self.device)
        self._object = torch.tensor([e.object for e in episodes], device=self.device)
        self._plate = torch.tensor([e.plate for e in episodes], device=self.device)
        self._pairs = {(e.object, e.plate) for e in episodes}
        self.agent.robot.set_pose(sapien.Pose(_AWAY, _TURNED))
        self._lay_objects([e.object_pose for e in episodes])
        others = [(e.other_plate, e.other_pose) for e in episodes]
        self._lay(self._plates, 2.0, [(e.plate, e.plate_pose) for e in episodes], others)
        self._simulate(_SETTLE_STEPS)
        if self._moving():
            self._simulate(_LONG_SETTLE_STEPS)
        self.agent.robot.set_pose(sapien.Pose(BASE, _TURNED))
        starts = np.stack([_READY if e.start is None else _READY + e.start for e in episodes])
        self.agent.reset(init_qpos=torch.tensor(starts, dtype=torch.float32, device=self.device))
        self._object_size = self._size_in_world(files.objects(), self._object, self.object_pose)
        self._plate_size = self._size_in_world(files.plates(), self._plate, self.plate_pose)
        self._held_steps = torch.zeros(self.num_envs, dtype=torch.int32, device=self.device)
        self._grasped = torch.zeros(self.num_envs, dtype=torch.bool, device=self.device)
        self._consecutive = self._grasped.clone()

    @property
    def object_pose(self) -> Pose:
        """Poses of the objects that the instructions name, in the world frame."""
        return _chosen(self._objects, self._object)

    @property
    def plate_pose(self) -> Pose:
        """Poses of the plates that the instructions name, in the world frame."""
        return _chosen(self._plates, self._plate)

    @property
    def commanded_pose(self) -> Pose:
        """Pose that the controller wants the gripper to have, in the frame of the robot's base."""
        return self.agent.controller.controllers["arm"]._target_pose

    @property
    def gripper_pose(self) -> Pose:
        """Pose of the gripper, in the frame of the robot's base."""
        return self.agent.controller.controllers["arm"].ee_pose_at_base

    def _lay_objects(self, poses: Sequence[np.ndarray]) -> None:
        """The named objects at `poses`, second ones where they belong, all others parked."""
        named = [(e.object, pose) for e, pose in zip(self.episodes, poses, strict=True)]
        self._lay(self._objects, 1.0, named, [(e.other_object, e.other_pose) for e in self.episodes])

    def _lay(self, actors: dict[int, Actor], aside: float, *placed: Sequence[tuple[int | None, Any]]) -> None:
        """Put each actor where an environment's entry of `placed` wants it, or aside."""
        for index, actor in actors.items():
            poses = np.tile(_parked(aside, index), (self.num_envs, 1))
            for entries in placed:
                for row, (wanted, pose) in enumerate(entries):
                    if wanted == index:
                        poses[row] = pose
            actor.set_pose(Pose.create(torch.tensor(poses, dtype=torch.float32, device=self.device)))

    def _simulate(self, steps: int) -> None:
        if self.gpu_sim_enabled:
            self.scene._gpu_apply_all()
            self.scene.px.gpu_update_articulation_kinematics()  # Else its links would be where the robot was.
        for _ in range(steps):
            self.scene.step()
        if self.gpu_sim_enabled:
            self.scene._gpu_fetch_all()

    def _moving(self) -> bool:
        """Return whether what is in play still moves, in any environment."""
        second_objects = torch.tensor([-1 if e.other_object is None else e.other_object for e in self.episodes])
        second_plates = torch.tensor([-1 if e.other_plate is None else e.other_plate for e in self.episodes])
        linear = angular = torch.zeros(self.num_envs, device=self.device)
        for actors, wanted in (
            (self._objects, (self._object, second_objects)),
            (self._plates, (self._plate, second_plates)),
        ):
            for index, actor in actors.items():
                for chosen in wanted:
                    here = chosen.to(self.device) == index
                    linear = linear + here * actor.linear_velocity.norm(dim=1)
                    angular = angular + here * actor.angular_velocity.norm(dim=1)
        return bool(((linear > _STILL_LINEAR) | (angular > _STILL_ANGULAR)).any())

    def _size_in_world(self, models: Sequence[files.Model], chosen: torch.Tensor, pose: Pose) -> torch.Tensor:
        """The axis-aligned size (N,3), m, of the models' boxes as they lie now."""
        sizes = torch.tensor([model.size for model in models], dtype=torch.float32, device=self.device)[chosen]
        corners = sizes[:, None, :] * _CORNERS.to(self.device)
        turned = corners @ quaternion_to_matrix(pose.q).transpose(1, 2)
        return turned.amax(dim=1) - turned.amin(dim=1)

    def _after_control_step(self) -> None:
        """Move the object where it is time to; this step's flags and picture show it."""
        if int(self._elapsed_steps[0]) + 1 != MOVE_STEP or all(e.moved_to is None for e in self.episodes):
            return
        if self.gpu_sim_enabled:
            self.scene._gpu_fetch_all()
        now = self.object_pose.raw_pose.cpu().numpy()
        self._lay_objects([now[n] if e.moved_to is None else e.moved_to for n, e in enumerate(self.episodes)])
        self._simulate(_MOVE_STEPS)

    def evaluate(self) -> dict[str, torch.Tensor]:
        held = torch.zeros(self.num_envs, dtype=torch.bool, device=self.device)
        for index in {e.object for e in self.episodes}:  # Asking costs; most objects are in play nowhere.
            held |= (self._object == index) & self.agent.is_grasping(self._objects[index])
        self._held_steps = torch.where(held, self._held_steps + 1, 0)
        self._grasped = self._grasped | held
        self._consecutive = self._consecutive | (self._held_steps >= CONSECUTIVE_STEPS)
        return {
            "success": self._on_plate(),
            "grasped": self._grasped,
            "consecutive_grasp": self._consecutive,
            "held": held,
        }

    def _on_plate(self) -> torch.Tensor:
        """Return whether (N,) the object touches the plate and is over it, not far above."""
        offset = self.object_pose.p - self.plate_pose.p
        aside = offset[:, :2].norm(dim=1) <= self._plate_size.amax(dim=1) / 2 + _ASIDE_TOLERANCE
        gap = offset[:, 2] - self._plate_size[:, 2] / 2 - self._object_size[:, 2] / 2
        force = torch.zeros(self.num_envs, device=self.device)
        for thing, plate in self._pairs:
            here = (self._object == thing) & (self._plate == plate)
            contact = self.scene.get_pairwise_contact_forces(self._objects[thing], self._plates[plate])
            force = torch.where(here, contact.norm(dim=1), force)
        return aside & (offset[:, 2] > 0) & (gap <= _HEIGHT_TOLERANCE) & (force > _CONTACT_FORCE)

    def _get_obs_sensor_data(self, apply_texture_transforms: bool = True) -> dict:
        """The camera's picture, with the background and the variant's texture laid over it."""
        self.scene.update_render(update_sensors=True, update_human_render_cameras=False)
        self._sensors[CAMERA].capture()
        color, segmentation = self._rendered("Color"), self._rendered("Segmentation")
        numbers = segmentation[..., 1]  # Of actors and links; the others are of meshes and scenes.
        foreground = torch.isin(numbers, self._foreground_ids.to(numbers.device))
        rgb = (color[..., :3] * 255).to(torch.uint8)
        return {CAMERA: {"rgb": self._overlay.lay(rgb, foreground), "segmentation": numbers[..., None]}}

    def _rendered(self, name: str) -> torch.Tensor:
        """One of the camera's textures (N,H,W,4). On the CPU ManiSkill would copy it slowly, number by number."""
        camera = self._sensors[CAMERA].camera
        if self.backend.render_backend == "sapien_cpu":
            texture = camera._render_cameras[0].get_picture(name)
            return torch.from_numpy(texture.view(np.int32) if texture.dtype == np.uint32 else texture)[None]
        picture: torch.Tensor = camera.get_picture([name])[0]
        return picture


def _parked(aside: float, index: int) -> np.ndarray:
    """The pose of what is not in play."""
    return np.array([aside, 0.3 * index, 1.0, *_TURNED])


def _chosen(actors: dict[int, Actor], chosen: torch.Tensor) -> Pose:
    """The pose of one actor in each environment: the one whose number is `chosen` (N,) there."""
    poses = torch.zeros((len(chosen), 7), device=chosen.device)
    for index, actor in actors.items():
        poses = torch.where((chosen == index)[:, None], actor.pose.raw_pose, poses)
    return Pose.create(poses)
