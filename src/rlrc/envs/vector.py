"""Many copies of a world as one gymnasium `VectorEnv`, spread over worker processes.

A world is made by a picklable factory inside the process that runs it, so no simulation starts in the parent. Pictures
come back through shared memory, the rest through pipes. Only worlds that a GPU simulates all at once are in the parent,
whatever the number of workers. There is no autoreset: who evaluates
episode by episode wants to choose each one. Who trains may start some of them anew while the others go on.
"""

import weakref
from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector.utils import batch_space

from rlrc.configs.rl import RewardTerms
from rlrc.envs.reward import level
from rlrc.envs.workers import (
    SMALLEST_PICTURE,
    Images,
    LocalWorker,
    ProcessWorker,
    SimulationWorker,
    Worker,
    WorkerLost,
    split,
)
from rlrc.envs.world import Reading, WorldSpec
from rlrc.errors import UserError


class WorkerVectorEnv(gymnasium.vector.VectorEnv):
    """`num_envs` copies of a world, stepped together.

    `reset(options={"split": "ind"|"ood", "variant": str, "episode_ids": N ints})` starts N episodes; split and variant
    default to "ind" and "main", the ids to 0..N-1; with "reset_mask", N bools, only those marked start anew, as in
    gymnasium. Observation: images, uint8 (N,S,S,3) by camera name; instruction, tuple of N str;
    state, float32 (N,S). Action: float32 (N,D). Info: success, grasped, consecutive_grasp bool (N,) and
    environment_state float32 (N,E). `truncated` is True once `max_episode_steps` have passed, waiting included.
    `terminated` is True from the first success on in worlds that end by it, whose further steps change nothing, and
    never in others. With `image_size` None nothing is drawn, and observations have no images; otherwise `cameras` are
    drawn, by default the main one.

    Raises:
        UserError: an unknown camera, split or variant, episode ids or actions of the wrong shape, a non-finite action.
        WorkerLost: a worker process died or hung. It has been replaced; the environments it had need a reset.
        RuntimeError: a world raised.
    """

    def __init__(
        self,
        spec: WorldSpec,
        num_envs: int,
        num_workers: int = 0,
        image_size: int | None = 96,
        reward: RewardTerms | None = None,
        max_episode_steps: int | None = None,
        cameras: Sequence[str] | None = None,
    ) -> None:
        if num_envs < 1 or num_workers < 0 or (image_size is not None and image_size < SMALLEST_PICTURE):
            raise UserError(
                f"num_envs {num_envs}, num_workers {num_workers}, image_size {image_size}: "
                f"there must be at least 1 environment, 0 workers (they run in this process) and {SMALLEST_PICTURE} px"
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
        spaces: dict[str, gymnasium.Space[Any]] = {
            "instruction": gymnasium.spaces.Text(256, charset=_PRINTABLE),
            "state": gymnasium.spaces.Box(-np.inf, np.inf, (len(spec.state),), np.float32),
        }
        self._images: Images | None = None
        if image_size is not None:
            names = spec.cameras_of(cameras)
            picture = gymnasium.spaces.Box(0, 255, (image_size, image_size, 3), np.uint8)
            spaces["images"] = gymnasium.spaces.Dict(dict.fromkeys(names, picture))
            self._images = Images(names, num_envs, image_size, shared=num_workers > 0)
        self.single_observation_space = gymnasium.spaces.Dict(spaces)
        self.single_action_space = gymnasium.spaces.Box(
            np.array(spec.action_low, np.float32), np.array(spec.action_high, np.float32)
        )
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._ticks = np.zeros(num_envs, int)
        self._level = np.zeros(num_envs, np.float32)
        self._readings: list[Reading | None] = [None] * num_envs
        self._asked: list[list[int]] | None = None
        kind = SimulationWorker if spec.simulation else ProcessWorker if num_workers else LocalWorker
        parts = split(num_envs, 1 if spec.simulation else num_workers)
        self._workers: list[Worker] = [kind(spec, part, self._images) for part in parts]
        self._release = weakref.finalize(self, _release, self._workers, self._images)

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Start N episodes, or those of `reset_mask`; an episode id fixes everything, so `seed` changes nothing."""
        if self._asked is not None:
            self._hear()  # of a step that nobody waits for any more
        split, variant, episode_ids, mask = self._parse(options or {})
        self._ticks[mask] = 0
        self._level[mask] = 0
        self._ask("reset", {int(n): (split, variant, int(episode_ids[n])) for n in np.flatnonzero(mask)})
        return self._tell()

    def step(self, actions: np.ndarray) -> tuple[dict[str, Any], np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        self.step_async(actions)
        return self.step_wait()

    def step_async(
        self, actions: np.ndarray, waits: np.ndarray | None = None, commanded: np.ndarray | None = None
    ) -> None:
        """Let the workers begin a step, whose outcome `step_wait` gives.

        Args:
            actions: float32 (N,D).
            waits: ticks, int (N,), for which each world runs on with its last command before it takes its action. Where
                the episode's time is up before that, it takes none.
            commanded: bool (N,), false for worlds that take no action: they run on for a control step.
        """
        if self._asked is not None:
            raise gymnasium.error.AlreadyPendingCallError("call step_wait before the next step", "step_async")
        actions = np.asarray(actions, np.float32)
        if actions.shape != self.action_space.shape:
            raise UserError(f"actions of shape {actions.shape}: this environment takes {self.action_space.shape}")
        if not np.isfinite(actions).all():
            raise UserError("actions hold NaN or infinity")
        if None in self._readings:
            raise UserError("reset all environments before stepping them")
        waits = np.zeros(self.num_envs, int) if waits is None else waits
        commanded = np.ones(self.num_envs, bool) if commanded is None else commanded
        step = self.world_spec.ticks
        left = self.max_episode_steps * step - self._ticks
        too_late = commanded & (left > 0) & (waits >= left)
        idle = np.where(commanded, np.where(too_late, left, waits), step)
        acts = commanded & ~too_late
        self._ticks += idle + step * acts
        alive: list[int] = np.flatnonzero(~self._terminated()).tolist()
        self._ask("step", {n: (actions[n] if acts[n] else None, int(idle[n])) for n in alive})

    def step_wait(self) -> tuple[dict[str, Any], np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Wait for the step that `step_async` began, and return what `step` returns."""
        if self._asked is None:
            raise gymnasium.error.NoAsyncCallError("call step_async first", "step_wait")
        observation, info = self._tell()
        reached = level(self.reward_terms, info["grasped"], info["consecutive_grasp"], info["success"])
        reward, self._level = reached - self._level, reached
        truncated = self._ticks >= self.max_episode_steps * self.world_spec.ticks
        return observation, reward, self._terminated(), truncated, info

    def render(self) -> tuple[np.ndarray, ...]:
        """The last pictures of the first camera that is drawn, N of uint8 (S,S,3).

        Raises:
            UserError: nothing is drawn.
        """
        if self._images is None:
            raise UserError("this environment draws no pictures: make it with an image_size")
        return tuple(self._images.array[0].copy())

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

    def _terminated(self) -> np.ndarray:
        ends = self.world_spec.ends_on_success
        return np.array([ends and reading is not None and reading.success for reading in self._readings])

    def _ask(self, method: str, calls: dict[int, tuple[Any, ...]]) -> None:
        """Have `method` of the numbered worlds called with their arguments."""
        self._asked = [[n for n in calls if worker.part.start <= n < worker.part.stop] for worker in self._workers]
        for worker, mine in zip(self._workers, self._asked, strict=True):
            worker.send(method, {n - worker.part.start: calls[n] for n in mine})

    def _hear(self) -> list[Exception]:
        """Take the answers of all workers; returns those that are failures."""
        assert self._asked is not None
        asked, self._asked = self._asked, None
        failures: list[Exception] = []
        for worker, mine in zip(self._workers, asked, strict=True):
            answer = worker.receive()
            if isinstance(answer, Exception):
                failures.append(answer)
                if isinstance(answer, WorkerLost):
                    self._readings[worker.part] = [None] * len(answer.environments)
                continue
            for n, reading in zip(mine, answer, strict=True):
                self._readings[n] = reading
        return failures

    def _tell(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Observation and info of all environments after the answers have come; a failure is raised."""
        if failures := self._hear():
            # A world's own error first: it would come back, however often a lost worker was replaced.
            raise min(failures, key=lambda failure: isinstance(failure, WorkerLost))
        readings = [reading for reading in self._readings if reading is not None]
        observation: dict[str, Any] = {
            "instruction": tuple(r.instruction for r in readings),
            "state": np.stack([r.state for r in readings]),
        }
        if self._images:
            pictures = zip(self._images.cameras, self._images.array, strict=True)
            observation["images"] = {camera: images.copy() for camera, images in pictures}
        info = {
            "success": np.array([r.success for r in readings]),
            "grasped": np.array([r.grasped for r in readings]),
            "consecutive_grasp": np.array([r.consecutive_grasp for r in readings]),
            "environment_state": np.stack([r.environment_state for r in readings]),
        }
        return observation, info


def _release(workers: list[Worker], images: Images | None) -> None:
    """End the processes and free the shared memory; runs once, at the latest when the interpreter ends."""
    for worker in workers:
        worker.close()
    if images:
        images.close()


_PRINTABLE = "".join(chr(c) for c in range(32, 127)) + "\N{RIGHT SINGLE QUOTATION MARK}"  # which RL4VLA's wordings use
