"""One LIBERO episode at a time, as OpenVLA's evaluation plays it, at 20 Hz with 7-D end-effector delta actions.

The action (`ACTION`) is three translations and a rotation vector, each from -1 to 1 of what robosuite's
operational-space controller moves at most, then the gripper as published OpenVLA policies give it. robosuite's own
gripper closes at +1, so it gets the sign of 1 - 2 times ours.
"""

import gc

import numpy as np

from rlrc.envs.libero.render import Painter, as_openvla_sees
from rlrc.envs.libero.simulation import Simulation
from rlrc.envs.libero.tasks import TRIALS, Goal, Task, tasks
from rlrc.envs.world import ALONG_BASE, GraspLatch, Reading
from rlrc.episode_ids import FIRST_CURVE_EPISODE
from rlrc.errors import UserError
from rlrc.policies.dim import dims

CAMERAS = {"front": "agentview", "wrist": "robot0_eye_in_hand"}
"""Names of the cameras here, and in LIBERO."""
STATE = (
    *dims("x y z", "m", "in the world frame"),
    *dims("rx ry rz", "rad", "axis-angle, not wrapped at pi"),
    *dims("finger_left finger_right", "m", "position of the joint"),
)
"""The hand as LIBERO's datasets record it: the grip site, the hand's rotation, and the finger joints."""
ACTION = (
    *dims("x y z", "0.05 m", ALONG_BASE),
    *dims("roll pitch yaw", "0.5 rad", f"rotation vector, {ALONG_BASE}"),
    *dims("gripper", "", "1 opens, 0 closes"),
)

MAX_GOALS = 3
_POSE = ("x", "y", "z", "qw", "qx", "qy", "qz")
GOAL = (
    *("satisfied", "held", "joint"),
    *(f"subject_{name}" for name in _POSE),
    *(f"target_{name}" for name in _POSE),
)
"""Numbers of each predicate of the goal: whether it holds, whether the hand holds its subject, the position of its
joint (m or rad), and two poses (m, unit quaternion). Where a thing is to be put somewhere, these are the poses of the
thing and of the place. Where a joint is to be moved, they are those of the part that moves and of the fixture that it
belongs to."""
ENVIRONMENT_STATE = (
    *("x", "y", "z", "qw", "qx", "qy", "qz", "opening", "task"),
    *(f"goal{number}_{name}" for number in range(MAX_GOALS) for name in GOAL),
)
"""Privileged: the hand's pose, the distance between the fingers (m), the task's number, and the goal's predicates;
where a task has fewer of them, zeros."""


class Libero:
    """The world of one environment; `rlrc.envs.vector` runs many. It keeps the simulation of its last task."""

    def __init__(self, suite: str, fast: bool, image_size: int) -> None:
        self._tasks = tasks(suite)
        self._fast = fast
        self._image_size = image_size
        self._simulation: Simulation | None = None
        self._painter: Painter | None = None

    def reset(self, split: str, variant: str, episode_id: int) -> Reading:
        """Start an episode, of each task in turn.

        Raises:
            UserError: there is no such split or variant, or the id is beyond the official initial states.
        """
        if (split, variant) != ("ind", "main"):
            raise UserError(f"LIBERO has only the split ind and the variant main, not '{split}' of '{variant}'")
        trial, number = divmod(episode_id, len(self._tasks))
        task = self._tasks[number]
        simulation = self._simulate(task)
        if episode_id >= FIRST_CURVE_EPISODE:
            simulation.start_drawn(episode_id)
        elif trial < TRIALS:
            simulation.start_official(trial)
        else:
            raise UserError(
                f"episode {episode_id} of {task.suite}: each task has {TRIALS} official initial states; ids "
                f"from {FIRST_CURVE_EPISODE:,} on draw others"
            )
        self._grasp = GraspLatch()
        self._gripper = -1.0  # open
        return self._read(simulation)

    def step(self, action: np.ndarray) -> Reading:
        """One control step (0.05 s) with an action (7,)."""
        assert self._simulation is not None
        self._gripper = float(np.sign(1 - 2 * action[6]))
        self._simulation.step(np.append(action[:6], self._gripper).astype(np.float64))
        return self._read(self._simulation)

    def wait(self, ticks: int) -> Reading:
        """So many control steps without a command."""
        assert self._simulation is not None
        for _ in range(ticks):
            self._simulation.step(np.append(np.zeros(6), self._gripper))
        return self._read(self._simulation)

    def draw(self, camera: str) -> np.ndarray:
        """A camera's picture, uint8 (S,S,3)."""
        assert self._simulation is not None
        pixels = self._painter_of(self._simulation).draw(self._simulation.data, CAMERAS[camera])
        return as_openvla_sees(pixels, self._image_size)

    def _painter_of(self, simulation: Simulation) -> Painter:
        if self._painter is None:
            self._painter = Painter(simulation.model, self._fast)
        return self._painter

    def _simulate(self, task: Task) -> Simulation:
        if self._simulation is None or self._simulation.task != task:
            self._painter = self._simulation = None
            gc.collect()  # robosuite's objects hold each other: without this, five tasks lie in memory at once
            self._simulation = Simulation(task, self._fast)
            self._goals = task.goals
        return self._simulation

    def _read(self, simulation: Simulation) -> Reading:
        position, quat, fingers = simulation.hand()
        self._grasp.update(any(simulation.holds(name) for name in simulation.things_of_interest()))
        privileged = np.zeros(len(ENVIRONMENT_STATE))
        privileged[:9] = [*position, *quat, fingers[0] - fingers[1], simulation.task.number]
        goals = np.concatenate([_describe(simulation, goal) for goal in self._goals])
        privileged[9 : 9 + len(goals)] = goals
        return Reading(
            instruction=simulation.task.instruction,
            state=np.concatenate([position, axis_angle(quat), fingers]).astype(np.float32),
            environment_state=privileged.astype(np.float32),
            success=simulation.success(),
            grasped=self._grasp.grasped,
            consecutive_grasp=self._grasp.consecutive_grasp,
        )


def axis_angle(quat: np.ndarray) -> np.ndarray:
    """The rotation vector (3,), rad, of a unit quaternion (w, x, y, z), as robosuite's `quat2axisangle` gives it.

    Its length is 2 acos(w), up to two pi: a hand that points down turns by about pi, and would jump to the opposite
    vector there if angles were wrapped.
    """
    w = np.clip(quat[0], -1.0, 1.0)
    sine = np.sqrt(1.0 - w * w)
    return np.zeros(3) if np.isclose(sine, 0.0) else quat[1:] * 2.0 * np.arccos(w) / sine


def _describe(simulation: Simulation, goal: Goal) -> np.ndarray:
    """The numbers named in `GOAL`."""
    satisfied = simulation.satisfied(goal)
    if goal.target is not None:
        held = simulation.holds(goal.subject)
        return np.array([satisfied, held, 0.0, *simulation.pose(goal.subject), *simulation.pose(goal.target)])
    joint, part, fixture = simulation.articulation(goal.subject)
    return np.array([satisfied, False, joint, *part, *fixture])
