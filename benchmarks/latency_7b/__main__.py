"""Measure how long OpenVLA-7B takes for one action on this processor: dense, pruned, quantized, and by other packages.

    python benchmarks/latency_7b           two hours or more on 2 cores and 24 GB; writes results/latency_7b/cpu.*
    python benchmarks/latency_7b --instructions avx2      every library held to AVX2; writes cpu-avx2.*

What the file of results holds already is not measured again: with all of it there, tables and figures are written anew
and nothing else happens. Nothing else should run on the machine.

Shapes are the real ones and weights random (`shapes.py`), which changes no time. One picture of 224 pixels, one
instruction, seven tokens, batch 1; OpenVLA-OFT has two pictures, a state, and eight actions a call. In each group the
policies act in turn, round by round and in an order that is drawn anew for each, and every speed-up is the median over
rounds of the ratio to what it is compared with in the same round. The baseline is dense bf16 through transformers' own
modules and `generate`. One group acts again while another process keeps a core busy.

PyTorch's dynamic int8, bitsandbytes and torchao (`pip install bitsandbytes torchao`, or into a folder that PYTHONPATH
names) are measured on two of the 32 layers, against transformers with two layers: while they pack, the whole does not
fit beside the baseline. Where one is not installed or fails, its rows are left out, and the file and the page say why.
To try one again that failed, delete its entry from the file's "missing".
"""

import argparse
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from instructions import VARIABLES, hold_to, used_instructions
from names import BUSY, GROUPS, NOT_INSTALLED, SWEEP, refusal
from page import by_name, is_complete, publish, stored_name
from turns import take_turns

from rlrc.bench import machine
from rlrc.files import write_json
from rlrc.progress import say
from rlrc.reading import read_json
from rlrc.roofline import rates

RESULTS = Path("results/latency_7b")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--instructions", choices=list(VARIABLES), help="hold every library to these")
    parser.add_argument(
        "--out", type=Path, help="results/latency_7b/cpu.json, or cpu-avx2.json with AVX2, unless given"
    )
    options = parser.parse_args()
    level = options.instructions
    out = options.out or RESULTS / (f"cpu-{level}.json" if level else "cpu.json")
    if level:
        hold_to(level)
    rows, missing = stored(out, level)
    here = machine() | {"used_instructions": used_instructions()}
    for group in GROUPS:
        names = [name for name in group if name not in missing]
        # Rows that have only their baseline beside them compare nothing.
        if rows.keys() >= set(names) or len(names) == 1:
            continue
        say(" | ".join(names))
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as fresh:
            machine_rates = fresh.submit(rates).result()
        measured, failed = take_turns(names, options.rounds, machine_rates, group is BUSY)
        missing |= failed
        for name, row in measured.items():
            if name not in rows:
                rows[name] = row | {"group": names, "cpu": here["cpu"], "commit": here["commit"]}
                say(f"  {name}: {row['p50_ms']:.0f} ms" + (f", {row['speedup']:.2f}x" if row["speedup"] else ""))
        write_json(out, result(here, rows, missing))
    publish(out)


def stored(out: Path, level: str | None) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """The rows that need not be measured again, and why others cannot be."""
    before = read_json(out) if out.exists() else {"rows": []}
    rows = {name: row for name, row in by_name(before).items() if is_complete(name, row)}
    missing = {name: why for name, why in before.get("missing", {}).items() if NOT_INSTALLED not in why}
    names = dict.fromkeys(name for group in GROUPS for name in group)
    refused = {name: why for name in names if name not in rows and (why := refusal(name, level)) is not None}
    return rows, missing | refused


def result(here: dict[str, Any], rows: dict[str, dict[str, Any]], missing: dict[str, str]) -> dict[str, Any]:
    """What the file of results holds."""
    ordered = {name: rows[name] for name in dict.fromkeys(name for group in GROUPS for name in group) if name in rows}
    for cpu in {row["cpu"] for row in rows.values()}:
        lower_floors([row for row in rows.values() if "roofline" in row and row["cpu"] == cpu])
    return {
        "machine": here,
        "rows": [{**row, "name": stored_name(name)} for name, row in ordered.items()],
        "missing": missing,
        "sweep": sweep(rows),
    }


def lower_floors(rows: list[dict[str, Any]]) -> None:
    """Bring the floors of all groups that one processor measured to their best rates: what it can do, whatever else
    its host was doing."""
    if not rows:
        return
    best = {key: max(row["roofline"]["rates"][key] for row in rows) for key in rows[0]["roofline"]["rates"]}
    for row in rows:
        roofline = row["roofline"]
        for stage, floor in roofline["floors_ms"].items():
            limit = "bytes_per_second" if stage == "decode" else "operations_per_second"
            lower = floor * roofline["rates"][limit] / best[limit]
            roofline["floors_ms"][stage] = round(lower, 1)
            roofline["over_floor"][stage] = round(row["stages_ms"][stage] / lower, 2)
        roofline["rates"] = best


def sweep(rows: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """The points of the paper's figure: seconds by the share that is pruned and the bits of the weights."""
    points = []
    for ratio, shape in SWEEP.items():
        for bits in (16, 8, 4):
            row = rows.get(shape if bits == 16 else f"{shape}-{bits}bit")
            if row is not None:
                speedup = row["speedup_over_bf16"]
                points.append({"ratio": ratio, "bits": bits, "p50_ms": row["p50_ms"], "speedup_over_bf16": speedup})
    return points


if __name__ == "__main__":
    main()
