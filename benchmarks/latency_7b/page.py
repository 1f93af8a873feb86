"""The page, tables and figures of `latency_7b.py`, from what it has stored, and the names of what it measures."""

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from rlrc.bench import STAGES
from rlrc.files import atomic_path, write_text
from rlrc.reading import read_json
from rlrc.stage_chart import Bar, draw_stages
from rlrc.tables import human_bytes, markdown_table

BASELINE = "dense-transformers"
TWO_LAYERS = "two-layers"
"""Name of the policy of two decoder layers, which runs through transformers, and in 4 and 8 bits through
bitsandbytes."""
VLA_CACHE = "dense-vla-cache"
"""Name of the dense policy with VLA-Cache. The picture never changes here, so it reuses as much as it ever can."""
SHAPES = {
    BASELINE: "dense",
    "dense": "dense",
    VLA_CACHE: "dense, VLA-Cache at its best (the picture never changes)",
    "rlrc": "RLRC, 90 % of the heads and channels of layers 1 to 30",
    "rlrc-overall": "RLRC, 90 % of the decoder's parameters, from layers 1 to 30",
    "llm-pruner-25": "LLM-Pruner, 25 % of layers 4 to 29",
    "flap-20": "FLAP's shape, 20 % of all layers",
    "depth-0-31": "layers 0 and 31 alone",
    **{
        f"ratio-{ratio}": f"{100 * ratio:g} % of the heads and channels of layers 1 to 30"
        for ratio in (0.25, 0.5, 0.75)
    },
    TWO_LAYERS: "dense, two layers in place of 32",
    "oft": "OpenVLA-OFT (two cameras, a state, chunks), dense",
    "oft-rlrc": "OpenVLA-OFT, RLRC, 90 % of the heads and channels of layers 1 to 30",
}
"""Names of the policies' shapes on the page."""
PRECISIONS = {
    ("rlrc", 16): "bf16",
    ("rlrc", 8): "W8A8",
    ("rlrc", 4): "W4A8",
    ("transformers", 16): "bf16",
    ("bitsandbytes", 8): "W8A8 (LLM.int8)",
    ("bitsandbytes", 4): "W4A16 (NF4)",
}
"""Bits of weights and activations, by who multiplies them and the bits of the weights."""
NOT_KEPT = "not kept"
"""Text for a baseline's seconds where the ratio was measured and the seconds were not written down."""


def publish(stored: Path) -> None:
    """Write the tables and figures of what is stored."""
    result = read_json(stored)
    write_text(stored.with_suffix(".md"), page(result))
    draw_sweep(stored.with_name(f"{stored.stem}-sweep.png"), result["sweep"])
    draw_stages(stored.with_suffix(".png"), [bar(row) for row in result["rows"] if "stages_ms" in row])


