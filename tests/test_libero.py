"""LIBERO's worlds against LIBERO's own wrapper: states, actions, pictures, success; and the expert in them."""

import weakref
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
from command import rlrc

from rlrc import envs
from rlrc.configs.make_random import MakeRandomConfig
from rlrc.envs.libero import SUITES, check_assets
from rlrc.envs.libero.tasks import Goal, tasks
from rlrc.envs.libero.world import CAMERAS, ENVIRONMENT_STATE, STATE, Libero, axis_angle
from rlrc.envs.vector import Reading
from rlrc.episode_ids import FIRST_CURVE_EPISODE
from rlrc.episodes import read_episodes
from rlrc.errors import UserError
from rlrc.policies.make_random import make_random

if missing := check_assets():
    pytest.skip(f"LIBERO is not installed: {missing[0]}", allow_module_level=True)

OPEN, CLOSED = 1.0, 0.0
STILL = np.array([0, 0, 0, 0, 0, 0, OPEN], np.float32)


@pytest.fixture(scope="module")
def world() -> Libero:
    """The fast world of the suite libero_spatial, with pictures of 256 px."""
    return Libero("libero_spatial", fast=True, image_size=256)


def random_actions(count: int) -> np.ndarray:
    """Motions in [-1, 1], the gripper in [0, 1]."""
    actions = np.random.default_rng(0).uniform(-1, 1, (count, 7)).astype(np.float32)
    actions[:, 6] = actions[:, 6] > 0
    return actions


def play(world: Libero, variant: str, episode_id: int, actions: np.ndarray) -> list[Reading]:
    return [world.reset("ind", variant, episode_id), *(world.step(action) for action in actions)]


def test_every_task_has_its_files() -> None:
    for name, suite in SUITES.items():
        assert len(tasks(name)) == suite.tasks
        for task in tasks(name):
            assert task.initial_states().shape[0] == 50
            assert 1 <= len(task.goals) <= 3


def test_instructions_and_goals_are_read_from_the_files() -> None:
    long = tasks("libero_10")
    assert long[2].instruction == "turn on the stove and put the moka pot on it"
    assert long[2].goals == (Goal("turnon", "flat_stove_1"), Goal("on", "moka_pot_1", "flat_stove_1_cook_region"))
    assert tasks("libero_90")[0].instruction == "close the top drawer of the cabinet"  # of KITCHEN_SCENE10


def upstream_trials(actions: np.ndarray) -> list[dict[str, np.ndarray]]:
    """Trials 0 and 1 of the suite's first task as OpenVLA's evaluation plays them, with LIBERO's wrapper."""
    from libero.libero.envs import OffScreenRenderEnv

    task = tasks("libero_spatial")[0]
    env = OffScreenRenderEnv(bddl_file_name=str(task.bddl), camera_heights=256, camera_widths=256)
    env.seed(0)
    trials = []
    for state in task.initial_states()[:2]:
        env.reset()
        env.set_init_state(state)
        for _ in range(10):
            env.step([0, 0, 0, 0, 0, 0, -1])
        for action in actions:
            gripper = -np.sign(2 * action[6] - 1)  # as that evaluation normalises and inverts it
            observation, *_ = env.step(np.append(action[:6], gripper).astype(np.float64))
        picture = env.sim.render(width=256, height=256, camera_name="agentview")
        wrist = env.sim.render(width=256, height=256, camera_name="robot0_eye_in_hand")
        trials.append({**observation, "qpos": env.sim.data.qpos.copy(), "picture": picture, "wrist": wrist})
    return trials


def test_official_episodes_are_those_of_openvlas_evaluation() -> None:
    """Hard resets there and soft ones here: states and pictures are the same bit for bit."""
    actions = random_actions(5)
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:  # robosuite ends OpenGL for its whole process
        theirs = pool.submit(upstream_trials, actions).result()
    official = Libero("libero_spatial", fast=False, image_size=256)
    for trial, expected in enumerate(theirs):
        reading = play(official, "main", 10 * trial, actions)[-1]
        simulation = official._simulation
        np.testing.assert_array_equal(simulation.data.qpos, expected["qpos"])
        picture = official._painter_of(simulation).draw(simulation.data, "agentview")
        np.testing.assert_array_equal(picture, expected["picture"])
        wrist = official._painter_of(simulation).draw(simulation.data, "robot0_eye_in_hand")
        np.testing.assert_array_equal(wrist, expected["wrist"])
        # What they tell a policy was measured and drawn up to a substep (2 ms) earlier.
        assert np.abs(picture.astype(int) - expected["agentview_image"]).mean() < 1
        np.testing.assert_allclose(reading.state[:3], expected["robot0_eef_pos"], atol=2e-3)
        np.testing.assert_allclose(reading.state[3:6], axis_angle(np.roll(expected["robot0_eef_quat"], 1)), atol=2e-2)
        np.testing.assert_allclose(reading.state[6:], expected["robot0_gripper_qpos"], atol=2e-3)


