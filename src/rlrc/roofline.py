"""The least time that one action can take on this machine: what must be read, and what must be multiplied.

Reading weights limits the tokens that are decoded one by one, multiplying limits the prompt and the picture. The floors
come from this machine's own rates, for bf16 products; 8-bit integers can go below those.
"""

import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F

from rlrc.packed.layers import count_parameters
from rlrc.policies.values import Stage

READ_BYTES = 2**30
"""Bytes that are read to measure memory: enough that they come from memory and not from a cache."""
ROWS, WIDTH = 280, 4096
"""Size of the product that is timed: a prompt's positions and OpenVLA-7B's hidden size."""


def rates(device: torch.device | str = "cpu") -> dict[str, float]:
    """`bytes_per_second` read from memory, and `operations_per_second` of a bf16 product (two a multiplication)."""
    memory = torch.ones(READ_BYTES // 8, dtype=torch.int64, device=device)
    x, weight = (torch.ones(rows, WIDTH, dtype=torch.bfloat16, device=device) for rows in (ROWS, WIDTH))
    return {
        "bytes_per_second": memory.nbytes / _fastest(memory.sum),
        "operations_per_second": 2 * ROWS * weight.numel() / _fastest(lambda: F.linear(x, weight)),
    }


def floors_ms(stages: Mapping[str, Stage], rates: dict[str, float]) -> dict[str, float]:
    """Milliseconds of the stages of one action at batch 1.

    Reading the weights limits a stage that multiplies one row at a time, multiplying limits the others.
    """
    seconds = {}
    for name, stage in stages.items():
        if stage.positions == 1:
            weights = sum(tensor.nbytes for tensor in stage.module.state_dict().values())
            seconds[name] = stage.passes * weights / rates["bytes_per_second"]
        else:
            seconds[name] = stage.passes * _product_seconds(stage.module, stage.positions, rates)
    return {name: 1000 * value for name, value in seconds.items()}


def _product_seconds(part: torch.nn.Module, positions: int, rates: dict[str, float]) -> float:
    return 2 * count_parameters(part) * positions / rates["operations_per_second"]


def _fastest(call: Callable[[], Any], repeats: int = 10) -> float:
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        result = call()
        if result.device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    return min(times)
