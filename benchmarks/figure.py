"""README's figure: the success of each step of the compression against the bytes of its weights.

python benchmarks/figure.py        reads results/tabletop/summary.json, writes docs/pictures/success_bytes.png
"""

import argparse
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rlrc.png import save_png
from rlrc.reading import read_json
from rlrc.report.charts import COLOURS
from rlrc.stats import wilson
from rlrc.study.figures import STYLE

MIB = 2**20
STEPS = {
    "dense": "dense",
    "pruned": "90 % of the decoder pruned",
    "sft": "+ SFT",
    "rl": "+ SFT\n+ RL",
    "rl-4bit": "+ SFT + RL\n+ 4 bits",
}
"""The policies of the study in the order in which each is made from the one before, and how the figure calls them."""
SPLITS = {"ind": "in distribution", "ood": "out of distribution"}
BESIDE = 0.17
"""Policies of one size would hide each other, so they are drawn side by side: shifted by this share of their bytes."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--summary", type=Path, default=Path("results/tabletop/summary.json"))
    parser.add_argument("--out", type=Path, default=Path("docs/pictures/success_bytes.png"))
    options = parser.parse_args()
    with mpl.rc_context(STYLE):
        save_png(draw(read_json(options.summary)), options.out, dpi=150)


def draw(summary: dict[str, Any]) -> Figure:
    """One line for each split, from the dense policy to the one in 4 bits, with 95 % intervals (Wilson)."""
    figure = Figure((8, 4.2), layout="constrained")
    axes = figure.subplots()
    places = positions(summary["bytes"])
    for (split, name), colour in zip(SPLITS.items(), COLOURS, strict=False):
        rates = {row["policy"]: row for row in summary["rows"] if (row["split"], row["variant"]) == (split, "main")}
        line = [(places[policy], rates[policy]["successes"], rates[policy]["n"]) for policy in STEPS]
        bounds = [wilson(successes, n) for _, successes, n in line]
        x, y = [place for place, _, _ in line], [100 * successes / n for _, successes, n in line]
        low, high = zip(*((100 * low, 100 * high) for low, high in bounds), strict=True)
        errors = [[a - b for a, b in zip(y, low, strict=True)], [b - a for a, b in zip(y, high, strict=True)]]
        axes.plot(x, y, color=colour, alpha=0.35, linewidth=1.5, zorder=1)
        axes.errorbar(x, y, errors, color=colour, fmt="o", markersize=5, capsize=3, label=name, zorder=2)
        for policy, place, bottom, top, rate in zip(STEPS, x, low, high, y, strict=True):
            if rate < 1:  # both splits are at zero: one label serves them, beside the point
                write(axes, f"{STEPS[policy]}, {rate:.0f} %", (place, rate), (9, 4), ha="left")
                continue
            if split == "ind":
                write(axes, STEPS[policy], (place, top), (0, 7))
            write(axes, f"{rate:.1f} %", (place, bottom), (0, -15), color=colour)
    dress(axes, [summary["bytes"][policy] for policy in STEPS])
    return figure


def write(axes: Axes, text: str, place: tuple[float, float], beside: tuple[float, float], **how: Any) -> None:
    """Write `text` at the offset `beside` (points) from a place, on white, to cover a line behind it."""
    how = {"ha": "center", "bbox": {"facecolor": "white", "edgecolor": "none", "pad": 0.6}} | how
    axes.annotate(text, place, beside, textcoords="offset points", **how)


def positions(size: dict[str, int]) -> dict[str, float]:
    """Return where each policy stands on the axis of MiB."""
    same = {policy: [other for other in STEPS if size[other] == size[policy]] for policy in STEPS}
    return {
        policy: size[policy] / MIB * (1 - BESIDE * (group.index(policy) - (len(group) - 1) / 2))
        for policy, group in same.items()
    }


def dress(axes: Axes, sizes: list[int]) -> None:
    axes.set_xscale("log")
    axes.set_xlim(10.5, 0.95)
    counted = {size: sizes.count(size) for size in sizes}
    told = [f"{size / MIB:.2f} MiB" + (f" (all {n})" if n > 1 else "") for size, n in counted.items()]
    axes.set_xticks([size / MIB for size in counted], told)
    axes.minorticks_off()
    axes.set_ylim(-3, 108)
    axes.set_yticks(range(0, 101, 20))
    axes.set_xlabel("weights (logarithmic axis, smaller to the right)")
    axes.set_ylabel("success at the end of the episode, %")
    axes.grid(axis="x", visible=False)
    axes.legend(loc="lower right", bbox_to_anchor=(1, 0.2), title="with 95 % intervals", alignment="left")


if __name__ == "__main__":
    main()
