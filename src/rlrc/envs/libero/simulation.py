"""One task's robosuite environment: built without robosuite's renderer, started as OpenVLA's evaluation starts it."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import mujoco
import numpy as np

from rlrc.envs.libero.meshes import simplified
from rlrc.envs.libero.tasks import TRIALS, Goal, Task

CONTROL_HZ = 20.0
SETTLE_STEPS = 10
_UPSTREAM_SEED = 0
"""OpenVLA's evaluation seeds a task's environment with this once, before its first trial."""
_STILL_OPEN = np.array([0.0, 0, 0, 0, 0, 0, -1])
_SETUP = {
    "robots": ["Panda"],
    "gripper_types": "default",
    "initialization_noise": None,
    "use_camera_obs": False,
    "has_renderer": False,
    "has_offscreen_renderer": False,
    "control_freq": CONTROL_HZ,
    "ignore_done": True,
    "hard_reset": False,
}


class Simulation:
    """A task, ready to be reset and stepped; `model` and `data` are MuJoCo's own.

    The fixtures (cabinets, stoves) stand where a random draw puts them, official initial states or not: these hold only
    what moves. In OpenVLA's evaluation trial t gets the draw after t others of one seeded stream, and so it does here.
    """

    def __init__(self, task: Task, simplify_meshes: bool) -> None:
        self.task = task
        self.env = _build(task, simplify_meshes)
        self._initial_states = task.initial_states()
        with _random_stream(_UPSTREAM_SEED):
            self._streams = [np.random.get_state()]  # noqa: NPY002  # robosuite draws from numpy's global generator

    @property
    def model(self) -> mujoco.MjModel:
        return self.env.sim.model._model

    @property
    def data(self) -> mujoco.MjData:
        return self.env.sim.data._data

    def start_official(self, trial: int) -> None:
        """Start from the official initial state `trial`, settled."""
        with _random_stream(self._stream(trial)):
            self._reset()
        self.env.sim.set_state_from_flattened(self._initial_states[trial])
        self.env.sim.forward()
        self.env._post_process()
        self._settle()

    def start_drawn(self, seed: int) -> None:
        """Start from a state that the task's own placement rules draw, settled; no official one is among them."""
        with _random_stream([self.task.number, seed]):
            self._reset()
        self._settle()

    def step(self, action: np.ndarray) -> None:
        """One control step with an action (7,) in robosuite's convention: gripper +1 closes."""
        with _computed_once(self.env.sim):
            self.env.step(action)

    def success(self) -> bool:
        return bool(self.env._check_success())

    def satisfied(self, goal: Goal) -> bool:
        """Return whether one predicate of the goal holds."""
        words = [goal.predicate, goal.subject] if goal.target is None else [goal.predicate, goal.subject, goal.target]
        return bool(self.env._eval_predicate(words))

    def holds(self, name: str) -> bool:
        """Return whether both fingers touch an object or fixture, as robosuite's `_check_grasp` does, in less time."""
        fingers = self.env.robots[0].gripper.important_geoms
        touching = self.data.contact.geom
        touching = touching[np.isin(touching, self._geoms(self.env.get_object(name).contact_geoms)).any(axis=1)]
        return all(np.isin(touching, self._geoms(fingers[f"{side}_fingerpad"])).any() for side in ("left", "right"))

    def _geoms(self, names: list[str]) -> list[int]:
        """Return the numbers of these geoms; -1, which touches nothing, for what the model lacks."""
        return [mujoco.mj_name2id(self.model, mujoco.mjtObj.mjOBJ_GEOM, name) for name in names]

    def things_of_interest(self) -> list[str]:
        """The movable ones of BDDL's :obj_of_interest; where there is none, the fixtures, or those of its regions."""
        movable = [name for name in self.env.obj_of_interest if name in self.env.objects_dict]
        states = [self.env.object_states_dict[name] for name in self.env.obj_of_interest]
        return movable or [getattr(state, "parent_name", state.object_name) for state in states]

    def hand(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The grip site's position (m), the hand's quaternion (w, x, y, z), the finger joints' positions (m)."""
        robot = self.env.robots[0]
        body = self.model.body(robot.robot_model.eef_name).id
        fingers = self.data.qpos[robot._ref_gripper_joint_pos_indexes]
        return self.data.site_xpos[robot.eef_site_id].copy(), self.data.xquat[body].copy(), fingers

    def pose(self, name: str) -> np.ndarray:
        """Return the pose of an object, a fixture or a region: position (m) and quaternion (w, x, y, z), (7,)."""
        if name in self.env.obj_body_id:
            return self._body_pose(self.env.obj_body_id[name])
        site, quat = self.data.site(name), np.zeros(4)
        mujoco.mju_mat2Quat(quat, site.xmat)
        return np.concatenate([site.xpos, quat])

    def articulation(self, name: str) -> tuple[float, np.ndarray, np.ndarray]:
        """Return the joint's position (m or rad) of a fixture or a region of it, and the poses (7,) of what moves and
        of the whole fixture."""
        state = self.env.object_states_dict[name]
        is_region = state.object_state_type == "site"
        owner = self.env.object_sites_dict[name] if is_region else self.env.get_object(name)
        joint = self.model.joint(owner.joints[0])
        fixture = self.env.obj_body_id[state.parent_name if is_region else name]
        position = float(self.data.qpos[joint.qposadr[0]])
        return position, self._body_pose(int(joint.bodyid[0])), self._body_pose(fixture)

    def _body_pose(self, body: int) -> np.ndarray:
        return np.concatenate([self.data.xpos[body], self.data.xquat[body]])

    def _settle(self) -> None:
        for _ in range(SETTLE_STEPS):
            self.step(_STILL_OPEN)

    def _stream(self, trial: int) -> Any:
        """The generator's state before trial `trial` is drawn."""
        assert 0 <= trial < TRIALS
        while len(self._streams) <= trial:
            with _random_stream(self._streams[-1]):
                self._reset()
                self._streams.append(np.random.get_state())  # noqa: NPY002
        return self._streams[trial]

    def _reset(self) -> None:
        """Draw a state until everything has found a place, as upstream does."""
        from robosuite.utils.errors import RandomizationError

        while True:
            try:
                self.env.reset()
                break
            except RandomizationError:
                continue
        gripper = self.env.robots[0].gripper
        gripper.current_action = np.zeros(gripper.dof)  # it ramps, and keeps where it was unless the model is rebuilt


@contextmanager
def _random_stream(start: Any) -> Iterator[None]:
    """Run the block with numpy's global generator in a state of our choosing, and leave it as it was."""
    before = np.random.get_state()  # noqa: NPY002
    if isinstance(start, tuple):
        np.random.set_state(start)  # noqa: NPY002
    else:
        np.random.seed(start)  # noqa: NPY002
    try:
        yield
    finally:
        np.random.set_state(before)  # noqa: NPY002


@contextmanager
def _computed_once(sim: Any) -> Iterator[None]:
    """Let robosuite's loop compute each state once instead of three times, with the same bits.

    Its environment and its controller each call `forward` before a step, which begins with the same again. What the
    controller reads of it is the first half of a step; what it decides enters the second.
    """
    model, data = sim.model._model, sim.data._data
    current = False

    def forward() -> None:
        nonlocal current
        if not current:
            mujoco.mj_step1(model, data)
        current = True

    def step() -> None:
        nonlocal current
        forward()
        mujoco.mj_step2(model, data)
        current = False

    sim.forward, sim.step = forward, step
    try:
        yield
    finally:
        del sim.forward, sim.step


def _build(task: Task, simplify_meshes: bool) -> Any:
    logging.getLogger("robosuite_logs").setLevel(logging.ERROR)  # it warns on import of what no user can act on
    os.environ.setdefault("MUJOCO_GL", "egl")  # robosuite chooses its GL on import, though it draws nothing here
    import robosuite
    from libero.libero.envs import TASK_MAPPING
    from libero.libero.envs.bddl_utils import get_problem_info

    domain = TASK_MAPPING[get_problem_info(str(task.bddl))["problem_name"]]
    mixins = (_SimplifiedMeshes, _FixturesPutBack) if simplify_meshes else (_FixturesPutBack,)
    domain = type(domain.__name__, (*mixins, domain), {})
    controller = robosuite.load_controller_config(default_controller="OSC_POSE")
    env = domain(str(task.bddl), controller_configs=controller, **_SETUP)
    env._observables.clear()  # nobody reads robosuite's observations, and computing them takes a third of a step
    return env


class _FixturesPutBack:
    """Mixed into a LIBERO domain: each reset starts with the fixtures where the model has them.

    Upstream builds the model anew each time, and finds the places on and in fixtures by where those are before it draws
    where they shall be.
    """

    def _reset_internal(self) -> None:
        model = self.sim.model._model  # type: ignore[attr-defined]
        if not hasattr(self, "_as_built"):
            self._as_built = model.body_pos.copy(), model.body_quat.copy()
        model.body_pos[:], model.body_quat[:] = self._as_built
        super()._reset_internal()  # type: ignore[misc]


class _SimplifiedMeshes:
    """Mixed into a LIBERO domain: what is only seen has few faces. What touches and weighs stays as it is."""

    def _initialize_sim(self, xml_string: str | None = None) -> None:
        super()._initialize_sim(simplified(xml_string or self.model.get_xml()))  # type: ignore[misc, attr-defined]
