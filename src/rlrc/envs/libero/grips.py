"""Data of the scripted expert, by kind of thing: how it grasps, where it lets go, and where it pushes."""

from dataclasses import dataclass

import numpy as np
from scipy.spatial.transform import Rotation

from rlrc.envs.libero.skills import Pose, nearest_yaw, pointing_down
from rlrc.envs.libero.tasks import Goal


@dataclass(frozen=True)
class Grasp:
    """A way to hold a thing from above."""

    offset: tuple[float, float, float]
    """Offset of the grip from the thing's own origin, m."""
    fingers: float = np.pi / 2
    """Direction in which the fingers open, rad from the x axis."""
    turns: bool = True
    """True if offset and fingers turn with the thing; otherwise they are the world's, for what is round or lies on its
    side."""

    def pose(self, thing: Pose) -> Pose:
        """The hand's pose that holds a thing."""
        yaw = thing.yaw if self.turns else 0.0
        aside = _turned(self.offset, yaw)
        return Pose(thing.position + aside, pointing_down(nearest_yaw(self.fingers + yaw)))


@dataclass(frozen=True)
class Place:
    """Place where a held thing is let go: its origin in relation to the target's, along the world's axes, m."""

    offset: tuple[float, float, float]
    way: tuple[float, float, float] = (0.0, 0.0, 0.12)
    """Offset from that place through which the thing comes and the hand leaves, m."""
    spacing: float = 0.0
    """Distance between things that share the target, along x, m."""
    yaw: float | None = None
    """Yaw of the thing there, or half a turn from it, rad; None where it keeps the yaw that it has."""
    let_go: bool = True
    """True if the goal still holds when the thing falls down there."""


@dataclass(frozen=True)
class Push:
    """A push of a part with closed fingers: contact and direction, in the part's own frame."""

    contact: tuple[float, float, float]
    direction: tuple[float, float]
    """Direction of the push, of unit length."""
    lean: float = np.deg2rad(28)
    """Angle by which the fingers point away from the robot's front, along the world's y axis, rather than down, rad."""

    def pose(self, part: Pose, depth: float) -> Pose:
        """The hand's pose `depth` m beyond the contact."""
        x, y, z = self.contact
        along = (x + depth * self.direction[0], y + depth * self.direction[1], z)
        rotation = Rotation.from_euler("x", self.lean) * pointing_down(nearest_yaw(0.0))
        return Pose(part.position + _turned(along, part.yaw), rotation)


def _turned(vector: tuple[float, float, float], yaw: float) -> np.ndarray:
    x, y, z = vector
    return np.array([x * np.cos(yaw) - y * np.sin(yaw), x * np.sin(yaw) + y * np.cos(yaw), z])


_BOX = Grasp((0.0, 0.0, 0.002))
_CAN = Grasp((0.0, 0.0, 0.012), turns=False)

GRASPS = {
    "akita_black_bowl": Grasp((0.0, 0.048, 0.032), turns=False),  # by the rim, as mugs are, or by the handle
    "alphabet_soup": _CAN,
    "tomato_sauce": _CAN,
    "cream_cheese": _BOX,
    "butter": _BOX,
    "chocolate_pudding": _BOX,
    "porcelain_mug": Grasp((0.057, 0.0, 0.095), fingers=0.0),
    "white_yellow_mug": Grasp((0.064, 0.0, 0.07)),
    "moka_pot": Grasp((0.0, -0.001, 0.08)),  # the knob on its lid
    "black_book": Grasp((0.0, -0.012, 0.12), fingers=0.0),
    "flat_stove": Grasp((-0.005, 0.0, 0.035), fingers=0.0),  # the knob's bar
}
_BOWL_BESIDE_WALLS = Grasp((-0.048, 0.0, 0.032), fingers=0.0, turns=False)
"""Grasp of a bowl in or on a cabinet, or on its way into one: its fingers open along the cabinet's front."""
_HIGH = 0.1
"""Height (m) above its target beyond which a bowl counts as in or on a cabinet."""

PLACES = {
    "plate": Place((0.0, 0.0, 0.012)),
    "basket": Place((0.0, 0.0, 0.08), spacing=0.07),
    "flat_stove": Place((0.0, 0.0, 0.097), spacing=0.086),
    "living_room_table": Place((0.0, 0.0, 0.045)),
    "white_cabinet": Place((0.0, -0.0146, -0.015), way=(0.0, -0.015, 0.016)),
    "desk_caddy": Place((0.001, -0.012, -0.01), yaw=0.0, let_go=False),
    "microwave": Place((0.0, -0.066, -0.064), way=(0.0, -0.14, 0.02)),
}
PUSHES = {
    "white_cabinet": Push((-0.003, -0.122, 0.041), direction=(0.0, 1.0)),  # a drawer's handle
    "microwave": Push((0.17, -0.04, 0.08), direction=(0.0, 1.0)),
}
TURN_ON = 0.9
"""Angle by which a stove's knob is turned, rad; the stove is on from 0.5."""


def grasp_of(goal: Goal, thing: Pose, target: Pose) -> Grasp:
    """Choose how to hold the subject of a goal, given where it and its target are."""
    if kind(goal.subject) == "akita_black_bowl" and (
        kind(goal.target or "") == "white_cabinet" or thing.position[2] > target.position[2] + _HIGH
    ):
        return _BOWL_BESIDE_WALLS
    return GRASPS[kind(goal.subject)]


def kind(name: str) -> str:
    """Return the kind of an object, or of the owner of a region: "plate" for "plate_1"."""
    return next((kind for kind in (*GRASPS, *PLACES) if name.startswith(kind)), name)
