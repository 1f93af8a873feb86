"""A scripted expert on privileged state: a function of what is seen now, without memory or timers.

It moves the commanded pose, which the arm follows with a lag of about two steps, and takes its decisions by where the
gripper really is. It recovers from any disturbance, noise and the object put somewhere else included.
"""

import numpy as np
from scipy.spatial.transform import Rotation

from rlrc.envs.putonplate.world import ENVIRONMENT_STATE
from rlrc.envs.world import by_name

LIMITS = np.array([0.025, 0.04, 0.025, 0.075, 0.075, 0.2])
"""The largest action: m and rad a control step. Within the 1st and 99th percentiles of the Bridge dataset's actions, so
that policies which normalise by those ("bridge_orig") can express what is shown to them."""

_LOWEST = 0.018
"""Lowest height of the gripper above the table, m: its fingers reach 16 mm below it."""
_REACH = 0.018
"""Largest height of an object above the gripper's own that its fingers can take in, m: the palm is at 21 mm."""
_CLEAR, _CARRY, _RETREAT = 0.045, 0.04, 0.12
"""Heights (m): of the gripper over the object on the way to it, of the object over the plate on the way there, and of
the gripper at the end."""
_SLOPE = 2.5
"""Slope of the funnels that lead down to the object and to the plate."""
_ALIGNED, _GRASPABLE, _LOW = 0.006, 0.012, 0.006
"""Distances (m): errors within which the funnel ends and the fingers may close, and how far above the grasp height they
may."""
_OVER_PLATE, _RELEASE = 0.012, 0.006
"""Largest distance (m) from the plate's middle, and above the plate, at which the object may be let go."""
_TURN_LENGTH = 0.03
"""Distance (m) that a radian of wrong yaw counts as while approaching."""
_EMPTY, _OPEN = 0.0315, 0.066
"""Positions of the fingers (sum, m) below which they closed on nothing, and above which they are clear of what they
held."""


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
        hand, turned = _vectors(s, "x", "y", "z"), Rotation.from_rotvec(_vectors(s, "rx", "ry", "rz"))
        command = _vectors(s, "command_x", "command_y", "command_z")
        commanded = Rotation.from_rotvec(_vectors(s, "command_rx", "command_ry", "command_rz"))
        held = s["held"] > 0.5
        placed = ~held & (s["on_plate"] > 0.5)

        yaw = np.where(held | placed, commanded.as_euler("xyz")[:, 2], np.arctan2(s["grasp_sin"], s["grasp_cos"]))
        wanted = Rotation.from_euler("z", yaw[:, None])
        approach, close = _approach(s, hand, (wanted * turned.inv()).magnitude())
        carry, release = _carry(s, hand, command)
        away = command.copy()
        away[:, 2] = np.where(s["opening"] > _OPEN, np.maximum(command[:, 2], _RETREAT), command[:, 2])
        goal = np.select([held[:, None], placed[:, None]], [carry, away], approach)
        shut = np.where(held, ~release, ~placed & close)
        turn = (wanted * commanded.inv()).as_euler("XYZ")
        turn[placed] = 0.0
        return np.concatenate(
            [_limited(goal - command), np.clip(turn, -LIMITS[3:], LIMITS[3:]), np.where(shut, 0.0, 1.0)[:, None]],
            axis=1,
        ).astype(np.float32)


def _approach(s: dict[str, np.ndarray], hand: np.ndarray, turn: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return where the gripper should be (N,3), over the object and down a funnel onto it, and whether (N,) to close
    now."""
    goal = _vectors(s, "object_x", "object_y", "object_top")
    error = np.linalg.norm(goal[:, :2] - hand[:, :2], axis=1) + _TURN_LENGTH * turn
    middle = (s["object_bottom"] + s["object_top"]) / 2
    height = np.maximum.reduce([np.full(len(hand), _LOWEST), middle, s["object_top"] - _REACH])
    hover = np.maximum(s["object_top"], height) + _CLEAR
    funnel = height + np.clip(_SLOPE * (error - _ALIGNED), 0.0, hover - height)
    empty = s["opening"] < _EMPTY
    blocked = (hand[:, 2] < funnel - 0.03) | empty  # Low beside the object: rise before moving over it.
    goal[:, :2] = np.where(blocked[:, None], hand[:, :2], goal[:, :2])
    goal[:, 2] = np.where(empty, hover, funnel)
    return goal, (error < _GRASPABLE) & (hand[:, 2] < height + _LOW) & ~empty


def _carry(s: dict[str, np.ndarray], hand: np.ndarray, command: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return where the gripper should bring the object (N,3), up, over to the plate and down, and whether (N,) to let
    go."""
    move = _vectors(s, "plate_x", "plate_y", "plate_top") - _vectors(s, "object_x", "object_y", "object_bottom")
    distance = np.linalg.norm(move[:, :2], axis=1)
    above = -move[:, 2]
    goal = hand + move
    goal[:, 2] += np.clip(_SLOPE * (distance - _OVER_PLATE), 0.0, _CARRY) + 0.5 * _RELEASE
    low = (above < 0.5 * _CARRY) & (distance > 2 * _OVER_PLATE)  # Rise before moving aside.
    goal[:, :2] = np.where(low[:, None], command[:, :2], goal[:, :2])
    landed = (above < _RELEASE) | (s["on_plate"] > 0.5)
    return goal, (distance < _OVER_PLATE) & landed


def _vectors(s: dict[str, np.ndarray], *names: str) -> np.ndarray:
    return np.stack([s[name] for name in names], axis=1)


def _limited(move: np.ndarray) -> np.ndarray:
    """Moves (N,3) no longer than one step allows; their sideways part keeps its direction."""
    excess = np.abs(move[:, :2] / LIMITS[:2]).max(axis=1, keepdims=True)
    return np.concatenate([move[:, :2] / np.maximum(excess, 1.0), np.clip(move[:, 2:], -LIMITS[2], LIMITS[2])], axis=1)
