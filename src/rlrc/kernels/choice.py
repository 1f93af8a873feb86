"""Which kernel is fastest for how many rows: measured once a machine, kept, and shown by `rlrc bench`.

No one kernel is right. Few rows are limited by how fast weights are read, many by how fast numbers are multiplied, and
where the line is depends on the processor: one with AMX multiplies bfloat16 as fast as this code multiplies integers,
so that unpacking the weight first can pay.
"""

import json
import time
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F

from rlrc import kernels
from rlrc.files import cache_folder, write_json
from rlrc.kernels import PackedWeight

Kernel = Literal["vector", "matrix", "unpack"]
"""`vector` and `matrix` are those of packed.cpp; `unpack` restores the weight in bfloat16 and leaves it to PyTorch."""

KERNELS: tuple[Kernel, ...] = ("vector", "matrix", "unpack")
ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
WIDTHS = (256, 2048)
"""Measured are square weights, one that stays in the processor's cache and whose calls are short, and one that is as
large as those of big models."""
REPEATS = 5


def choose(weight: PackedWeight, rows: int) -> Kernel:
    """The kernel for `rows` activations at once."""
    large = weight.out_features * weight.in_features > WIDTHS[0] * WIDTHS[1]
    column = min(max(rows - 1, 0).bit_length(), len(ROWS) - 1)
    return _fastest(weight.bits, WIDTHS[int(large)], torch.get_num_threads())[column]


@cache
def _fastest(bits: int, width: int, threads: int) -> tuple[Kernel, ...]:
    """For each number of ROWS."""
    times = table(threads)[f"{bits}-bit, {width} x {width}"]
    return tuple(min(KERNELS, key=lambda kernel: times[kernel][column]) for column in range(len(ROWS)))


@cache
def table(threads: int) -> dict[str, dict[Kernel, list[float]]]:
    """Milliseconds by kind of weight, kernel and number of ROWS; measured anew where this machine has no record."""
    path = cache_folder() / f"fastest-{kernels.identity()}-{threads}.json"
    recorded = _read(path)
    if recorded is not None:
        return recorded
    measured = {f"{bits}-bit, {width} x {width}": _measure(bits, width) for bits in (4, 8) for width in WIDTHS}
    write_json(path, {"processor": kernels.processor(), "threads": threads, "rows": ROWS, "milliseconds": measured})
    return measured


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text())["milliseconds"]
    except (OSError, ValueError, KeyError):
        return None


@torch.no_grad()
def _measure(bits: int, width: int) -> dict[Kernel, list[float]]:
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(0, 256, (width, width * bits // 8), dtype=torch.uint8, generator=generator)
    groups = width // kernels.BLOCK
    zeros = torch.full((width, groups * bits // 8), 0x77 if bits == 4 else 128, dtype=torch.uint8)
    scales = torch.full((width, groups), 0.01, dtype=torch.bfloat16)
    weight = PackedWeight(codes, scales, zeros, bits, kernels.BLOCK, width, width)
    times: dict[Kernel, list[float]] = {kernel: [] for kernel in KERNELS}
    for rows in ROWS:
        x = torch.randn(rows, width, generator=generator).bfloat16()
        for kernel in KERNELS:
            times[kernel].append(_milliseconds(partial(run, kernel, weight, x, None)))
    return times


def run(kernel: Kernel, weight: PackedWeight, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """x (..., in) times the weight plus the bias, (..., out), by that kernel."""
    if kernel == "unpack":
        return F.linear(x, kernels.unpack(weight).to(x.dtype), None if bias is None else bias.to(x.dtype))
    return kernels.product(weight, x, None if bias is None else bias.float(), many=kernel == "matrix")


def _milliseconds(call: Callable[[], Any]) -> float:
    call()
    times = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
    return round(1000 * min(times), 4)
