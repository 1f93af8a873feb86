"""PutOnPlateInScene25 against what was recorded from RL4VLA's own environments (shared/fixtures/maniskill)."""

import os

os.environ.setdefault("LP_NUM_THREADS", "0")  # Read when Mesa starts, which other tests of this process may do first.

import json
import subprocess
import sys
from copy import copy
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import SHARED
from fresh import fresh
from PIL import Image
from simulators import need_putonplate

from rlrc import envs
from rlrc.envs.maniskill.simulator import start_physx_on_gpu
from rlrc.envs.putonplate.episodes import CATALOGUE, Episode, numbered_episode
from rlrc.envs.reward import level as progress
from rlrc.errors import UserError

if find_spec("mani_skill") is None or not (SHARED / "assets" / "maniskill").is_dir():
    pytest.skip(f"the extra 'maniskill' or its files in {SHARED / 'assets'} are not here", allow_module_level=True)

VARIANT_OF = {variant.task: name for name, variant in CATALOGUE.items()}
KNOWN_FLAGS = {"success": "success", "grasped": "is_src_obj_grasped", "consecutive_grasp": "consecutive_grasp"}


@pytest.fixture(scope="module")
def recorded(shared: Path) -> Path:
    """The folder of recordings; skips where the simulator cannot run."""
    need_putonplate(shared)
    return shared / "fixtures" / "maniskill"


@pytest.fixture(scope="module")
def task(recorded: Path) -> Any:
    return make_task(640, 480)


def make_task(width: int, height: int, whole_scene: bool = False) -> Any:
    from rlrc.envs.putonplate.task import PutOnPlate

    return PutOnPlate(width, height, whole_scene, sim_backend="physx_cpu", render_backend="cpu")


def read(recorded: Path, name: str) -> dict[str, np.ndarray]:
    return dict(np.load(recorded / f"{name}.npz", allow_pickle=False))


def episode_of(rows: dict[str, np.ndarray], row: int) -> Episode:
    variant = VARIANT_OF[str(rows["env_id"][row])]
    return numbered_episode(variant, str(rows["obj_set"][row]), int(rows["episode_id"][row]))


def start(task: Any, episode: Episode) -> np.ndarray:
    """Begin an episode; its first picture (H,W,3)."""
    observation, _ = task.reset(seed=0, options={"episodes": [episode], "reconfigure": True})
    return observation["sensor_data"]["3rd_view_camera"]["rgb"][0].numpy()


def test_things_and_robot_lie_where_they_were_recorded(task: Any, recorded: Path) -> None:
    rows = read(recorded, "resets")
    for row in range(0, len(rows["env_id"]), 46):
        episode = episode_of(rows, row)
        start(task, episode)
        where = f"{rows['env_id'][row]} {rows['episode_id'][row]}"
        found = {
            "object_pose": task.object_pose.raw_pose,
            "plate_pose": task.plate_pose.raw_pose,
            "robot_qpos": task.agent.robot.get_qpos(),
            "tcp_pose_base": task.gripper_pose.raw_pose,
            "object_bbox_world": task._object_size,
            "plate_bbox_world": task._plate_size,
        }
        if episode.other_pose is not None:
            others = {"object": task._objects, "plate": task._plates}[CATALOGUE[VARIANT_OF[rows["env_id"][row]]].extra]
            number = episode.other_object if episode.other_object is not None else episode.other_plate
            found["extra_pose"] = others[number].pose.raw_pose
        for name, value in found.items():
            tolerance = 1e-5 if name in ("robot_qpos", "tcp_pose_base") else 1e-4
            np.testing.assert_allclose(value[0], rows[name][row], atol=tolerance, err_msg=f"{where} {name}")


