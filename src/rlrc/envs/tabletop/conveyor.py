"""Episodes in which time matters: a belt carries the object past the arm, to be put on a plate beside the belt.

The belt always runs towards positive y, so that a policy that sees one picture knows where the object is going. The
speed does not change what else an episode id fixes: the same id at two speeds is a pair.
"""

import math
import zlib

import numpy as np

from rlrc.envs.tabletop.variants import CENTER, UNSEEN, WORDING, YAWS, Belt, Episode, find_variant
from rlrc.errors import UserError

SPEEDS = (0.01, 0.02, 0.04)
"""Speeds (m/s) from which each episode draws one, unless the speed is given."""
FASTEST = 0.2
"""Largest speed (m/s): the hand moves at 0.25 m/s at most."""

_ASIDE, _JITTER = 0.07, 0.01
"""Distance (m) of belt and plate from the middle of the table, on opposite sides, and how much either may differ."""
_STARTS = (-0.14, -0.06)
"""Between these the object starts (y, m)."""
_PLATES = (-0.08, 0.08)
"""Between these lies the plate's middle (y, m)."""


def draw_conveyor_episode(split: str, variant: str, episode_id: int, speed: float | None) -> Episode:
    """Episode `episode_id` (any integer from 0) of a split, at a speed in m/s or at one of `SPEEDS`.

    Raises:
        UserError: there is no such split or variant, or the id is negative.
    """
    if variant != "main":
        raise UserError(f"unknown variant '{variant}' of conveyor (known: main)")
    factors = find_variant(split, variant)
    if episode_id < 0:
        raise UserError(f"episode id {episode_id} is negative: ids count from 0")
    rng = np.random.default_rng([zlib.crc32(f"conveyor/{split}".encode()), episode_id])
    thing = factors.objects[rng.integers(len(factors.objects))]
    plate = factors.receptacles[rng.integers(len(factors.receptacles))]
    side = rng.choice([-1.0, 1.0])
    belt_x, plate_x = CENTER[0] + np.array([side, -side]) * (_ASIDE + rng.uniform(0.0, _JITTER, 2))
    drawn = rng.choice(SPEEDS)
    return Episode(
        instruction=WORDING.format(object=thing.name, plate=plate.name),
        objects=(thing,),
        object_positions=np.array([[belt_x, rng.uniform(*_STARTS)]]),
        object_yaws=rng.choice(YAWS, 1),
        receptacles=(plate,),
        receptacle_positions=np.array([[plate_x, rng.uniform(*_PLATES)]]),
        table=int(rng.choice(factors.tables)),
        start_offset=np.zeros(6),
        moved_to=None,
        blend="none",
        strength=0.0,
        texture=int(rng.choice(UNSEEN.tables)),
        noise_seed=int(rng.integers(2**32)),
        belt=Belt(float(belt_x), float(drawn if speed is None else speed)),
    )


def speed_of(name: str) -> float | None:
    """The speed (m/s) that a world's name gives in cm/s after its colon: "conveyor:2"; None where it gives none.

    Raises:
        UserError: what follows the colon is no speed that the arm could keep up with.
    """
    _, colon, asked = name.partition(":")
    if not colon:
        return None
    try:
        speed = float(asked) / 100
    except ValueError:
        speed = math.nan
    if not 0 <= speed <= FASTEST:
        raise UserError(
            f"the world '{name}': a belt's speed is given in cm/s, from 0 to {100 * FASTEST:g}: conveyor:2, for example"
        )
    return speed
