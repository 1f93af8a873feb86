"""The embedded world: a small arm puts one of 25 objects on a plate, in MuJoCo, after ManiSkill's PutOnPlateInScene25.

See docs/tabletop.md.
"""

from rlrc.envs.tabletop.arm import MAX_ROTATION, MAX_TRANSLATION
from rlrc.envs.tabletop.expert import Expert
from rlrc.envs.tabletop.variants import CATALOGUE
from rlrc.envs.tabletop.world import ACTION, CAMERAS, CONTROL_HZ, ENVIRONMENT_STATE, STATE, Tabletop
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
)


def spec(name: str) -> WorldSpec:
    """There is one tabletop.

    Raises:
        UserError: it was asked for in another form.
    """
    if name != SPEC.name:
        raise UserError(f"the world '{name}' is called '{SPEC.name}'")
    return SPEC


__all__ = ["SPEC", "Expert", "Tabletop", "spec"]