@pytest.mark.parametrize("row", [3, 6, 7, 9, 10])
def test_actions_lead_where_they_led(recorded: Path, row: int) -> None:
    rows = read(recorded, "rollouts")
    task = make_task(32, 32)
    start(task, episode_of(rows, row))
    flags: dict[str, list[bool]] = {name: [] for name in KNOWN_FLAGS}
    hands, things, targets = [], [], []
    for action in rows["actions"][row]:
        _, _, _, _, info = task.step(action)
        hands.append(task.gripper_pose.raw_pose[0].numpy())
        things.append(task.object_pose.p[0].numpy())
        targets.append(task.commanded_pose.raw_pose[0].numpy())
        for name in flags:
            flags[name].append(bool(info[name][0]))
    kind, moved = str(rows["kind"][row]), slice(1, None)
    free = kind in ("random", "still_position_change")
    np.testing.assert_allclose(targets, rows["target_pose_base"][row][moved], atol=1e-5)
    np.testing.assert_allclose(hands, rows["tcp_pose_base"][row][moved], atol=1e-4 if free else 2e-3)
    np.testing.assert_allclose(things, rows["object_pose"][row][moved, :3], atol=1e-4 if free else 2e-2)
    assert flags["success"][-1] == rows["success"][row][-1]
    for name, recorded_name in KNOWN_FLAGS.items():
        late = np.flatnonzero(np.array(flags[name]) != rows[recorded_name][row])
        assert len(late) <= 1, f"{kind}: {name} differs at steps {late}"
    terms = envs.RewardTerms(consecutive_grasp=0.1)
    level = progress(terms, *(np.array(flags[name]) for name in ("grasped", "consecutive_grasp", "success")))
    if all(flags[name] == rows[recorded_name][row].tolist() for name, recorded_name in KNOWN_FLAGS.items()):
        np.testing.assert_allclose(np.diff(level, prepend=0), rows["reward_rl4vla"][row], atol=1e-6)


def test_pictures_are_the_recorded_ones(task: Any, recorded: Path) -> None:
    rows = read(recorded, "pictures")
    small = make_task(224, 224)
    kinds = ("VisionTexture05", "VisionWhole03", "MultiPlate", "EEPose")
    for row in range(len(rows["picture"])):
        size = int(rows["width"][row])
        if size == 640 and not any(f"25{kind}-" in str(rows["env_id"][row]) for kind in kinds):
            continue
        picture = start(task if size == 640 else small, episode_of(rows, row)).astype(float)
        kept = np.asarray(Image.open(recorded / "pictures" / str(rows["picture"][row])), float)
        where = str(rows["picture"][row])
        assert np.abs(picture - kept).mean() < (2.1 if size == 640 else 0.1), where  # JPEG alone makes 0.9 to 2.0
        np.testing.assert_allclose(picture.mean(axis=(0, 1)), rows["mean_rgb"][row], atol=0.02, err_msg=where)
        if size == 640:
            thumbnail = picture.reshape(48, 10, 64, 10, 3).mean(axis=(1, 3))
            assert np.abs(thumbnail - rows["thumbnail"][row]).mean() < 0.6, where


def test_what_is_not_in_play_changes_nothing(recorded: Path) -> None:
    """Neither pictures nor flags nor poses: a scene of what is in play against one of all 25 objects and 17 plates."""
    rows = read(recorded, "rollouts")
    tasks = [make_task(96, 96, whole_scene) for whole_scene in (False, True)]
    for row in (1, 4):
        assert np.array_equal(*(start(task, episode_of(rows, row)) for task in tasks))
        for action in rows["actions"][row][:30]:
            steps = [task.step(action) for task in tasks]
            pictures = [step[0]["sensor_data"]["3rd_view_camera"]["rgb"] for step in steps]
            assert np.array_equal(*pictures)
            assert np.array_equal(*(task.object_pose.raw_pose for task in tasks))
            for name in (*KNOWN_FLAGS, "held"):
                assert steps[0][4][name] == steps[1][4][name]
        assert steps[0][4]["success"], "the script of this row puts the object on the plate"


@pytest.fixture(scope="module")
def world(recorded: Path) -> Any:
    from rlrc.envs.putonplate import PutOnPlate

    return PutOnPlate(96)


def test_an_episode_is_the_same_whatever_ran_before(world: Any) -> None:
    action = np.array([0.01, 0.0, -0.02, 0.0, 0.0, 0.1, 1.0], np.float32)

    def play() -> list[np.ndarray]:
        reading = world.reset("ood", "multi-carrot", 3)
        seen = [reading.environment_state, world.draw("front")]
        for _ in range(3):
            seen += [world.step(action).environment_state, world.draw("front")]
        return seen

    first = play()
    world.reset("ind", "main", 8)
    world.step(action)
    assert all(np.array_equal(a, b) for a, b in zip(first, play(), strict=True))


