"""The vector environment: shapes, rewards, workers that agree, die and clean up."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from multiprocessing.shared_memory import SharedMemory

import numpy as np
import pytest
from conftest import fixture_folder
from gymnasium.error import AlreadyPendingCallError, NoAsyncCallError
from safetensors.numpy import load_file

import rlrc.envs
from rlrc.envs import WorkerLost, repeat_if_lost
from rlrc.envs.vector import WorkerVectorEnv
from rlrc.envs.workers import MAX_LOSSES
from rlrc.envs.world import Reading, WorldSpec
from rlrc.errors import UserError
from rlrc.policies.dim import dims


class Counter:
    """A world without physics: it counts its steps, and dies, hangs, fails or sees success when told by the action."""

    def __init__(self, image_size: int) -> None:
        self.image_size = image_size
        self.flags = {"success": False, "grasped": False, "consecutive_grasp": False}

    def reset(self, split: str, variant: str, episode_id: int) -> Reading:
        if variant != "main":
            raise UserError(f"no variant {variant}")
        self.episode_id, self.steps = episode_id, 0
        return self.read()

    def step(self, action: np.ndarray) -> Reading:
        if action[0] == 7:
            os._exit(3)
        if action[0] == 6:
            time.sleep(1000)
        if action[0] == 4:
            time.sleep(1.1)
        if action[0] == 8:
            raise ValueError("eight")
        if action[0] == 5:
            self.flags |= {"success": True, "grasped": True}
        self.steps += 1
        return self.read()

    def read(self) -> Reading:
        state = np.array([self.episode_id, self.steps], np.float32)
        return Reading("count", state, state, **self.flags)

    def draw(self, camera: str) -> np.ndarray:
        level = self.episode_id + self.steps + 100 * SPEC.cameras.index(camera)
        return np.full((self.image_size, self.image_size, 3), level, np.uint8)


class Threads(Counter):
    """Tells by its instruction how many threads its process is to use."""

    def read(self) -> Reading:
        return replace(super().read(), instruction=os.environ["OMP_NUM_THREADS"])


SPEC = WorldSpec(
    name="counter",
    factory=Counter,
    cameras=("front", "wrist"),
    state=dims("id steps"),
    environment_state_names=("id", "steps"),
    action=dims("order b c d e f g"),
    action_low=(-9.0,) * 7,
    action_high=(9.0,) * 7,
    max_episode_steps=3,
    control_hz=5.0,
    variants={"main": "main"},
)


class Counters:
    """As many counters in one simulation."""

    def __init__(self, image_size: int, num_envs: int) -> None:
        self.worlds = [Counter(image_size) for _ in range(num_envs)]

    def reset(self, split: str, variant: str, episode_ids: Sequence[int]) -> list[Reading]:
        return [world.reset(split, variant, id_) for world, id_ in zip(self.worlds, episode_ids, strict=True)]

    def step(self, actions: np.ndarray) -> list[Reading]:
        return [world.step(action) for world, action in zip(self.worlds, actions, strict=True)]

    def draw(self, camera: str) -> np.ndarray:
        return np.stack([world.draw(camera) for world in self.worlds])

    def close(self) -> None:
        self.worlds = []


def actions(n: int, first: float = 0.0) -> np.ndarray:
    return np.full((n, 7), first, np.float32)


def only_last(n: int, first: float) -> np.ndarray:
    return np.concatenate([actions(n - 1), actions(1, first)])


@pytest.mark.parametrize("num_workers", [0, 2])
def test_environments_keep_their_order_and_end_together(num_workers: int) -> None:
    env = WorkerVectorEnv(SPEC, num_envs=3, num_workers=num_workers, image_size=16)
    observation, _ = env.reset(options={"episode_ids": [30, 10, 20]})
    np.testing.assert_array_equal(observation["state"], [[30, 0], [10, 0], [20, 0]])
    for step in (1, 2, 3):
        observation, reward, terminated, truncated, info = env.step(actions(3))
        assert truncated.tolist() == [step == 3] * 3 and not terminated.any()
        assert (
            observation["images"]["front"].shape == (3, 16, 16, 3) and observation["images"]["front"].dtype == np.uint8
        )
        assert observation["images"]["front"][:, 5, 5, 1].tolist() == [30 + step, 10 + step, 20 + step]
        assert reward.dtype == np.float32 and observation["instruction"] == ("count",) * 3
        assert {k: (v.dtype.kind, v.shape[0]) for k, v in info.items()} == {
            "success": ("b", 3),
            "grasped": ("b", 3),
            "consecutive_grasp": ("b", 3),
            "environment_state": ("f", 3),
        }
    assert env.observation_space.contains(observation)
    env.close()


@pytest.mark.parametrize("num_workers", [0, 2])
def test_where_success_ends_an_episode_its_world_stands_still(num_workers: int) -> None:
    env = WorkerVectorEnv(replace(SPEC, ends_on_success=True), num_envs=3, num_workers=num_workers, image_size=16)
    env.reset()
    _, reward, terminated, truncated, _ = env.step(only_last(3, 5))
    assert (reward > 1).tolist() == terminated.tolist() == [False, False, True] and not truncated.any()
    for _ in range(2):
        observation, reward, terminated, truncated, info = env.step(actions(3))
        assert not reward.any() and terminated.tolist() == info["success"].tolist() == [False, False, True]
    assert observation["state"].tolist() == [[0, 3], [1, 3], [2, 1]] and observation["images"]["front"][2, 0, 0, 0] == 3
    assert truncated.all()
    env.close()


@pytest.mark.parametrize("num_workers", [0, 2])
def test_some_episodes_start_anew_while_the_others_go_on(num_workers: int) -> None:
    env = WorkerVectorEnv(SPEC, num_envs=3, num_workers=num_workers, image_size=16)
    with pytest.raises(UserError, match="start all episodes before"):
        env.reset(options={"reset_mask": np.array([True, False, False])})
    env.reset(options={"episode_ids": [30, 10, 20]})
    env.step(actions(3))
    mask = np.array([False, True, False])
    observation, info = env.reset(options={"episode_ids": [1, 2, 3], "reset_mask": mask})
    np.testing.assert_array_equal(observation["state"], [[30, 1], [2, 0], [20, 1]])
    np.testing.assert_array_equal(info["environment_state"], observation["state"])
    assert observation["images"]["front"][:, 0, 0, 0].tolist() == [31, 2, 21]
    env.step(actions(3))
    observation, _, _, truncated, _ = env.step(actions(3))
    np.testing.assert_array_equal(observation["state"], [[30, 3], [2, 2], [20, 3]])
    assert truncated.tolist() == [True, False, True]
    with pytest.raises(UserError, match="need 3 bools"):
        env.reset(options={"reset_mask": np.array([1, 0, 0])})
    env.close()


def test_worker_processes_compute_on_one_thread_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    env = WorkerVectorEnv(replace(SPEC, factory=Threads), num_envs=2, num_workers=2, image_size=16)
    observation, _ = env.reset()
    assert observation["instruction"] == ("1", "1") and os.environ["OMP_NUM_THREADS"] == "2"
    env.close()


def test_a_dead_worker_is_named_and_replaced() -> None:
    env = WorkerVectorEnv(SPEC, num_envs=4, num_workers=2, image_size=16)
    env.reset()
    with pytest.raises(WorkerLost, match=r"environments 2 to 3 died \(exit code 3\)") as lost:
        env.step(only_last(4, 7))
    assert lost.value.environments == range(2, 4)
    with pytest.raises(UserError, match="reset all"):
        env.step(actions(4))
    observation, _ = env.reset(options={"episode_ids": [4, 3, 2, 1]})
    assert observation["state"].tolist() == [[4, 0], [3, 0], [2, 0], [1, 0]]
    os.kill(env._workers[0]._process.pid, signal.SIGKILL)
    with pytest.raises(WorkerLost, match=r"environments 0 to 1 died \(SIGKILL"):
        env.step(actions(4))
    processes = [worker._process for worker in env._workers]
    assert env.reset()[0]["images"]["front"][:, 0, 0, 0].tolist() == [0, 1, 2, 3]
    env.close()
    assert not any(process.is_alive() for process in processes)


def wait_less(env: WorkerVectorEnv, seconds: float) -> None:
    """Let the workers, which have started, answer within so many seconds; to start takes long on a busy machine."""
    for worker in env._workers:
        worker._spec = replace(worker._spec, answer_limit_s=seconds)


def test_a_worker_that_hangs_is_replaced() -> None:
    env = WorkerVectorEnv(SPEC, num_envs=2, num_workers=2, image_size=16)
    env.reset()
    wait_less(env, 5)
    hung = env._workers[1]._process
    with pytest.raises(WorkerLost, match="environments 1 to 1 gave no answer for 5 s"):
        env.step(only_last(2, 6))
    assert not hung.is_alive()
    wait_less(env, 300)
    env.reset()
    assert env.step(actions(2))[0]["state"][:, 1].tolist() == [1, 1]
    env.close()


def test_a_worker_with_many_slow_worlds_does_not_hang() -> None:
    env = WorkerVectorEnv(SPEC, num_envs=4, num_workers=1)
    env.reset(options={"episode_ids": np.arange(4)})
    wait_less(env, 3.5)  # each takes 1.1 s, all of them 4.4 s
    observation, *_ = env.step(actions(4, first=4))
    np.testing.assert_array_equal(observation["state"], [[0, 1], [1, 1], [2, 1], [3, 1]])
    env.close()


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_step_can_be_begun_and_waited_for(num_workers: int) -> None:
    env = WorkerVectorEnv(SPEC, num_envs=3, num_workers=num_workers, image_size=16)
    env.reset()
    with pytest.raises(NoAsyncCallError):
        env.step_wait()
    env.step_async(actions(3))
    with pytest.raises(AlreadyPendingCallError):
        env.step_async(actions(3))
    assert env.step_wait()[0]["state"][:, 1].tolist() == [1, 1, 1]
    env.step_async(actions(3))
    assert env.reset(options={"episode_ids": [7, 8, 9]})[0]["state"].tolist() == [[7, 0], [8, 0], [9, 0]]
    assert env.step(actions(3))[0]["state"][:, 1].tolist() == [1, 1, 1]
    env.close()


def test_what_was_lost_is_run_again_but_not_for_ever(capsys: pytest.CaptureFixture[str]) -> None:
    env = WorkerVectorEnv(SPEC, num_envs=2, num_workers=1, image_size=16)
    orders = iter([0, 7, 0, 0])

    def two_steps() -> list[list[float]]:
        env.reset()
        env.step(actions(2, next(orders)))
        return env.step(actions(2, next(orders)))[0]["state"].tolist()

    assert repeat_if_lost(two_steps) == [[0, 2], [1, 2]]
    assert capsys.readouterr().err.count("died (exit code 3); it was replaced") == 1
    begun = []

    def hopeless() -> None:
        begun.append(env.reset())
        env.step(actions(2, 7))

    with pytest.raises(UserError, match=f"{MAX_LOSSES} times in the same episodes"):
        repeat_if_lost(hopeless)
    assert len(begun) == MAX_LOSSES
    env.close()


def missing_simulator(image_size: int, reason: type[Exception]) -> Counter:
    raise reason("no simulator here")


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_world_that_cannot_be_made_says_why_and_is_not_tried_again(num_workers: int) -> None:
    spec = replace(SPEC, factory=partial(missing_simulator, reason=UserError))
    env = WorkerVectorEnv(spec, num_envs=2, num_workers=num_workers, image_size=16)
    with pytest.raises(UserError, match="no simulator here"):
        repeat_if_lost(env.reset)
    env.close()


@pytest.mark.parametrize("num_workers", [0, 1])
def test_without_an_image_size_nothing_is_drawn(num_workers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Counter, "draw", None)
    env = WorkerVectorEnv(SPEC, num_envs=2, num_workers=num_workers, image_size=None)
    observation, _ = env.reset()
    assert set(observation) == {"instruction", "state"} and env.observation_space.contains(observation)
    with pytest.raises(UserError, match="draws no pictures"):
        env.render()
    env.close()


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("together", [False, True])
def test_only_the_cameras_that_are_asked_for_are_drawn(
    num_workers: int, together: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = replace(SPEC, simulation=Counters if together else None)
    for cameras in (None, ["front"], ["wrist"], ["wrist", "front"]):
        env = WorkerVectorEnv(spec, num_envs=3, num_workers=num_workers, image_size=16, cameras=cameras)
        observation, _ = env.reset(options={"episode_ids": [3, 1, 2]})
        levels = {camera: images[:, 5, 5, 1].tolist() for camera, images in observation["images"].items()}
        all_levels = {"front": [3, 1, 2], "wrist": [103, 101, 102]}
        assert levels == {camera: all_levels[camera] for camera in cameras or ["front"]}
        assert list(levels) == list(cameras or ["front"]) and env.observation_space.contains(observation)
        assert [picture[0, 0, 0] for picture in env.render()] == next(iter(levels.values()))
        before = observation["images"]
        env.step(actions(3))
        assert {camera: images[:, 5, 5, 1].tolist() for camera, images in before.items()} == levels, "copies"
        env.close()


@pytest.mark.parametrize(
    ("cameras", "message"),
    [
        (["side"], "no camera 'side'"),
        ([], "no cameras ''"),
        (["front", "front"], "no cameras 'front front', each once"),
    ],
)
def test_an_unknown_camera_is_told_in_one_line(cameras: list[str], message: str) -> None:
    with pytest.raises(UserError, match=rf"^the world 'counter' has {message}.* \(its cameras: front, wrist\)$"):
        WorkerVectorEnv(SPEC, num_envs=1, image_size=16, cameras=cameras)


def test_a_failing_world_shows_its_traceback_and_the_pool_lives_on() -> None:
    env = WorkerVectorEnv(SPEC, num_envs=2, num_workers=1, image_size=16)
    env.reset()
    with pytest.raises(RuntimeError, match="ValueError: eight"):
        env.step(actions(2, 8))
    with pytest.raises(UserError, match="no variant odd"):
        env.reset(options={"variant": "odd"})
    assert env.reset()[0]["state"][1, 0] == 1
    env.close()


def test_closing_frees_the_shared_memory_and_ends_the_workers() -> None:
    env = WorkerVectorEnv(SPEC, num_envs=2, num_workers=2, image_size=16)
    name, processes = env._images.name, [worker._process for worker in env._workers]
    assert name is not None
    SharedMemory(name).close()
    env.close()
    assert not any(p.is_alive() for p in processes)
    with pytest.raises(FileNotFoundError):
        SharedMemory(name)


def test_bad_input_is_told_in_one_line() -> None:
    env = WorkerVectorEnv(SPEC, num_envs=2, image_size=16)
    env.reset()
    with pytest.raises(UserError, match=r"actions of shape \(2, 6\)"):
        env.step(np.zeros((2, 6), np.float32))
    with pytest.raises(UserError, match="NaN"):
        env.step(actions(2, np.nan))
    with pytest.raises(UserError, match="need 2 integers"):
        env.reset(options={"episode_ids": [1, 2, 3]})
    with pytest.raises(UserError, match="unknown reset options"):
        env.reset(options={"episodes": [1, 2]})
    with pytest.raises(UserError, match="known: tabletop"):
        rlrc.envs.make("moon", 1)
    with pytest.raises(UserError, match="at least 1 environment"):
        WorkerVectorEnv(SPEC, num_envs=0)


def test_reward_agrees_with_rl4vla() -> None:
    """RL4VLA's wrapper ran on random flags: 0.1 grasped + 0.1 consecutive + 1.0 success and grasped, differenced."""
    recorded = load_file(fixture_folder("rl4vla/env.safetensors"))
    grasped = recorded["reward.is_src_obj_grasped"].astype(bool)
    consecutive = recorded["reward.consecutive_grasp"].astype(bool)
    success = recorded["reward.success"].astype(bool)
    env = WorkerVectorEnv(
        SPEC, num_envs=5, image_size=16, max_episode_steps=12, reward=rlrc.envs.RewardTerms(consecutive_grasp=0.1)
    )
    env.reset()
    for t, expected in enumerate(recorded["reward.expected"][..., 0]):
        for n, world in env._workers[0]._worlds.items():
            world.flags = {"success": success[t, n], "grasped": grasped[t, n], "consecutive_grasp": consecutive[t, n]}
        _, reward, _, truncated, _ = env.step(actions(5))
        np.testing.assert_allclose(reward, expected, atol=1e-6)
    assert truncated.all()


