"""Demonstrations of the real world's expert: right pictures beside right actions, the same however they are made."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, Self

import numpy as np
import psutil
import pytest
from lost_players import LOST_ONCE, always_die, play_or_die, play_or_hang

from rlrc import envs
from rlrc.data import Demonstrations
from rlrc.data import collect as module
from rlrc.data.collect import IDLE, CollectConfig, collect
from rlrc.data.samples import observe
from rlrc.envs.tabletop import SPEC
from rlrc.errors import UserError
from rlrc.pixels import resize
from rlrc.policies.contract import Policy

CONFIG = CollectConfig(episodes=4, first_episode_id=500, noise=0.15, image_size=64, num_workers=1)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Demonstrations]:
    out = tmp_path_factory.mktemp("collect")
    return collect(CONFIG, out), Demonstrations.load(out / "dataset")


def test_it_tells_what_it_recorded(recorded: tuple[dict[str, Any], Demonstrations]) -> None:
    result, demonstrations = recorded
    assert result["episodes"] == demonstrations.num_episodes == 4
    assert result["frames"] == len(demonstrations)
    success = result["expert_success"]
    assert success["rate"] == 4 / result["attempts"]
    assert 0 < success["low"] <= success["rate"] <= success["high"] <= 1
    assert demonstrations.images.shape[1:] == (64, 64, 3)
    assert all(task.startswith("put ") for task in demonstrations.tasks)


def test_the_clean_action_of_each_state_is_recorded(recorded: tuple[dict[str, Any], Demonstrations]) -> None:
    _, demonstrations = recorded
    expert = envs.expert("tabletop", len(demonstrations))
    assert demonstrations.environment_state is not None
    np.testing.assert_allclose(expert.act(demonstrations.environment_state), demonstrations.actions, atol=1e-5)


def test_the_first_frame_is_that_of_its_episode(recorded: tuple[dict[str, Any], Demonstrations]) -> None:
    result, demonstrations = recorded
    if result["attempts"] > 4:
        pytest.fail("the expert failed one of these episodes: choose a first_episode_id where it does not")
    world = envs.make("tabletop", num_envs=4, image_size=64)
    observation, _ = world.reset(options={"episode_ids": np.arange(500, 504)})
    world.close()
    first = [int(np.argmax(demonstrations.episode_index == episode)) for episode in range(4)]
    np.testing.assert_array_equal(demonstrations.images[first], observation["images"]["front"])
    np.testing.assert_allclose(demonstrations.state[first], observation["state"], atol=1e-6)
    assert tuple(demonstrations.instruction(index) for index in first) == observation["instruction"]


def test_idle_steps_are_dropped(recorded: tuple[dict[str, Any], Demonstrations]) -> None:
    _, demonstrations = recorded
    largest = np.array(SPEC.action_high)[:6]
    for episode in range(4):
        actions = demonstrations.actions[demonstrations.episode_index == episode]
        moves = (np.abs(actions[:, :6]) >= IDLE * largest).any(1)
        turns = np.append(True, actions[1:, 6] != actions[:-1, 6])
        assert (moves | turns).all()
        assert {-1.0, 1.0} == set(actions[:, 6]), "it closes and opens the gripper"


def test_the_dataset_depends_on_the_config_alone(
    recorded: tuple[dict[str, Any], Demonstrations], tmp_path: Path
) -> None:
    collect(CONFIG.model_copy(update={"num_workers": 2}), tmp_path)
    assert Demonstrations.load(tmp_path / "dataset").sha256 == recorded[1].sha256


def test_every_camera_that_is_asked_for_is_recorded(
    recorded: tuple[dict[str, Any], Demonstrations], tmp_path: Path, tiny_policy: Policy
) -> None:
    """And reaches a policy of two cameras by its name: from the world to the batch that is learnt from."""
    config = CONFIG.model_copy(update={"episodes": 2, "cameras": ("wrist", "front")})
    collect(config, tmp_path)
    demonstrations, before = Demonstrations.load(tmp_path / "dataset"), recorded[1]
    front, wrist = "observation.images.front", "observation.images.wrist"
    assert list(demonstrations.pictures) == [wrist, front] and list(before.pictures) == [front]
    rows = np.arange(len(demonstrations))
    pictures = {key: dict(one.decode(rows)) for key, one in demonstrations.pictures.items()}
    for row in rows:
        np.testing.assert_array_equal(pictures[front][row], before.images[row])
    np.testing.assert_array_equal(demonstrations.actions, before.actions[: len(rows)])

    world = envs.make("tabletop", num_envs=2, image_size=64, cameras=["wrist"])
    observation, _ = world.reset(options={"episode_ids": np.arange(500, 502)})
    world.close()
    first = [int(np.argmax(demonstrations.episode_index == episode)) for episode in range(2)]
    for row, image in zip(first, observation["images"]["wrist"], strict=True):
        np.testing.assert_array_equal(pictures[wrist][row], image)

    tiny_policy.spec = replace(tiny_policy.spec, cameras=("front", "wrist"), state=SPEC.state)
    seen = observe(demonstrations, rows[3:6], tiny_policy)
    size = tiny_policy.frame_size
    assert size is not None and list(seen.images) == ["front", "wrist"]
    for camera, key in (("front", front), ("wrist", wrist)):
        expected = np.stack([resize(pictures[key][row], size) for row in rows[3:6]])
        np.testing.assert_array_equal(seen.images[camera], expected)
    assert seen.state is not None and demonstrations.state is not None
    np.testing.assert_array_equal(seen.state, demonstrations.state[3:6])


def test_an_expert_that_fails_ends_the_recording(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failures(*_: object) -> Iterator[module.Attempt]:
        while True:
            yield module.Attempt("put carrot on plate", False, {})

    monkeypatch.setattr(module, "_attempts", failures)
    with pytest.raises(UserError, match="solved 0 of 101 episodes"):
        collect(CONFIG, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("play", [play_or_die, play_or_hang])
def test_a_lost_process_costs_nothing_but_time(
    play: Callable,
    recorded: tuple[dict[str, Any], Demonstrations],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv(LOST_ONCE, str(tmp_path / "lost"))
    monkeypatch.setattr(module, "_play", play)
    result = collect(CONFIG, tmp_path)
    assert (tmp_path / "lost").exists()
    assert Demonstrations.load(tmp_path / "dataset").sha256 == recorded[1].sha256
    assert result["attempts"] == recorded[0]["attempts"]
    assert capsys.readouterr().err.count("died or hung; it was replaced") == 1


class BreaksOnce:
    """A pool that plays at once; the first one is found broken when it is given its tenth episode."""

    made = 0

    def __init__(self, *_: object, **__: object) -> None:
        BreaksOnce.made += 1
        self.left = 9 if BreaksOnce.made == 1 else 1000

    def submit(self, play: Callable, config: CollectConfig, played: Path, episode_id: int) -> Future:
        self.left -= 1
        if self.left < 0:
            raise BrokenProcessPool
        future: Future = Future()
        future.set_result(episode_id)
        return future

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing to end."""


