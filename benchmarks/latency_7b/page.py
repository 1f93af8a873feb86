"""The page, tables and figures of the latency benchmark, from what it has stored."""

from pathlib import Path
from typing import Any

from actor import ACTIONS_A_TURN
from matplotlib.figure import Figure
from names import TWO_LAYERS, VLA_CACHE, run_of, through_transformers
from results import Rows, by_name, processor_of

from rlrc.bench import STAGES
from rlrc.files import write_text
from rlrc.png import save_png
from rlrc.reading import read_json
from rlrc.stage_chart import Bar, draw_stages
from rlrc.tables import human_bytes, human_ratio, markdown_table

Table = tuple[list[str], list[list[str]]]
"""A head and rows of cells."""
BALANCED = (
    "balanced: one vision tower of two with half of its heads and channels, 91 % of the decoder's parameters gone, and "
    "a quarter of the tokens"
)
SHAPES = {
    "dense": "dense",
    "rlrc": "RLRC, 90 % of the heads and channels of layers 1 to 30",
    "rlrc-overall": "RLRC, 90 % of the decoder's parameters, from layers 1 to 30",
    "balanced": f"{BALANCED} (means of patches)",
    "balanced-shuffled": f"{BALANCED} (patches side by side)",
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
LINES = {16: ("bf16", "o"), 8: ("8-bit weights", "s"), 4: ("4-bit weights", "^")}
"""Legend and marker of each line of the paper's figure, by the bits of the weights."""
INTRODUCTION = [
    "Times are medians over rounds. The policies of a group act in turn in every round, in an order that is drawn "
    "anew for each. A ratio is the median over rounds of the ratio within a round, and in brackets stands its 95 % "
    "interval, which is exact for any distribution (order statistics). Each row shows the times that its baselines "
    "took in its own group. Times of different rows do not compare unless they were measured in the same group, "
    "because the machine is not equally fast at all times.",
    "A call of OpenVLA-OFT reads two pictures and gives eight actions; one action is a call's time divided by the "
    "actions that it gives. W4A8 stores weights in 4 bits and multiplies them with activations that are rounded to "
    "8 bits. In rlrc's rows of 8 and 4 bits, embeddings, vision towers and projector are packed too; the output "
    "head stays in bf16. The rows of transformers compute both vision towers whole and the logits of the whole "
    "vocabulary, as the published model does; rlrc leaves out what no action depends on. Where torch.compile is "
    "named, towers, prompt and tokens are compiled, with a static cache, and an action compiles nothing. All "
    "weights are random, which changes no time. Peak memory includes what making the policy takes, and what "
    "the process held before that, which is told beside it (libraries).",
]
ON_GPU = (
    f"A turn on a GPU is {ACTIONS_A_TURN['cuda']} actions, of which the median counts, and peak memory is what PyTorch "
    "allocated there."
)
TINY = "**This is a rehearsal with tiny policies: it says nothing about OpenVLA-7B.**"


def publish(stored: Path) -> None:
    """Write the tables and figures of what is stored."""
    result = read_json(stored)
    write_text(stored.with_suffix(".md"), page(result))
    if result["sweep"]:
        draw_sweep(stored.with_name(f"{stored.stem}-sweep.png"), result["sweep"])
    bars = [
        Bar(row["name"], row["stages_ms"], row["roofline"]["floors_ms"]) for row in result["rows"] if "stages_ms" in row
    ]
    if bars:
        draw_stages(stored.with_suffix(".png"), bars)


def page(result: dict[str, Any]) -> str:
    """Return the results as a page of tables for people."""
    every = by_name(result)
    rows = {name: row for name, row in every.items() if not row.get("earlier")}
    on_gpu = result["device"] == "cuda"
    blocks = [
        f"# One action at OpenVLA-7B's shapes on a {'GPU' if on_gpu else 'CPU'}",
        "Written by `benchmarks/latency_7b`; do not edit.",
        *([TINY] if result["tiny"] else []),
        *INTRODUCTION,
        *([ON_GPU] if on_gpu else []),
        markdown_table(*times_table(rows)),
        *missing_lines(result["missing"]),
        *section(
            "Engine and compression",
            "How much of a speed-up comes from the smaller policy, and how much from rlrc running it: the same shape "
            "in bf16 through transformers' own modules stands between the two.",
            engine_table(rows),
        ),
        *section(
            "Beside a busy process",
            "The same rounds again, while another process adds numbers and keeps one core busy.",
            busy_table(rows),
        ),
        *section(
            "Where the time goes",
            "Milliseconds of each stage of one action, and how many times the least time that this machine could take "
            "(its floor, from its memory bandwidth and its rate of products in bf16 or float32, both measured). "
            "Products of 8-bit integers can go below. In older rows the rate is that of bf16 alone, and "
            "float32 can go below it where the processor has no instructions for bf16.",
            stages_table(rows),
        ),
        *section(
            "The least time",
            "A whole action beside its floor: the least time that this GPU could take, from its memory bandwidth and "
            "its rate of products in bf16 or float32, both measured.",
            floors_table(rows),
        ),
        *section(
            "Measured earlier",
            "An older form of this benchmark measured these rows, without intervals and in a fixed order; they stay "
            "until they are measured again.",
            earlier_table({name: row for name, row in every.items() if name not in rows}),
        ),
        *machine_lines(result["machine"], rows),
    ]
    return "\n\n".join(blocks) + "\n"


def section(title: str, text: str, table: Table) -> list[str]:
    """The blocks of a section; none where its table has no rows."""
    return [f"## {title}", text, markdown_table(*table)] if table[1] else []


def label(name: str) -> str:
    """Return what a row is called on the page."""
    run = run_of(name)
    further = ", VLA-Cache at its best (the picture never changes)" if name == VLA_CACHE else ""
    return SHAPES[run.shape] + further + (", torch.compile" if run.compiled else "")


def times_table(rows: Rows) -> Table:
    """Every policy beside its baselines in its own group."""
    head = ["policy", "weights and activations", "run by", "processor", "rounds", "actions a call", "one call"]
    head += ["one action", "transformers in the same group", "faster by (a call)", "faster by (an action)"]
    head += ["its bf16 in the same group", "faster by", "weights", "peak memory", "of it, libraries"]
    body = []
    for name, row in rows.items():
        actions = row["actions_per_call"]
        cells = [label(name), row["dtype"], row["backend"], processor_of(row), str(row["rounds"])]
        cells += [str(actions), duration(row["p50_ms"]), duration(row["p50_ms"] / actions)]
        is_baseline = name == row["group"][0]
        cells += ["", "", ""] if is_baseline else [*beside(row, "baseline_ms", "speedup"), an_action(row)]
        cells += beside(row, "bf16_ms", "speedup_over_bf16")
        cells += [human_bytes(row["weight_bytes"]), human_bytes(row["peak_bytes"])]
        # On a GPU the peak is that of its own memory, where no library lies.
        body.append([*cells, "" if "reserved_bytes" in row else human_bytes(row["libraries_bytes"])])
    return head, body


def engine_table(rows: Rows) -> Table:
    """The ratios of compression and of engine, each beside the times of its own group."""
    head = ["policy", "dense, transformers", "this shape, transformers", "compression", "this shape, rlrc", "engine"]
    body = []
    for name, row in rows.items():
        if row.get("engine_speedup") is None:
            continue
        # The dense shape through transformers is the baseline itself, which nothing has compressed.
        is_baseline = through_transformers(name) == row["group"][0]
        compression = ["", ""] if is_baseline else beside(row, "baseline_ms", "compression_speedup")
        cells = [label(name), compression[0], duration(row["through_transformers_ms"]), compression[1]]
        body.append([*cells, duration(row["p50_ms"]), ratio(row, "engine_speedup")])
    return head, body


def busy_table(rows: Rows) -> Table:
    """The rows of the busy group, quiet and busy."""
    head = ["policy", "weights and activations", "run by", "quiet", "transformers, quiet", "faster by", "busy"]
    head += ["transformers, busy", "faster by, busy", "decode, quiet", "decode, busy", "the other process had"]
    body = []
    for name, row in rows.items():
        if "busy_p50_ms" not in row:
            continue
        cells = [label(name), row["dtype"], row["backend"], duration(row["p50_ms"])]
        cells += beside(row, "baseline_ms", "speedup")
        cells += [duration(row["busy_p50_ms"]), *beside(row, "busy_baseline_ms", "busy_speedup")]
        stages = (row.get("stages_ms"), row.get("busy_stages_ms"))
        cells += ["" if taken is None else duration(taken["decode"]) for taken in stages]
        body.append([*cells, f"{row['busy_share']:.2f} cores"])
    return head, body


def earlier_table(rows: Rows) -> Table:
    """The rows that an older form of the benchmark has left."""
    body = [
        [
            label(name),
            str(run_of(name).bits),
            row["backend"],
            duration(row["p50_ms"]),
            "" if row.get("speedup") is None else f"{row['speedup']:.2f}x",
            human_bytes(row["weight_bytes"]),
            human_bytes(row["peak_bytes"]),
            row["commit"],
        ]
        for name, row in rows.items()
    ]
    head = ["policy", "bits of the weights", "run by", "one call", "faster than transformers by", "weights"]
    return [*head, "peak memory", "commit"], body


def stages_table(rows: Rows) -> Table:
    """Milliseconds of each stage, and in parentheses the multiple of its floor."""
    body = []
    for name, row in rows.items():
        if "stages_ms" in row:
            over = row["roofline"]["over_floor"]
            taken = [
                f"{ms:.{0 if ms >= 10 else 1}f}" + (f" ({over[stage]:.2f})" if stage in over else "")
                for stage, ms in row["stages_ms"].items()
            ]
            body.append([label(name), row["dtype"], *taken])
    return ["policy", "weights and activations", *STAGES], body


def floors_table(rows: Rows) -> Table:
    """An action and its floor, where no clock follows the stages."""
    body = []
    for name, row in rows.items():
        over = row.get("roofline", {}).get("over_floor", {})
        if "action" in over:
            floor = sum(row["roofline"]["floors_ms"].values())
            body.append([label(name), row["dtype"], duration(row["p50_ms"]), duration(floor), f"{over['action']:.1f}x"])
    return ["policy", "weights and activations", "one call", "floor", "times the floor"], body


def machine_lines(machine: dict[str, Any], rows: Rows) -> list[str]:
    """The machine, the commits, and the instructions that libraries use on a CPU."""
    commits = ", ".join(sorted({row["commit"] for row in rows.values()}))
    told = ", ".join(f"{key} {value}" for key, value in machine.items() if key != "used_instructions")
    lines = [f"Machine of the latest rows: {told}. The rows were measured at the commits {commits}."]
    if "used_instructions" in machine:
        used = "; ".join(f"{name}: {said}" for name, said in machine["used_instructions"].items())
        lines.append(f"What each library says that it uses: {used}.")
    return lines


def missing_lines(missing: dict[str, str]) -> list[str]:
    """Why rows are not there."""
    lines = [f"- {name} ({run_of(name).by}): {why}" for name, why in missing.items()]
    return ["Not measured:", "\n".join(lines)] if lines else []


def beside(row: dict[str, Any], milliseconds: str, key: str) -> list[str]:
    """Two cells: the time of what a row is compared with, and the ratio."""
    return ["", ""] if row[key] is None else [duration(row[milliseconds]), ratio(row, key)]


def an_action(row: dict[str, Any]) -> str:
    """How many times faster than the baseline's, which is a whole call, an action of the row's chunk is."""
    return "" if row["speedup"] is None else ratio(row, "speedup", row["actions_per_call"])


def ratio(row: dict[str, Any], key: str, times: int = 1) -> str:
    """A ratio with its interval, both multiplied."""
    return human_ratio(times * row[key], [times * bound for bound in row[f"{key}_95"]])


def duration(milliseconds: float) -> str:
    """Seconds, or milliseconds where it is less than one."""
    if milliseconds >= 1000:
        return f"{milliseconds / 1000:.2f} s"
    return f"{milliseconds:.{0 if milliseconds >= 100 else 1}f} ms"


def draw_sweep(path: Path, points: list[dict[str, Any]]) -> None:
    """The paper's figure: one line for each number of bits, from dense to nine tenths pruned."""
    figure = Figure(figsize=(6, 3.6), dpi=110, layout="constrained")
    axes = figure.subplots()
    for bits, (legend, marker) in LINES.items():
        mine = [point for point in points if point["bits"] == bits]
        shares, times = [100 * point["ratio"] for point in mine], [point["p50_ms"] / 1000 for point in mine]
        axes.plot(shares, times, marker=marker, label=legend)
    axes.set_xlabel("heads and channels pruned, % of the layers between the first and the last")
    axes.set_ylabel("seconds an action")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.15)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    save_png(figure, path)
