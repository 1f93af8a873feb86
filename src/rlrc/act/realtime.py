"""Worlds whose clock runs while the policy thinks: an action that comes late meets a world that has moved on.

Synchronous: the robot looks, holds still while the policy thinks, and then carries out its actions.

Asynchronous: while the policy thinks, the robot carries out what is left of the chunk before. A new chunk was computed
from the picture of `delay` control steps ago, so that its first `delay` actions come too late and are left out, as in
LeRobot's asynchronous inference. Of a chunk that is late as a whole the last action is carried out, so that a policy
with chunks of one action acts too. The next picture is taken when an answer has come.

RTC (real-time chunking, arXiv 2506.07339): asynchronous, and the policy is told what is left of the chunk before and
how late its answer will be, so that the new chunk goes on from the old one. For policies that denoise.
"""

import math
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from pydantic import Field

from rlrc import envs
from rlrc.act.actor import Actor, Chunked, Command, Thinker, ask
from rlrc.configs.evaluate import Realtime
from rlrc.errors import UserError
from rlrc.files import write_json
from rlrc.policies.values import Generators, Observation, PolicySpec, Previous
from rlrc.progress import say
from rlrc.reading import FileModel, read_model

WARM_UP_CALLS, TIMED_CALLS = 3, 20
LATENCY_FILE = "latency.json"
"""The measured latency of an evaluation, which one that was cut off goes on with."""

_ROUNDING = 1e-6


class Latency(FileModel):
    """Time that a policy takes from a picture to its actions."""

    latency_ms: float = Field(ge=0, allow_inf_nan=False)
    """Milliseconds that every call is taken to need: the median of the calls where it was measured."""
    calls_ms: tuple[float, ...] = ()
    """The calls that were timed, one robot each; empty where the latency was given."""


def actor(thinker: Thinker, mode: Realtime, latency: Latency, world: envs.WorldSpec, execute: int | None) -> Actor:
    """Plays a policy whose answers take their time; they come at the first tick after it (synchronous) or the first
    control step (asynchronous and RTC)."""
    steps = latency.latency_ms / 1000 * world.control_hz
    if mode != "synchronous":
        return Asynchronous(thinker, math.ceil(steps - _ROUNDING), continues=mode == "rtc")
    return Chunked(thinker, execute, math.ceil(steps * world.ticks - _ROUNDING))


@dataclass
class _Answer:
    """A chunk that is on its way."""

    due: int
    """Control step at which it arrives."""
    actions: np.ndarray


class Asynchronous:
    """Asks for the next chunk while the last one is carried out.

    Args:
        thinker: who gives the chunks.
        delay: control steps from a picture to its chunk.
        continues: tell the thinker what is left of the chunk before.
    """

    def __init__(self, thinker: Thinker, delay: int, continues: bool = False) -> None:
        self.spec, self.device = thinker.spec, thinker.device
        self._thinker, self._delay, self._continues = thinker, delay, continues
        self.reset()

    def reset(self) -> None:
        """Episodes begin: throw away the actions that are left, those on their way, and what the thinker remembers."""
        self._step = 0
        self._queues: list[np.ndarray] = []
        self._coming: list[_Answer | None] = []
        self._thinker.reset()

    def act(self, observation: Observation, temperature: float = 0.0, generator: Generators = None) -> Command:
        """The next action of each row that has one."""
        if not self._queues:
            self._queues = [np.empty((0, len(self.spec.action)), np.float32)] * len(observation)
            self._coming = [None] * len(observation)
        self._take_arrivals()
        free = np.array([answer is None for answer in self._coming])
        if free.any():
            late = min(self._delay, self.spec.horizon - 1)
            if self._continues:
                observation = replace(observation, previous=self._previous())
            chunks = ask(self._thinker, free, observation, temperature, generator)
            for row, chunk in zip(np.flatnonzero(free), chunks, strict=True):
                self._coming[row] = _Answer(self._step + self._delay, chunk[late:])
            self._take_arrivals()
        self._step += 1
        commanded = np.array([len(queue) > 0 for queue in self._queues])
        nothing = np.zeros(len(self.spec.action), np.float32)
        actions = np.stack([queue[0] if len(queue) else nothing for queue in self._queues])
        self._queues = [queue[1:] for queue in self._queues]
        return Command(actions, np.zeros(len(commanded), int), commanded)

    def _previous(self) -> Previous:
        """Tell what each row has left to carry out."""
        previous = nothing_left(self.spec, len(self._queues))
        for row, queue in enumerate(self._queues):
            previous.actions[row, : len(queue)] = queue
            previous.left[row], previous.delay[row] = len(queue), self._delay
        return previous

    def _take_arrivals(self) -> None:
        """Replace what is left of old chunks by the answers that are there."""
        for row, answer in enumerate(self._coming):
            if answer is not None and answer.due <= self._step:
                self._queues[row], self._coming[row] = answer.actions, None


def nothing_left(spec: PolicySpec, rows: int) -> Previous:
    """Tell that robots have nothing to carry out, as when an episode begins."""
    actions = np.zeros((rows, spec.horizon, len(spec.action)), np.float32)
    return Previous(actions, np.zeros(rows, int), np.zeros(rows, int))


def measured_latency(thinker: Thinker, observation: Observation, out: Path) -> Latency:
    """The median time of a policy's calls for one robot, on this machine as it is; kept in `out`.

    Raises:
        UserError: `out` holds a damaged latency.
    """
    kept = out / LATENCY_FILE
    if kept.exists():
        return read_model(kept, Latency)
    seconds = []
    for _ in range(WARM_UP_CALLS + TIMED_CALLS):
        thinker.reset()
        started = time.perf_counter()
        thinker.act(observation[[0]])
        seconds.append(time.perf_counter() - started)
    calls = tuple(1000 * value for value in seconds[WARM_UP_CALLS:])
    latency = Latency(latency_ms=float(np.median(calls)), calls_ms=calls)
    write_json(kept, latency.model_dump())
    say(f"the policy thinks for {latency.latency_ms:.1f} ms (median of {TIMED_CALLS} calls for one robot)")
    return latency


def check_waits(world: envs.WorldSpec) -> None:
    """
    Raises:
        UserError: a world's environments are moved by one simulation, and cannot wait one by one.
    """
    if world.simulation is not None:
        raise UserError(f"realtime: the environments of '{world.name}' move together and cannot wait one by one")
