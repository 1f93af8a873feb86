"""LIBERO (Liu et al., arXiv 2306.03310): five suites of tasks for a Panda arm, played as OpenVLA's evaluation does.

`libero_spatial` draws as the benchmark does; `libero_spatial:fast` is the same physics with simpler pictures. They are
worlds of different names so that they never meet in one table. See docs/libero.md.
"""

from functools import partial

from rlrc.envs.libero.expert import Expert
from rlrc.envs.libero.simulation import CONTROL_HZ
from rlrc.envs.libero.tasks import SUITES, check_assets
from rlrc.envs.libero.world import ACTION, CAMERAS, ENVIRONMENT_STATE, STATE, Libero
from rlrc.envs.world import WorldSpec
from rlrc.errors import UserError

WITH_EXPERT = ("libero_spatial", "libero_10")


def spec(name: str) -> WorldSpec:
    """A suite, by its name alone or with ":fast".

    Raises:
        UserError: there is no such suite or way of drawing it.
    """
    suite, _, drawing = name.partition(":")
    if suite not in SUITES or drawing not in ("", "fast") or name.endswith(":"):
        raise UserError(f"no world '{name}': a LIBERO world is called {', '.join(SUITES)}, or one of these and ':fast'")
    return WorldSpec(
        name=name,
        factory=partial(Libero, suite, drawing == "fast"),
        cameras=tuple(CAMERAS),
        state=STATE,
        environment_state_names=ENVIRONMENT_STATE,
        action=ACTION,
        action_low=(-1.0,) * 6 + (0.0,),
        action_high=(1.0,) * 7,
        max_episode_steps=SUITES[suite].max_episode_steps,
        control_hz=CONTROL_HZ,
        variants={"main": "main"},
        splits=("ind",),
        num_tasks=SUITES[suite].tasks,
        ends_on_success=True,
        expert=partial(Expert, suite) if suite in WITH_EXPERT else None,
    )


__all__ = ["SUITES", "Libero", "check_assets", "spec"]
