"""A scripted expert for libero_spatial and libero_10: a plan for each task, made from the predicates of its goal."""

from collections.abc import Callable

import numpy as np
from scipy.spatial.transform import Rotation

from rlrc.envs.libero.grips import GRASPS, PLACES, PUSHES, TURN_ON, grasp_of, kind
from rlrc.envs.libero.skills import CLOSED, OPEN, GoalView, Pose, Skill, View, close, half_turn, move, release, rise
from rlrc.envs.libero.tasks import Goal, tasks
from rlrc.envs.libero.world import ENVIRONMENT_STATE
from rlrc.errors import UserError

_HOVER, _CLEARANCE = 0.1, 0.12
_HOLD_SHUT = 8
_LOST = 0.06
"""Distance (m) of the hand from where it would hold a thing, beyond which it holds the thing no more."""


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
        goal, number = goals[missing[0]], missing[0]
        if goal.target is not None:
            view = yield from pick_and_place(view, goal, number, _aside(goals, number))
        elif goal.predicate == "turnon":
            view = yield from turn_on(view, goal, number)
        else:
            view = yield from push(view, goal, number)


def _order(goals: tuple[Goal, ...]) -> list[int]:
    """Order the goals: turn on first, close last; in between, what stands on the table before what would be in the
    way."""

    def rank(number: int) -> int:
        goal = goals[number]
        if goal.target is None:
            return 3 if goal.predicate == "close" else 0
        return 1 if "table" in goal.target else 2

    return sorted(range(len(goals)), key=rank)


def _aside(goals: tuple[Goal, ...], number: int) -> np.ndarray:
    """Return the offset (m) by which things that share a target keep out of each other's way."""
    target = goals[number].target
    assert target is not None
    sharing = [n for n, goal in enumerate(goals) if goal.target == target]
    return np.array([PLACES[kind(target)].spacing * (sharing.index(number) - (len(sharing) - 1) / 2), 0.0, 0.0])


def pick_and_place(view: View, goal: Goal, number: int, aside: np.ndarray) -> Skill:
    """Take a thing from above, carry it before its target, bring it there and let go."""
    assert goal.target is not None
    now = _watch(number)
    grasp, place = grasp_of(goal, now(view).subject, now(view).target), PLACES[kind(goal.target)]

    def at(height: float) -> Callable[[View], Pose]:
        return lambda view: _lifted(grasp.pose(now(view).subject), height)

    def lost(view: View) -> bool:
        return float(np.linalg.norm(grasp.pose(now(view).subject).position - view.hand.position)) > _LOST

    start, end = grasp.pose(now(view).subject).position[2], now(view).target.position[2] + place.offset[2]
    travel = max(start, end + grasp.offset[2]) + _CLEARANCE
    view = yield from rise(view, start + _HOVER, OPEN)
    view = yield from move(view, at(_HOVER), OPEN, tolerance=0.015)
    view = yield from move(view, at(0.0), OPEN, tolerance=0.006, limit=40)
    view = yield from close(view)
    view = yield from rise(view, travel, CLOSED)
    if lost(view):
        return (yield from rise(view, travel, OPEN))
    turn = Rotation.identity()
    if place.yaw is not None:
        turn = Rotation.from_euler("z", half_turn(place.yaw - now(view).subject.yaw))
    rotation = turn * view.hand.rotation

    def carried(way: np.ndarray) -> Callable[[View], Pose]:
        """Return a function that gives the hand's pose at which the thing would be `way` (m) from its place."""

        def pose(view: View) -> Pose:
            goal = now(view)
            if lost(view):
                return view.hand  # It has fallen; so the motion ends here.
            left = goal.target.position + place.offset + aside + way - goal.subject.position
            return Pose(view.hand.position + left, rotation)

        return pose

    before = np.array(place.way)
    above = np.array([*before[:2], travel - grasp.offset[2] - end])
    view = yield from move(view, carried(above), CLOSED, tolerance=0.012)
    view = yield from move(view, carried(before), CLOSED, tolerance=0.012, limit=40)
    view = yield from move(view, carried(np.zeros(3)), CLOSED, tolerance=0.008, limit=40)
    while now(view).satisfied and not place.let_go:
        view = yield np.array([0, 0, 0, 0, 0, 0, CLOSED])
    view = yield from release(view)
    back = Pose(view.hand.position + before, view.hand.rotation)
    view = yield from move(view, lambda _: back, OPEN, tolerance=0.02, limit=40)
    return (yield from rise(view, travel, OPEN))


def turn_on(view: View, goal: Goal, number: int) -> Skill:
    """Take a knob by its bar from above and turn it."""
    grasp = GRASPS[kind(goal.subject)]
    now = _watch(number)

    def at(height: float) -> Callable[[View], Pose]:
        return lambda view: _lifted(grasp.pose(now(view).subject), height)

    view = yield from rise(view, grasp.pose(now(view).subject).position[2] + _HOVER, OPEN)
    view = yield from move(view, at(_HOVER), OPEN, tolerance=0.015)
    view = yield from move(view, at(0.0), OPEN, tolerance=0.006, limit=40)
    view = yield from close(view)
    turned = Pose(view.hand.position, Rotation.from_euler("z", TURN_ON) * view.hand.rotation)
    view = yield from move(view, lambda _: turned, CLOSED, limit=40)
    view = yield from release(view)
    return (yield from rise(view, view.hand.position[2] + _HOVER, OPEN))


def push(view: View, goal: Goal, number: int) -> Skill:
    """Push a drawer or a door shut with closed fingers: from behind the contact, along with the part until it is."""
    contact = PUSHES[kind(goal.subject)]
    now = _watch(number)

    def at(depth: float, height: float = 0.0) -> Callable[[View], Pose]:
        return lambda view: _lifted(contact.pose(now(view).subject, depth), height)

    view = yield from rise(view, at(0.0, _CLEARANCE)(view).position[2], CLOSED)
    view = yield from move(view, at(-0.06, _CLEARANCE), CLOSED, tolerance=0.02)
    view = yield from move(view, at(-0.06), CLOSED, tolerance=0.015)
    shut = 0
    for _ in range(100):
        shut = shut + 1 if now(view).satisfied else 0
        if shut == _HOLD_SHUT:
            break
        view = yield from move(view, at(0.03), CLOSED, limit=1)
    start = view.hand
    back = Pose(start.position + (at(-0.06)(view).position - at(0.0)(view).position), start.rotation)
    view = yield from move(view, lambda _: back, CLOSED, tolerance=0.02, limit=30)
    return (yield from rise(view, start.position[2] + _CLEARANCE, OPEN))


def _watch(number: int) -> Callable[[View], GoalView]:
    return lambda view: view.goals[number]


def _lifted(pose: Pose, height: float) -> Pose:
    return Pose(pose.position + np.array([0.0, 0.0, height]), pose.rotation)
