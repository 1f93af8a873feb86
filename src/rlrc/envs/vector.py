"""Many copies of a world as one gymnasium `VectorEnv`, spread over worker processes.

A world is any class with the methods of `World`, made by a picklable factory inside the process that runs it, so
nothing of MuJoCo or a simulator is imported in the parent. Pictures come back through shared memory, the rest through
pipes. Episodes have a fixed length and there is no autoreset: who evaluates episode by episode wants to choose each
one. Who trains may start some of them anew while the others go on.
"""

import multiprocessing
import traceback
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from multiprocessing.connection import Connection
from multiprocessing.shared_memory import SharedMemory
from typing import Any, Protocol

import gymnasium
import numpy as np
from gymnasium.vector.utils import batch_space

from rlrc.envs.reward import RewardTerms
from rlrc.errors import UserError


@dataclass(frozen=True)
class Reading:
    """What one world tells after a reset or a step, besides its picture."""

    instruction: str
    state: np.ndarray
    environment_state: np.ndarray
    success: bool
    grasped: bool
    consecutive_grasp: bool


class World(Protocol):
    """One episode at a time of some task; all that a worker needs."""

    def reset(self, split: str, variant: str, episode_id: int) -> Reading: ...

    def step(self, action: np.ndarray) -> Reading: ...

    def draw(self) -> np.ndarray: ...


class Expert(Protocol):
    """Solves a world's task from privileged state; made anew for each batch of episodes, which it may remember."""

    def act(self, environment_state: np.ndarray) -> np.ndarray:
        """Actions, float32 (N,7), for the `environment_state` (N,E) of the last info."""
        ...


@dataclass(frozen=True)
class WorldSpec:
    """What the parent knows of a world without importing its simulator. Its fields must be picklable."""

    name: str
    factory: Callable[[int], World]
    """Makes one world from the pictures' size in px; called in the process that runs it."""
    state_names: tuple[str, ...]
    environment_state_names: tuple[str, ...]
    action_low: tuple[float, ...]
    action_high: tuple[float, ...]
    max_episode_steps: int
    control_hz: float
    variants: dict[str, str]
    """The names of its variants, main first, and what each challenges: main, vision, semantics or execution."""
    splits: tuple[str, ...] = ("ind", "ood")
    """Those of the variant main; every other variant is out of distribution."""
    expert: Callable[[int], Expert] | None = None
    """Makes the scripted expert of so many environments, where the world has one."""


