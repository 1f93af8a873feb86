"""Policies at work: episodes from their first picture to what is recorded of them.

Several environments can take turns with a policy: while it thinks for one, the workers of the others simulate. That
gains where the two do not compete for the same cores, as with the policy on a GPU (`benchmarks/turns.py` measures it).
"""

import zlib
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from functools import partial
from math import ceil
from pathlib import Path

import numpy as np
import torch

from rlrc import envs
from rlrc.act.actor import Actor
from rlrc.act.conventions import connect
from rlrc.episodes import Episode, video_path
from rlrc.video import write_video

Play = Generator[None, None, list[Episode]]


@dataclass
class Camera:
    """Films some of the episodes of a rollout, as the policy's first camera sees them."""

    episode_ids: Sequence[int]
    frames: dict[int, list[np.ndarray]] = field(default_factory=dict)

    def start(self, images: np.ndarray, episode_ids: Sequence[int]) -> None:
        """Begin these episodes with pictures uint8 (N, H, W, 3); throw away what was seen of them before."""
        for image, id_ in zip(images, episode_ids, strict=False):
            if id_ in self.episode_ids:
                self.frames[id_] = [image.copy()]

    def see(self, images: np.ndarray, episode_ids: Sequence[int], over: np.ndarray) -> None:
        """Keep what the policy sees of the episodes to film, but for those that were `over` (N,) before."""
        for image, id_, was_over in zip(images, episode_ids, over, strict=False):
            if id_ in self.frames and not was_over:
                self.frames[id_].append(image.copy())

    def write(self, out: Path, condition: str, fps: float) -> None:
        for id_, frames in self.frames.items():
            write_video(video_path(out, condition, id_), frames, fps)


@dataclass(frozen=True)
class Conditions:
    """Conditions that all episodes of a rollout share.

    Actions that are sampled draw from one generator per episode, so that an episode goes the same way
    whatever is run beside it.
    """

    split: str
    variant: str = "main"
    temperature: float = 0.0
    seed: int = 0
    """Seed for sampled actions."""
    camera: Camera | None = None


def rollout(
    actor: Actor, env: envs.WorkerVectorEnv, episode_ids: Sequence[int], conditions: Conditions
) -> list[Episode]:
    """Act through the given episodes, `env.num_envs` at a time, and report on each."""
    return rollout_in_turns([(actor, env)], episode_ids, conditions)


def rollout_in_turns(
    actors: Sequence[tuple[Actor, envs.WorkerVectorEnv]], episode_ids: Sequence[int], conditions: Conditions
) -> list[Episode]:
    """`rollout` in several environments: while one policy thinks, the worlds of the others move."""
    episodes: list[Episode] = []
    while ids := list(episode_ids[len(episodes) :]):
        plays = []
        for actor, env in actors:
            mine, ids = ids[: env.num_envs], ids[env.num_envs :]
            if mine:
                plays.append(partial(_play, actor, env, mine, conditions))
        episodes += envs.repeat_if_lost(partial(_take_turns, plays))
    return episodes


def _take_turns(plays: Sequence[Callable[[], Play]]) -> list[Episode]:
    """Let all play, each until its worlds have begun to move, and then the next."""
    episodes: dict[int, list[Episode]] = {}
    running = {number: play() for number, play in enumerate(plays)}
    while running:
        for number, play in list(running.items()):
            try:
                next(play)
            except StopIteration as end:
                episodes[number] = end.value
                del running[number]
    return [episode for number in sorted(episodes) for episode in episodes[number]]


def _play(actor: Actor, env: envs.WorkerVectorEnv, ids: list[int], conditions: Conditions) -> Play:
    """Play at most as many episodes as there are environments. It pauses whenever these have begun to move."""
    spec = actor.spec
    interface = connect(spec, env.world_spec)
    padded = ids + [ids[-1]] * (env.num_envs - len(ids))  # the env's batch is fixed; surplus copies are dropped
    which = {"split": conditions.split, "variant": conditions.variant}
    camera = conditions.camera
    observation, info = env.reset(options={**which, "episode_ids": np.asarray(padded)})
    actor.reset()
    if camera is not None:
        camera.start(observation["images"][spec.cameras[0]], ids)
    tasks = observation["instruction"]
    noise = [_generator(actor.device, conditions, id_) for id_ in padded]
    steps: list[tuple[np.ndarray, ...]] = []
    where = list(env.world_spec.gripper)
    gripper = [info["environment_state"][:, where]]
    over = np.zeros(env.num_envs, bool)
    length = np.zeros(env.num_envs, int)
    time, waited = np.zeros(env.num_envs), False
    while not over.all():
        command = actor.act(interface.seen(observation), conditions.temperature, noise)
        env.step_async(interface.action(command.actions), command.waits, command.commanded)
        yield
        observation, reward, terminated, truncated, info = env.step_wait()
        time = np.minimum(time + 1 + command.waits / env.world_spec.ticks, env.max_episode_steps)
        waited |= bool(command.waits.any())
        steps.append((reward, info["success"].copy(), info["grasped"].copy(), time))
        gripper.append(info["environment_state"][:, where])
        if camera is not None:
            camera.see(observation["images"][spec.cameras[0]], ids, over)
        length += ~over
        over = terminated | truncated
    rewards, success, grasped, times = (np.stack(column) for column in zip(*steps, strict=True))
    positions, fps = np.stack(gripper), env.metadata["render_fps"]
    moved = [motion(positions[: length[i] + 1, i], fps) for i in range(len(ids))]
    return [
        Episode(
            policy="",
            world="",
            **which,
            episode_id=int(id_),
            seed=conditions.seed,
            success_at_end=bool(success[-1, i]),
            success_once=bool(success[:, i].any()),
            grasped=bool(grasped[:, i].any()),
            steps=ceil(times[success[:, i].argmax(), i]) if success[:, i].any() else None,
            sum_reward=float(rewards[:, i].sum()),
            max_reward=float(rewards[:, i].max()),
            path_length=float(moved[i][0]),
            jerk=None if waited else float(moved[i][1]),
            task=tasks[i],
        )
        for i, id_ in enumerate(ids)
    ]


def motion(positions: np.ndarray, fps: float) -> tuple[np.ndarray, np.ndarray]:
    """Path length in m and root mean square jerk in m/s^3, (...), of positions (T, ..., 3) in m, `fps` a second.

    Jerk is the third finite difference; without four positions it is 0.
    """
    length = np.linalg.norm(np.diff(positions, axis=0), axis=-1).sum(axis=0)
    if len(positions) < 4:
        return length, np.zeros_like(length)
    jerk = np.diff(positions, n=3, axis=0) * fps**3
    return length, np.sqrt((jerk**2).sum(axis=-1).mean(axis=0))


def _generator(device: torch.device, conditions: Conditions, episode_id: int) -> torch.Generator:
    entropy = [conditions.seed, zlib.crc32(f"{conditions.split}/{conditions.variant}".encode()), episode_id]
    state = int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0] >> np.uint64(1))
    return torch.Generator(device).manual_seed(state)
