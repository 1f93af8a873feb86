"""The RLRC paper's task, PutOnPlateInScene25 of RL4VLA, in ManiSkill 3: a WidowX puts one of 25 objects on a plate.

See docs/putonplate.md.
"""

from dataclasses import replace
from functools import partial

from rlrc.envs.putonplate.episodes import CATALOGUE, CONTROL_HZ
from rlrc.envs.putonplate.expert import LIMITS, Expert
from rlrc.envs.putonplate.world import ACTION, CAMERAS, ENVIRONMENT_STATE, STATE, PutOnPlate, Simulation
from rlrc.envs.world import WorldSpec
from rlrc.errors import UserError

SPEC = WorldSpec(
    name="putonplate",
    factory=PutOnPlate,
    cameras=CAMERAS,
    state=STATE,
    environment_state_names=ENVIRONMENT_STATE,
    action=ACTION,
    action_low=(*-LIMITS, 0.0),
    action_high=(*LIMITS, 1.0),
    max_episode_steps=80,
    control_hz=CONTROL_HZ,
    variants={name: variant.challenge for name, variant in CATALOGUE.items()},
    expert=Expert,
)


def spec(name: str) -> WorldSpec:
    """`putonplate` renders at the size that is asked for, `putonplate:official` at 640 x 480 px and resizes.

    With `:gpu` after either, all environments are simulated at once, on a GPU.

    Raises:
        UserError: it was asked for in another form.
    """
    official, on_gpu = ":official" in name, name.endswith(":gpu")
    if name != SPEC.name + ":official" * official + ":gpu" * on_gpu:
        raise UserError(
            f"the world '{name}' is called '{SPEC.name}' or '{SPEC.name}:official', with ':gpu' after it or not"
        )
    together = partial(Simulation, official=official, on_gpu=True) if on_gpu else None
    return replace(SPEC, name=name, factory=partial(PutOnPlate, official=official), simulation=together)
