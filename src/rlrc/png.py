"""Writes a figure as a PNG file."""

from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from PIL import Image

from rlrc.files import atomic_path

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_COLOURS = 256


def save_png(figure: "Figure", path: Path, dpi: float | Literal["figure"] = "figure") -> None:
    """Write a figure in `MOST_COLOURS` colours at most, which takes a third of the bytes.

    Args:
        dpi: pixels an inch; "figure" takes the figure's own.

    Raises:
        UserError: as `files.atomic_path`.
    """
    drawn = BytesIO()
    figure.savefig(drawn, format="png", dpi=dpi, metadata={"Software": None})
    picture = Image.open(drawn).convert("RGB").quantize(MOST_COLOURS, dither=Image.Dither.NONE)
    with atomic_path(path) as aside:
        picture.save(aside, format="png", optimize=True)
