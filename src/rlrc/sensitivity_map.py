"""The rows of `sensitivity.json` as a table and as a map of what lighter versions cost, against what they save."""

from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rlrc.png import save_png
from rlrc.tables import human_bytes, human_ratio

COLOURS = ("#3b82c4", "#e08a3c", "#4fa373", "#b565a7", "#8a8f98", "#c9a227", "#c44e52", "#2f7f7f")
LINES = {"bits": "-", "width": "--", "depth": ":", "tower": "", "tokens": "-."}
UNITS = {"width": " of heads and channels", "depth": " of layers", "tokens": " of each picture's"}


def name_of(row: Mapping[str, Any]) -> str:
    """Say what was made lighter, and how."""
    if row["kind"] == "bits":
        return f"{row['part']}, {row['degree']:g} bits"
    if row["kind"] == "tower":
        return f"{row['part']}, one tower ({row['degree']:g})"
    return f"{row['part']}, {100 * row['degree']:g} %{UNITS[row['kind']]} gone"


def table(rows: Sequence[Mapping[str, Any]], size: int) -> tuple[list[str], list[list[str]]]:
    """Head and body of a table.

    Args:
        size: bytes of the policy as it was.
    """
    body = []
    for row in rows:
        if "refused" in row:
            body.append([f"{name_of(row)}: not done", "", "", "", ""])
            continue
        saved = size - row["bytes"]
        body.append(
            [
                name_of(row),
                _interval(row["loss_change"]),
                f"{100 * row['changed']['mean']:.1f} %",
                f"{human_bytes(saved)} ({100 * saved / size:.0f} %)" if saved >= 0 else f"{human_bytes(-saved)} more",
                human_ratio(row["speedup"], row["speedup_95"]),
            ]
        )
    return ["lighter version", "loss rises by [95 %]", "numbers changed", "bytes saved", "speed [95 %]"], body


def _interval(mean: Mapping[str, Any]) -> str:
    interval = "" if mean["low"] is None else f" [{mean['low']:+.4f}, {mean['high']:+.4f}]"
    return f"{mean['mean']:+.4f}{interval}"


def draw_map(path: Path, rows: Sequence[dict[str, Any]], size: int) -> None:
    """Write the picture, PNG; see `map_figure`."""
    save_png(map_figure(rows, size), path, dpi=110)


def map_figure(rows: Sequence[dict[str, Any]], size: int) -> Figure:
    """
    Args:
        rows: of `sensitivity.json`; those that were refused are left out.
        size: bytes of the policy as it was.
    """
    done = [row for row in rows if "refused" not in row]
    figure = Figure(figsize=(10, 4.4), layout="constrained")
    by_bytes, by_time = figure.subplots(1, 2, sharey=True)
    _lines(by_bytes, done, lambda row: 100 * (1 - row["bytes"] / size))
    _lines(by_time, done, lambda row: 100 * (1 - 1 / row["speedup"]))
    by_bytes.set_xlabel("bytes saved, % of the policy")
    by_time.set_xlabel("time of a call saved, %")
    by_bytes.set_ylabel("rise of the loss on demonstrations")
    figure.legend(*by_bytes.get_legend_handles_labels(), loc="outside right upper", frameon=False, fontsize=8)
    return figure


def _lines(axes: Axes, rows: Sequence[dict[str, Any]], saved: Callable[[dict[str, Any]], float]) -> None:
    """One line for each part and way, its degrees at the points."""
    parts = list(dict.fromkeys(row["part"] for row in rows))
    for (part, kind), group in groupby(rows, key=lambda row: (row["part"], row["kind"])):
        points = list(group)
        x, y = [saved(row) for row in points], [row["loss_change"]["mean"] for row in points]
        spread = [
            [
                abs(row["loss_change"][end] - row["loss_change"]["mean"])
                for row in points
                if row["loss_change"]["low"] is not None
            ]
            for end in ("low", "high")
        ]
        colour, label = COLOURS[parts.index(part) % len(COLOURS)], f"{part}, {kind}"
        axes.errorbar(
            x,
            y,
            spread if len(spread[0]) == len(x) else None,
            fmt="o",
            linestyle=LINES[kind],
            color=colour,
            label=label,
            markersize=4,
            linewidth=1.2,
            elinewidth=0.8,
        )
        for row, place in zip(points, zip(x, y, strict=True), strict=True):
            text = f"{row['degree']:g}" if kind in ("bits", "tower") else f"{100 * row['degree']:g} %"
            axes.annotate(text, place, xytext=(4, 3), textcoords="offset points", fontsize=7, color=colour)
    largest = max((abs(row["loss_change"]["mean"]) for row in rows), default=1) or 1
    axes.set_yscale("symlog", linthresh=largest / 100)
    axes.axhline(0, color="#8a8f98", linewidth=0.8)
    axes.grid(alpha=0.15)
    axes.spines[["top", "right"]].set_visible(False)
