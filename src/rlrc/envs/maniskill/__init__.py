"""Tasks of ManiSkill 3 by their own names: "maniskill:PickCube-v1". See docs/putonplate.md."""

from functools import partial

from rlrc.envs.maniskill.world import ACTION, CAMERAS, STATE, AnyTask, max_steps
from rlrc.envs.world import WorldSpec
from rlrc.errors import UserError

CONTROL_HZ = 20
"""ManiSkill's default, which its table-top tasks keep."""


def spec(name: str) -> WorldSpec:
    """The world of the task that follows the colon; an episode's id is its seed.

    Raises:
        UserError: no task is named, ManiSkill is not installed or has no such task, or the task's files are missing.
    """
    task = name.partition(":")[2]
    if not task:
        raise UserError(f"the world '{name}' needs a task of ManiSkill's: maniskill:PickCube-v1, for example")
    return WorldSpec(
        name=name,
        factory=partial(AnyTask, task),
        cameras=CAMERAS,
        state=STATE,
        environment_state_names=tuple(dim.name for dim in STATE),
        action=ACTION,
        action_low=(-1.0,) * 7,
        action_high=(1.0,) * 7,
        max_episode_steps=max_steps(task),
        control_hz=CONTROL_HZ,
        variants={"main": "main"},
        splits=("ind",),
    )


__all__ = ["spec"]
