"""The fastest dense way on a CPU, of which many multiply float32 faster than bf16: weights in bf16, computed in either.

Each shape of weight is timed once in both, for one row and for many, and every layer of this shape then takes the
faster one.
"""

import time
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from rlrc.policies.wide import wide_product, widen_where_slow

MANY = 8
"""Number of rows from which a product counts as one of many."""
TIMED_ROWS = {False: 1, True: 280}
"""Rows of the products that are timed: a token, and a prompt or picture."""
LEAST_SECONDS = 0.1
"""Time for which each product is repeated, so that a neighbour who takes the core for a moment changes nothing."""
IN_FLOAT32 = "in_float32"


class EitherLinear(nn.Linear):
    """`nn.Linear` that computes in float32 where that is faster, and rounds its results once."""

    in_float32: dict[bool, bool]
    """Whether float32 is faster, for few rows and for many."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x (..., in) -> (..., out) in x's dtype."""
        in_float32 = self.in_float32[x.numel() >= MANY * self.in_features]
        return wide_product(x, self.weight, self.bias) if in_float32 else F.linear(x, self.weight, self.bias)


@torch.no_grad()
def choose_for_each(parts: Iterable[nn.Module]) -> list[dict[str, Any]]:
    """Let the linear layers in bf16 of `parts` compute in what is faster, and return what was timed for each shape."""
    rows = []
    chosen: dict[torch.Size, dict[bool, bool]] = {}
    for part in parts:
        for module in part.modules():
            if type(module) is not nn.Linear or module.weight.dtype != torch.bfloat16:
                continue
            shape = module.weight.shape
            if shape not in chosen:
                timed = [_timed(module.weight, many) for many in TIMED_ROWS]
                chosen[shape] = {many: row[IN_FLOAT32] for many, row in zip(TIMED_ROWS, timed, strict=True)}
                rows += timed
            module.__class__ = EitherLinear  # the same weights under the same names
            module.in_float32 = chosen[shape]
    return rows


def widen_convolutions(part: nn.Module, device: torch.device) -> None:
    """Let the convolutions of `part` compute in float32 where bf16 is slow, as rlrc's do."""
    for module in part.modules():
        if isinstance(module, nn.Conv2d):
            widen_where_slow(module, device)


def any_in_float32(parts: Iterable[nn.Module]) -> bool:
    """Whether a layer of `parts` computes in float32 at all."""
    layers = (module for part in parts for module in part.modules() if isinstance(module, EitherLinear))
    return any(chosen for layer in layers for chosen in layer.in_float32.values())


def _timed(weight: torch.Tensor, many: bool) -> dict[str, Any]:
    x = torch.ones(TIMED_ROWS[many], weight.shape[1], dtype=weight.dtype)
    bf16, float32 = _fastest_ms(lambda: F.linear(x, weight)), _fastest_ms(lambda: wide_product(x, weight, None))
    row = {"out": weight.shape[0], "in": weight.shape[1], "rows": len(x)}
    return row | {"bf16_ms": bf16, "float32_ms": float32, IN_FLOAT32: float32 < bf16}


def _fastest_ms(call: Callable[[], torch.Tensor]) -> float:
    """The fastest of a few calls, and of as many as fit into LEAST_SECONDS, after one that is not timed."""
    call()
    times: list[float] = []
    while len(times) < 3 or sum(times) < LEAST_SECONDS:
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
    return round(1000 * min(times), 3)
