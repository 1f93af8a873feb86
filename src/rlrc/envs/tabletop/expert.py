"""A scripted expert on privileged state: a function of what is seen now, without memory or timers.

Each phase can be told from a picture (where the hand and the object are, how far the fingers are open), so that a
policy that sees one picture can learn it, and so that the expert recovers from any disturbance, the object moved away
included.
"""

import numpy as np
from scipy.spatial.transform import Rotation

from rlrc.envs.tabletop.arm import MAX_ROTATION, MAX_TRANSLATION
from rlrc.envs.tabletop.world import ENVIRONMENT_STATE
from rlrc.envs.world import by_name

GRASP_HEIGHT = 0.02
"""Height (m) of the hand above the object's underside when it grasps."""
HOVER, CARRY, RETREAT = 0.09, 0.05, 0.16
"""Heights (m): of the hand over the table on the way to the object, of the object over the plate on the way there, and
of the hand after the release."""

_SLOPE = 2.5
"""Slope of the funnels that lead down to the object and to the plate."""
_ALIGNED, _GRASPABLE, _LOW = 0.01, 0.022, 0.009
"""Distances (m): errors within which the funnel ends and the fingers may close, and how far above the grasp height they
may."""
_OVER_PLATE, _RELEASE = 0.03, 0.016
"""Largest distance (m) from the plate's middle, and above the plate, at which the object may be let go."""
_EMPTY_OPENING = 0.02
_TURN_LENGTH = 0.03
"""Distance (m) that a radian of wrong yaw counts as while approaching."""


class Expert:
    """Acts in `num_envs` environments at once."""

    def __init__(self, num_envs: int) -> None:
        self._num_envs = num_envs

    def act(self, environment_state: np.ndarray) -> np.ndarray:
        """Actions, float32 (N,7), for privileged states (N,E).

        Raises:
            UserError: the states have another shape.
        """
        s = by_name(environment_state, ENVIRONMENT_STATE, self._num_envs)
        hand = np.stack([s["x"], s["y"], s["z"]], axis=1)
        item = np.stack([s["object_x"], s["object_y"], s["object_z"]], axis=1)
        plate = np.stack([s["plate_x"], s["plate_y"], s["plate_z"]], axis=1)
        pose = Rotation.from_rotvec(np.stack([s["rx"], s["ry"], s["rz"]], axis=1))
        held = s["held"] > 0.5
        placed = ~held & (s["on_plate"] > 0.5)

        yaw = np.where(held | placed, pose.as_euler("xyz")[:, 2], np.arctan2(s["grasp_sin"], s["grasp_cos"]))
        turn = (Rotation.from_euler("z", yaw[:, None]) * pose.inv()).as_rotvec()
        approach, close = _approach(hand, item, turn, s["opening"])
        carry, release = _carry(item, plate)
        retreat = np.zeros_like(hand)
        retreat[:, 2] = np.maximum(RETREAT - hand[:, 2], 0.0)
        move = np.select([held[:, None], placed[:, None]], [carry, retreat], approach)
        shut = np.where(held, ~release, ~placed & close)
        turn[placed] = 0.0
        return np.concatenate(
            [_limited(move), np.clip(turn, -MAX_ROTATION, MAX_ROTATION), np.where(shut, -1.0, 1.0)[:, None]], axis=1
        ).astype(np.float32)


def _approach(
    hand: np.ndarray, item: np.ndarray, turn: np.ndarray, opening: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Moves (N,3) over the object and down a funnel onto it, and whether (N,) to close the fingers now."""
    move = item - hand
    error = np.linalg.norm(move[:, :2], axis=1) + _TURN_LENGTH * np.linalg.norm(turn, axis=1)
    height = item[:, 2] + GRASP_HEIGHT
    funnel = height + np.clip(_SLOPE * (error - _ALIGNED), 0.0, np.maximum(HOVER - height, 0.0))
    empty = opening < _EMPTY_OPENING
    move[:, 2] = np.where(empty, HOVER, funnel) - hand[:, 2]
    blocked = hand[:, 2] < funnel - 0.03  # Low beside the object: rise before moving over it.
    move[blocked | empty, :2] = 0.0
    return move, (error < _GRASPABLE) & (hand[:, 2] < height + _LOW) & ~empty


def _carry(item: np.ndarray, plate: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Moves (N,3) of the held object: up, over to the plate, down a funnel; and whether (N,) to let go now."""
    move = plate - item
    distance = np.linalg.norm(move[:, :2], axis=1)
    above = item[:, 2] - plate[:, 2]
    move[:, 2] = np.clip(_SLOPE * (distance - _OVER_PLATE), 0.0, CARRY) + 0.5 * _RELEASE - above
    lifted = np.clip((item[:, 2] - 0.005) / 0.025, 0.0, 1.0)
    move[:, :2] = _shortened(move[:, :2]) * np.where(distance > _OVER_PLATE, lifted, 1.0)[:, None]
    return move, (distance < _OVER_PLATE) & (above < _RELEASE)


def _limited(move: np.ndarray) -> np.ndarray:
    return np.concatenate([_shortened(move[:, :2]), np.clip(move[:, 2:], -MAX_TRANSLATION, MAX_TRANSLATION)], axis=1)


def _shortened(move: np.ndarray) -> np.ndarray:
    """Vectors (N,2) no longer than one step allows, in their own direction."""
    length = np.linalg.norm(move, axis=1, keepdims=True)
    return move * np.minimum(1.0, MAX_TRANSLATION / np.maximum(length, 1e-9))
