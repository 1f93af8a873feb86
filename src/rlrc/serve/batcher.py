"""One thread runs the policy; requests that wait while it works are answered together.

Each row of a batch has noise of its own and sees nothing of the others. In float32 its answer is that of the row alone
within 1e-5; in bf16 a batch is rounded in other places, so that the last digits depend on how many ask at once.
"""

import threading
import time
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Any

import numpy as np
import torch

from rlrc.errors import UserError
from rlrc.policies.contract import Policy
from rlrc.policies.values import Sampler


@dataclass(frozen=True)
class Answer:
    """A chunk of actions, and how it came about."""

    actions: np.ndarray
    """Actions in physical units, float32 (H, D)."""
    waited_s: float
    """Seconds between the request and the beginning of its batch."""
    computed_s: float
    """Seconds that the batch took."""
    rows: int
    """Requests in the batch."""


@dataclass(frozen=True)
class _Request:
    inputs: Any
    """Model inputs of one row."""
    seed: int
    answer: "Future[Answer]" = field(default_factory=Future)
    arrived: float = field(default_factory=time.perf_counter)


class Batcher:
    """Answers requests with a policy, up to `max_batch` at once."""

    def __init__(self, policy: Policy, sampler: Sampler, max_batch: int) -> None:
        self._policy = policy
        self._sampler = sampler
        self._max_batch = max_batch
        self._queue: SimpleQueue[_Request | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="policy", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Number of requests that no batch has taken yet."""
        return self._queue.qsize()

    def submit(self, inputs: Any, seed: int) -> "Future[Answer]":
        """Ask for the actions of one row of model inputs.

        Args:
            seed: of its noise, where the policy has any.
        """
        request = _Request(inputs, seed)
        self._queue.put(request)
        return request.answer

    def close(self) -> None:
        """Answer what was asked before, and end."""
        self._queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        while batch := self._next():
            self._answer([request for request in batch if request.answer.set_running_or_notify_cancel()])

    def _next(self) -> list[_Request]:
        """The requests that wait, at most a batch of them; none at the end."""
        batch: list[_Request] = []
        while not batch or (len(batch) < self._max_batch and not self._queue.empty()):
            request = self._queue.get()
            if request is None:
                self._queue.put(None)  # so that the next call ends too
                break
            batch.append(request)
        return batch

    def _answer(self, batch: list[_Request]) -> None:
        if not batch:
            return
        begun = time.perf_counter()
        try:
            chunks = self._act(batch)
        except Exception as error:
            if len(batch) > 1:  # One row must not cost the others their answers.
                for request in batch:
                    self._answer([request])
                return
            batch[0].answer.set_exception(error)
            return
        took = time.perf_counter() - begun
        for request, chunk in zip(batch, chunks, strict=True):
            try:
                request.answer.set_result(Answer(chunk, begun - request.arrived, took, len(batch)))
            except InvalidStateError:  # Nobody waits for it any more.
                continue

    def _act(self, batch: list[_Request]) -> np.ndarray:
        inputs = type(batch[0].inputs).concatenate([request.inputs for request in batch])
        generators = [torch.Generator(self._policy.device).manual_seed(request.seed) for request in batch]
        sample = self._policy.sample(inputs, self._sampler, generators)
        actions = self._policy.to_physical(sample.actions.cpu().numpy())
        if not np.isfinite(actions).all():
            raise UserError("the policy gave an action that is NaN or infinite")
        return actions