def test_a_policy_in_16_bits_beside_it_changes_nothing(world: Any) -> None:
    import torch

    def play() -> np.ndarray:
        world.reset("ind", "main", 5)
        return np.stack([world.step(np.array([0.02, 0.01, -0.02, 0.0, 0.0, 0.2, 1.0])).state for _ in range(4)])

    alone = play()
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        assert np.array_equal(alone, play())


def test_readings_are_in_the_base_frame_and_the_gripper_opens_above_one_half(world: Any, recorded: Path) -> None:
    reading = world.reset("ind", "main", 0)
    rows = read(recorded, "resets")
    np.testing.assert_allclose(reading.state[:3], rows["tcp_pose_base"][0][:3], atol=1e-4)
    assert not (reading.success or reading.grasped or reading.consecutive_grasp)
    still = [0.0] * 6
    commands = (0.0, 0.4, 0.4, 0.6, 1.0, 1.0)
    openings = [world.step(np.array([*still, gripper], np.float32)).state[6] for gripper in commands]
    assert openings[2] == pytest.approx(0.03, abs=2e-3) and openings[5] == pytest.approx(0.074, abs=1e-3)


def test_the_expert_puts_it_on_the_plate(world: Any) -> None:
    expert = envs.expert("putonplate", 1)
    for split, variant in (("ind", "main"), ("ood", "position-change-to")):
        reading = world.reset(split, variant, 0)
        for _ in range(envs.spec("putonplate").max_episode_steps):
            reading = world.step(expert.act(reading.environment_state[None])[0])
        assert reading.success and reading.grasped and reading.consecutive_grasp, variant


def test_the_official_picture_is_the_large_one_resized(world: Any, recorded: Path) -> None:
    from rlrc.envs.putonplate import PutOnPlate

    official = PutOnPlate(96, official=True)
    for one in (official, world):
        one.reset("ood", "plate", 5)
    picture, fast = official.draw("front"), world.draw("front")
    assert picture.shape == fast.shape == (96, 96, 3) and picture.dtype == np.uint8
    large = official._simulation._observation["sensor_data"]["3rd_view_camera"]["rgb"][0].numpy()
    assert large.shape == (480, 640, 3)
    assert np.array_equal(picture, np.asarray(Image.fromarray(large).resize((96, 96), Image.Resampling.BICUBIC)))
    assert np.abs(picture.astype(float) - fast).mean() < 8, "the same view, drawn small"


def test_several_in_one_simulation_read_as_each_does_alone(world: Any) -> None:
    """What a GPU simulates at once is a batch; here one is put together of single worlds, which a CPU can simulate."""
    simulation, asked = world._simulation, [("ind", "main", 0), ("ind", "main", 4), ("ind", "main", 9)]
    alone, pictures, told = [], [], []
    for split, variant, id_ in asked:
        alone += simulation.reset(split, variant, [id_])
        pictures.append(simulation._observation["sensor_data"]["3rd_view_camera"]["rgb"])
        told.append((simulation._instructions, simulation._vertices, _poses(simulation._task), _flags(id_)))

    together = copy(simulation)
    together._instructions = [text for texts, *_ in told for text in texts]
    together._vertices = [pair for _, pairs, *_ in told for pair in pairs]
    together._task = SimpleNamespace(agent=SimpleNamespace(robot=SimpleNamespace()))
    for name in ("gripper_pose", "commanded_pose", "object_pose", "plate_pose"):
        setattr(together._task, name, SimpleNamespace(raw_pose=torch.cat([poses[name] for *_, poses, _ in told])))
    together._task.agent.robot.get_qpos = lambda: torch.cat([poses["qpos"] for *_, poses, _ in told])
    together._observation = {"sensor_data": {"3rd_view_camera": {"rgb": torch.cat(pictures)}}}

    flags = {name: torch.tensor([of[name] for *_, of in told]) for name in told[0][-1]}
    readings = together._read(flags)
    assert [r.instruction for r in readings] == [r.instruction for r in alone]
    for reading, single, (*_, of) in zip(readings, alone, told, strict=True):
        assert np.array_equal(reading.state, single.state)
        assert np.array_equal(reading.environment_state[:-2], single.environment_state[:-2])
        assert reading.environment_state[-2:].tolist() == [of["held"], of["success"]]
        assert (reading.success, reading.grasped) == (of["success"], of["grasped"])
    assert np.array_equal(together.draw("front"), np.concatenate([picture.numpy() for picture in pictures]))


