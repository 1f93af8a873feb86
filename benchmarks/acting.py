"""Acting on the tabletop world's pictures against the plain path, from pictures to tokens, by batch size.

    python benchmarks/acting.py            about 3 minutes; writes results/acting.json

The plain path is bf16 through transformers' LlamaModel with its DynamicCache and masks, as rlrc acted before it had a
decoding path of its own. Policies take turns, and each speed-up is the median over rounds of the ratio within a round.
One thread, as in rollouts, where every job has one.
"""

import argparse
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from transformers import DynamicCache

import rlrc
from rlrc.bench import machine
from rlrc.files import write_json
from rlrc.policies.contract import Policy
from rlrc.process import keep_freed_memory
from rlrc.quantize import linear_names, quantize_linears

POLICIES = (Path("checkpoints/tabletop-base"), Path("checkpoints/tabletop-rlrc"))
PARTS = ("decoder", "vision", "projector")
BATCH_SIZES = (1, 32, 128)
ROUNDS = 15
INSTRUCTION = "put carrot on plate"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("results/acting.json"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    rows = [row for path in POLICIES for size in BATCH_SIZES for row in measure(path, size)]
    write_json(options.out, {"machine": machine(), "rounds": ROUNDS, "rows": rows})


def measure(path: Path, batch_size: int) -> list[dict[str, Any]]:
    images = np.random.default_rng(0).integers(0, 256, (batch_size, 96, 96, 3), np.uint8)
    instructions = [INSTRUCTION] * batch_size
    bf16 = rlrc.load(path)
    actors: dict[str, Any] = {"plain": lambda: plain(bf16, images, instructions)}
    for name, policy in {"bf16": bf16, "8-bit": packed(path, 8), "4-bit": packed(path, 4)}.items():
        actors[name] = lambda policy=policy: policy.act(images, instructions)
    seconds: dict[str, list[float]] = {name: [] for name in actors}
    for number in range(ROUNDS + 2):
        for name, act in actors.items():
            started = time.perf_counter()
            act()
            if number >= 2:  # two rounds warm up
                seconds[name].append(time.perf_counter() - started)
    rows = []
    for name, taken in seconds.items():
        speedup = median(slow / fast for slow, fast in zip(seconds["plain"], taken, strict=True))
        rows.append(
            {
                "policy": str(path),
                "batch_size": batch_size,
                "name": name,
                "p50_ms": round(1000 * median(taken), 2),
                "speedup": round(speedup, 3),
            }
        )
        print(rows[-1], flush=True)
    return rows


def packed(path: Path, bits: int) -> Policy:
    policy = rlrc.load(path)
    # The first convolutions have few weights and see every pixel: see docs/journal/quantization.md.
    names = [name for name in linear_names(policy, PARTS) if "stem." not in name]
    quantize_linears(policy.model, names, bits, 32)
    return policy


@torch.no_grad()
def plain(policy: Any, images: np.ndarray, instructions: list[str]) -> np.ndarray:
    """Greedy actions by transformers' own decoder loop."""
    model, inputs = policy.model, policy.prepare(policy.observation(images, instructions))
    embeddings, mask, positions = model.sequence(inputs)
    cache, tokens = DynamicCache(), []
    for _ in range(model.config.action_dim):
        output = model.language_model.model(
            inputs_embeds=embeddings, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True
        )
        tokens.append(model.action_logits_of(output.last_hidden_state[:, -1]).argmax(-1) + model.first_action_id)
        embeddings = model.embed(tokens[-1])[:, None]
        mask = None if mask is None else torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
        positions = positions[:, -1:] + 1
    return policy.to_physical(policy.actions.decode(torch.stack(tokens, dim=1).numpy()))


if __name__ == "__main__":
    main()
