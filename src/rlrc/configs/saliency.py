"""Options of what weighs states by their saliency."""

from pydantic import Field

from rlrc.config import Config


class Saliency(Config):
    """Count the states more in which the action depends most on what is seen (SQIL)."""

    grid: int = Field(default=4, ge=1, le=32)
    """The picture is blurred around each cell of a grid of this many rows and columns, in turn."""
    top_share: float = Field(default=0.2, gt=0, le=1)
    """Share of the states that count as salient."""
    weight: float = Field(default=4.0, ge=1, le=1e6)
    """Weight of a salient state, where any other state has 1."""
