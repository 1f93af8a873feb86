"""The action error of a policy on demonstrations: for robots that have no simulator.

    rlrc evaluate --policy runs/sft/checkpoint --dataset DATASET --dataset-episodes 90:100 --out runs/error

The policy is asked where it would be asked if it acted along a demonstration: at an episode's first frame, and again
after the actions of a chunk that are carried out. Each of these is compared with the demonstrated one, so that every
frame counts once. A small error is no success rate: a policy may fail with it, or succeed in another way.
"""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rlrc.act.actor import executed_actions
from rlrc.configs.evaluate import EvaluateConfig
from rlrc.data.demonstrations import Demonstrations
from rlrc.data.samples import chunks, observe
from rlrc.data.statistics import require_fit
from rlrc.files import write_json
from rlrc.policies.acting import set_up
from rlrc.policies.checkpoint import load
from rlrc.policies.contract import Policy
from rlrc.policies.values import Sampler
from rlrc.process import keep_freed_memory
from rlrc.progress import bar
from rlrc.stats import cluster_mean
from rlrc.tables import print_table

LABEL = "action error on demonstrations, not a success rate"


def action_error(config: EvaluateConfig, out: Path) -> dict[str, Any]:
    """Compare a policy's actions with demonstrated ones, and write `eval.json`.

    Returns:
        How many frames and episodes were compared, and the mean absolute errors, each with its 95 % interval over
        episodes: normalised, of all dimensions together and of each, and of each in its physical unit. Normalised
        actions are those that the policy learns from, so what lies outside its statistics is clipped there; in physical
        units nothing is.

    Raises:
        UserError: the dataset and the policy do not fit, or a picture is missing.
    """
    keep_freed_memory()
    policy = load(config.policy, config.unnorm_key, config.device, spec=config.spec)
    temperature = set_up(policy, config)
    execute = executed_actions(policy.spec, config.execute)
    demonstrations = Demonstrations.of(config)
    require_fit(policy, demonstrations)
    rows = asked_at(demonstrations, execute)
    normalised, physical, numbers = [], [], []
    with bar("action error", len(rows)) as progress, torch.no_grad():
        for part in np.split(rows, range(config.num_envs, len(rows), config.num_envs)):
            observation = observe(demonstrations, part, policy)
            noise = _generators(policy, part, config.seed) if temperature else None
            sample = policy.sample(policy.prepare(observation), Sampler(temperature), noise)
            actions = sample.actions[:, :execute].cpu().float().numpy()
            wanted, padded = (tensor[:, :execute].numpy() for tensor in chunks(demonstrations, part, policy))
            frames = (part[:, None] + np.arange(execute))[~padded]
            normalised.append(np.abs(actions - wanted)[~padded])
            physical.append(np.abs(policy.to_physical(actions)[~padded] - demonstrations.actions[frames]))
            numbers.append(demonstrations.episode_index[frames])
            progress.advance(len(part))
    episodes = np.concatenate(numbers)
    errors = {"normalised": np.concatenate(normalised), "physical": np.concatenate(physical)}
    result = {
        "policy": str(config.policy),
        "dataset": str(config.dataset),
        "measure": LABEL,
        "frames": len(episodes),
        "episodes": len(np.unique(episodes)),
        "execute": execute,
        "normalised": asdict(cluster_mean(errors["normalised"].mean(axis=1), episodes, config.seed)),
        "dimensions": [
            {"name": dim.name, "unit": dim.unit}
            | {kind: asdict(cluster_mean(values[:, d], episodes, config.seed)) for kind, values in errors.items()}
            for d, dim in enumerate(policy.spec.action)
        ],
    }
    write_json(out / "eval.json", result)
    _print(result)
    return result


def asked_at(demonstrations: Demonstrations, execute: int) -> np.ndarray:
    """Numbers of the frames at which a policy that carries out `execute` actions a call is asked, int64."""
    starts = np.flatnonzero(np.diff(demonstrations.episode_index, prepend=-1))
    return np.concatenate([np.arange(start, demonstrations.episode_ends[start], execute) for start in starts])


def _generators(policy: Policy, rows: np.ndarray, seed: int) -> list[torch.Generator]:
    """A source of noise for each frame, so that none depends on what is computed beside it."""
    seeds = (np.random.SeedSequence([seed, int(row)]).generate_state(1, np.uint64)[0] for row in rows)
    return [torch.Generator(policy.device).manual_seed(int(seed >> np.uint64(1))) for seed in seeds]


def _print(result: dict[str, Any]) -> None:
    title = f"{result['policy']}: {LABEL} ({result['frames']:,} frames of {result['episodes']} episodes)"
    rows = [["all", _text(result["normalised"]), "", ""]]
    for dim in result["dimensions"]:
        rows.append([dim["name"], _text(dim["normalised"]), _text(dim["physical"]), dim["unit"]])
    print_table(title, ["dimension", "normalised [95 %]", "physical [95 %]", "unit"], rows)


def _text(error: dict[str, Any]) -> str:
    interval = "" if error["low"] is None else f" [{error['low']:.4f}, {error['high']:.4f}]"
    return f"{error['mean']:.4f}{interval}"
