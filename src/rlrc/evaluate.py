"""How often a policy succeeds: fixed episodes, so that any two policies can be compared pair by pair.

rlrc evaluate --policy checkpoints/tabletop-base --episodes 128 --out runs/base-eval
"""

import time
import zlib
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any, Literal, Self, get_args

import gymnasium as gym
import numpy as np
import torch
from pydantic import Field, model_validator

import rlrc
from rlrc import envs
from rlrc.cache import VlaCacheConfig, VlaCachedPolicy
from rlrc.config import Config
from rlrc.episodes import Episode, Outcome, by_condition, read_episodes, success_rate, video_path, write_episodes
from rlrc.files import write_json
from rlrc.models.policy import Policy
from rlrc.process import keep_freed_memory
from rlrc.progress import bar
from rlrc.tables import print_table
from rlrc.video import write_video

GRIPPER = slice(0, 3)
"""Where `environment_state` holds the gripper's position (x, y, z), metres."""


class EvaluateConfig(Config):
    """Measure a policy's success rates in a world."""

    policy: Path
    """The checkpoint."""
    world: str = "tabletop"
    """Where to act."""
    splits: tuple[Literal["ind", "ood"], ...] = ("ind", "ood")
    """In and out of the distribution that was demonstrated."""
    variants: tuple[str, ...] = ("main",)
    """The world's named variants; main has both splits, each of the others is out of distribution."""
    episodes: int = Field(default=128, ge=1)
    """For each condition, that is, split and variant."""
    first_episode_id: int = Field(default=0, ge=0)
    """Episode ids count up from here; equal ids are equal episodes."""
    num_envs: int = Field(default=32, ge=1)
    """Episodes run at once."""
    num_workers: int = Field(default=2, ge=0)
    """Processes that simulate them."""
    temperature: float = Field(default=0.0, ge=0)
    """0 takes the likeliest action; above it actions are sampled, with noise fixed for each episode."""
    seed: int = 0
    """Of the sampling noise."""
    vla_cache: VlaCacheConfig | None = None
    """Reuse keys and values of what does not move, from one action to the next."""
    videos: int = Field(default=4, ge=0)
    """How many episodes of each condition to film."""

    @model_validator(mode="after")
    def _known_conditions(self) -> Self:
        for variant in self.variants:
            if variant not in envs.spec(self.world).variants:
                raise ValueError(f"unknown variant '{variant}' ({', '.join(envs.spec(self.world).variants)})")
        if not self.conditions:
            raise ValueError("no condition is left: these variants have none of these splits")
        return self

    @property
    def conditions(self) -> list[tuple[str, str]]:
        """Splits and variants to run: single tasks are as much in distribution as main, which is all of them."""
        spec = envs.spec(self.world)
        splits = {name: spec.splits if kind in ("main", "task") else ("ood",) for name, kind in spec.variants.items()}
        return [(split, variant) for variant, split in product(self.variants, self.splits) if split in splits[variant]]


def evaluate(config: EvaluateConfig, out: Path) -> dict[str, Any]:
    """Run the episodes, continuing after those that `out` already holds.

    Writes `episodes.parquet` (after every batch), `eval.json`, LeRobot's `eval_info.json` and `videos/`.
    """
    started = time.monotonic()
    keep_freed_memory()
    policy = rlrc.load(config.policy, device="cuda" if torch.cuda.is_available() else "cpu")
    if config.vla_cache is not None:
        policy = VlaCachedPolicy(policy, config.vla_cache)
    env = envs.make(config.world, config.num_envs, config.num_workers, policy.image_size)
    table = out / "episodes.parquet"
    episodes = read_episodes(table) if table.exists() else []
    last_id = config.first_episode_id + config.episodes
    total = config.episodes * len(config.conditions)
    with closing(env), bar("evaluate", total, start=len(episodes)) as progress:
        for split, variant in config.conditions:
            finished = sum(episode.split == split and episode.variant == variant for episode in episodes)
            for first_id in range(config.first_episode_id + finished, last_id, config.num_envs):
                ids = range(first_id, min(first_id + config.num_envs, last_id))
                camera = Camera([id_ for id_ in ids if id_ < config.first_episode_id + config.videos])
                batch = rollout(policy, env, ids, split, variant, config.temperature, config.seed, camera)
                camera.write(out, batch[0].condition, env.metadata["render_fps"])
                episodes += [replace(episode, policy=str(config.policy), world=config.world) for episode in batch]
                write_episodes(table, episodes)
                rate = success_rate(by_condition(episodes)[batch[0].condition])
                progress.advance(len(ids), f"{batch[0].condition} {100 * rate.rate:.0f} %")
    result = {"policy": str(config.policy), "world": config.world, "conditions": summarise(episodes)}
    write_json(out / "eval.json", result)
    write_json(out / "eval_info.json", lerobot_info(episodes, out, time.monotonic() - started))
    _print(config.policy, episodes)
    return result


@dataclass
class Camera:
    """Films some of the episodes of a rollout."""

    episode_ids: Sequence[int]
    frames: dict[int, list[np.ndarray]] = field(default_factory=dict)

    def see(self, images: np.ndarray, episode_ids: Sequence[int]) -> None:
        """Keep what the policy sees, uint8 (N, H, W, 3), of the episodes to film."""
        for image, id_ in zip(images, episode_ids, strict=False):
            if id_ in self.episode_ids:
                self.frames.setdefault(id_, []).append(image.copy())

    def write(self, out: Path, condition: str, fps: float) -> None:
        for id_, frames in self.frames.items():
            write_video(video_path(out, condition, id_), frames, fps)


