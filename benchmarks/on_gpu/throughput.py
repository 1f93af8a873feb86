"""Actions a second at batch 1, 8 and 32, as CUDA graphs and launched one by one, and the memory that they take.

    python benchmarks/on_gpu/throughput.py --out throughput.json
    python benchmarks/on_gpu/throughput.py --out throughput.json --device cpu --tiny      a rehearsal

Shapes of OpenVLA-7B with random weights: dense, with 90 % of its decoder pruned, and that in 4 bits. For each policy
and batch both ways act in turn, in an order drawn anew for each round; the speed-up of the graph is the median over
rounds of the ratio, with its 95 % interval.
"""

import argparse
import gc
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.append(str(Path(__file__).parents[1] / "latency_7b"))
import shapes
from actor import noise

from rlrc.bench import machine, now
from rlrc.files import write_json
from rlrc.packed.layers import who_multiplies
from rlrc.policies.contract import Policy
from rlrc.policies.device import resolve_device
from rlrc.stats import median_interval

POLICIES = {"dense": ("dense", 16), "rlrc": ("rlrc", 16), "rlrc-4bit": ("rlrc", 4)}
BATCHES = (1, 8, 32)
ROUNDS, WARM_UPS = 20, 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="tiny policies in place of OpenVLA-7B's shapes")
    options = parser.parse_args()
    device, rows = str(resolve_device(options.device)), []
    for name, (shape, bits) in POLICIES.items():
        policy = shapes.policy(shapes.config_of(shape, options.tiny), bits, None, device)
        for batch in BATCHES:
            rows.append({"policy": name, "tiny": options.tiny, "batch_size": batch, **measured(policy, batch)})
            print(rows[-1], flush=True)
        del policy
        gc.collect()
        torch.cuda.empty_cache()
        write_json(options.out, {"machine": machine(), "device": options.device, "rows": rows})


def measured(policy: Policy, batch: int) -> dict[str, Any]:
    """One row: milliseconds of a call in both ways, and what the graph gains."""
    observation = noise(policy.spec.cameras, len(policy.spec.state))[[0] * batch]
    random, seconds = np.random.default_rng(0), np.empty((ROUNDS, 2))
    if policy.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(policy.device)
    for number in range(-WARM_UPS, ROUNDS):
        for eager in random.permutation(2):
            policy.eager = bool(eager)
            started = now(policy.device)
            policy.act(observation)
            seconds[max(number, 0), eager] = now(policy.device) - started
    policy.eager = False
    ratios = seconds[:, 1] / seconds[:, 0]
    row = {
        "graph": policy.records,
        "p50_ms": 1000 * float(np.median(seconds[:, 0])),
        "eager_p50_ms": 1000 * float(np.median(seconds[:, 1])),
        "speedup_of_graph": float(np.median(ratios)),
        "interval": median_interval(ratios),
        "rounds": ROUNDS,
        "actions_per_second": batch * policy.spec.horizon / float(np.median(seconds[:, 0])),
        "multipliers": who_multiplies(policy.model, policy.device, policy.model.dtype),
    }
    if policy.device.type == "cuda":
        row["peak_bytes"] = torch.cuda.max_memory_allocated(policy.device)
    return row


if __name__ == "__main__":
    main()
