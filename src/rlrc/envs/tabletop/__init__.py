"""The embedded world: a small arm puts one of 25 objects on a plate, in MuJoCo, after ManiSkill's PutOnPlateInScene25.

`VARIANTS` maps each variant's name to what it challenges. See docs/tabletop.md.
"""

import os

from rlrc.errors import UserError

if "DISPLAY" not in os.environ:
    os.environ.setdefault("MUJOCO_GL", "egl")
os.environ.setdefault("LP_NUM_THREADS", "0")  # Mesa's own threads cost more than they bring for small pictures.

try:
    import mujoco.gl_context  # noqa: F401
except (ImportError, AttributeError) as error:
    raise UserError(
        "MuJoCo found no OpenGL to draw with: install the Debian packages libegl1 libgl1-mesa-dri libosmesa6"
    ) from error

from rlrc.envs.tabletop.arm import MAX_ROTATION, MAX_TRANSLATION
from rlrc.envs.tabletop.expert import Expert
from rlrc.envs.tabletop.variants import CATALOGUE
from rlrc.envs.tabletop.world import CONTROL_HZ, ENVIRONMENT_STATE, STATE, Tabletop
from rlrc.envs.vector import WorldSpec

VARIANTS: dict[str, str] = {name: variant.challenge for name, variant in CATALOGUE.items()}
SPEC = WorldSpec(
    name="tabletop",
    factory=Tabletop,
    state_names=STATE,
    environment_state_names=ENVIRONMENT_STATE,
    action_low=(-MAX_TRANSLATION,) * 3 + (-MAX_ROTATION,) * 3 + (-1.0,),
    action_high=(MAX_TRANSLATION,) * 3 + (MAX_ROTATION,) * 3 + (1.0,),
    max_episode_steps=40,
    control_hz=CONTROL_HZ,
)

__all__ = ["SPEC", "VARIANTS", "Expert", "Tabletop"]
