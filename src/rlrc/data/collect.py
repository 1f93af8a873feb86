"""The verb `collect`: a world's scripted expert shows how the task is done.

The expert's actions are executed with noise, of a strength drawn for each episode, while its clean actions are
recorded: so the demonstrations also visit states beside the expert's path and show the way back (DART, Laskey et al.,
2017, arXiv:1703.09327). Only successes are recorded, and steps at which nothing is commanded are dropped, since a
policy that sees one picture would learn to stand still from them.

Each episode is kept in a file of its own until all are played, so a run that was cut off goes on where it was.
"""

import faulthandler
import time
import zipfile
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from dataclasses import dataclass
from functools import cache
from itertools import islice
from math import ceil
from pathlib import Path
from typing import Any, Self

import numpy as np

from rlrc import envs
from rlrc.configs.collect import CollectConfig
from rlrc.data import format as fmt
from rlrc.data.lerobot import write_dataset
from rlrc.envs.workers import MAX_LOSSES, one_thread
from rlrc.errors import UserError
from rlrc.files import atomic_path
from rlrc.jobs import job_pool
from rlrc.ownership import remove_files
from rlrc.progress import bar, say
from rlrc.stats import wilson

IDLE = 0.02
"""An action that moves less than this fraction of the largest one, in every dimension, and leaves the gripper as it is,
does nothing."""

HUNG_EPISODE_S = 1800.0
"""Seconds after which an episode is taken to hang."""