def by_name(stored: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The rows of a stored result, by their names in GROUPS. Earlier rows do not say their processor, which was the
    file's, nor their actions a call, of which there was one."""
    left_out = {"cpu": stored["machine"]["cpu"], "actions_per_call": 1}
    rows = [left_out | row for row in stored["rows"]]
    return {name_of(row): {key: value for key, value in row.items() if key != "name"} for row in rows}


def name_of(row: dict[str, Any]) -> str:
    """The name in GROUPS of a row as it is stored."""
    name: str = row["name"]
    return BASELINE if (name, row["backend"]) == ("dense", "transformers") else name


def bar(row: dict[str, Any]) -> Bar:
    return Bar(row["name"], row["stages_ms"], row["roofline"]["floors_ms"])


def page(result: dict[str, Any]) -> str:
    """Return the results as a page of tables for people."""
    rows = by_name(result)
    machine_line = ", ".join(f"{key} {value}" for key, value in result["machine"].items())
    blocks = [
        "# One action at OpenVLA-7B's shapes on a CPU",
        "Written by `benchmarks/latency_7b.py`; do not edit.",
        "Seconds are medians over rounds. The policies of a group act in turn in every round, and a ratio is the "
        "median over rounds of the ratio within a round, so it may differ by some per cent from the ratio of the two "
        "medians beside it. Each row shows the seconds that its baselines took in its own group. Seconds of different "
        "groups do not compare, because the machine was not equally fast. "
        f'"{NOT_KEPT.capitalize()}" means that the ratio was measured and the baseline\'s seconds in that group were '
        "not written down.",
        "A call of OpenVLA-OFT reads two pictures and gives eight actions; one action is a call's time divided by the "
        "actions that it gives. "
        "W4A8 stores weights in 4 bits and multiplies them with activations that are rounded to 8 bits; W8A8 does the "
        "same with weights in 8 bits. Embeddings, vision towers and projector are packed too; the output head stays "
        "in bf16. All weights are random, which changes no time.",
        markdown_table(*seconds_table(rows)),
        "## Where the time goes",
        "Milliseconds of each stage of one action, and how many times the least time that this machine could take "
        "(its floor, from its memory bandwidth and its rate of bf16 products, both measured; products of 8-bit "
        "integers can go below).",
        markdown_table(*stages_table(rows)),
        f"Machine of the latest rows: {machine_line}. The rows were measured at the commits "
        f"{', '.join(sorted({row['commit'] for row in rows.values()}))}.",
    ]
    return "\n\n".join(blocks) + "\n"


def seconds_table(rows: dict[str, dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Every policy beside its baselines in its own group."""
    head = ["policy", "precision", "run by", "processor", "rounds", "actions a call", "one call", "one action"]
    head += ["transformers in the same group", "faster by (a call)", "its bf16 in the same group", "faster by"]
    head += ["weights", "peak memory"]
    body = []
    for name, row in rows.items():
        shape, bits = split_bits(name)
        cells = [SHAPES[shape], PRECISIONS[row["backend"], bits], row["backend"], row["cpu"], str(row["rounds"])]
        actions = row["actions_per_call"]
        cells += [str(actions), _seconds(row["p50_ms"]), _seconds(row["p50_ms"] / actions)]
        for ratio, key, baseline in (("speedup", "baseline_ms", BASELINE), ("speedup_over_bf16", "bf16_ms", shape)):
            if row[ratio] is None or name == baseline:
                cells += ["", ""]
            else:
                cells += [_seconds(beside(rows, name, key, baseline)), f"{row[ratio]:.2f}x"]
        body.append([*cells, human_bytes(row["weight_bytes"]), human_bytes(row["peak_bytes"])])
    return head, body


def beside(rows: dict[str, dict[str, Any]], name: str, key: str, baseline: str) -> float | None:
    """Milliseconds of a row's baseline in the row's own group; None where they were not kept.

    Rows of an earlier form lack `key`; theirs are known where the baseline's own row was measured in the same group.
    """
    row = rows[name]
    if key in row:
        value: float | None = row[key]
        return value
    return rows[baseline]["p50_ms"] if rows[baseline]["group"] == row["group"] else None


def stages_table(rows: dict[str, dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Milliseconds of each stage, and in parentheses the multiple of its floor."""
    body = []
    for name, row in rows.items():
        if "stages_ms" in row:
            shape, bits = split_bits(name)
            over = row["roofline"]["over_floor"]
            taken = [
                f"{ms:.0f}" + (f" ({over[stage]:.2f})" if stage in over else "")
                for stage, ms in row["stages_ms"].items()
            ]
            body.append([SHAPES[shape], PRECISIONS[row["backend"], bits], *taken])
    return ["policy", "precision", *STAGES], body


def split_bits(name: str) -> tuple[str, int]:
    """ "rlrc-4bit" -> ("rlrc", 4); 16 where the name has no bits."""
    shape, _, bits = name.rpartition("-") if name.endswith("bit") else (name, "", "16bit")
    return shape, int(bits.removesuffix("bit"))


def _seconds(milliseconds: float | None) -> str:
    return NOT_KEPT if milliseconds is None else f"{milliseconds / 1000:.2f} s"


def draw_sweep(path: Path, points: list[dict[str, Any]]) -> None:
    """The paper's figure: one line for each number of bits, from dense to nine tenths pruned."""
    figure = Figure(figsize=(6, 3.6), dpi=110, layout="constrained")
    axes = figure.subplots()
    for bits, marker in ((16, "o"), (8, "s"), (4, "^")):
        line = [(100 * point["ratio"], point["p50_ms"] / 1000) for point in points if point["bits"] == bits]
        axes.plot(*zip(*line, strict=True), marker=marker, label=PRECISIONS["rlrc", bits])
    axes.set_xlabel("heads and channels pruned, % of the layers between the first and the last")
    axes.set_ylabel("seconds an action")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.15)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    with atomic_path(path) as aside:
        figure.savefig(aside, format="png")
