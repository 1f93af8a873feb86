"""The figures of a study, as PNGs that a repository's page shows anywhere."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rlrc.episodes import Rate, by_condition, success_rate
from rlrc.png import save_png
from rlrc.report import charts
from rlrc.report.charts import COLOURS
from rlrc.study.evidence import Evidence

INK, PAPER = "#1f2328", "#ffffff"
INKED = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color", "grid.color")
STYLE: Any = {**charts.STYLE, **dict.fromkeys(INKED, INK), "axes.titlesize": 10, "figure.facecolor": PAPER}
MOST_BARS = len(COLOURS)  # policies in one group of bars
PANELS_A_ROW = 3
STEPS_OF_A_RATIO = ("right after pruning", "+ SFT", "+ SFT + RL")


def draw(evidence: Evidence, out: Path, prefix: str = "") -> dict[str, Path]:
    """Write what can be drawn so far, to files whose names begin with `prefix`; returns them by caption."""
    drawn = {}
    with mpl.rc_context(STYLE):
        for name, (caption, make) in FIGURES.items():
            figure = make(evidence)
            if figure is not None:
                drawn[caption] = out / f"{prefix}{name}"
                save_png(figure, drawn[caption], dpi=150)
    return drawn


def success(evidence: Evidence) -> Figure:
    """Bars: every policy in and out of distribution, and in the challenges by class; a row each where they are many."""
    labels = list(evidence.policies)
    if len(labels) > MOST_BARS:
        return _success_by_row(evidence)
    rates: dict[str, dict[str, Rate]] = {split.upper(): {} for split in evidence.splits}
    for label in labels:
        for split in evidence.splits:
            if (rate := evidence.rate(label, split)) is not None:
                rates[split.upper()][label] = rate
        for name, episodes in evidence.by_class(label).items():
            rates.setdefault(name, {})[label] = success_rate(episodes)
    figure = Figure((9.5, 3.2), layout="constrained")
    axes = figure.subplots()
    width = 0.85 / len(labels)
    for k, label in enumerate(labels):
        here = [(i, group[label]) for i, group in enumerate(rates.values()) if label in group]
        places = [i + (k - (len(labels) - 1) / 2) * width for i, _ in here]
        heights, spread = _percent([rate for _, rate in here])
        axes.bar(places, heights, 0.92 * width, color=COLOURS[k % len(COLOURS)], label=label)
        axes.errorbar(places, heights, spread, fmt="none", ecolor=INK, elinewidth=0.8, capsize=1.5)
    axes.set_xticks(range(len(rates)), [f"{name}\nn ≥ {_least_n(group)}" for name, group in rates.items()])
    axes.grid(axis="x", visible=False)
    _percent_axis(axes)
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=len(labels), borderaxespad=0)
    return figure


def _success_by_row(evidence: Evidence) -> Figure:
    """Points with intervals: a row for each policy."""
    labels = list(evidence.policies)
    figure = Figure((7.5, 0.26 * len(labels) + 0.9), layout="constrained")
    axes = figure.subplots()
    for k, split in enumerate(evidence.splits):
        here = [(i, rate) for i, label in enumerate(labels) if (rate := evidence.rate(label, split)) is not None]
        values, spread = _percent([rate for _, rate in here])
        places = [i + (k - 0.5) * 0.25 for i, _ in here]
        axes.errorbar(values, places, xerr=spread, fmt="o", markersize=4, color=COLOURS[k], label=split.upper())
    axes.set_yticks(range(len(labels)), labels)
    axes.invert_yaxis()
    axes.set_xlim(0, 100)
    axes.set_xlabel("success at the end of the episode, %")
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, borderaxespad=0)
    return figure


def variants(evidence: Evidence) -> Figure | None:
    """Points with intervals: every challenge, one row each."""
    groups = {label: by_condition(row.episodes) for label, row in evidence.policies.items()}
    names = list(dict.fromkeys(c for cells in groups.values() for c in cells if "/" in c))
    labels = [label for label, cells in groups.items() if any(name in cells for name in names)]
    if not names:
        return None
    figure = Figure((7.5, 0.42 * len(names) + 0.9), layout="constrained")
    axes = figure.subplots()
    for k, label in enumerate(labels):
        here = [(i, success_rate(groups[label][name])) for i, name in enumerate(names) if name in groups[label]]
        places = [i + (k - (len(labels) - 1) / 2) * 0.15 for i, _ in here]
        values, spread = _percent([rate for _, rate in here])
        colour = COLOURS[list(groups).index(label) % len(COLOURS)]
        axes.errorbar(values, places, xerr=spread, fmt="o", markersize=3.5, elinewidth=1, color=colour, label=label)
    axes.set_yticks(range(len(names)), [name.partition("/")[2] for name in names])
    axes.invert_yaxis()
    axes.set_xlim(0, 100)
    axes.set_xlabel("success at the end of the episode, %")
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=len(labels), borderaxespad=0)
    return figure


def curves(evidence: Evidence) -> Figure | None:
    """Left: SFT by its number of steps, a run for each. Right: RL, every seed and their mean."""
    seeds = {name: np.array(points) for name, points in evidence.rl_curves().items()}
    steps = {n: evidence.measured[s].rates for n, s in evidence.plan.sft_steps.items() if s in evidence.measured}
    if not seeds and not steps:
        return None
    figure = Figure((9.5, 3.0), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for k, split in enumerate(evidence.splits):
        values, spread = _percent([rates[split] for rates in steps.values()])
        left.errorbar(list(steps), values, spread, marker="o", markersize=4, color=COLOURS[k], label=split.upper())
        for curve in seeds.values():
            right.plot(curve[:, 0], 100 * curve[:, 1 + k], color=COLOURS[k], linewidth=0.8, alpha=0.45)
        if seeds:
            shortest = min(len(curve) for curve in seeds.values())
            mean = np.mean([curve[:shortest] for curve in seeds.values()], axis=0)
            label = f"{split.upper()}, mean of {len(seeds)} seeds"
            right.plot(
                mean[:, 0], 100 * mean[:, 1 + k], color=COLOURS[k], linewidth=2.2, marker="o", markersize=4, label=label
            )
        dense = evidence.rate(evidence.reference, split)
        for axes in (left, right):
            if dense is not None:
                axes.axhline(100 * dense.rate, color=COLOURS[k], linestyle=":", linewidth=1)
    left.set_title("SFT")
    left.set_xlabel("optimizer steps (each point a run of its own)")
    right.set_title("RL")
    right.set_xlabel("iterations (dotted: the dense policy)")
    _percent_axis(left)
    for axes in (left, right):
        if axes.get_legend_handles_labels()[0]:
            axes.legend(loc="lower right")
    return figure


def ratios(evidence: Evidence) -> Figure | None:
    """Success against the pruning ratio, at an equal, small budget of recovery."""
    cells = evidence.by_ratio()
    if sum(0 in rows for rows in cells.values()) < 2:
        return None
    figure = Figure((9.5, 3.0), layout="constrained")
    columns = figure.subplots(1, len(evidence.splits), sharey=True, squeeze=False)[0]
    for axes, split in zip(columns, evidence.splits, strict=True):
        for k, step in enumerate(STEPS_OF_A_RATIO):
            here = {100 * ratio: rows[k].rates[split] for ratio, rows in cells.items() if k in rows}
            values, spread = _percent(list(here.values()))
            axes.errorbar(list(here), values, spread, marker="o", markersize=4, color=COLOURS[k], label=step)
        axes.set_title(split.upper())
        axes.set_xlabel("heads and MLP channels pruned, %")
        _percent_axis(axes)
    axes.legend(loc="best")
    return figure


def parts(evidence: Evidence) -> Figure | None:
    """Success against how much lighter a part is; a panel for each part, and the reference as a dotted line."""
    cells = {part: rows for part, rows in evidence.by_part().items() if rows}
    if not cells:
        return None
    columns = min(len(cells), PANELS_A_ROW)
    lines = -(-len(cells) // columns)
    figure = Figure((9.5, 2.6 * lines), layout="constrained")
    panels = figure.subplots(lines, columns, sharey=True, squeeze=False).flatten()
    for axes, (part, rows) in zip(panels, cells.items(), strict=False):
        for k, split in enumerate(evidence.splits):
            values, spread = _percent([row.rates[split] for row in rows.values()])
            axes.errorbar(list(rows), values, spread, marker="o", markersize=4, color=COLOURS[k], label=split.upper())
            if (dense := evidence.rate(evidence.reference, split)) is not None:
                axes.axhline(100 * dense.rate, color=COLOURS[k], linestyle=":", linewidth=1)
        axes.set_title(part)
        axes.set_xlabel("bits" if max(rows) > 1 else "share removed")
        _percent_axis(axes)
    for axes in panels[len(cells) :]:
        axes.set_visible(False)
    panels[0].legend(loc="lower left")
    return figure


def _percent(rates: Sequence[Rate]) -> tuple[list[float], np.ndarray]:
    """Rates in percent and the arms (2, N) of their intervals."""
    arms = [[100 * (rate.rate - rate.low) for rate in rates], [100 * (rate.high - rate.rate) for rate in rates]]
    return [100 * rate.rate for rate in rates], np.maximum(np.array(arms), 0)


def _percent_axis(axes: Axes) -> None:
    axes.set_ylim(0, 100)
    axes.set_ylabel("success, %")


def _least_n(group: dict[str, Rate]) -> int:
    return min((rate.n for rate in group.values()), default=0)


FIGURES: dict[str, tuple[str, Callable[[Evidence], Figure | None]]] = {
    "success.png": ("Success with 95 % intervals", success),
    "variants.png": ("Success in each of the challenges", variants),
    "curves.png": ("Learning curves", curves),
    "ratios.png": ("Success against the pruning ratio", ratios),
    "parts.png": ("Success against how much lighter each part is", parts),
}
"""Figures by file name: a caption, and the function that draws it."""
