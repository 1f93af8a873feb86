"""A picture of where the time of an action goes: one bar a policy, its stages side by side, and their floors."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from matplotlib.figure import Figure

from rlrc.png import save_png

COLOURS = {
    "preprocess": "#c9a227",
    "vision": "#3b82c4",
    "projector": "#b565a7",
    "prefill": "#4fa373",
    "decode": "#e08a3c",
    "other": "#8a8f98",
}


class Bar(NamedTuple):
    """A policy, and milliseconds by stage: those taken, and the least that the machine could take."""

    name: str
    stages_ms: Mapping[str, float]
    floors_ms: Mapping[str, float]


def draw_stages(path: Path, bars: Sequence[Bar]) -> None:
    """Write the picture, PNG. Under each bar a thin one shows the floors of the same stages."""
    figure = Figure(figsize=(8, 1.2 + 0.45 * len(bars)), dpi=110, layout="constrained")
    axes = figure.subplots()
    for row, bar in enumerate(bars):
        for values, offset, height, alpha in ((bar.stages_ms, -0.08, 0.5, 1.0), (bar.floors_ms, 0.28, 0.14, 0.55)):
            left = 0.0
            for stage in COLOURS:
                width = values.get(stage, 0.0)
                label = stage if row == 0 and alpha == 1 else None
                axes.barh(row + offset, width, height, left, color=COLOURS[stage], alpha=alpha, label=label)
                left += width
        total = sum(bar.stages_ms.values())
        axes.text(total, row - 0.08, f" {total:,.0f} ms" if total > 99 else f" {total:.1f} ms", va="center", fontsize=8)
    axes.set_yticks(range(len(bars)), [bar.name for bar in bars], fontsize=8)
    axes.invert_yaxis()
    axes.margins(x=0.12, y=0.01)
    axes.set_xlabel("milliseconds a call at batch 1; thin bars: the machine's floors")
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside upper center", ncols=len(COLOURS), frameon=False, fontsize=8)
    save_png(figure, path)
