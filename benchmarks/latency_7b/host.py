"""Processes that hold policies and act when asked."""

import multiprocessing
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import psutil
import shapes
import torch
from baselines import BF16, Towers, Transformers
from names import BASELINE, CONFIGS, RLRC, VLA_CACHE, run_of

from rlrc.bench import STAGES, peak_resident, stage_timer
from rlrc.packed.cpu.processor import multiplies_bfloat16
from rlrc.packed.layers import who_multiplies
from rlrc.policies.openvla.vla_cache import VlaCache
from rlrc.policies.prismatic.config import PrismaticConfig
from rlrc.policies.values import Observation
from rlrc.process import end_with_parent, keep_freed_memory
from rlrc.roofline import floors_ms

WIDENED = "weights bf16, computed in float32 from 8 rows on and in bf16 below"
Make = Callable[[Sequence[str]], dict[str, Any]]
"""Makes policies by their names: objects that act, or the exceptions that kept them from being made."""


class Failed(Exception):
    """A policy could not be made, or could not act; the text says why."""


class Rlrc:
    """A policy of rlrc's own, perhaps with VLA-Cache."""

    def __init__(self, name: str, config: PrismaticConfig, memory: shapes.Memory | None) -> None:
        self._bits = run_of(name).bits
        self._policy = shapes.policy(config, self._bits, memory)
        self._actor: Any = VlaCache(self._policy) if name == VLA_CACHE else self._policy
        spec = self._policy.spec
        self.cameras, self.state_width, self.actions_per_call = spec.cameras, len(spec.state), spec.horizon

    def act(self, observation: Observation) -> np.ndarray:
        """A chunk of actions."""
        return self._actor.act(observation)

    def facts(self) -> dict[str, Any]:
        """What the row says of the policy."""
        multipliers = who_multiplies(self._policy.model, torch.device("cpu"), torch.bfloat16)
        weights = sum(tensor.nbytes for tensor in self._policy.model.state_dict().values())
        return {"dtype": self._dtype(multipliers), "multipliers": multipliers, "weight_bytes": weights}

    def _dtype(self, multipliers: list[dict[str, Any]]) -> str:
        if self._bits == 16:
            return BF16 if multiplies_bfloat16() else WIDENED
        native = all(row["backend"] == "cpu" for row in multipliers if row["kind"] == "linear")
        return f"W{self._bits}A8" if native else f"W{self._bits}A16, unpacked at every call"

    def stages(self, observation: Observation) -> dict[str, float] | None:
        """Milliseconds of each stage. VLA-Cache has its own way through the decoder, which no clock follows."""
        if self._actor is not self._policy:
            return None
        measure = stage_timer(self._policy, observation)
        seconds = np.median([measure() for _ in range(3)], axis=0)
        return {stage: milliseconds(value) for stage, value in zip(STAGES, seconds, strict=True)}

    def floors(self, observation: Observation, rates: dict[str, float]) -> dict[str, float]:
        """The least milliseconds of each stage that this machine could take."""
        floors = floors_ms(self._policy.stages(self._policy.prepare(observation)), rates)
        return {stage: round(floor, 1) for stage, floor in floors.items()}


def make(
    names: Sequence[str], configs: dict[str, Callable[[], PrismaticConfig]] = CONFIGS
) -> dict[str, Rlrc | Transformers | Exception]:
    """The policies of these names. Beside the baseline, those in bf16 lie in its weights."""
    made: dict[str, Rlrc | Transformers | Exception] = {}
    memory = towers = None
    for name in names:
        run = run_of(name)
        config = configs[run.shape]()
        try:
            if run.by == RLRC:
                made[name] = Rlrc(name, config, memory)
                continue
            towers = towers or Towers(config)
            policy = made[name] = Transformers(name, config, towers, memory)
            memory = shapes.Memory(policy.llama) if name == BASELINE else memory
        except Exception as error:  # other people's packages fail in their own ways, and the others' rows go on
            made[name] = error
    return made


class Host:
    """A process that holds policies and acts when asked."""

    def __init__(self, names: Sequence[str], make: Make = make) -> None:
        self.names = list(names)
        self._pipe, far = multiprocessing.Pipe()
        context = multiprocessing.get_context("spawn")
        self._process = context.Process(target=serve, args=(self.names, make, far), daemon=True)
        self._process.start()
        far.close()

    def ask(self, name: str, what: str, rates: dict[str, float] | None = None) -> Any:
        """The seconds of one action ("act"), the milliseconds of its "stages", or their "floors" from the machine's
        rates, or "facts" of the policy.

        Raises:
            Failed: the policy could not be made or cannot do it, or its process has died.
        """
        try:
            self._pipe.send((name, what, rates))
            answer = self._pipe.recv()
        except (EOFError, BrokenPipeError, ConnectionResetError) as error:
            self._process.join()
            raise Failed(f"its process ended with status {self._process.exitcode}") from error
        if isinstance(answer, Failed):
            raise answer
        return answer

    def end(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.join()


def serve(names: Sequence[str], make: Make, pipe: Connection) -> None:
    """Make the policies, and answer what is asked of them until the parent closes the pipe."""
    end_with_parent()
    libraries = psutil.Process().memory_info().rss
    actors = make(names)
    keep_freed_memory()  # only now: what packing weights took is given back first
    while True:
        name, what, rates = pipe.recv()
        try:
            actor = actors[name]
            if isinstance(actor, Exception):
                raise actor
            pipe.send(answer(actor, what, rates, libraries))
        except Exception as error:  # an optional row may fail in any way; the parent decides what becomes of it
            pipe.send(Failed(in_one_line(error)))


def answer(actor: Any, what: str, rates: dict[str, float] | None, libraries: int) -> Any:
    """What `Host.ask` returns."""
    observation = look(actor)
    if what == "act":
        started = time.perf_counter()
        actor.act(observation)
        return time.perf_counter() - started
    if what == "stages":
        return actor.stages(observation)
    if what == "floors":
        return actor.floors(observation, rates)
    actions = {"actions_per_call": actor.actions_per_call}
    return actor.facts() | actions | {"libraries_bytes": libraries, "peak_bytes": peak_resident()}


def look(actor: Any) -> Observation:
    """Noise for pictures, an instruction, and a state in the middle of what is usual."""
    images = np.random.default_rng(0).integers(0, 256, (1, 224, 224, 3), np.uint8)
    state = np.zeros((1, actor.state_width), np.float32) if actor.state_width else None
    return Observation(dict.fromkeys(actor.cameras, images), ["put the carrot on the plate"], state)


def in_one_line(error: Exception) -> str:
    """An exception's kind and message; of a message of many lines, the first that tells of an error."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [""]
    telling = next((line for line in lines if ": error:" in line), lines[0])
    return f"{type(error).__name__}: {telling}"[:300]


def milliseconds(seconds: Any) -> float:
    """Rounded to a tenth."""
    return round(1000 * float(seconds), 1)
