"""Options of `sensitivity`."""

from pydantic import Field

from rlrc.configs.lightening import LighteningPart
from rlrc.configs.quantize import Part


class SensitivityConfig(LighteningPart):
    """Measure what it costs to lighten each part of a policy, and what it saves. Nothing is trained."""

    parts: tuple[Part, ...] | None = Field(default=None, min_length=1)
    """Parts whose weights are quantized, each alone. All parts are unless you name some."""
    repeats: int = Field(default=15, ge=6, le=100_000)
    """Number of rounds in which the policy and its lighter version are timed, in turns. An interval needs six."""
