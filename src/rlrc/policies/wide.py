"""Weights in bfloat16 on processors that multiply float32 faster: products of many rows, and convolutions, are computed
in float32, layer by layer, so that memory holds one wide weight at a time.

Such are processors without instructions for bfloat16, also where they have AVX-512. There 280 rows of 4096 -> 11008
take 0.27 to 0.55 of the time of bfloat16, and the convolutions of patch embeddings 0.03 to 0.6 of it, the widening of
the weight included (docs/journal/speed.md).
"""

import torch
import torch.nn.functional as F
from torch import nn

from rlrc.native.processor import multiplies_bfloat16

FEWEST_ROWS = 32
"""Products of fewer rows stay in bfloat16, since widening the weight would take longer than it saves."""


class WideLinear(nn.Linear):
    """`nn.Linear` that computes products of many rows in float32, and rounds their results once."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x (..., in) -> (..., out) in x's dtype."""
        narrow = x.dtype == self.weight.dtype == torch.bfloat16
        if not narrow or x.numel() < FEWEST_ROWS * self.in_features:
            return super().forward(x)
        return wide_product(x, self.weight, self.bias)


class WideConv2d(nn.Conv2d):
    """`nn.Conv2d` that computes in float32 and rounds its results once."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x (B, in, H, W) -> (B, out, H', W') in x's dtype."""
        if not x.dtype == self.weight.dtype == torch.bfloat16:
            return super().forward(x)
        bias = None if self.bias is None else self.bias.float()
        return self._conv_forward(x.float(), self.weight.float(), bias).to(x.dtype)


def wide_product(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """x (..., in) times the weight (out, in), plus a bias (out), computed in float32: (..., out) in x's dtype."""
    return F.linear(x.float(), weight.float(), None if bias is None else bias.float()).to(x.dtype)


def widen_where_slow(model: nn.Module, device: torch.device) -> None:
    """Let `model` compute in float32 what takes longer in bfloat16 on a device."""
    if device.type == "cpu" and not multiplies_bfloat16():
        widen_products(model)


def widen_products(model: nn.Module) -> None:
    """Let the convolutions of `model`, and its linear layers where they have many rows, compute in float32."""
    wide = {nn.Linear: WideLinear, nn.Conv2d: WideConv2d}
    for module in model.modules():
        if type(module) in wide:
            module.__class__ = wide[type(module)]  # the same weights under the same names
