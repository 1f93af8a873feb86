"""Actions a second at batch 1, 8 and 32, as CUDA graphs and launched one by one, and the memory that they take.

    python benchmarks/on_gpu/throughput.py --out throughput.json
    python benchmarks/on_gpu/throughput.py --out throughput.json --device cpu --tiny      a rehearsal

Shapes of OpenVLA-7B with random weights: dense, with 90 % of its decoder pruned, and that in 4 bits. For each policy
and batch both ways act in turn, in an order drawn anew for each round; the speed-up of the graph is the median over
rounds of the ratio, with its 95 % interval.
"""

import gc
from typing import Any

import numpy as np
import options
import shapes
import torch

from rlrc.bench import machine, noise_observation, now
from rlrc.files import write_json
from rlrc.packed.layers import who_multiplies
from rlrc.policies.contract import Policy
from rlrc.stats import median_interval

POLICIES = {"dense": ("dense", 16), "rlrc": ("rlrc", 16), "rlrc-4bit": ("rlrc", 4)}
BATCHES = (1, 8, 32)
ROUNDS, WARM_UPS = 20, 3


def main() -> None:
    chosen = options.parse(__doc__)
    rows = []
    for name, (shape, bits) in POLICIES.items():
        policy = shapes.policy(shapes.config_of(shape, chosen.tiny), bits, None, chosen.device)
        for batch in BATCHES:
            rows.append({"policy": name, "tiny": chosen.tiny, "batch_size": batch, **measured(policy, batch)})
            print(rows[-1], flush=True)
        del policy
        gc.collect()
        torch.cuda.empty_cache()
        write_json(chosen.out, {"machine": machine(), "device": chosen.device, "rows": rows})


def measured(policy: Policy, batch: int) -> dict[str, Any]:
    """One row: milliseconds of a call in both ways, and what the graph gains."""
    observation = noise_observation(policy, batch)
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
