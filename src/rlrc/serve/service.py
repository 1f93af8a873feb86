"""What all protocols share: a message becomes an observation, waits for the policy, and gets its chunk of actions.

A request changes threads three times: to one that reads it and puts it into the policy's queue, to the policy's, and
back to the event loop. On a busy machine each change can cost milliseconds.
"""

import asyncio
import itertools
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

import numpy as np

from rlrc.configs.serve import ServeConfig
from rlrc.errors import UserError, shorten
from rlrc.policies.acting import set_up
from rlrc.policies.contract import Policy
from rlrc.policies.values import Observation, Sampler
from rlrc.progress import say
from rlrc.serve.batcher import Answer, Batcher
from rlrc.serve.metrics import Metrics
from rlrc.serve.names import Reader, read_names
from rlrc.served import PREVIOUS
from rlrc.version import __version__
from rlrc.wire import WireError

READERS = 4
"""Threads that turn messages into model inputs."""
MAX_SEED = 2**63

T = TypeVar("T")


class Refused(Exception):
    """A request gets no actions; the text says why in one line that may be sent to the client."""


@dataclass(frozen=True)
class Question:
    """An observation that waits for the policy."""

    answer: "Future[Answer]"
    begun: float
    """Time at which its message had arrived, as `time.perf_counter` has it."""
    asked: float
    """Time at which it began to wait."""


class Service:
    """A policy that answers messages.

    Raises:
        UserError: the names on the wire do not fit the policy.
    """

    def __init__(self, policy: Policy, config: ServeConfig) -> None:
        self.policy, self.config = policy, config
        self.reader = Reader.of(read_names(config.names, policy.spec.cameras), policy.spec)
        self.metrics = Metrics()
        self._batcher = Batcher(policy, Sampler(set_up(policy, config)), config.max_batch)
        self.metrics.waiting.set_function(lambda: self._batcher.waiting)
        self._readers = ThreadPoolExecutor(READERS, "reader")
        self._numbers = itertools.count()

    @property
    def metadata(self) -> dict[str, Any]:
        """Return what the server tells of itself and of its policy."""
        return {
            "server": f"rlrc {__version__}",
            "policy": self.config.policy.name or str(self.config.policy),
            "spec": asdict(self.policy.spec),
            "image_size": self.policy.image_size,
            "names": self.reader.announced(),
            "continues_chunks": self.policy.continues_chunks,
            "unnorm_key": self.unnorm_key,
        }

    @property
    def unnorm_key(self) -> str | None:
        """Name of the action statistics in use."""
        names = list(self.policy.norm_stats or ())
        return names[0] if self.policy.unnorm_key is None and len(names) == 1 else self.policy.unnorm_key

    def warm_up(self) -> None:
        """Act on black pictures, alone and in the largest batch, so that no robot waits for what is made once."""
        side = self.policy.image_size
        spec = self.policy.spec
        images = {camera: np.zeros((1, side, side, 3), np.uint8) for camera in spec.cameras}
        state = np.zeros((1, len(spec.state)), np.float32) if spec.state else None
        inputs = self.policy.prepare(Observation(images, ["do nothing"], state))
        times = 2 if self.policy.records else 1  # at the second time a GPU records
        for rows in (1, self.config.max_batch) * times:
            for answer in [self._batcher.submit(inputs, 0) for _ in range(rows)]:
                answer.result()

    async def read(self, protocol: str, work: Callable[[], T]) -> T:
        """Run what makes a question of a message in a thread, where it holds up nobody.

        Raises:
            Refused: the message is damaged or lacks something.
        """
        try:
            return await asyncio.get_running_loop().run_in_executor(self._readers, work)
        except (WireError, UserError) as error:
            self.metrics.errors.labels(protocol).inc()
            raise Refused(str(error)) from error
        except Exception as error:  # told on the server's console, and the server goes on
            self.metrics.errors.labels(protocol).inc()
            say(f"a message could not be read: {type(error).__name__}: {shorten(str(error))}")
            raise Refused("this message could not be read; the server's console says why") from error

    def ask(self, message: Any, begun: float) -> Question:
        """Put the observation of a message into the policy's queue; called in a thread of `read`.

        Raises:
            UserError: the message lacks something, or has a wrong type or shape.
        """
        answer = self._batcher.submit(*self._inputs(message))
        return Question(answer, begun, time.perf_counter())

    async def answer(self, protocol: str, question: Question) -> tuple[np.ndarray, dict[str, float]]:
        """Wait for a question's chunk (H, D), and return it with milliseconds by stage.

        Raises:
            Refused: the policy fails, or does not answer in time.
        """
        try:
            answer = await self._wait(question.answer)
        except Refused:
            self.metrics.errors.labels(protocol).inc()
            raise
        total = time.perf_counter() - question.begun
        self._count(protocol, answer, question.asked - question.begun, total)
        return answer.actions, {"infer_ms": 1000 * answer.computed_s, "total_ms": 1000 * total}

    async def _wait(self, answer: "Future[Answer]") -> Answer:
        try:
            async with asyncio.timeout(self.config.limits.wait_s):
                return await asyncio.wrap_future(answer)
        except TimeoutError as error:
            raise Refused(f"no answer within {self.config.limits.wait_s:g} seconds; too many requests wait") from error
        except UserError as error:
            raise Refused(str(error)) from error
        except Exception as error:  # of the policy: told on the server's console, and the server goes on
            say(f"the policy failed on a request: {type(error).__name__}: {shorten(str(error))}")
            raise Refused("the policy failed on this request; the server's console says why") from error

    def _inputs(self, message: Any) -> tuple[Any, int]:
        """Model inputs of one row, and the seed of its noise."""
        if not isinstance(message, Mapping):
            raise UserError(f"an observation is a mapping of names to values, not {type(message).__name__}")
        key = message.get("unnorm_key")
        if key is not None and (not isinstance(key, str) or key != self.unnorm_key):
            raise UserError(
                f"unnorm_key '{shorten(str(key))}': this policy is served with the statistics '{self.unnorm_key}'"
            )
        seed = message.get("seed")
        if seed is None:
            seed = (self.config.seed + next(self._numbers)) % MAX_SEED
        elif type(seed) is not int or not 0 <= seed < MAX_SEED:
            raise UserError("'seed' must be a whole number from 0 to 2^63 - 1")
        observation = self.reader(message)
        if observation.previous is not None and not self.policy.continues_chunks:
            raise UserError(f"'{PREVIOUS}' is for policies that denoise their actions; this one cannot go on from them")
        return self.policy.prepare(observation), seed

    def _count(self, protocol: str, answer: Answer, read_s: float, total_s: float) -> None:
        self.metrics.requests.labels(protocol).inc()
        self.metrics.rows.observe(answer.rows)
        stages = {"read": read_s, "wait": answer.waited_s, "policy": answer.computed_s, "total": total_s}
        for stage, seconds in stages.items():
            self.metrics.seconds.labels(stage).observe(seconds)

    def close(self) -> None:
        """Answer what was asked before, and end the threads."""
        self._batcher.close()
        self._readers.shutdown()
