"""The least time that one action can take on this machine: what must be read, and what must be multiplied.

Reading weights limits the tokens that are decoded one by one. Multiplying limits the prompt and the picture on a
processor; on a fast GPU reading may limit them too. The floors come from this machine's own rates, for products in bf16
or float32, whichever is faster here; 8-bit integers can go below those.
"""

import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F

from rlrc.packed.layers import count_parameters
from rlrc.policies.values import Stage

READ_BYTES = 2**30
"""Bytes that are read to measure memory: enough that they come from memory and not from a cache."""
WIDTH = 4096
"""Inputs and outputs of the product that is timed: OpenVLA-7B's hidden size."""
ROWS, ROWS_ON_CUDA = 280, 4096
"""Rows of the product that is timed: a prompt's positions, and on a CUDA GPU so many that all of it has work."""
QUEUED_ON_CUDA = 50
"""Calls that are timed together there, since the GPU takes less time for one than Python for starting it."""

Work = dict[str, int]
"""`bytes` of weights that a stage reads in one action, and the `operations` of its products (two a multiplication)."""


def rates(device: torch.device | str = "cpu") -> dict[str, float]:
    """Return the rates of a device.

    Returns:
        `bytes_per_second` read from memory, and `operations_per_second` of a product (two a multiplication) in bf16 or
        float32, whichever is faster: a processor without instructions for bf16 is faster in float32.
    """
    on_cuda = torch.device(device).type == "cuda"
    rows, queued = (ROWS_ON_CUDA, QUEUED_ON_CUDA) if on_cuda else (ROWS, 1)
    memory = torch.ones(READ_BYTES // 8, dtype=torch.int64, device=device)
    # Random numbers, since some GPUs multiply equal ones faster.
    x, weight = (torch.randn(count, WIDTH, device=device) for count in (rows, WIDTH))
    products = [partial(F.linear, x.to(dtype), weight.to(dtype)) for dtype in (torch.bfloat16, torch.float32)]
    return {
        "bytes_per_second": memory.nbytes / _fastest(memory.sum, queued),
        "operations_per_second": 2 * rows * weight.numel() / min(_fastest(product, queued) for product in products),
    }


def work(stages: Mapping[str, Stage]) -> dict[str, Work]:
    """Return what the stages of one action at batch 1 have to do."""
    return {
        name: {
            "bytes": stage.passes * sum(tensor.nbytes for tensor in stage.module.state_dict().values()),
            "operations": stage.passes * 2 * count_parameters(stage.module) * stage.positions,
        }
        for name, stage in stages.items()
    }


def floors_ms(work: Mapping[str, Work], rates: Mapping[str, float]) -> dict[str, float]:
    """The least milliseconds of each stage: it can be no faster than reading its weights, nor than multiplying them."""
    return {
        name: 1000 * max(done["bytes"] / rates["bytes_per_second"], done["operations"] / rates["operations_per_second"])
        for name, done in work.items()
    }


def _fastest(call: Callable[[], Any], queued: int, repeats: int = 10) -> float:
    """The seconds of one call, the fastest of some repeats."""
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        for _ in range(queued):
            result = call()
        if result.device.type == "cuda":
            torch.cuda.synchronize(result.device)
        times.append((time.perf_counter() - started) / queued)
    return min(times)
