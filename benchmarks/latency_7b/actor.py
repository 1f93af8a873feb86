"""This module defines the questions that every policy of the benchmark answers, whoever runs it."""

from collections.abc import Sequence
from statistics import median
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch

from rlrc.bench import now, peak_resident
from rlrc.policies.values import Observation
from rlrc.roofline import Work

ACTIONS_A_TURN = {"cpu": 1, "cuda": 10}
"""Actions of a turn, whose median counts: on a GPU one takes milliseconds, and the first after a pause takes longer."""
WARM_UPS = 3
"""Actions before the first turn of what is compiled or runs on a GPU: during the first PyTorch compiles, during the
second it records launches. Elsewhere it is one."""


class Setting(NamedTuple):
    """The conditions that all rows of a run share."""

    device: str = "cpu"
    """ "cpu" or "cuda"."""
    tiny: bool = False
    """Whether tiny policies stand in for those of OpenVLA-7B's shapes."""


class Policy(Protocol):
    """A policy, and what a row says of it."""

    cameras: Sequence[str]
    state_width: int
    actions_per_call: int
    compiled: bool
    """Whether torch.compile compiles it."""

    def act(self, observation: Observation) -> Any:
        """A chunk of actions, in the host's memory."""

    def facts(self) -> dict[str, Any]:
        """`dtype`, `multipliers`, `weight_bytes`, and what else there is to say."""

    def stages(self, observation: Observation) -> dict[str, float] | None:
        """The milliseconds of each stage of one action; None where no clock follows them."""

    def work(self, observation: Observation) -> dict[str, Work] | None:
        """Return what each stage has to do; None where no clock follows them."""


class Actor:
    """A policy that looks at the same picture again and again. Its public methods are the questions to a process.

    Args:
        libraries_bytes: resident size of the process before it made policies.
    """

    def __init__(self, policy: Policy, device: str, libraries_bytes: int) -> None:
        self._policy, self._device, self._libraries_bytes = policy, torch.device(device), libraries_bytes
        self._observation = noise(policy.cameras, policy.state_width)

    def warm_up(self) -> None:
        """Act until what has to be compiled is. From then on, an action that would compile again fails."""
        slow_start = self._policy.compiled or self._device.type == "cuda"
        if self._policy.compiled:
            with torch.compiler.set_stance("force_eager"):
                self._policy.act(self._observation)  # transformers' first pass has parts that cannot be compiled
        for _ in range(WARM_UPS if slow_start else 1):
            self._policy.act(self._observation)
        if self._policy.compiled:
            torch.compiler.set_stance("fail_on_recompile")

    def act(self) -> float:
        """The seconds of one action: the median of a turn's."""
        return median(self._seconds() for _ in range(ACTIONS_A_TURN[self._device.type]))

    def _seconds(self) -> float:
        started = now(self._device)
        self._policy.act(self._observation)
        return now(self._device) - started

    def stages(self) -> dict[str, float] | None:
        """The milliseconds of each stage of one action; None where no clock follows them."""
        return self._policy.stages(self._observation)

    def work(self) -> dict[str, Work] | None:
        """What each stage of one action has to do; None where no clock follows them."""
        return self._policy.work(self._observation)

    def facts(self) -> dict[str, Any]:
        """What the row says of the policy, and the most memory that making it and acting took."""
        facts = self._policy.facts() | {"actions_per_call": self._policy.actions_per_call}
        facts |= {"libraries_bytes": self._libraries_bytes, "peak_bytes": peak_resident()}
        if self._device.type == "cuda":
            facts["peak_bytes"] = torch.cuda.max_memory_allocated(self._device)
            facts["reserved_bytes"] = torch.cuda.max_memory_reserved(self._device)
        return facts


def noise(cameras: Sequence[str], state_width: int) -> Observation:
    """Noise for pictures, an instruction, and a state in the middle of what is usual."""
    images = np.random.default_rng(0).integers(0, 256, (1, 224, 224, 3), np.uint8)
    state = np.zeros((1, state_width), np.float32) if state_width else None
    return Observation(dict.fromkeys(cameras, images), ["put the carrot on the plate"], state)


def milliseconds(seconds: Any) -> float:
    """Rounded to a tenth of a millisecond, and to a thousandth where it takes less than ten."""
    value = 1000 * float(seconds)
    return round(value, 1 if value >= 10 else 3)