class WorkerVectorEnv(gymnasium.vector.VectorEnv):
    """`num_envs` copies of a world, stepped together.

    `reset(options={"split": "ind"|"ood", "variant": str, "episode_ids": N ints})` starts N episodes; split and variant
    default to "ind" and "main", the ids to 0..N-1; with "reset_mask", N bools, only those marked start anew, as in
    gymnasium. Observation: image uint8 (N,S,S,3), instruction tuple of N str,
    state float32 (N,D). Action: float32 (N,7). Info: success, grasped, consecutive_grasp bool (N,) and
    environment_state float32 (N,E). `truncated` is True after `max_episode_steps`, `terminated` never.

    Raises:
        UserError: an unknown split or variant, episode ids or actions of the wrong shape, a non-finite action.
        RuntimeError: a worker process died, or its world raised.
    """

    def __init__(
        self,
        spec: WorldSpec,
        num_envs: int,
        num_workers: int = 0,
        image_size: int = 96,
        reward: RewardTerms | None = None,
        max_episode_steps: int | None = None,
    ) -> None:
        if num_envs < 1 or num_workers < 0 or image_size < 16:
            raise UserError(
                f"num_envs {num_envs}, num_workers {num_workers}, image_size {image_size}: "
                "need at least 1 environment, 0 workers (run in this process) and 16 px"
            )
        self.world_spec = spec
        self.num_envs = num_envs
        self.max_episode_steps = max_episode_steps or spec.max_episode_steps
        self.reward_terms = reward or RewardTerms()
        self.metadata = {
            "autoreset_mode": gymnasium.vector.AutoresetMode.DISABLED,
            "render_modes": ["rgb_array"],
            "render_fps": spec.control_hz,
        }
        self.single_observation_space = gymnasium.spaces.Dict(
            {
                "image": gymnasium.spaces.Box(0, 255, (image_size, image_size, 3), np.uint8),
                "instruction": gymnasium.spaces.Text(256, charset=_PRINTABLE),
                "state": gymnasium.spaces.Box(-np.inf, np.inf, (len(spec.state_names),), np.float32),
            }
        )
        self.single_action_space = gymnasium.spaces.Box(
            np.array(spec.action_low, np.float32), np.array(spec.action_high, np.float32)
        )
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._steps = np.zeros(num_envs, int)
        self._level = np.zeros(num_envs, np.float32)
        self._readings: list[Reading | None] = [None] * num_envs
        self._images = _Images((num_envs, image_size, image_size, 3), shared=num_workers > 0)
        slices = _split(num_envs, num_workers)
        self._workers: list[_Worker]
        if num_workers:
            self._workers = [_Process(spec, part, self._images) for part in slices]
        else:
            self._workers = [_Local(spec, slices[0], self._images)]
        self._release = weakref.finalize(self, _release, self._workers, self._images)

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Start N episodes, or those of `reset_mask`; an episode id fixes everything, so `seed` changes nothing."""
        split, variant, episode_ids, mask = self._parse(options or {})
        self._steps[mask] = 0
        self._level[mask] = 0
        return self._gather("reset", {int(n): (split, variant, int(episode_ids[n])) for n in np.flatnonzero(mask)})

    def step(self, actions: np.ndarray) -> tuple[dict[str, Any], np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        actions = np.asarray(actions, np.float32)
        if actions.shape != self.action_space.shape:
            raise UserError(f"actions of shape {actions.shape}: this environment takes {self.action_space.shape}")
        if not np.isfinite(actions).all():
            raise UserError("actions hold NaN or infinity")
        observation, info = self._gather("step", {n: (action,) for n, action in enumerate(actions)})
        level = self.reward_terms.level(info["grasped"], info["consecutive_grasp"], info["success"])
        reward, self._level = level - self._level, level
        self._steps += 1
        truncated = self._steps >= self.max_episode_steps
        return observation, reward, np.zeros(self.num_envs, bool), truncated, info

    def render(self) -> tuple[np.ndarray, ...]:
        """The last pictures, N of uint8 (S,S,3)."""
        return tuple(self._images.array.copy())

    def close_extras(self, **kwargs: Any) -> None:
        self._release()

    def _parse(self, options: dict[str, Any]) -> tuple[str, str, np.ndarray, np.ndarray]:
        known = ("split", "variant", "episode_ids", "reset_mask")
        if unknown := set(options) - set(known):
            raise UserError(f"unknown reset options {sorted(unknown)} (known: {', '.join(known)})")
        ids = np.asarray(options.get("episode_ids", np.arange(self.num_envs)))
        if ids.shape != (self.num_envs,) or not np.issubdtype(ids.dtype, np.integer):
            raise UserError(f"episode_ids: need {self.num_envs} integers, got shape {ids.shape} of {ids.dtype}")
        mask = np.asarray(options.get("reset_mask", np.ones(self.num_envs, bool)))
        if mask.shape != (self.num_envs,) or mask.dtype != bool:
            raise UserError(f"reset_mask: need {self.num_envs} bools, got shape {mask.shape} of {mask.dtype}")
        if None in self._readings and not mask.all():
            raise UserError("reset_mask: start all episodes before starting some of them anew")
        return options.get("split", "ind"), options.get("variant", "main"), ids, mask

    def _gather(self, method: str, calls: dict[int, tuple[Any, ...]]) -> tuple[dict[str, Any], dict[str, Any]]:
        """Call `method` of the numbered worlds with their arguments; failures are raised after all have answered."""
        numbers = [[n for n in calls if worker.part.start <= n < worker.part.stop] for worker in self._workers]
        for worker, mine in zip(self._workers, numbers, strict=True):
            worker.send(method, {n - worker.part.start: calls[n] for n in mine})
        failures: list[Exception] = []
        for worker, mine in zip(self._workers, numbers, strict=True):
            answer = worker.receive()
            if isinstance(answer, Exception):
                failures.append(answer)
                continue
            for n, reading in zip(mine, answer, strict=True):
                self._readings[n] = reading
        if failures:
            raise failures[0]
        readings = [reading for reading in self._readings if reading is not None]
        observation = {
            "image": self._images.array.copy(),
            "instruction": tuple(r.instruction for r in readings),
            "state": np.stack([r.state for r in readings]),
        }
        info = {
            "success": np.array([r.success for r in readings]),
            "grasped": np.array([r.grasped for r in readings]),
            "consecutive_grasp": np.array([r.consecutive_grasp for r in readings]),
            "environment_state": np.stack([r.environment_state for r in readings]),
        }
        return observation, info


def _release(workers: "list[_Worker]", images: "_Images") -> None:
    """End the processes and free the shared memory; runs once, at the latest when the interpreter ends."""
    for worker in workers:
        worker.close()
    images.close()


class _Images:
    """The pictures of all environments, in shared memory where other processes draw them."""

    def __init__(self, shape: tuple[int, ...], shared: bool, name: str | None = None) -> None:
        self.shape = shape
        self._owner = shared and name is None
        self._memory = SharedMemory(name, create=name is None, size=int(np.prod(shape))) if shared else None
        buffer = self._memory.buf if self._memory else None
        self.array: np.ndarray = np.ndarray(shape, np.uint8, buffer)

    @property
    def name(self) -> str | None:
        return self._memory.name if self._memory else None

    def close(self) -> None:
        if self._memory is None:
            return
        del self.array
        self._memory.close()
        if self._owner:
            self._memory.unlink()
        self._memory = None


class _Worker(Protocol):
    """Runs the environments `part` of the whole."""

    part: slice

    def send(self, method: str, calls: dict[int, tuple[Any, ...]]) -> None: ...

    def receive(self) -> "list[Reading] | Exception": ...

    def close(self) -> None: ...


class _Local:
    """A worker in this process."""

    def __init__(self, spec: WorldSpec, part: slice, images: _Images) -> None:
        self.part = part
        self._images = images
        self._worlds = [spec.factory(images.shape[1]) for _ in range(part.start, part.stop)]

    def send(self, method: str, calls: dict[int, tuple[Any, ...]]) -> None:
        self._answer = _run(self._worlds, self._images.array[self.part], method, calls)

    def receive(self) -> list[Reading] | Exception:
        return self._answer

    def close(self) -> None:
        self._worlds = []


class _Process:
    """A worker in a process of its own, spawned so that no GL context, thread or lock is inherited."""

    def __init__(self, spec: WorldSpec, part: slice, images: _Images) -> None:
        self.part = part
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(
            target=_serve, args=(theirs, spec, part, images.name, images.shape), daemon=True
        )
        self._process.start()
        theirs.close()

    def send(self, method: str, calls: dict[int, tuple[Any, ...]]) -> None:
        try:
            self._pipe.send((method, calls))
        except OSError as error:
            raise self._death() from error

    def receive(self) -> list[Reading] | Exception:
        try:
            return self._pipe.recv()
        except (EOFError, OSError):
            return self._death()

    def close(self) -> None:
        self._pipe.close()
        self._process.terminate()  # A worker holds nothing worth saving, and may still be starting.
        self._process.join()

    def _death(self) -> RuntimeError:
        self._process.join(timeout=1)
        environments = f"environments {self.part.start} to {self.part.stop - 1}"
        return RuntimeError(f"the worker process of {environments} died (exit code {self._process.exitcode})")


def _serve(pipe: Connection, spec: WorldSpec, part: slice, name: str, shape: tuple[int, ...]) -> None:
    """The body of a worker process: answer calls until the other end hangs up."""
    images = _Images(shape, shared=True, name=name)
    try:
        try:
            worker = _Local(spec, part, images)
        except UserError as error:  # A simulator that is not complete here answers the first call.
            pipe.recv()
            pipe.send(error)
            return
        while True:
            worker.send(*pipe.recv())
            pipe.send(worker.receive())
    except (EOFError, BrokenPipeError, KeyboardInterrupt):
        pass
    finally:
        images.close()


def _run(
    worlds: list[World], images: np.ndarray, method: str, calls: dict[int, tuple[Any, ...]]
) -> list[Reading] | Exception:
    """Reset or step the numbered worlds one after another, and draw each; an exception is the answer, not a death."""
    try:
        readings = []
        for index, arguments in calls.items():
            readings.append(getattr(worlds[index], method)(*arguments))
            images[index] = worlds[index].draw()
        return readings
    except UserError as error:
        return error
    except Exception:
        return RuntimeError(f"an environment failed:\n{traceback.format_exc()}")


def _split(count: int, workers: int) -> list[slice]:
    """`count` environments in at most `workers` even parts (one part where there are no workers)."""
    bounds = np.linspace(0, count, min(max(workers, 1), count) + 1).round().astype(int)
    return [slice(int(a), int(b)) for a, b in pairwise(bounds)]


_PRINTABLE = "".join(chr(c) for c in range(32, 127))
