"""The page of the benchmark, for people."""

from typing import Any

from rlrc.tables import human_bytes, human_ratio, markdown_table

INTRODUCTION = (
    "Written by `benchmarks/latency_flow`; do not edit. Times are medians over rounds, in which the policies of a "
    "family act in turn; a speed is the median over rounds of the ratio to the family's first row, with its 95 % "
    "interval. All weights are random, which changes no time. `transformers` is its own pi0 class with the same "
    "weights, `torch` are rlrc's modules called step by step, without our kernels. Compressed policies (rlrc) have "
    "lost 90 % of the heads and channels of the language model and the expert; balanced ones also half of the vision "
    "tower's blocks, two thirds of the heads and channels of the others, and three quarters of a picture's tokens. "
    "Peak memory is that of a fresh process that loads the policy and acts; on a GPU, that of its tensors there."
)
STAGES = ("preprocess", "vision", "prefill", "decode")


def page(result: dict[str, Any]) -> str:
    """The results as tables."""
    head = ["policy", "by", "one call", "speed [95 %]", *STAGES, "weights", "peak memory", "actions a call"]
    body = []
    for row in result["rows"]:
        stages = row.get("stages_ms", {})
        body.append(
            [
                row["name"],
                row["backend"],
                f"{row['p50_ms']:,.0f} ms",
                human_ratio(row["speedup"], row["speedup_95"]),
                *(f"{stages[stage]:,.0f} ms" if stages else "" for stage in STAGES),
                human_bytes(row["weight_bytes"]),
                human_bytes(row["peak_bytes"]),
                str(row.get("actions_per_call", "")),
            ]
        )
    pruning = [
        [
            run["family"],
            f"{entry['parameters_before']:,}",
            f"{entry['parameters']:,}",
            str(entry["samples"]),
            f"{entry['seconds']:,.0f} s",
            human_bytes(entry["peak_bytes"]),
        ]
        for run in result["runs"]
        for entry in [run["pruning"]]
    ]
    machine = result["machine"]
    rounds = ", ".join(f"{run['rounds']} rounds of {run['family']} ({run['commit']})" for run in result["runs"])
    processors = [machine["cpu"], *([machine["gpu"]] * (result["device"] == "cuda"))]
    blocks = [
        f"# One chunk of SmolVLA and pi0 on a {'GPU' if result['device'] == 'cuda' else 'CPU'}",
        INTRODUCTION,
        *(["**This is a rehearsal with tiny policies: it says nothing about the published ones.**"] * result["tiny"]),
        markdown_table(head, body),
        "Pruning by Taylor importance, in a process of its own:",
        markdown_table(["family", "parameters", "afterwards", "frames", "time", "peak memory"], pruning),
        f"Machine: {' and '.join(processors)}, {machine['cores']} cores; {rounds}.",
    ]
    return "\n\n".join(blocks) + "\n"
