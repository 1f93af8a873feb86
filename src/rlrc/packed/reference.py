"""Products with packed weights on any device: the weight is unpacked at every call, which is correct and slow."""

import torch
import torch.nn.functional as F

from rlrc.native.processor import multiplies_bfloat16
from rlrc.packed.layout import PackedWeight, dequantized

NAME = "reference"

unpack = dequantized


def refuses(weight: PackedWeight, device: torch.device, dtype: torch.dtype) -> str | None:
    """It takes everything."""
    return None


def linear(weight: PackedWeight, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """x (..., in) times the weight, plus a bias (out): (..., out) in x's dtype.

    Numbers in bfloat16 are multiplied in float32 on processors that are slow at bfloat16.
    """
    dtype = multiplied_in(x)
    bias = None if bias is None else bias.to(dtype)
    return F.linear(x.to(dtype), weight.dequantize(dtype), bias).to(x.dtype)


def multiplied_in(x: torch.Tensor) -> torch.dtype:
    """The dtype that products with `x` are computed in: float32 where its own is bfloat16 and the processor is slow at
    it."""
    slow = x.device.type == "cpu" and x.dtype == torch.bfloat16 and not multiplies_bfloat16()
    return torch.float32 if slow else x.dtype
