"""Measure how often a policy succeeds, on fixed episodes, so that any two policies can be compared pair by pair.

rlrc evaluate --policy checkpoints/tabletop-base --episodes 128 --out runs/base-eval

With a dataset in place of a world, the actions are compared with those of demonstrations (see `action_error.py`).
"""

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from itertools import islice, product
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np

from rlrc import envs
from rlrc.act import realtime
from rlrc.act.action_error import action_error
from rlrc.act.actor import Actor, Chunked, Plain, Thinker
from rlrc.act.conventions import connect
from rlrc.act.rollouts import Camera, Conditions, rollout_in_turns
from rlrc.configs.evaluate import EvaluateConfig
from rlrc.data.demonstrations import Demonstrations
from rlrc.episodes import (
    Episode,
    Outcome,
    by_condition,
    by_task,
    read_episodes,
    success_rate,
    video_path,
    write_episodes,
)
from rlrc.errors import UserError
from rlrc.files import write_json
from rlrc.policies.acting import set_up
from rlrc.policies.checkpoint import load
from rlrc.policies.contract import Policy
from rlrc.process import keep_freed_memory
from rlrc.progress import bar
from rlrc.served import API_KEY, address_of, as_written
from rlrc.tables import print_table

if TYPE_CHECKING:
    from rlrc.act.remote import RemotePolicy


def check(config: EvaluateConfig) -> None:
    """Hold a config against what its world has, or look at its dataset; nothing is started.

    Raises:
        UserError: there is no such world, variant, split or task, no condition is left, or the dataset cannot be read.
    """
    if config.world is None:
        Demonstrations.check(config)
        return
    world = envs.spec(config.world)
    for kind, asked, known in (("variant", config.variants, world.variants), ("split", config.splits, world.splits)):
        if unknown := [name for name in asked or () if name not in known]:
            raise UserError(f"unknown {kind} '{unknown[0]}': the world '{config.world}' has {', '.join(known)}")
    world.check_tasks(config.tasks)
    if config.realtime is not None:
        realtime.check_waits(world)
    if not conditions(config):
        raise UserError("no condition is left: these variants have none of these splits")


def conditions(config: EvaluateConfig) -> list[tuple[str, str]]:
    """The splits and variants to run."""
    world = _world(config)
    pairs = product(config.variants, world.splits if config.splits is None else config.splits)
    return [(split, variant) for variant, split in pairs if split in world.splits_of(variant)]


def episode_ids(config: EvaluateConfig) -> list[int]:
    """The episodes of each condition."""
    return list(islice(_world(config).episode_ids(config.first_episode_id, config.tasks), config.episodes))


def _world(config: EvaluateConfig) -> envs.WorldSpec:
    assert config.world is not None
    return envs.spec(config.world)


def evaluate(config: EvaluateConfig, out: Path) -> dict[str, Any]:
    """Run the episodes, continuing after those that `out` already holds.

    Writes `episodes.parquet` (after every batch), `eval.json`, LeRobot's `eval_info.json` and `videos/`.

    Raises:
        UserError: the config does not fit the world, or the policy does not (see `connect`).
    """
    if config.world is None:
        return action_error(config, out)
    started = time.monotonic()
    check(config)
    keep_freed_memory()
    table = out / "episodes.parquet"
    episodes = read_episodes(table) if table.exists() else []
    policy, name = _policy(config), as_written(config.policy)
    if config.realtime == "rtc" and not policy.continues_chunks:
        raise UserError(f"{name}: realtime rtc is for policies that denoise their actions (pi0, pi0.5, SmolVLA)")
    temperature = set_up(policy, config) if isinstance(policy, Policy) else 0.0
    ids_to_play = episode_ids(config)
    filmed = ids_to_play[: config.videos]
    total = config.episodes * len(conditions(config))
    with _actors(policy, config, out) as (actors, latency), bar("evaluate", total, start=len(episodes)) as progress:
        for split, variant in conditions(config):
            finished = sum(episode.split == split and episode.variant == variant for episode in episodes)
            for first in range(finished, config.episodes, config.num_envs):
                ids = ids_to_play[first : first + config.num_envs]
                camera = Camera([id_ for id_ in ids if id_ in filmed])
                shared = Conditions(split, variant, temperature, config.seed, camera)
                batch = rollout_in_turns(actors, ids, shared)
                camera.write(out, batch[0].condition, actors[0][1].metadata["render_fps"])
                episodes += [replace(episode, policy=name, world=config.world) for episode in batch]
                write_episodes(table, episodes)
                rate = success_rate(by_condition(episodes)[batch[0].condition])
                progress.advance(len(ids), f"{batch[0].condition} {100 * rate.rate:.0f} %")
    result: dict[str, Any] = {"policy": name, "world": config.world, "conditions": summarise(episodes)}
    if latency is not None:
        result["realtime"] = {"mode": config.realtime, **latency.model_dump()}
    write_json(out / "eval.json", result)
    write_json(out / "eval_info.json", lerobot_info(episodes, out, time.monotonic() - started))
    _print(name, episodes)
    return result


def _policy(config: EvaluateConfig) -> "Policy | RemotePolicy":
    """The policy, here or at a server.

    Raises:
        UserError: it is not there, or does not fit the world (see `connect`).
    """
    if address := address_of(config.policy):
        from rlrc.act.remote import RemotePolicy  # of an extra that nobody else needs

        return RemotePolicy(address, config.names, _world(config), os.environ.get(API_KEY) or None)
    policy = load(config.policy, config.unnorm_key, config.device, spec=config.spec)
    connect(policy.spec, _world(config))
    return policy