def _poses(task: Any) -> dict[str, torch.Tensor]:
    names = ("gripper_pose", "commanded_pose", "object_pose", "plate_pose")
    return {name: getattr(task, name).raw_pose.clone() for name in names} | {"qpos": task.agent.robot.get_qpos()}


def _flags(id_: int) -> dict[str, bool]:
    """Flags that differ from episode to episode."""
    return {"success": id_ == 4, "grasped": id_ > 0, "consecutive_grasp": id_ == 9, "held": id_ == 4}


def test_a_scene_that_is_kept_starts_the_next_episode_like_a_new_one(recorded: Path) -> None:
    """As on a GPU, where scenes are built once. What lay there before leaves traces of less than a millimetre here."""
    kept, new = make_task(96, 96, whole_scene=True), make_task(96, 96, whole_scene=True)
    earlier, later = numbered_episode("main", "train", 0), numbered_episode("position-change-to", "all", 5)
    start(kept, earlier)
    for _ in range(6):
        kept.step(np.array([0.01, 0.0, -0.02, 0.0, 0.0, 0.1, 1.0]))
    kept.reset(seed=0, options={"episodes": [later], "reconfigure": False})
    start(new, later)
    for step in range(8):
        for pose in ("object_pose", "plate_pose", "commanded_pose", "gripper_pose"):
            np.testing.assert_allclose(getattr(kept, pose).p, getattr(new, pose).p, atol=1e-3, err_msg=f"{pose} {step}")
        np.testing.assert_allclose(kept.agent.robot.get_qpos(), new.agent.robot.get_qpos(), atol=1e-3)
        action = np.array([0.01, 0.01, 0.0, 0.0, 0.0, 0.1, 1.0])
        infos = [task.step(action)[4] for task in (kept, new)]
        assert all(infos[0][name] == infos[1][name] for name in (*KNOWN_FLAGS, "held"))


ON_GPU = """
import numpy as np
from rlrc import envs
for world in ("putonplate:gpu", "putonplate"):
    env = envs.make(world, num_envs=4)
    for first in (0, 10):
        told = env.reset(options={"split": "ood", "variant": "position-change-to", "episode_ids": first + np.arange(4)})
        for _ in range(7):
            told = env.step(np.tile([0.01, 0.0, 0.01, 0.0, 0.0, 0.1, 1.0], (4, 1)))
    seen = told[0]["images"]["front"].std()
    print(np.round(told[-1]["environment_state"][:, [0, 1, 2, 13, 14, 19, 20]], 4).tolist(), seen)
    env.close()
"""


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")
def test_a_gpu_simulates_what_the_cpu_does(recorded: Path) -> None:
    done = subprocess.run([sys.executable, "-c", ON_GPU], capture_output=True, text=True)
    if "could not load PhysX's GPU library" in done.stderr:
        pytest.skip(done.stderr.splitlines()[-1])
    assert done.returncode == 0, done.stderr
    on_gpu, on_cpu = (json.loads(line.rpartition(" ")[0]) for line in done.stdout.splitlines()[-2:])
    np.testing.assert_allclose(on_gpu, on_cpu, atol=0.01)
    assert all(float(line.rpartition(" ")[2]) > 10 for line in done.stdout.splitlines()[-2:]), "pictures are drawn"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_without_a_gpu_its_simulation_does_not_start(recorded: Path) -> None:
    with pytest.raises(UserError, match="PyTorch finds none"):
        envs.make("putonplate:gpu", num_envs=4, num_workers=2).reset()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_the_processor_draws_where_vulkan_knows_no_gpu(recorded: Path) -> None:
    code = "import torch; torch.cuda.is_available = lambda: True; from rlrc.envs.maniskill.simulator import start"
    assert fresh(f"{code}; print(start())").strip() == "cpu"


def test_physx_that_cannot_be_fetched_is_told(recorded: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sapien.physx

    def unreachable() -> None:
        raise ConnectionError("no route to host")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(sapien.physx, "enable_gpu", unreachable)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    with pytest.raises(UserError, match=r"no route to host.*linux-so\.zip"):
        start_physx_on_gpu()
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    with pytest.raises(UserError, match="only on the first GPU"):
        start_physx_on_gpu()
