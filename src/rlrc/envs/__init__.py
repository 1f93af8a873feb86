"""The worlds. `make("tabletop", num_envs=32, num_workers=2)` gives a gymnasium `VectorEnv`."""

from importlib import import_module
from typing import Any, Protocol

import numpy as np

from rlrc.envs.reward import RewardTerms
from rlrc.envs.vector import WorkerVectorEnv, WorldSpec
from rlrc.errors import UserError

WORLDS: dict[str, str] = {"tabletop": "rlrc.envs.tabletop"}
"""World name -> the module that has its SPEC and VARIANTS; imported only when asked for."""

FIRST_TRAINING_EPISODE = 1_000_000
"""Demonstrations and reinforcement learning draw episode ids from here on; smaller ids are left to evaluation."""


class Expert(Protocol):
    """Solves a world's task from privileged state, without memory."""

    def act(self, environment_state: np.ndarray) -> np.ndarray:
        """Actions, float32 (N,7), for the `environment_state` (N,E) of the last info."""
        ...


def make(
    world: str,
    num_envs: int,
    num_workers: int = 0,
    image_size: int = 96,
    reward: RewardTerms | None = None,
    max_episode_steps: int | None = None,
) -> WorkerVectorEnv:
    """`num_envs` copies of a world over `num_workers` processes (0: in this one); see `WorkerVectorEnv`.

    Worker processes are spawned: a script that uses them guards its main code with `if __name__ == "__main__"`.

    Raises:
        UserError: there is no such world, or a size makes no sense.
    """
    return WorkerVectorEnv(_module(world).SPEC, num_envs, num_workers, image_size, reward, max_episode_steps)


def variants(world: str) -> dict[str, str]:
    """The names of a world's variants, and what each challenges: main, vision, semantics or execution.

    Raises:
        UserError: there is no such world.
    """
    return dict(_module(world).VARIANTS)


def expert(world: str, num_envs: int) -> Expert:
    """A world's scripted expert.

    Raises:
        UserError: there is no such world.
    """
    expert: Expert = _module(world).Expert(num_envs)
    return expert


def _module(world: str) -> Any:
    if world not in WORLDS:
        raise UserError(f"unknown world '{world}' (known: {', '.join(WORLDS)})")
    return import_module(WORLDS[world])


__all__ = [
    "FIRST_TRAINING_EPISODE",
    "WORLDS",
    "Expert",
    "RewardTerms",
    "WorkerVectorEnv",
    "WorldSpec",
    "expert",
    "make",
    "variants",
]