def upstream_draw(seed: int) -> np.ndarray:
    """Joint positions after LIBERO's own wrapper has drawn and settled the suite's task of the bowl on the stove."""
    from libero.libero.envs import OffScreenRenderEnv

    env = OffScreenRenderEnv(bddl_file_name=str(tasks("libero_spatial")[7].bddl), camera_heights=64, camera_widths=64)
    np.random.seed([7, seed])  # noqa: NPY002
    env.reset()
    for _ in range(10):
        env.step([0, 0, 0, 0, 0, 0, -1])
    positions: np.ndarray = env.sim.data.qpos.copy()
    return positions


def test_drawn_episodes_are_those_of_a_model_built_anew(world: Libero) -> None:
    """Things on a fixture stand on it, wherever the draw before has put it."""
    seed = FIRST_CURVE_EPISODE + 17  # of the task of the bowl on the stove
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        theirs = pool.submit(upstream_draw, seed).result()
    world.reset("ind", "main", seed + 10)
    world.reset("ind", "main", seed)
    assert world._simulation is not None
    np.testing.assert_array_equal(world._simulation.data.qpos, theirs)


def test_fast_worlds_differ_in_pictures_alone(world: Libero) -> None:
    official = Libero("libero_spatial", fast=False, image_size=256)
    actions = random_actions(10)
    theirs, ours = (play(w, "main", 30, actions) for w in (official, world))
    for one, other in zip(theirs, ours, strict=True):
        np.testing.assert_array_equal(one.environment_state, other.environment_state)
    difference = np.abs(official.draw("front").astype(int) - world.draw("front")).mean()
    assert 0 < difference < 6, "mean over pixels of 0 to 255"


@pytest.mark.parametrize("camera", CAMERAS)
def test_pictures_are_turned_by_half_a_turn_and_only_a_little_changed_by_jpeg(world: Libero, camera: str) -> None:
    world.reset("ind", "main", 0)
    raw = world._painter_of(world._simulation).draw(world._simulation.data, CAMERAS[camera])
    turned = np.rot90(raw, 2).astype(int)
    seen = world.draw(camera)
    assert seen.shape == (256, 256, 3)
    assert np.abs(seen - turned).mean() < 3
    assert np.abs(seen - raw.astype(int)).mean() > (20 if camera == "front" else 5)


def test_the_wrist_camera_moves_with_the_hand(world: Libero) -> None:
    up = np.tile(np.array([0, 0, 0.5, 0, 0, 0, OPEN], np.float32), (8, 1))
    world.reset("ind", "main", 0)
    before = {camera: world.draw(camera).astype(int) for camera in CAMERAS}
    play(world, "main", 0, up)
    changed = {camera: np.abs(world.draw(camera) - before[camera]).mean() for camera in CAMERAS}
    assert changed["wrist"] > 2 * changed["front"] > 0


def test_equal_ids_are_equal_episodes_whatever_came_before(world: Libero) -> None:
    actions = random_actions(5)
    for episode_id in (30, FIRST_CURVE_EPISODE + 30):
        first = play(world, "main", episode_id, actions)[-1]
        np.random.default_rng(1)
        play(world, "main", episode_id + 10, actions[:2])
        again = play(world, "main", episode_id, actions)[-1]
        np.testing.assert_array_equal(first.environment_state, again.environment_state)


def test_drawn_episodes_differ_from_each_other_and_from_official_ones(world: Libero) -> None:
    bowl = slice(ENVIRONMENT_STATE.index("goal0_subject_x"), ENVIRONMENT_STATE.index("goal0_subject_x") + 2)
    ids = [*range(0, 50, 10), *range(1_000_000, 1_000_050, 10)]
    positions = [world.reset("ind", "main", episode_id).environment_state[bowl] for episode_id in ids]
    assert len(np.unique(np.round(positions, 5), axis=0)) == len(ids)


def test_main_plays_each_task_in_turn(world: Libero) -> None:
    reading = world.reset("ind", "main", 11)
    assert reading.instruction == tasks("libero_spatial")[1].instruction
    assert reading.environment_state[ENVIRONMENT_STATE.index("task")] == 1