@dataclass(frozen=True)
class Attempt:
    """One episode of the expert, without its idle steps."""

    instruction: str
    success: bool
    frames: dict[str, np.ndarray]
    """Arrays over steps, by feature key."""

    def save(self, path: Path) -> None:
        arrays: dict[str, Any] = {"instruction": self.instruction, "success": self.success, **self.frames}
        with atomic_path(path) as aside, aside.open("wb") as file:
            np.savez_compressed(file, **arrays)

    @classmethod
    def load(cls, path: Path, features: Sequence[str]) -> Self:
        """
        Raises:
            UserError: the file is damaged, or lacks one of the features.
        """
        try:
            with np.load(path) as arrays:
                frames = {key: arrays[key] for key in features}
                return cls(str(arrays["instruction"]), bool(arrays["success"]), frames)
        except (ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise UserError(f"{path}: no episode that can be read; delete it, and it is played again") from error


def check(config: CollectConfig) -> None:
    """Hold a config against what its world has; nothing is started.

    Raises:
        UserError: there is no such world, task or camera, or nobody has written an expert for it.
    """
    world = envs.spec(config.world)
    world.check_tasks(config.tasks)
    cameras_of(config)
    if world.expert is None:
        raise UserError(f"the world '{config.world}' has no scripted expert")


def cameras_of(config: CollectConfig) -> tuple[str, ...]:
    """The cameras to record; errors as `check`."""
    return envs.spec(config.world).cameras_of(config.cameras or None)


def features_of(config: CollectConfig) -> list[str]:
    """The feature keys of what is recorded."""
    images = [fmt.IMAGES + camera for camera in cameras_of(config)]
    return [*images, fmt.STATE, fmt.ENVIRONMENT_STATE, fmt.ACTION]


def collect(config: CollectConfig, out: Path) -> dict[str, Any]:
    """Write `out/dataset`, whole or not at all; until then `out/played` keeps the episodes that were played.

    Returns:
        How many episodes and frames were recorded, and how often the expert succeeds, with Wilson's interval.

    Raises:
        UserError: there is no such world, the expert fails more than three times out of four, or the processes that
            play keep dying.
    """
    check(config)
    started = time.monotonic()
    attempts = 0
    spec = envs.spec(config.world)
    played = out / "played"
    names = {
        fmt.ACTION: [dim.name for dim in spec.action],
        fmt.STATE: [dim.name for dim in spec.state],
        fmt.ENVIRONMENT_STATE: spec.environment_state_names,
    }
    fps = round(spec.control_hz)
    with (
        write_dataset(out / "dataset", fps, config.world, config.camera, names) as dataset,
        bar(f"expert in {config.world}", config.episodes) as progress,
        closing(_attempts(config, played)) as done,
    ):
        for attempt in done:
            attempts += 1
            if attempt.success:
                dataset.append(attempt.instruction, attempt.frames)
                progress.advance(note=f"{100 * dataset.num_episodes / attempts:.0f} % succeed")
            if dataset.num_episodes == config.episodes:
                break
            if attempts > 4 * dataset.num_episodes + 100:
                raise UserError(
                    f"the expert solved {dataset.num_episodes} of {attempts} episodes in {config.world}, too few to "
                    f"record; try less noise than {config.noise}"
                )
    remove_files(played, ("*.npz",))
    low, high = wilson(config.episodes, attempts)
    return {
        "episodes": config.episodes,
        "frames": dataset.num_frames,
        "attempts": attempts,
        "expert_success": {"rate": config.episodes / attempts, "low": low, "high": high},
        "seconds": round(time.monotonic() - started, 1),
    }


def _attempts(config: CollectConfig, played: Path) -> Generator[Attempt]:
    """Episodes in the order of `_episode_ids`, a few of them played ahead; all are kept in `played`.

    Where a process is lost all of the pool are replaced, and what was not kept yet is played again.

    Raises:
        UserError: processes were lost again and again before one more episode was done.
    """
    ids = _episode_ids(config)
    ahead, losses = deque(islice(ids, 4 * config.num_workers)), 0
    while True:
        try:
            with job_pool(config.num_workers) as pool:
                with one_thread():  # the first call starts all processes
                    pending = deque(pool.submit(_play, config, played, id_) for id_ in ahead)
                while True:
                    attempt = pending.popleft().result()
                    ahead.popleft()
                    losses = 0
                    yield attempt  # before the pool, which may have broken since, is asked for more
                    ahead.append(next(ids))
                    pending.append(pool.submit(_play, config, played, ahead[-1]))
        except BrokenProcessPool as loss:
            losses += 1
            lost = f"a process that plays episode {ahead[0]} or one soon after it died or hung"
            if losses == MAX_LOSSES:
                raise UserError(f"{lost}; this happened {losses} times in a row, so rlrc gives up") from loss
            say(f"{lost}; it was replaced, and the episodes are played again")


def _episode_ids(config: CollectConfig) -> Iterator[int]:
    """Endless ids. In a suite ten trials of a task come before those of the next, since to build another task's
    simulation takes as long as an episode."""
    spec = envs.spec(config.world)
    ids = spec.episode_ids(config.first_episode_id, config.tasks)
    num_tasks = len(config.tasks) if config.tasks else spec.num_tasks
    trials = config.episodes / num_tasks
    in_a_row = ceil(trials / ceil(trials / 10))
    while True:
        yield from sorted(islice(ids, num_tasks * in_a_row), key=lambda id_: id_ % spec.num_tasks)


@cache
def _world(name: str, image_size: int, cameras: tuple[str, ...]) -> envs.WorkerVectorEnv:
    """This process's own world, made once."""
    return envs.make(name, num_envs=1, image_size=image_size, cameras=cameras)


def _play(config: CollectConfig, played: Path, episode_id: int) -> Attempt:
    """One episode, or what was kept of it, in a process that ends itself, saying where, if it takes far too long."""
    path = played / f"{episode_id}.npz"
    if path.exists():
        return Attempt.load(path, features_of(config))
    faulthandler.dump_traceback_later(HUNG_EPISODE_S, exit=True)
    try:
        attempt = _demonstrate(config, episode_id)
    finally:
        faulthandler.cancel_dump_traceback_later()
    attempt.save(path)
    return attempt


def _demonstrate(config: CollectConfig, episode_id: int) -> Attempt:
    """One episode, until it has succeeded and the expert rests, the world ends it, or time is up."""
    world = _world(config.world, config.image_size, cameras_of(config))
    low, high = np.array(world.world_spec.action_low), np.array(world.world_spec.action_high)
    generator = np.random.default_rng([config.seed, episode_id])
    strength = generator.uniform(0, config.noise) * np.append(high[:6], 0)  # the gripper's commands stay as they are
    expert = envs.expert(config.world, num_envs=1)
    observation, info = world.reset(options={"split": "ind", "episode_ids": np.array([episode_id])})
    instruction = observation["instruction"][0]
    frames: dict[str, list[np.ndarray]] = {key: [] for key in features_of(config)}
    gripper: float | None = None
    for _ in range(world.max_episode_steps):
        action = expert.act(info["environment_state"])
        moves = (np.abs(action[0, :6]) >= IDLE * high[:6]).any() or action[0, 6] != gripper
        if info["success"][0] and not moves:
            break
        if moves:
            seen = *observation["images"].values(), observation["state"], info["environment_state"], action
            for column, values in zip(frames.values(), seen, strict=True):
                column.append(values[0])
        gripper = action[0, 6]
        noisy = action + strength * generator.standard_normal(action.shape)
        observation, _, terminated, _, info = world.step(np.clip(noisy, low, high))
        if terminated[0]:
            break
    return Attempt(instruction, bool(info["success"][0]), {key: np.stack(values) for key, values in frames.items()})
