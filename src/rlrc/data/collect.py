"""The verb `collect`: a world's scripted expert shows how the task is done.

The expert's actions are executed with noise, of a strength drawn for each episode, while its clean actions are
recorded: so the demonstrations also visit states beside the expert's path and show the way back (DART, Laskey et al.,
2017, arXiv:1703.09327). Only successes are kept, and steps at which nothing is commanded are dropped, since a policy
that sees one picture would learn to stand still from them.
"""

import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from rlrc import envs
from rlrc.config import Config
from rlrc.data import format as fmt
from rlrc.data.lerobot import CameraDtype, write_dataset
from rlrc.errors import UserError
from rlrc.progress import bar
from rlrc.stats import wilson

FEATURES = (fmt.FRONT_IMAGE, fmt.STATE, fmt.ENVIRONMENT_STATE, fmt.ACTION)
ACTION_NAMES = ("x", "y", "z", "roll", "pitch", "yaw", "gripper")

IDLE = 0.02
"""An action that moves less than this fraction of the largest one, in every dimension, and leaves the gripper as it is,
does nothing."""


class CollectConfig(Config):
    """Record demonstrations of a scripted expert."""

    world: str = "tabletop"
    """The world to record in."""
    episodes: int = Field(default=3000, ge=1)
    """Successful episodes to record."""
    first_episode_id: int = Field(default=0, ge=0)
    """Episodes are tried from this id on."""
    noise: float = Field(default=0.2, ge=0)
    """Execution noise: the standard deviation, as a fraction of the largest action, is drawn up to this."""
    camera: CameraDtype = "image"
    """Store pictures without loss, or as video, which is smaller."""
    image_size: int = Field(default=96, ge=16)
    """Side of the pictures in pixels."""
    num_envs: int = Field(default=32, ge=1)
    """Environments stepped together; the result does not depend on it."""
    num_workers: int = Field(default=2, ge=0)
    """Processes that step them; the result does not depend on it."""
    seed: int = Field(default=0, ge=0)
    """Of the execution noise."""


@dataclass(frozen=True)
class Attempt:
    """One episode of the expert, without its idle steps."""

    instruction: str
    success: bool
    frames: dict[str, np.ndarray]


def collect(config: CollectConfig, out: Path) -> dict[str, Any]:
    """Write `out/dataset`, whole or not at all: a run that was cut off starts again.

    Returns:
        How many episodes and frames were recorded, and how often the expert succeeds, with Wilson's interval.

    Raises:
        UserError: there is no such world, or the expert fails more than three times out of four.
    """
    started = time.monotonic()
    attempts = 0
    with closing(envs.make(config.world, config.num_envs, config.num_workers, config.image_size)) as env:
        spec = env.world_spec
        names = {
            fmt.ACTION: ACTION_NAMES,
            fmt.STATE: spec.state_names,
            fmt.ENVIRONMENT_STATE: spec.environment_state_names,
        }
        with (
            write_dataset(out / "dataset", round(spec.control_hz), config.world, config.camera, names) as dataset,
            bar(f"expert in {config.world}", config.episodes) as progress,
        ):
            for attempt in _attempts(env, config):
                attempts += 1
                if attempt.success:
                    dataset.append(attempt.instruction, attempt.frames)
                    progress.advance(note=f"{100 * dataset.num_episodes / attempts:.0f} % succeed")
                if dataset.num_episodes == config.episodes:
                    break
                if attempts > 4 * dataset.num_episodes + 100:
                    raise UserError(
                        f"the expert solved {dataset.num_episodes} of {attempts} episodes in {config.world}, too few to"
                        f" record; try less noise than {config.noise}"
                    )
    low, high = wilson(config.episodes, attempts)
    return {
        "episodes": config.episodes,
        "frames": dataset.num_frames,
        "attempts": attempts,
        "expert_success": {"rate": config.episodes / attempts, "low": low, "high": high},
        "seconds": round(time.monotonic() - started, 1),
    }


def _attempts(env: envs.WorkerVectorEnv, config: CollectConfig) -> Iterator[Attempt]:
    """Episodes in the order of their ids, without end."""
    expert = envs.expert(config.world, config.num_envs)
    for first in count(config.first_episode_id, config.num_envs):
        yield from _roll_out(env, expert, config, np.arange(first, first + config.num_envs))


def _roll_out(
    env: envs.WorkerVectorEnv, expert: envs.Expert, config: CollectConfig, episode_ids: np.ndarray
) -> Iterator[Attempt]:
    """One episode in each environment, until all have succeeded and their experts rest, or time is up."""
    low, high = np.array(env.world_spec.action_low), np.array(env.world_spec.action_high)
    noise = np.stack([_noise(config, int(number), env.max_episode_steps, high) for number in episode_ids], axis=1)
    observation, info = env.reset(options={"split": "ind", "episode_ids": episode_ids})
    instructions = observation["instruction"]
    frames: dict[str, list[np.ndarray]] = {key: [] for key in FEATURES}
    idle = np.zeros(noise.shape[:2], bool)
    length = np.full(len(episode_ids), len(noise))
    for step, disturbance in enumerate(noise):
        action = expert.act(info["environment_state"])
        gripper = frames[fmt.ACTION][-1][:, 6] if step else action[:, 6]
        idle[step] = (np.abs(action[:, :6]) < IDLE * high[:6]).all(1) & (action[:, 6] == gripper)
        length = np.where(idle[step] & info["success"], np.minimum(length, step), length)
        if (length <= step).all():
            break
        seen = (observation["image"], observation["state"], info["environment_state"], action)
        for key, values in zip(FEATURES, seen, strict=True):
            frames[key].append(values)
        observation, _, _, _, info = env.step(np.clip(action + disturbance, low, high))
    success = (length < len(noise)) | info["success"]
    for index, instruction in enumerate(instructions):
        kept = np.flatnonzero(~idle[: length[index], index])
        episode = {key: np.stack([values[step][index] for step in kept]) for key, values in frames.items()}
        yield Attempt(instruction, bool(success[index]), episode)


def _noise(config: CollectConfig, episode_id: int, steps: int, high: np.ndarray) -> np.ndarray:
    """What is added to an episode's actions (steps, 7); the gripper's stay as they are."""
    generator = np.random.default_rng([config.seed, episode_id])
    noise = generator.uniform(0, config.noise) * high * generator.standard_normal((steps, 7))
    noise[:, 6] = 0
    return noise