def test_tabletop_is_the_same_in_any_number_of_processes() -> None:
    ids = [5, 3, 9]
    alone = rlrc.envs.make("tabletop", num_envs=1, image_size=48)
    pool = rlrc.envs.make("tabletop", num_envs=3, num_workers=2, image_size=48)
    expert = rlrc.envs.expert("tabletop", 3)
    start, info = pool.reset(options={"split": "ood", "variant": "multi-plate", "episode_ids": ids})
    seen, states, taken = [start["images"]["front"]], [info["environment_state"]], []
    for _ in range(6):
        taken.append(expert.act(info["environment_state"]))
        observation, _, _, _, info = pool.step(taken[-1])
        seen.append(observation["images"]["front"])
        states.append(info["environment_state"])
    pool.close()
    for n, episode_id in enumerate(ids):
        observation, info = alone.reset(options={"split": "ood", "variant": "multi-plate", "episode_ids": [episode_id]})
        for t in range(7):
            np.testing.assert_array_equal(observation["images"]["front"][0], seen[t][n])
            np.testing.assert_array_equal(info["environment_state"][0], states[t][n])
            if t < 6:
                observation, _, _, _, info = alone.step(taken[t][n : n + 1])
    alone.close()


def test_variants_by_world() -> None:
    assert rlrc.envs.spec("tabletop").variants["multi-plate"] == "semantics"


