"""Actors: what plays a policy through episodes, and keeps what the policy itself does not."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
import torch

from rlrc.errors import UserError
from rlrc.policies.contract import Policy
from rlrc.policies.values import Generators, Observation, PolicySpec, Sampler


class Thinker(Protocol):
    """Gives chunks of actions for observations, and may remember the rows of earlier ones."""

    @property
    def spec(self) -> PolicySpec: ...

    @property
    def device(self) -> torch.device:
        """The device on which its noise is drawn."""
        ...

    def reset(self) -> None:
        """Episodes begin: forget what earlier ones have left."""
        ...

    def act(self, observation: Observation, temperature: float = 0.0, generator: Generators = None) -> np.ndarray:
        """Chunks in physical units, float32 (N, H, D)."""
        ...


class Command(NamedTuple):
    """A command tells N worlds what to do next."""

    actions: np.ndarray
    """Actions in physical units, float32 (N, D)."""
    waits: np.ndarray
    """Ticks, int (N,), for which each world runs on before it takes its action."""
    commanded: np.ndarray
    """Bool (N,), false for worlds that take no action now: they run on for a control step."""


class Actor(Protocol):
    """Plays a policy in N worlds: the next command for what they show."""

    @property
    def spec(self) -> PolicySpec: ...

    @property
    def device(self) -> torch.device: ...

    def reset(self) -> None:
        """Episodes begin."""
        ...

    def act(self, observation: Observation, temperature: float = 0.0, generator: Generators = None) -> Command: ...


def ask(
    thinker: Thinker, rows: np.ndarray, observation: Observation, temperature: float, generator: Generators
) -> np.ndarray:
    """Chunks, float32 (R, H, D), for the rows (N,) that are true, each with its own noise."""
    numbers: list[int] = np.flatnonzero(rows).tolist()
    noise = [generator[row] for row in numbers] if isinstance(generator, Sequence) else generator
    return thinker.act(observation if rows.all() else observation[numbers], temperature, noise)


class Plain:
    """A policy as it is: nothing is remembered."""

    def __init__(self, policy: Policy) -> None:
        self.policy, self.spec = policy, policy.spec

    @property
    def device(self) -> torch.device:
        return self.policy.device

    def reset(self) -> None:
        """Nothing was kept."""

    def act(self, observation: Observation, temperature: float = 0.0, generator: Generators = None) -> np.ndarray:
        """See `Thinker.act`."""
        sample = self.policy.sample(self.policy.prepare(observation), Sampler(temperature), generator)
        return self.policy.to_physical(sample.actions.cpu().numpy())


def executed_actions(spec: PolicySpec, asked: int | None) -> int:
    """Return how many actions of each chunk are carried out: as many as `asked` for, or as the policy's spec says.

    Raises:
        UserError: a chunk has fewer.
    """
    execute = spec.execute if asked is None else asked
    if not 1 <= execute <= spec.horizon:
        raise UserError(
            f"execute {execute}: the policy gives {spec.horizon} actions a call, so between 1 and {spec.horizon} of "
            "them can be carried out"
        )
    return execute


class Chunked:
    """Carries out the first actions of each chunk before the policy is asked again; each row has its own queue.

    Args:
        thinker: who gives the chunks.
        execute: actions of a chunk that are carried out; None takes what the policy's spec says.
        latency: ticks that the worlds run on, with their last command, whenever the policy is asked.

    Raises:
        UserError: a chunk has fewer actions.
    """

    def __init__(self, thinker: Thinker, execute: int | None = None, latency: int = 0) -> None:
        self.spec, self.device = thinker.spec, thinker.device
        self.latency = latency
        self._thinker = thinker
        self.execute = executed_actions(thinker.spec, execute)
        self._queues: list[np.ndarray] = []

    def reset(self) -> None:
        """Episodes begin: throw away the actions that are left, and what the policy's actor remembers."""
        self._queues = []
        self._thinker.reset()

    def act(self, observation: Observation, temperature: float = 0.0, generator: Generators = None) -> Command:
        """The next action of each row."""
        if not self._queues:
            self._queues = [np.empty((0, len(self.spec.action)), np.float32)] * len(observation)
        empty = np.array([len(queue) == 0 for queue in self._queues])
        if empty.any():
            chunks = ask(self._thinker, empty, observation, temperature, generator)
            for row, chunk in zip(np.flatnonzero(empty), chunks, strict=True):
                self._queues[row] = chunk[: self.execute]
        actions = np.stack([queue[0] for queue in self._queues])
        self._queues = [queue[1:] for queue in self._queues]
        return Command(actions, self.latency * empty, np.ones(len(empty), bool))
