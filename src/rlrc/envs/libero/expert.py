"""A scripted expert for libero_spatial and libero_10: a plan for each task, made from the predicates of its goal.

Where a thing is held and how high it is let go depend on what it is; the tables below say it for the things these
suites ask for.
"""

from dataclasses import dataclass

import numpy as np

from rlrc.envs.libero.skills import CLOSED, OPEN, GoalView, Pose, Skill, View, grip, move, nearest_yaw, pointing_down, rise
from rlrc.envs.libero.tasks import Goal, tasks
from rlrc.envs.libero.world import ENVIRONMENT_STATE
from rlrc.errors import UserError

_HOVER, _CLEARANCE = 0.1, 0.12
_CLOSING_STEPS, _OPENING_STEPS = 10, 5


@dataclass(frozen=True)
class Grasp:
    """How a thing is held from above."""

    offset: tuple[float, float, float]
    """Of the grip from the thing's own origin, m."""
    fingers: float = np.pi / 2
    """The direction in which they open, rad from the x axis."""
    turns: bool = True
    """Whether both turn with the thing; otherwise they are the world's, for what is round or lies on its side."""

    def pose(self, thing: Pose) -> Pose:
        """The hand's pose that holds a thing."""
        yaw = thing.yaw if self.turns else 0.0
        x, y, z = self.offset
        aside = np.array([x * np.cos(yaw) - y * np.sin(yaw), x * np.sin(yaw) + y * np.cos(yaw), z])
        return Pose(thing.position + aside, pointing_down(nearest_yaw(self.fingers + yaw)))


_BOX = Grasp((0.0, 0.0, 0.002))
_CAN = Grasp((0.0, 0.0, 0.012), turns=False)
GRASPS = {
    "akita_black_bowl": Grasp((0.0, 0.048, 0.042), turns=False),
    "alphabet_soup": _CAN,
    "tomato_sauce": _CAN,
    "cream_cheese": _BOX,
    "butter": _BOX,
    "chocolate_pudding": _BOX,
    "porcelain_mug": Grasp((0.057, 0.0, 0.095), fingers=0.0),
    "white_yellow_mug": Grasp((-0.06, 0.0, 0.09), fingers=0.0),
    "moka_pot": Grasp((0.0, -0.001, 0.08), fingers=np.pi / 2),
}
"""Bowls and mugs by the rim, mugs on the side away from the handle; the moka pot by the knob on its lid."""

RELEASE = {"plate": 0.012, "basket": 0.08, "flat_stove": 0.1, "living_room_table": 0.045}
"""m of a thing's origin above the target's when it is let go."""


class Expert:
    """Acts in `num_envs` environments at once; in each it follows the plan of the task found there."""

    def __init__(self, suite: str, num_envs: int) -> None:
        self._tasks = tasks(suite)
        self._shape = (num_envs, len(ENVIRONMENT_STATE))
        self._plans: list[Skill] = []

    def act(self, environment_state: np.ndarray) -> np.ndarray:
        """Actions, float32 (N,7), for privileged states (N,E).

        Raises:
            UserError: the states have another shape.
        """
        if environment_state.shape != self._shape:
            raise UserError(f"environment_state of shape {environment_state.shape}: this expert takes {self._shape}")
        views = [View.of(state) for state in environment_state]
        if self._plans:
            actions = [plan.send(view) for plan, view in zip(self._plans, views, strict=True)]
        else:
            self._plans = [follow(view, self._tasks[view.task].goals) for view in views]
            actions = [next(plan) for plan in self._plans]
        return np.stack(actions).astype(np.float32)


def follow(view: View, goals: tuple[Goal, ...]) -> Skill:
    """Bring about one predicate after another, again where one has failed or been undone, then rest."""
    while True:
        missing = [number for number in _order(goals) if not view.goals[number].satisfied]
        if not missing:
            view = yield np.array([0, 0, 0, 0, 0, 0, OPEN])
            continue
        number = missing[0]
        view = yield from pick_and_place(view, goals[number], number, aside=_aside(goals, number))


def _order(goals: tuple[Goal, ...]) -> list[int]:
    """Open and turn on first, close last."""
    rank = {"open": 0, "turnon": 0, "close": 2}
    return sorted(range(len(goals)), key=lambda number: rank.get(goals[number].predicate, 1))


def _aside(goals: tuple[Goal, ...], number: int) -> np.ndarray:
    """m by which things that share a target keep out of each other's way, along x."""
    sharing = [n for n, goal in enumerate(goals) if goal.target == goals[number].target]
    return np.array([0.07 * (sharing.index(number) - (len(sharing) - 1) / 2), 0.0, 0.0])


def category(name: str) -> str:
    """What kind of thing an object, or the owner of a region, is: "plate" of "plate_1"."""
    return next((kind for kind in (*GRASPS, *RELEASE) if name.startswith(kind)), name)


def pick_and_place(view: View, goal: Goal, number: int, aside: np.ndarray) -> Skill:
    """Take a thing from above, carry it over its target and let it go there."""
    assert goal.target is not None
    grasp, release = GRASPS[category(goal.subject)], RELEASE[category(goal.target)]

    def now(view: View) -> GoalView:
        return view.goals[number]

    def over(view: View, height: float) -> Pose:
        held = grasp.pose(now(view).subject)
        return Pose(held.position + [0.0, 0.0, height], held.rotation)

    travel = max(now(view).subject.position[2] + grasp.offset[2], now(view).target.position[2] + release) + _CLEARANCE
    view = yield from rise(view, now(view).subject.position[2] + grasp.offset[2] + _HOVER, OPEN)
    view = yield from move(view, lambda v: over(v, _HOVER), OPEN, tolerance=0.015)
    view = yield from move(view, lambda v: over(v, 0.0), OPEN, tolerance=0.006, limit=40)
    view = yield from grip(view, CLOSED, _CLOSING_STEPS)
    view = yield from rise(view, travel, CLOSED)
    if not now(view).held:
        return (yield from rise(view, travel, OPEN))
    turn = view.hand.rotation

    def carried(view: View, height: float) -> Pose:
        way = now(view).target.position + aside + [0.0, 0.0, height] - now(view).subject.position
        return Pose(view.hand.position + way, turn)

    level = travel - now(view).target.position[2] - grasp.offset[2]
    view = yield from move(view, lambda v: carried(v, level), CLOSED, tolerance=0.012)
    view = yield from move(view, lambda v: carried(v, release), CLOSED, tolerance=0.008, limit=40)
    view = yield from grip(view, OPEN, _OPENING_STEPS)
    return (yield from rise(view, travel, OPEN))
