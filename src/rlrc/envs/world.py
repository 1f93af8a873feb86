"""The contract of a world, between a simulator and everything that acts in it."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Protocol

import numpy as np

from rlrc.errors import UserError
from rlrc.policies.dim import Dim

CONSECUTIVE_STEPS = 5
"""Number of steps in a row for which an object must be held to count as `consecutive_grasp`."""


IN_BASE = "in the frame of the arm's base"
"""Convention of a position."""
ALONG_BASE = "change along the axes of the arm's base"
"""Convention of an action that moves the hand."""


@dataclass(frozen=True)
class Reading:
    """Everything but the pictures that a world returns after a reset or a step."""

    instruction: str
    state: np.ndarray
    environment_state: np.ndarray
    success: bool
    grasped: bool
    consecutive_grasp: bool


class GraspLatch:
    """An episode's two flags of a grasp, as RL4VLA has them: once true they stay."""

    def __init__(self) -> None:
        self._steps = 0
        self.grasped = self.consecutive_grasp = False

    def update(self, held: bool) -> None:
        """Tell whether the object is held after one more step."""
        self._steps = self._steps + 1 if held else 0
        self.grasped |= held
        self.consecutive_grasp |= self._steps >= CONSECUTIVE_STEPS


class World(Protocol):
    """One episode at a time of some task; all that a worker needs."""

    def reset(self, split: str, variant: str, episode_id: int) -> Reading: ...

    def step(self, action: np.ndarray) -> Reading: ...

    def wait(self, ticks: int) -> Reading:
        """Run on for so many ticks (at least 1) while the last command stays in force: the arm holds the pose that it
        was sent to, and the gripper stays as it is."""
        ...

    def draw(self, camera: str) -> np.ndarray:
        """The picture of one of the spec's cameras, uint8 (S, S, 3)."""
        ...


class Simulation(Protocol):
    """Several episodes at a time, N, which start together."""

    def reset(self, split: str, variant: str, episode_ids: Sequence[int]) -> list[Reading]: ...

    def step(self, actions: np.ndarray) -> list[Reading]: ...

    def draw(self, camera: str) -> np.ndarray:
        """The pictures of one of the spec's cameras, uint8 (N, S, S, 3)."""
        ...

    def close(self) -> None: ...


class Expert(Protocol):
    """Solves a world's task from privileged state; made anew for each batch of episodes, which it may remember."""

    def act(self, environment_state: np.ndarray) -> np.ndarray:
        """Actions, float32 (N,D), for the `environment_state` (N,E) of the last info."""
        ...


@dataclass(frozen=True)
class WorldSpec:
    """The facts that the parent knows of a world without importing its simulator. The fields must be picklable."""

    name: str
    factory: Callable[[int], World]
    """Makes one world from the pictures' size in px; called in the process that runs it."""
    cameras: tuple[str, ...]
    """Names of its cameras, the main one first."""
    state: tuple[Dim, ...]
    """Readings of the robot's own sensors."""
    environment_state_names: tuple[str, ...]
    action: tuple[Dim, ...]
    action_low: tuple[float, ...]
    action_high: tuple[float, ...]
    max_episode_steps: int
    control_hz: float
    variants: dict[str, str]
    """The names of its variants, main first, and what each challenges: vision, semantics or execution."""
    splits: tuple[str, ...] = ("ind", "ood")
    """Splits of the variant main. Every other variant is out of distribution."""
    num_tasks: int = 1
    """Number of tasks in a suite. Episode i is one of task i modulo this number."""
    gripper: tuple[int, int, int] = (0, 1, 2)
    """Indices of the gripper's position (x, y, z), metres, in `environment_state`."""
    expert: Callable[[int], Expert] | None = None
    """Makes the scripted expert of so many environments, where the world has one."""
    ends_on_success: bool = False
    """True if an episode is over once it succeeds, as in LIBERO; otherwise it goes on and may lose what it had."""
    simulation: Callable[[int, int], Simulation] | None = None
    """Instead of `factory`, makes all worlds of an environment as one simulation in the process that asks for it, from
    the pictures' size in px and the number of worlds. Not with `ends_on_success`."""
    ticks: int = 1
    """Number of equal parts, or ticks, of a control step. A world that waits runs on for a number of them."""
    answer_limit_s: float = 300.0
    """A world that takes longer for one step or one reset (the first one includes making it) is taken to hang."""

    def cameras_of(self, cameras: Sequence[str] | None) -> tuple[str, ...]:
        """The cameras of these names; the main one where none are named.

        Raises:
            UserError: there is no such camera, one is named twice, or the list is empty.
        """
        chosen = self.cameras[:1] if cameras is None else tuple(cameras)
        unknown = [camera for camera in chosen if camera not in self.cameras]
        if unknown or not chosen or len(set(chosen)) < len(chosen):
            wrong = f"no camera '{unknown[0]}'" if unknown else f"no cameras '{' '.join(chosen)}', each once"
            raise UserError(f"the world '{self.name}' has {wrong} (its cameras: {', '.join(self.cameras)})")
        return chosen

    def splits_of(self, variant: str) -> tuple[str, ...]:
        """The splits in which a variant can be played."""
        return self.splits if variant == "main" else ("ood",)

    def episode_ids(self, first: int, tasks: Sequence[int] | None = None) -> Iterator[int]:
        """Ids from `first` on, without end, of all tasks or of those of these numbers."""
        return (id_ for id_ in count(first) if tasks is None or id_ % self.num_tasks in tasks)

    def check_tasks(self, tasks: Sequence[int] | None) -> None:
        """
        Raises:
            UserError: these are no numbers of tasks.
        """
        if tasks is not None and not (tasks and set(tasks) <= set(range(self.num_tasks))):
            raise UserError(
                f"tasks {list(tasks)}: those of the world '{self.name}' are numbered 0 to {self.num_tasks - 1}"
            )


def by_name(environment_state: np.ndarray, names: tuple[str, ...], num_envs: int) -> dict[str, np.ndarray]:
    """The columns, float64 (N,), of privileged states (N,E), as experts read them.

    Raises:
        UserError: the states have another shape than so many environments with these names give.
    """
    shape = (num_envs, len(names))
    if environment_state.shape != shape:
        raise UserError(f"environment_state of shape {environment_state.shape}: this expert takes {shape}")
    return dict(zip(names, environment_state.astype(np.float64).T, strict=True))
