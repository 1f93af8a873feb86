"""Measure how long OpenVLA-7B takes for one action on this machine: dense, pruned, quantized, and by other packages.

    python benchmarks/latency_7b                        about two hours on 2 cores; writes results/latency_7b/cpu.*
    python benchmarks/latency_7b --instructions avx2    every library held to AVX2; writes cpu-avx2.*
    python benchmarks/latency_7b --device cuda          on a GPU; writes cuda.*
    python benchmarks/latency_7b --tiny                 every row, with tiny policies: a rehearsal in half an hour;
                                                        writes runs/latency_7b-tiny/cpu.*

On a CPU it takes 24 GB of memory, and nothing else should run on the machine. What the file of results holds already
is not measured again: with all of it there, page and figures are written anew and nothing else happens. Rows of an
older benchmark, which lack something that is measured today, stay as "earlier" until they are measured again.

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
from functools import partial
from pathlib import Path
from typing import Any

import torch
from actor import Setting
from instructions import VARIABLES, hold_to, used_instructions
from making import make
from names import BUSY, GROUPS
from page import publish
from processes import Host
from results import result, stored
from turns import take_turns

from rlrc.bench import machine
from rlrc.files import write_json
from rlrc.jobs import in_fresh_process
from rlrc.progress import say
from rlrc.roofline import rates
from rlrc.stats import FEWEST_FOR_MEDIAN

RESULTS, TINY_RESULTS = Path("results/latency_7b"), Path("runs/latency_7b-tiny")
ROOMY_BYTES = 75e9
"""Memory of a GPU in which all policies of a group have room, each with weights of its own."""


def main() -> None:
    options = parse()
    if options.instructions:
        hold_to(options.instructions)
    head = described(options)
    setting = Setting(options.device, options.tiny)
    roomy = options.device == "cuda" and torch.cuda.get_device_properties(0).total_memory >= ROOMY_BYTES
    groups = options.only or list(GROUPS)
    rows, earlier, missing = stored(options.out, options.device, options.instructions, groups)
    for group in groups:
        names = [name for name in GROUPS[group] if name not in missing]
        wanted = set(names) - rows.keys()
        # Rows that have only their baseline beside them compare nothing.
        if not wanted or len(names) == 1:
            continue
        say(f"{group}: {' | '.join(names)}")
        rates_now = measured_rates(options.device)
        open_host = partial(Host, make=partial(make, setting=setting))
        measured, failed = take_turns(names, wanted, options.rounds, group == BUSY, roomy, open_host)
        missing |= failed
        for name, row in measured.items():
            rows[name] = row | {"group": names, "rates": rates_now} | origin(head, options.device)
            say(f"  {name}: {row['p50_ms']:,.1f} ms" + (f", {row['speedup']:.2f}x" if row["speedup"] else ""))
        write_json(options.out, result(head, rows, missing, earlier))
    publish(options.out)


def parse() -> argparse.Namespace:
    """The options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--instructions", choices=list(VARIABLES), help="hold every library to these")
    parser.add_argument("--rounds", type=int, default=FEWEST_FOR_MEDIAN)
    parser.add_argument("--only", choices=list(GROUPS), nargs="+", help="groups of rows that are measured")
    parser.add_argument("--tiny", action="store_true", help="tiny policies in place of OpenVLA-7B's shapes")
    parser.add_argument("--out", type=Path, help="a JSON file in place of the one named above")
    options = parser.parse_args()
    if options.rounds < FEWEST_FOR_MEDIAN:
        parser.error(f"--rounds must be at least {FEWEST_FOR_MEDIAN}: the interval of a ratio needs as many")
    if options.device == "cuda" and options.instructions:
        parser.error("--instructions are those of a CPU; leave them out with --device cuda")
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: PyTorch sees no CUDA GPU on this machine")
    level = f"-{options.instructions}" if options.instructions else ""
    folder = TINY_RESULTS if options.tiny else RESULTS
    options.out = options.out or folder / f"{options.device}{level}.json"
    return options


def described(options: argparse.Namespace) -> dict[str, Any]:
    """The head of the file: the machine, and what was chosen on the command line."""
    here = machine()
    if options.device == "cpu":
        here["used_instructions"] = used_instructions()
    return {"machine": here, "device": options.device, "tiny": options.tiny}


def origin(head: dict[str, Any], device: str) -> dict[str, Any]:
    """The processor and the commit that a row was measured with."""
    here = head["machine"]
    processor = {"gpu": here["gpu"]} if device == "cuda" else {}
    return {"cpu": here["cpu"], "commit": here["commit"], **processor}


def measured_rates(device: str) -> dict[str, float]:
    """The machine's rates, as `rlrc.roofline` has them; on a CPU in a process of their own, whose memory goes with
    it."""
    return rates(device) if device == "cuda" else in_fresh_process(rates, device)


if __name__ == "__main__":
    main()
