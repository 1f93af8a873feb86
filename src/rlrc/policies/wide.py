"""Weights in bfloat16 on processors that multiply float32 faster: products of many rows are computed in float32, layer
by layer, so that memory holds one wide weight at a time.

Such are x86 processors without AVX-512. With AVX2, 4096 -> 11008 takes 3.9 ms in bfloat16 and 8.3 in float32 for one
row, but 29 and 23 for 8 rows, and 1271 and 294 for 280 (docs/journal/speed.md).
"""

import torch
import torch.nn.functional as F
from torch import nn

FEWEST_ROWS = 8
"""Products of fewer rows stay in bfloat16: widening the weight would take longer than it saves."""


class WideLinear(nn.Linear):
    """`nn.Linear` that computes products of many rows in float32, and rounds their results once."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x (..., in) -> (..., out) in x's dtype."""
        if x.dtype != torch.bfloat16 or x.numel() < FEWEST_ROWS * self.in_features:
            return super().forward(x)
        bias = None if self.bias is None else self.bias.float()
        return F.linear(x.float(), self.weight.float(), bias).to(x.dtype)


def widen_products(model: nn.Module) -> None:
    """Let the linear layers of `model` compute products of many rows in float32."""
    for module in model.modules():
        if type(module) is nn.Linear:
            module.__class__ = WideLinear  # the same weights under the same names
