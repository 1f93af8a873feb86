"""The embedded world: a small arm puts one of 25 objects on a plate, in MuJoCo, after ManiSkill's PutOnPlateInScene25.

See docs/tabletop.md.
"""

from dataclasses import replace
from functools import partial

from rlrc.envs.tabletop.arm import MAX_ROTATION, MAX_TRANSLATION
from rlrc.envs.tabletop.conveyor import draw_conveyor_episode, speed_of
from rlrc.envs.tabletop.expert import Expert
from rlrc.envs.tabletop.variants import CATALOGUE
from rlrc.envs.tabletop.world import ACTION, CAMERAS, CONTROL_HZ, ENVIRONMENT_STATE, STATE, SUBSTEPS, Tabletop
from rlrc.envs.world import WorldSpec
from rlrc.errors import UserError

SPEC = WorldSpec(
    name="tabletop",
    factory=Tabletop,
    cameras=CAMERAS,
    state=STATE,
    environment_state_names=ENVIRONMENT_STATE,
    action=ACTION,
    action_low=(-MAX_TRANSLATION,) * 3 + (-MAX_ROTATION,) * 3 + (-1.0,),
    action_high=(MAX_TRANSLATION,) * 3 + (MAX_ROTATION,) * 3 + (1.0,),
    max_episode_steps=40,
    control_hz=CONTROL_HZ,
    variants={name: variant.challenge for name, variant in CATALOGUE.items()},
    expert=Expert,
    ticks=SUBSTEPS,
)


def spec(name: str) -> WorldSpec:
    """The tabletop, or the conveyor with the speed of its belt (cm/s) after a colon or, without one, with several.

    Raises:
        UserError: it was asked for in another form.
    """
    if name.partition(":")[0] == "conveyor":
        draw = partial(draw_conveyor_episode, speed=speed_of(name))
        return replace(SPEC, name=name, factory=partial(Tabletop, draw=draw), variants={"main": "main"})
    if name != SPEC.name:
        raise UserError(f"the world '{name}' is called '{SPEC.name}'")
    return SPEC


__all__ = ["SPEC", "Expert", "Tabletop", "spec"]