def test_a_pool_that_breaks_between_two_episodes_loses_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    suite = replace(envs.spec("tabletop"), num_tasks=4)
    monkeypatch.setattr("rlrc.envs.spec", lambda world: suite)
    monkeypatch.setattr(module, "job_pool", BreaksOnce)
    config = CONFIG.model_copy(update={"tasks": (1, 2)})
    done = list(islice(module._attempts(config, tmp_path), 20))
    assert done == list(islice(module._episode_ids(config), 20))
    assert sorted(done) == [id_ for id_ in range(500, 540) if id_ % 4 in (1, 2)]
    assert BreaksOnce.made == 2


@pytest.mark.parametrize(
    ("episodes", "tasks", "order"),
    [
        (2, (1, 2), [501, 502, 505, 506]),
        (40, (1, 2), [*range(501, 541, 4), *range(502, 542, 4), *range(541, 581, 4), *range(542, 582, 4)]),
        (24, (2, 3), [*range(502, 526, 4), *range(503, 527, 4), *range(526, 550, 4), *range(527, 551, 4)]),
        (12, None, [500, 504, 508, 501, 505, 509, 502, 506, 510, 503, 507, 511]),
    ],
)
def test_a_suites_tasks_are_shown_evenly_with_few_changes(
    episodes: int, tasks: tuple[int, ...] | None, order: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rlrc.envs.spec", lambda world: replace(SPEC, num_tasks=4))
    ids = module._episode_ids(CONFIG.model_copy(update={"episodes": episodes, "tasks": tasks}))
    assert list(islice(ids, len(order))) == order


def test_processes_that_keep_dying_end_the_recording(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_play", always_die)
    with pytest.raises(
        UserError, match="episode 500 or one soon after it died or hung; this happened 3 times in a row"
    ):
        collect(CONFIG, tmp_path)
    assert not list(tmp_path.iterdir())


def test_an_unknown_camera_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"the world 'tabletop' has no camera 'side' \(its cameras: front, wrist\)"):
        collect(CONFIG.model_copy(update={"cameras": ("side",)}), tmp_path)
    assert not list(tmp_path.iterdir())


def test_an_unknown_world_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="unknown world 'moon'"):
        collect(CONFIG.model_copy(update={"world": "moon"}), tmp_path)


def test_a_killed_run_leaves_no_process_and_goes_on_where_it_was(
    recorded: tuple[dict[str, Any], Demonstrations], tmp_path: Path
) -> None:
    config, out = CONFIG.model_copy(update={"episodes": 12}), tmp_path / "out"
    script = (
        "from pathlib import Path\n"
        "from rlrc.data.collect import CollectConfig, collect\n"
        f"if __name__ == '__main__': collect(CollectConfig(**{config.model_dump()!r}), Path({str(out)!r}))\n"
    )
    (tmp_path / "run.py").write_text(script)
    run = subprocess.Popen([sys.executable, tmp_path / "run.py"], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while len(list(out.glob("played/*.npz"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.02)
    workers = psutil.Process(run.pid).children(recursive=True)
    assert workers
    os.kill(run.pid, signal.SIGKILL)
    run.wait()
    _, alive = psutil.wait_procs(workers, timeout=20)
    assert not alive
    assert not (out / "dataset").exists()

    first = out / "played" / "500.npz"
    replace(module.Attempt.load(first, module.features_of(config)), instruction="put what was kept on plate").save(
        first
    )
    collect(config, out)
    resumed, before = Demonstrations.load(out / "dataset"), recorded[1]
    assert resumed.instruction(0) == "put what was kept on plate", "it is read, not played again"
    np.testing.assert_array_equal(resumed.images[: len(before)], before.images)
    np.testing.assert_array_equal(resumed.actions[: len(before)], before.actions)
    assert [path.name for path in out.iterdir()] == ["dataset"]
