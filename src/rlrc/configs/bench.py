"""Options of `bench`."""

from pathlib import Path
from typing import Annotated

from pydantic import Field

from rlrc.configs.parts import PolicyReadingPart


class BenchConfig(PolicyReadingPart):
    """Measure what policies cost. The first policy is what the others are compared with."""

    policies: list[Path] = Field(min_length=1, max_length=100)
    """Policies to measure: folders or Hugging Face hub ids."""
    batch_sizes: tuple[Annotated[int, Field(ge=1, le=4096)], ...] = Field(
        default=(1, 8, 32), min_length=1, max_length=16
    )
    """Batch sizes at which throughput is measured."""
    repeats: int = Field(default=30, ge=1, le=100_000)
    """Number of rounds of each measurement."""
    warmup: int = Field(default=3, ge=0, le=100_000)
    """Number of rounds before those that count."""
