"""The table of what `on_gpu.sh` has measured: python benchmarks/on_gpu/table.py FOLDER writes FOLDER/README.md."""

import json
import re
import sys
from pathlib import Path
from typing import Any

from rlrc.files import write_text

TIMED_OUT = (124, 137)


def main() -> None:
    folder = Path(sys.argv[1])
    steps = [json.loads(line) for line in (folder / "steps.jsonl").read_text().splitlines()]
    text = ["# On a GPU", "", *(folder / "machine.log").read_text().splitlines(), ""]
    text += table(["step", "seconds", "state"], [[step["step"], step["seconds"], state(step)] for step in steps])
    tests = folder / "tests.log"
    text += ["", *(line for line in tests.read_text().splitlines() if re.match(r"SKIPPED|FAILED|ERROR|\d+ \w+", line))]
    for name, columns in (
        ("latency", LATENCY),
        ("products", PRODUCTS),
        ("throughput", THROUGHPUT),
        ("training", TRAINING),
    ):
        path = folder / f"{name}.json"
        text += ["", f"## {name}", ""]
        if not path.exists():
            text.append(f"Nothing was measured; {name}.log says why.")
            continue
        measured = json.loads(path.read_text())
        cells = [[show(row.get(column)) for column in columns] for row in measured["rows"]]
        text += table(list(columns), cells)
        text += [f"- {name} is missing: {reason}" for name, reason in measured.get("missing", {}).items()]
    write_text(folder / "README.md", "\n".join(text) + "\n")
    print("\n".join(text))


LATENCY = ("name", "backend", "dtype", "p50_ms", "speedup", "speedup_95", "actions_per_call", "peak_bytes")
PRODUCTS = ("inputs", "outputs", "rows", "bf16")
PRODUCTS += tuple(f"{way}-{bits}bit" for bits in (4, 8) for way in ("vector", "matrix", "unpacked"))
"""Microseconds of each way to multiply."""
THROUGHPUT = ("policy", "batch_size", "p50_ms", "eager_p50_ms", "speedup_of_graph", "interval", "actions_per_second")
THROUGHPUT += ("peak_bytes",)
TRAINING = ("verb", "shape", "batch_size", "steps_per_second", "peak_bytes")


def state(step: dict[str, Any]) -> str:
    """This tells what became of a step."""
    if step["exit"] in TIMED_OUT:
        return f"stopped after {step['limit']} s"
    return "done" if step["exit"] == 0 else f"failed ({step['step']}.log)"


def show(value: Any) -> str:
    """A cell."""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list):
        return " to ".join(map(show, value))
    return "" if value is None else str(value)


def table(head: list[str], rows: list[list[Any]]) -> list[str]:
    """A table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return [f"| {' | '.join(map(str, line))} |" for line in lines]


if __name__ == "__main__":
    main()
