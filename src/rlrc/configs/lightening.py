"""Options that say how much lighter a policy's parts may become, and on which frames that is judged."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from rlrc.config import Bits, Seed, Share
from rlrc.configs.parts import PolicyPart, StatisticsPart

Degree = Annotated[Share, Field(gt=0, lt=1)]


class LighteningPart(StatisticsPart, PolicyPart):
    """Options of the verbs that try lighter versions of a policy."""

    dataset: Path
    """Demonstrations: the folder of a LeRobotDataset, version 3.0 or 2.1."""
    bits: tuple[Bits, ...] = (8, 4)
    """Numbers of bits that are tried."""
    widths: tuple[Degree, ...] = Field(default=(0.25, 0.5, 0.75, 0.9), max_length=32)
    """Shares of the heads and channels that go, each tried with each stack of layers (LLM-Pruner's importance)."""
    depths: tuple[Degree, ...] = Field(default=(0.25, 0.5), max_length=32)
    """Shares of the layers that go, those of least influence: of the language model and what runs with it, and of the
    vision towers."""
    tokens: tuple[Degree, ...] = Field(default=(0.25, 0.5, 0.75), max_length=32)
    """Shares of each picture's tokens that go, by merging those that are most alike."""
    towers: tuple[Literal[0, 1], ...] = (0, 1)
    """Numbers of the vision towers that stay alone, each tried where a policy has two whose features are joined."""
    samples: int = Field(default=64, ge=1, le=100_000)
    """Number of frames on which importance is measured, and of others on which losses are compared."""
    seed: Seed = 0
    """Seed for choosing the frames, and of the noise of policies that denoise."""