@pytest.mark.parametrize("num_workers", [0, 2])
def test_worlds_of_one_simulation_are_what_single_ones_are(num_workers: int) -> None:
    simulated = WorkerVectorEnv(replace(SPEC, simulation=Counters), num_envs=3, num_workers=num_workers, image_size=16)
    single = WorkerVectorEnv(SPEC, num_envs=3, image_size=16)
    chosen = {"episode_ids": np.array([4, 0, 9])}
    moves = [actions(3), only_last(3, 5), actions(3)]
    told = []
    for env in (simulated, single):
        seen = [env.reset(options=chosen)] + [env.step(move) for move in moves]
        told.append(seen)
        env.close()
    for ours, theirs in zip(*told, strict=True):
        assert np.array_equal(ours[0]["images"]["front"], theirs[0]["images"]["front"])
        assert np.array_equal(ours[0]["state"], theirs[0]["state"])
        assert all(np.array_equal(ours[-1][name], theirs[-1][name]) for name in ours[-1])
        assert all(np.array_equal(a, b) for a, b in zip(ours[1:-1], theirs[1:-1], strict=True))


def test_worlds_of_one_simulation_start_together_and_tell_what_fails() -> None:
    env = WorkerVectorEnv(replace(SPEC, simulation=Counters), num_envs=2, image_size=16)
    with pytest.raises(UserError, match="no variant other"):
        env.reset(options={"variant": "other"})
    env.reset()
    with pytest.raises(UserError, match="start and move together, all 2"):
        env.reset(options={"reset_mask": np.array([True, False])})
    with pytest.raises(RuntimeError, match="eight"):
        env.step(only_last(2, 8))
    env.close()
    blind = WorkerVectorEnv(replace(SPEC, simulation=Counters), num_envs=2, image_size=None)
    assert "images" not in blind.reset()[0] and blind.step(actions(2))[0]["state"].tolist() == [[0, 1], [1, 1]]
    blind.close()


def test_triton_may_be_loaded_after_a_world_has_drawn() -> None:
    """Its LLVM crashes behind Mesa's, so that worlds load it first where it is installed."""
    pytest.importorskip("triton")
    script = (
        "from rlrc import envs\n"
        "env = envs.make('tabletop', num_envs=1, num_workers=0, image_size=32)\n"
        "env.reset(options={'split': 'ind', 'variant': 'main', 'episode_ids': [0]})\n"
        "import triton\n"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