def test_only_one_task_is_kept_in_memory(world: Libero) -> None:
    world.reset("ind", "main", 0)
    assert world._simulation is not None
    first = weakref.ref(world._simulation.env)
    world.reset("ind", "main", 1)
    assert first() is None


@pytest.mark.parametrize(
    ("split", "variant", "episode_id", "message"),
    [
        ("ood", "main", 0, "not 'ood' of 'main'"),
        ("ind", "vision", 0, "not 'ind' of 'vision'"),
        ("ind", "main", 500, "50 official initial states"),
    ],
)
def test_an_unknown_episode_is_an_error(world: Libero, split: str, variant: str, episode_id: int, message: str) -> None:
    with pytest.raises(UserError, match=message):
        world.reset(split, variant, episode_id)


def test_one_opens_the_gripper_and_zero_closes_it(world: Libero) -> None:
    opening = ENVIRONMENT_STATE.index("opening")
    start = world.reset("ind", "main", 0)
    closed = play(world, "main", 0, np.tile([0, 0, 0, 0, 0, 0, CLOSED], (15, 1)).astype(np.float32))[-1]
    opened = play(world, "main", 0, np.tile(STILL, (15, 1)))[-1]
    assert start.environment_state[opening] > 0.07
    assert closed.environment_state[opening] < 0.01
    assert opened.environment_state[opening] > 0.07


def test_actions_move_the_hand_along_the_robots_axes(world: Libero) -> None:
    for axis in range(3):
        action = np.tile(STILL, (5, 1))
        action[:, axis] = 0.5
        first, *_, last = play(world, "main", 0, action)
        moved = last.state[:3] - first.state[:3]
        assert moved[axis] > 0.02
        assert np.abs(np.delete(moved, axis)).max() < 0.01


def test_the_expert_puts_the_bowl_on_the_plate(world: Libero) -> None:
    reading = world.reset("ind", "main", 0)
    assert not (reading.success or reading.grasped)
    expert = envs.expert("libero_spatial:fast", 1)
    assert world._simulation is not None
    domain, things = world._simulation.env, ("akita_black_bowl_1", "akita_black_bowl_2", "plate_1", "flat_stove_1")
    after_success = 0
    for _ in range(envs.spec("libero_spatial").max_episode_steps):
        reading = world.step(expert.act(reading.environment_state[None])[0])
        for thing in things:
            upstream = domain._check_grasp(domain.robots[0].gripper, domain.get_object(thing))
            assert world._simulation.holds(thing) == upstream
        after_success += reading.success
        if after_success == 20:
            break
    assert reading.success
    assert reading.grasped
    assert reading.consecutive_grasp
    subject, target = (ENVIRONMENT_STATE.index(f"goal0_{name}_x") for name in ("subject", "target"))
    away = reading.environment_state[subject : subject + 2] - reading.environment_state[target : target + 2]
    assert np.linalg.norm(away) < 0.03
    # It rests once it is done.
    np.testing.assert_array_equal(expert.act(reading.environment_state[None])[0], STILL)


@pytest.mark.timeout(900)
def test_a_random_policy_is_evaluated_as_openvla_is(tmp_path: Path) -> None:
    """Published layout, official pictures, centre crop: the beginning of an episode by the command."""
    make_random(MakeRandomConfig(preset="openvla-tiny"), tmp_path / "policy")
    where = "--world", "libero_spatial", "--episodes", 1, "--num-envs", 1, "--num-workers", 0, "--center-crop"
    asked = "--policy", tmp_path / "policy", *where, "--temperature", 0.6, "--videos", 0
    rlrc("evaluate", *asked, "--out", tmp_path / "out", max_episode_steps=10)
    (episode,) = read_episodes(tmp_path / "out" / "episodes.parquet")
    assert (episode.world, episode.task) == ("libero_spatial", tasks("libero_spatial")[0].instruction)
    assert episode.path_length > 0 and not episode.success_once


def test_the_vector_environment_runs_it_in_a_worker() -> None:
    env = envs.make("libero_spatial:fast", num_envs=1, num_workers=1, image_size=64, cameras=["front", "wrist"])
    observation, info = env.reset(options={"split": "ind", "episode_ids": np.array([2])})
    for images in observation["images"].values():
        assert images.shape == (1, 64, 64, 3)
        assert images.std() > 20
    assert list(observation["images"]) == ["front", "wrist"]
    assert observation["state"].shape == (1, len(STATE))
    _, reward, *_, info = env.step(STILL[None])
    assert not info["success"].any()
    assert reward == 0
    env.close()
