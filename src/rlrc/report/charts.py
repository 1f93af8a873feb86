"""Charts as inline SVG that takes its text colour and font from the page, so that it follows light and dark mode."""

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rlrc.report.summary import PolicyRow
from rlrc.sensitivity_map import map_figure

WIDTH = 5.4  # inches; 72 units of the SVG each, so about 390 px: a phone's width
COLOURS = ("#3b82c4", "#e08a3c", "#4fa373", "#b565a7", "#8a8f98", "#c9a227")
INK = "#010203"  # replaced by the page's own text colour
STYLE: Any = {
    "svg.fonttype": "none",
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.alpha": 0.15,
    "legend.frameon": False,
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), INK),
    "grid.color": INK,
}


@dataclass(frozen=True)
class Chart:
    """An `<svg>` element and what the figure is called."""

    svg: str
    caption: str


def success_bars(rows: Sequence[PolicyRow], conditions: Sequence[str]) -> Chart:
    """Each policy's success rate in each condition, with 95 % intervals."""
    step = 0.8 / len(conditions)
    with mpl.rc_context(STYLE):
        figure, axes = new_figure(0.8 + 0.17 * (len(conditions) + 0.5) * len(rows))
        for k, condition in enumerate(conditions):
            placed = [(i, row.rates[condition]) for i, row in enumerate(rows) if condition in row.rates]
            y = [i + (k - (len(conditions) - 1) / 2) * step for i, _ in placed]
            rates = [100 * rate.rate for _, rate in placed]
            spread = [
                [100 * (rate.rate - rate.low) for _, rate in placed],
                [100 * (rate.high - rate.rate) for _, rate in placed],
            ]
            colour = COLOURS[k % len(COLOURS)]
            axes.barh(y, rates, 0.85 * step, color=colour, label=condition.upper(), xerr=spread, ecolor=INK, capsize=2)
        axes.set_yticks(range(len(rows)), [row.name for row in rows])
        axes.invert_yaxis()
        axes.set_xlim(0, 100)
        axes.set_xlabel("success at the end of the episode, %")
        axes.grid(axis="y", visible=False)
        _legend_above(axes, len(conditions))
        told = "; ".join(f"{row.name}: " + ", ".join(f"{c} {row.rates[c]}" for c in row.rates) for row in rows)
        return Chart(
            as_svg(figure, f"Bars of success rates with 95 % intervals. {told}"), "Success with 95 % intervals"
        )


def stage_bars(names: Sequence[str], entries: Sequence[dict[str, Any]]) -> Chart:
    """Draw where each policy spends the time of one call."""
    stages = list(entries[0]["stages_ms"])
    with mpl.rc_context(STYLE):
        figure, axes = new_figure(1.0 + 0.24 * len(names))
        left = [0.0] * len(names)
        for k, stage in enumerate(stages):
            widths = [entry["stages_ms"][stage]["p50"] for entry in entries]
            axes.barh(range(len(names)), widths, 0.7, left=left, color=COLOURS[k % len(COLOURS)], label=stage)
            left = [start + width for start, width in zip(left, widths, strict=True)]
        axes.set_yticks(range(len(names)), names)
        axes.invert_yaxis()
        axes.set_xlabel("median time of one call, ms")
        axes.grid(axis="y", visible=False)
        _legend_above(axes, 3)
        told = "; ".join(f"{name} {total:.1f} ms" for name, total in zip(names, left, strict=True))
        return Chart(
            as_svg(figure, f"Stacked bars of the time of one call by stage. In all: {told}"), "Time of one call"
        )


def curve(
    rows: Sequence[dict[str, Any]], keys: Sequence[str], title: str, step_name: str, percent: bool = False
) -> Chart | None:
    """Metrics over training steps, those of `keys` that were logged; None if none was."""
    scale = 100 if percent else 1
    with mpl.rc_context(STYLE):
        figure, axes = new_figure(2.1)
        told = []
        for k, key in enumerate(keys):
            points = [(row["step"], scale * row[key]) for row in rows if row.get(key) is not None]
            if not points:
                continue
            steps, values = zip(*points, strict=True)
            marker = "o" if len(points) < 25 else ""
            axes.plot(steps, values, marker=marker, markersize=3, linewidth=1.3, color=COLOURS[k], label=key)
            told.append(f"{key} from {values[0]:.3g} to {values[-1]:.3g}")
        if not told:
            return None
        axes.set_title(f"{title}, %" if percent else title)
        axes.set_xlabel(step_name)
        if percent:
            axes.set_ylim(0, 100)
        if len(told) > 1:
            axes.legend(loc="best")
        return Chart(as_svg(figure, f"Curve of {title} over {step_name}s: {'; '.join(told)}"), title)


def sensitivity_map(rows: Sequence[dict[str, Any]], size: int) -> Chart:
    """Draw what each part of a policy of `size` bytes can bear."""
    with mpl.rc_context(STYLE):
        figure = map_figure(rows, size)
        figure.patch.set_alpha(0)
        for axes in figure.axes:
            axes.patch.set_alpha(0)
        told = "Lines of the loss that each lighter version costs against the bytes and the time that it saves"
        return Chart(as_svg(figure, told), "What each part costs and saves; the table below has the numbers")


def new_figure(height: float) -> tuple[Figure, Axes]:
    """A figure of this height in inches with one pair of axes, to be made within the style of all charts."""
    figure = Figure((WIDTH, height), layout="constrained")
    figure.patch.set_alpha(0)
    axes = figure.subplots()
    axes.patch.set_alpha(0)
    return figure, axes


def _legend_above(axes: Axes, columns: int) -> None:
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=columns, borderaxespad=0)


def as_svg(figure: Figure, description: str) -> str:
    """The figure as an element to put into a page; `description` is read out to those who do not see it."""
    buffer = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": description}):  # ids inside must differ from those of the page's other charts
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :].replace(INK, "currentColor")
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r' id="[a-z0-9.]+_\d+"', "", svg)
    width, height = re.findall(r'(?:width|height)="([\d.]+)pt"', svg)[:2]
    opening = f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(description)}"'
    return re.sub(r"<svg[^>]*", opening + ' xmlns:xlink="http://www.w3.org/1999/xlink"', svg, count=1)
