"""The worlds. `make("tabletop", num_envs=32, num_workers=2)` gives a gymnasium `VectorEnv`."""

from collections.abc import Sequence
from importlib import import_module

from rlrc.configs.rl import RewardTerms
from rlrc.envs.vector import WorkerVectorEnv
from rlrc.envs.workers import WorkerLost, repeat_if_lost
from rlrc.envs.world import Expert, WorldSpec
from rlrc.episode_ids import FIRST_TRAINING_EPISODE
from rlrc.errors import UserError

WORLDS: dict[str, str] = {
    "tabletop": "rlrc.envs.tabletop",
    "conveyor": "rlrc.envs.tabletop",
    "putonplate": "rlrc.envs.putonplate",
    "maniskill": "rlrc.envs.maniskill",
    "libero_spatial": "rlrc.envs.libero",
    "libero_object": "rlrc.envs.libero",
    "libero_goal": "rlrc.envs.libero",
    "libero_10": "rlrc.envs.libero",
    "libero_90": "rlrc.envs.libero",
}
"""World name -> the module whose `spec(name)` describes it; imported only when asked for.

What follows a colon in a name is for the module alone: "maniskill:PickCube-v1" is found by "maniskill".
"""


def make(
    world: str,
    num_envs: int,
    num_workers: int = 0,
    image_size: int | None = 96,
    reward: RewardTerms | None = None,
    max_episode_steps: int | None = None,
    cameras: Sequence[str] | None = None,
) -> WorkerVectorEnv:
    """`num_envs` copies of a world over `num_workers` processes (0: in this one); see `WorkerVectorEnv`.

    Only the `cameras` that are asked for are drawn: the main one, unless you name some.

    Worker processes are spawned: a script that uses them guards its main code with `if __name__ == "__main__"`.

    Raises:
        UserError: there is no such world or camera, or a size makes no sense.
    """
    return WorkerVectorEnv(spec(world), num_envs, num_workers, image_size, reward, max_episode_steps, cameras)


def spec(world: str) -> WorldSpec:
    """Return what is known of a world without starting it.

    Raises:
        UserError: there is no such world.
    """
    name = world.partition(":")[0]
    if name not in WORLDS:
        raise UserError(f"unknown world '{world}' (known: {', '.join(WORLDS)})")
    described: WorldSpec = import_module(WORLDS[name]).spec(world)
    return described


def expert(world: str, num_envs: int) -> Expert:
    """A world's scripted expert.

    Raises:
        UserError: there is no such world, or nobody has written an expert for it.
    """
    make_expert = spec(world).expert
    if make_expert is None:
        raise UserError(f"the world '{world}' has no scripted expert")
    return make_expert(num_envs)


__all__ = [
    "FIRST_TRAINING_EPISODE",
    "WORLDS",
    "Expert",
    "RewardTerms",
    "WorkerLost",
    "WorkerVectorEnv",
    "WorldSpec",
    "expert",
    "make",
    "repeat_if_lost",
    "spec",
]