def rollout(
    policy: Policy,
    env: gym.vector.VectorEnv,
    episode_ids: Sequence[int],
    split: str,
    variant: str = "main",
    temperature: float = 0.0,
    seed: int = 0,
    camera: Camera | None = None,
) -> list[Episode]:
    """Act through the given episodes, `env.num_envs` at a time, and report on each.

    Sampled actions (`temperature` > 0) draw from one generator per episode, so that an episode goes the same way
    whatever is run beside it.
    """
    episodes = []
    for start in range(0, len(episode_ids), env.num_envs):
        ids = list(episode_ids[start : start + env.num_envs])
        padded = ids + [ids[-1]] * (env.num_envs - len(ids))  # the env's batch is fixed; surplus copies are dropped
        observation, info = env.reset(options={"split": split, "variant": variant, "episode_ids": np.asarray(padded)})
        policy.reset()
        noise = [_generator(policy, seed, split, variant, id_) for id_ in padded] if temperature > 0 else None
        steps: list[tuple[np.ndarray, ...]] = []
        gripper = [_gripper(info)]
        finished = False
        while not finished:
            if camera is not None:
                camera.see(observation["image"], ids)
            actions = policy.act(observation["image"], observation["instruction"], temperature, noise)
            observation, reward, terminated, truncated, info = env.step(actions)
            steps.append((reward, info["success"].copy(), info["grasped"].copy()))
            gripper.append(_gripper(info))
            finished = bool((terminated | truncated).all())
        if camera is not None:
            camera.see(observation["image"], ids)
        rewards, success, grasped = (np.stack(column) for column in zip(*steps, strict=True))
        path_length, jerk = motion(np.stack(gripper), env.metadata["render_fps"])
        episodes += [
            Episode(
                policy="",
                world="",
                split=split,
                variant=variant,
                episode_id=int(id_),
                seed=seed,
                success_at_end=bool(success[-1, i]),
                success_once=bool(success[:, i].any()),
                grasped=bool(grasped[:, i].any()),
                steps=int(success[:, i].argmax()) + 1 if success[:, i].any() else None,
                sum_reward=float(rewards[:, i].sum()),
                max_reward=float(rewards[:, i].max()),
                path_length=float(path_length[i]),
                jerk=float(jerk[i]),
            )
            for i, id_ in enumerate(ids)
        ]
    return episodes


def motion(positions: np.ndarray, fps: float) -> tuple[np.ndarray, np.ndarray]:
    """Path length (N,) in m and root mean square jerk (N,) in m/s^3 of positions (T, N, 3) in m, `fps` a second.

    Jerk is the third finite difference; without four positions it is 0.
    """
    length = np.linalg.norm(np.diff(positions, axis=0), axis=-1).sum(axis=0)
    if len(positions) < 4:
        return length, np.zeros_like(length)
    jerk = np.diff(positions, n=3, axis=0) * fps**3
    return length, np.sqrt((jerk**2).sum(axis=-1).mean(axis=0))


def summarise(episodes: Sequence[Episode]) -> dict[str, dict[str, Any]]:
    """By condition: n, the rates with their intervals, and the mean motion."""
    return {
        condition: {
            "n": len(group),
            "success_at_end": asdict(success_rate(group, "success_at_end")),
            "success_once": asdict(success_rate(group, "success_once")),
            "grasped": asdict(success_rate(group, "grasped")),
            "mean_path_length_m": float(np.mean([episode.path_length for episode in group])),
            "mean_jerk_m_s3": float(np.mean([episode.jerk for episode in group])),
        }
        for condition, group in by_condition(episodes).items()
    }


def lerobot_info(episodes: Sequence[Episode], out: Path, seconds: float) -> dict[str, Any]:
    """`eval_info.json` as `lerobot-eval` writes it: a task group for each condition, with one task in it.

    There as here `pc_success` counts an episode that succeeded at any step.
    """

    def aggregate(group: Sequence[Episode]) -> dict[str, Any]:
        films = (video_path(out, episode.condition, episode.episode_id) for episode in group)
        return {
            "avg_sum_reward": float(np.mean([episode.sum_reward for episode in group])),
            "avg_max_reward": float(np.mean([episode.max_reward for episode in group])),
            "pc_success": 100 * success_rate(group, "success_once").rate,
            "n_episodes": len(group),
            "video_paths": [str(film) for film in films if film.exists()],
        }

    groups = by_condition(episodes)
    aggregated = {condition: aggregate(group) for condition, group in groups.items()}
    per_task = [
        {
            "task_group": condition,
            "task_id": 0,
            "metrics": {
                "sum_rewards": [episode.sum_reward for episode in group],
                "max_rewards": [episode.max_reward for episode in group],
                "successes": [episode.success_once for episode in group],
                "video_paths": aggregated[condition]["video_paths"],
            },
        }
        for condition, group in groups.items()
    ]
    overall = aggregate(episodes) | {"eval_s": seconds, "eval_ep_s": seconds / len(episodes)}
    return {"per_task": per_task, "per_group": aggregated, "overall": overall}


def _gripper(info: dict[str, Any]) -> np.ndarray:
    position: np.ndarray = info["environment_state"][:, GRIPPER].copy()
    return position


def _generator(policy: Policy, seed: int, split: str, variant: str, episode_id: int) -> torch.Generator:
    entropy = [seed, zlib.crc32(f"{split}/{variant}".encode()), episode_id]
    state = int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0] >> np.uint64(1))
    return torch.Generator(policy.device).manual_seed(state)


def _print(policy: Path, episodes: Sequence[Episode]) -> None:
    rows = [
        [condition, str(len(group)), *(str(success_rate(group, outcome)) for outcome in get_args(Outcome))]
        for condition, group in by_condition(episodes).items()
    ]
    print_table(f"{policy}: 95 % intervals", ["condition", "n", "success at end", "success once", "grasped"], rows)
