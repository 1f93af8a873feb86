"""Options of `fit`."""

import math
import re
from pathlib import Path
from typing import Annotated, Self

from pydantic import AfterValidator, Field, model_validator

from rlrc.configs.lightening import LighteningPart
from rlrc.configs.quantize import Part

MILLISECONDS = {"ms": 1.0, "s": 1000.0}
BYTES = {"kB": 1e3, "MB": 1e6, "GB": 1e9, "KiB": 2.0**10, "MiB": 2.0**20, "GiB": 2.0**30}


def _amount(text: str, units: dict[str, float]) -> float:
    """The amount that a number with a unit behind it stands for.

    Raises:
        ValueError: it is none, or zero.
    """
    found = re.fullmatch(rf"(\d{{1,9}}(?:\.\d{{1,9}})?)({'|'.join(units)})", text)
    if found is None:
        unit = next(iter(units))
        raise ValueError(f"'{text[:40]}' is no number with a unit, such as 200{unit} (units: {', '.join(units)})")
    amount = float(found[1]) * units[found[2]]
    if not amount:
        raise ValueError(f"'{text}' is nothing, and a policy takes something")
    return amount


def _checked(units: dict[str, float]) -> AfterValidator:
    """A check that a text is such an amount."""

    def check(text: str) -> str:
        _amount(text, units)
        return text

    return AfterValidator(check)


Duration = Annotated[str, _checked(MILLISECONDS)]
Size = Annotated[str, _checked(BYTES)]


class FitConfig(LighteningPart):
    """Choose how much of each part has to go for a budget, and write the recipe that does it."""

    max_latency: Duration | None = None
    """Longest time that one call of the policy may take on this machine, such as 200ms or 1.5s."""
    max_memory: Size | None = None
    """Most memory that the policy's weights may take, such as 700MB or 1.5GiB."""
    measured: Path | None = None
    """Folder of an earlier `fit` of the same policy on this machine. Its measurements are used, so that another budget
    takes seconds."""
    parts: tuple[Part, ...] = Field(default=("decoder", "expert", "vision", "projector", "embedding"), min_length=1)
    """Parts whose weights may be packed, as far as the policy has them."""
    repeats: int = Field(default=7, ge=1, le=100_000)
    """Number of calls of which each time is the median."""
    world: str | None = None
    """World in which the recipe evaluates what it makes. Without one it measures cost alone."""
    sft_steps: int = Field(default=2000, ge=0, le=100_000_000)
    """Number of steps of the recipe's last fine-tuning. Each cut before it is followed by an eighth as many."""
    rl_iterations: int = Field(default=0, ge=0, le=10_000_000)
    """Number of iterations of reinforcement learning after that. It needs a world."""

    @model_validator(mode="after")
    def _has_a_budget(self) -> Self:
        if self.max_latency is None and self.max_memory is None:
            raise ValueError("a budget is needed: give max_latency, max_memory, or both")
        if self.rl_iterations and self.world is None:
            raise ValueError("rl_iterations needs a world to act in")
        return self

    @property
    def most_ms(self) -> float:
        """The budget of time in milliseconds; infinite where there is none."""
        return math.inf if self.max_latency is None else _amount(self.max_latency, MILLISECONDS)

    @property
    def most_bytes(self) -> float:
        """The budget of memory in bytes; infinite where there is none."""
        return math.inf if self.max_memory is None else _amount(self.max_memory, BYTES)
