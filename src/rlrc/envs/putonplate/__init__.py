"""The RLRC paper's task, PutOnPlateInScene25 of RL4VLA, in ManiSkill 3: a WidowX puts one of 25 objects on a plate.

See docs/putonplate.md.
"""

from dataclasses import replace
from functools import partial

from rlrc.envs.putonplate.episodes import CATALOGUE, CONTROL_HZ
from rlrc.envs.putonplate.expert import LIMITS, Expert
from rlrc.envs.putonplate.world import ENVIRONMENT_STATE, STATE, PutOnPlate
from rlrc.envs.world import WorldSpec
from rlrc.errors import UserError

SPEC = WorldSpec(
    name="putonplate",
    factory=PutOnPlate,
    state_names=STATE,
    environment_state_names=ENVIRONMENT_STATE,
    action_low=(*-LIMITS, 0.0),
    action_high=(*LIMITS, 1.0),
    max_episode_steps=80,
    control_hz=CONTROL_HZ,
    variants={name: variant.challenge for name, variant in CATALOGUE.items()},
    expert=Expert,
)


def spec(name: str) -> WorldSpec:
    """`putonplate` renders at the size that is asked for, `putonplate:official` at 640 x 480 px and resizes.

    Raises:
        UserError: it was asked for in another form.
    """
    if name == SPEC.name:
        return SPEC
    if name == f"{SPEC.name}:official":
        return replace(SPEC, name=name, factory=partial(PutOnPlate, official=True))
    raise UserError(f"the world '{name}' is called '{SPEC.name}' or '{SPEC.name}:official'")


__all__ = ["SPEC", "Expert", "PutOnPlate", "spec"]