def _thinker(policy: "Policy | RemotePolicy", config: EvaluateConfig) -> Thinker:
    """Who gives the chunks; each environment has one of its own where it remembers something."""
    if not isinstance(policy, Policy):
        return policy
    return Plain(policy) if config.vla_cache is None else policy.with_vla_cache(config.vla_cache)


@contextmanager
def _actors(
    policy: "Policy | RemotePolicy", config: EvaluateConfig, out: Path
) -> Iterator[tuple[list[tuple[Actor, envs.WorkerVectorEnv]], realtime.Latency | None]]:
    """The environments, and who acts in each (two that take turns where the policy has a device of its own), and how
    long the policy thinks where the worlds do not wait for it."""
    assert config.world is not None
    workers_wait = policy.device.type != "cpu" and config.num_workers and not _world(config).simulation
    turns = 2 if workers_wait and config.num_envs > 1 else 1
    with ExitStack() as stack:
        if not isinstance(policy, Policy):
            stack.callback(policy.close)
        worlds = []
        for turn in range(turns):
            num_envs = (config.num_envs + turn) // turns
            env = envs.make(config.world, num_envs, config.num_workers, policy.image_size, cameras=policy.spec.cameras)
            stack.callback(env.close)
            worlds.append((_thinker(policy, config), env))
        latency = _latency(*worlds[0], config, out)
        yield [(_actor(thinker, config, latency), env) for thinker, env in worlds], latency


def _latency(thinker: Thinker, env: envs.WorkerVectorEnv, config: EvaluateConfig, out: Path) -> realtime.Latency | None:
    """The policy's latency, given or measured in a first episode's start; None where the worlds wait for it."""
    if config.realtime is None:
        return None
    if config.latency_ms is not None:
        return realtime.Latency(latency_ms=config.latency_ms)
    (split, variant), *_ = conditions(config)
    first = np.full(env.num_envs, episode_ids(config)[0])
    observation, _ = env.reset(options={"split": split, "variant": variant, "episode_ids": first})
    seen = connect(thinker.spec, env.world_spec).seen(observation)
    if config.realtime == "rtc":
        seen = replace(seen, previous=realtime.nothing_left(thinker.spec, len(seen)))
    return realtime.measured_latency(thinker, seen, out)


def _actor(thinker: Thinker, config: EvaluateConfig, latency: realtime.Latency | None) -> Actor:
    if config.realtime is None or latency is None:
        return Chunked(thinker, config.execute)
    return realtime.actor(thinker, config.realtime, latency, _world(config), config.execute)


def summarise(episodes: Sequence[Episode]) -> dict[str, dict[str, Any]]:
    """Results by condition: n, the rates with their intervals, the mean motion, and the rates of each task."""
    return {
        condition: {
            **_rates(group),
            "mean_path_length_m": float(np.mean([episode.path_length for episode in group])),
            "mean_jerk_m_s3": _mean_jerk(group),
            "tasks": {task: _rates(of_task) for task, of_task in by_task(group).items()},
        }
        for condition, group in by_condition(episodes).items()
    }


def _mean_jerk(episodes: Sequence[Episode]) -> float | None:
    """The mean of the episodes' jerk, m/s^3; None where one of them has none."""
    jerks = [episode.jerk for episode in episodes if episode.jerk is not None]
    return float(np.mean(jerks)) if len(jerks) == len(episodes) else None


def _rates(episodes: Sequence[Episode]) -> dict[str, Any]:
    rates = {outcome: asdict(success_rate(episodes, outcome)) for outcome in get_args(Outcome)}
    return {"n": len(episodes), **rates}


def lerobot_info(episodes: Sequence[Episode], out: Path, seconds: float) -> dict[str, Any]:
    """`eval_info.json` as `lerobot-eval` writes it: a task group for each condition, with its tasks by number in the
    order of their names (one where the condition has no table of tasks).

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
            "task_id": number,
            "metrics": {
                "sum_rewards": [episode.sum_reward for episode in of_task],
                "max_rewards": [episode.max_reward for episode in of_task],
                "successes": [episode.success_once for episode in of_task],
                "video_paths": aggregate(of_task)["video_paths"],
            },
        }
        for condition, group in groups.items()
        for number, of_task in enumerate(by_task(group).values() or [group])
    ]
    overall = aggregate(episodes) | {"eval_s": seconds, "eval_ep_s": seconds / len(episodes)}
    return {"per_task": per_task, "per_group": aggregated, "overall": overall}


def _print(policy: str, episodes: Sequence[Episode]) -> None:
    conditions = by_condition(episodes)
    _print_rates(f"{policy}: 95 % intervals", "condition", conditions)
    for condition, group in conditions.items():
        if tasks := by_task(group):
            _print_rates(f"{condition}, task by task", "task", tasks)


def _print_rates(title: str, what: str, groups: dict[str, list[Episode]]) -> None:
    rows = [
        [name, str(len(group)), *(str(success_rate(group, outcome)) for outcome in get_args(Outcome))]
        for name, group in groups.items()
    ]
    print_table(title, [what, "n", "success at end", "success once", "grasped"], rows)
