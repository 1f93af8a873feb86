"""Skills of the scripted expert: each is a generator that yields actions and is sent what the world looks like next.

Motions are P control of the grip's pose through the world's own actions. robosuite's controller is critically damped at
a gain of 1 (its stiffness and damping); at 2 the hand is faster and overshoots by 4 %.
"""

from collections.abc import Callable, Generator
from dataclasses import dataclass

import numpy as np
from scipy.spatial.transform import Rotation

from rlrc.envs.libero.world import ENVIRONMENT_STATE, GOAL, MAX_GOALS

MAX_TRANSLATION, MAX_ROTATION = 0.05, 0.5
"""Translation (m) and rotation (rad) that an action of 1 asks for."""
OPEN, CLOSED = 1.0, 0.0
_NEARER, _PATIENCE = 5e-4, 8
"""Distance (m) and number of steps: a hand that comes no nearer by that distance in so many steps has met a limit."""
_GAIN = 2.0
_SHORTEST_CLOSING, _LONGEST_CLOSING, _OPENING_STEPS = 4, 20, 5
_STANDING = 5e-4
"""Change (m) of the distance between the fingers in a step, up to which they are held up by what is between them."""
_DOWN = Rotation.from_quat([1.0, 0.0, 0.0, 0.0])
"""The hand pointing down, its fingers opening along y."""
_HEAD = ENVIRONMENT_STATE.index("goal0_satisfied")
_POSE = 7


@dataclass(frozen=True)
class Pose:
    """Position (3,) in m, and rotation."""

    position: np.ndarray
    rotation: Rotation

    @classmethod
    def of(cls, numbers: np.ndarray) -> "Pose":
        """Make it from x, y, z and a quaternion w, x, y, z."""
        return cls(numbers[:3].astype(np.float64), Rotation.from_quat(numbers[3:7], scalar_first=True))

    @property
    def yaw(self) -> float:
        """The angle (rad) from the world's x axis to the pose's, seen from above."""
        x_axis = self.rotation.as_matrix()[:, 0]
        return float(np.arctan2(x_axis[1], x_axis[0]))


@dataclass(frozen=True)
class GoalView:
    """One predicate of the goal as the world sees it now; `world.GOAL` says what the poses are."""

    satisfied: bool
    subject: Pose
    target: Pose


@dataclass(frozen=True)
class View:
    """One environment's privileged state, with names."""

    hand: Pose
    opening: float
    task: int
    goals: tuple[GoalView, ...]

    @classmethod
    def of(cls, state: np.ndarray) -> "View":
        """Build it from `environment_state` (E,); goals that a task lacks are left out."""
        goals = []
        for numbers in state[_HEAD:].reshape(MAX_GOALS, len(GOAL)):
            if numbers[3:].any():
                subject, target = Pose.of(numbers[3:]), Pose.of(numbers[3 + _POSE :])
                goals.append(GoalView(numbers[0] > 0.5, subject, target))
        return cls(Pose.of(state), float(state[_POSE]), round(float(state[_POSE + 1])), tuple(goals))


Skill = Generator[np.ndarray, View, View]
"""Generator that yields actions (7,), is sent views, and returns the last view."""


def pointing_down(yaw: float) -> Rotation:
    """The hand pointing down, its fingers opening along the y axis turned by `yaw` (rad)."""
    return Rotation.from_euler("z", yaw) * _DOWN


def half_turn(angle: float) -> float:
    """Return the angle (rad) nearest 0 among those that differ from this one by half turns."""
    return float((angle + np.pi / 2) % np.pi - np.pi / 2)


def nearest_yaw(finger_angle: float) -> float:
    """The hand's yaw whose fingers open along an axis at `finger_angle` (rad) from x: of the two, the one nearest 0."""
    return half_turn(finger_angle - np.pi / 2)


def move(
    view: View,
    where: Callable[[View], Pose],
    gripper: float,
    tolerance: float = 0.01,
    limit: int = 80,
    fast: float = 1.0,
) -> Skill:
    """Bring the hand to a pose, which may depend on what is seen, within `tolerance` m and ten times as many rad.

    After `limit` steps, or when it comes no nearer, the hand is as near as it will be.
    """
    nearest, since = np.inf, 0
    for _ in range(limit):
        target = where(view)
        turn = _shorter_turn(view.hand.rotation, target.rotation)
        step = target.position - view.hand.position
        if np.linalg.norm(step) < tolerance and np.linalg.norm(turn) < 10 * tolerance:
            break
        left = float(np.linalg.norm(step) + 0.1 * np.linalg.norm(turn))
        nearest, since = (left, 0) if left < nearest - _NEARER else (nearest, since + 1)
        if since == _PATIENCE:
            break
        step = _GAIN * step / MAX_TRANSLATION
        step /= max(1.0, float(np.linalg.norm(step)))
        view = yield np.concatenate([step, np.clip(_GAIN * turn / MAX_ROTATION, -1, 1), [gripper]])
    return view


def _shorter_turn(now: Rotation, then: Rotation) -> np.ndarray:
    """The rotation vector (rad) that brings the hand to a rotation, or to its other half: the fingers are alike."""
    other = then * Rotation.from_euler("z", np.pi)
    turns = [(rotation * now.inv()).as_rotvec() for rotation in (then, other)]
    return min(turns, key=lambda turn: float(np.linalg.norm(turn)))


def close(view: View) -> Skill:
    """Close the fingers until they stand still."""
    pose, steps, moved = view.hand, 0, np.inf
    while steps < _LONGEST_CLOSING and (steps < _SHORTEST_CLOSING or moved > _STANDING):
        before = view.opening
        view = yield _stay(view, pose, CLOSED)
        steps, moved = steps + 1, abs(view.opening - before)
    return view


def release(view: View) -> Skill:
    """Open the fingers far enough to let go."""
    pose = view.hand
    for _ in range(_OPENING_STEPS):
        view = yield _stay(view, pose, OPEN)
    return view


def _stay(view: View, pose: Pose, gripper: float) -> np.ndarray:
    step = _GAIN * (pose.position - view.hand.position) / MAX_TRANSLATION
    turn = _GAIN * (pose.rotation * view.hand.rotation.inv()).as_rotvec() / MAX_ROTATION
    return np.clip(np.concatenate([step, turn, [gripper]]), -1, 1)


def rise(view: View, height: float, gripper: float) -> Skill:
    """Raise the hand straight up to a height (m, of the world), turned as it is now."""
    start = view.hand
    top = Pose(np.append(start.position[:2], max(height, float(start.position[2]))), start.rotation)
    return (yield from move(view, lambda _: top, gripper, tolerance=0.02))
