"""Instant stand-ins for the verbs, to test what is around them. As a script, this file is `rlrc` with these verbs."""

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from rlrc import ownership, verbs
from rlrc.config import Config
from rlrc.episodes import Episode, write_episodes
from rlrc.errors import UserError


class CollectConfig(Config):
    """Collect."""

    world: str
    """The world."""
    episodes: int = 10
    """How many."""


class SftConfig(Config):
    """Train."""

    policy: Path
    """Where from."""
    dataset: Path | None = None
    """On what."""
    steps: int = 3
    """How many."""
    fail: bool = False
    """Find the input wrong."""


class EvaluateConfig(Config):
    """Evaluate."""

    policy: Path
    """Whom."""
    world: str
    """Where."""


class BenchConfig(Config):
    """Bench."""

    policies: list[Path]
    """Whom."""


def collect(config: CollectConfig, out: Path) -> dict[str, Any]:
    (out / "dataset").mkdir()
    (out / "dataset" / "data.txt").write_text(str(config.episodes))
    return {"episodes": config.episodes}


def sft(config: SftConfig, out: Path) -> dict[str, Any]:
    """Counts to `steps`, keeping its place in state.txt; dies at step $DIE_AT the first time it is there."""
    if config.fail:
        raise UserError("the input is wrong")
    state = out / "state.txt"
    done = int(state.read_text()) if state.exists() else 0
    with (out / "trace.txt").open("a") as trace:
        trace.write(f"from {done}\n")
    skill = float((config.policy / "skill.txt").read_text())
    for step in range(done, config.steps):
        if os.environ.get("DIE_AT") == str(step) and not done:
            os.kill(os.getpid(), signal.SIGKILL)
        state.write_text(str(step + 1))
    (out / "checkpoint").mkdir()
    (out / "checkpoint" / "skill.txt").write_text(str(skill + 0.1 * config.steps))
    return {"skill": skill + 0.1 * config.steps}


def evaluate(config: EvaluateConfig, out: Path) -> dict[str, Any]:
    skill = float((config.policy / "skill.txt").read_text())
    common = {"steps": None, "sum_reward": 0.0, "max_reward": 0.0, "path_length": 1.0, "jerk": 1.0, "seed": 0}
    episodes = []
    for split in ("ind", "ood"):
        for i in range(20):
            won = dict.fromkeys(("success_at_end", "success_once", "grasped"), (i + 0.5) / 20 < skill)
            episodes.append(Episode(str(config.policy), config.world, split, "main", i, **won, **common))
    write_episodes(out / "episodes.parquet", episodes)
    return {}


def bench(config: BenchConfig, out: Path) -> dict[str, Any]:
    policies = [
        {
            "policy": str(policy),
            "parameters": {"total": 100},
            "bytes": {"memory": 200},
            "latency_ms": {"p50": 2.0},
            "speedup": 1.0,
        }
        for policy in config.policies
    ]
    (out / "bench.json").write_text(json.dumps({"policies": policies}))
    return {}


VERBS = {
    verb: verbs.VERBS[verb]._replace(module="toy_verbs", options="toy_verbs")
    for verb in ("collect", "sft", "evaluate", "bench")
}

WRITES = {
    "collect": ("dataset/data.txt",),
    "sft": ("checkpoint/skill.txt", "state.txt", "trace.txt"),
    "evaluate": ("episodes.parquet",),
    "bench": ("bench.json",),
}

if __name__ == "__main__":
    from rlrc.cli import main

    sys.modules["toy_verbs"] = sys.modules["__main__"]
    verbs.VERBS.update(VERBS)
    ownership.WRITES.update(WRITES)
    main()
