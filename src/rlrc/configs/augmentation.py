"""Options of how training pictures are varied."""

from pydantic import Field

from rlrc.config import Config


class Augmentation(Config):
    """Vary training pictures. The defaults are OpenVLA's."""

    crop_area: float = Field(default=0.9, ge=0.01, le=1)
    """Share of the area that a crop at a random place keeps. The crop is resized to the full picture again."""
    shift: int = Field(default=0, ge=0, le=512)
    """Largest shift in pixels along each side. Edges are repeated (DrQ, Kostrikov et al., 2021)."""
    brightness: float = Field(default=0.2, ge=0, le=1)
    """Largest amount that is added to all channels, as a fraction of the full range."""
    contrast: float = Field(default=0.2, ge=0, le=1)
    """Largest relative change of the distance to the picture's mean colour."""
    saturation: float = Field(default=0.2, ge=0, le=1)
    """Largest relative change of the distance to grey."""
    hue: float = Field(default=0.05, ge=0, le=1)
    """Largest turn of the colour circle, in turns."""
