"""The backend for processors: packed bytes multiplied as they are, by C++ that is compiled when it is first needed.

Activations are rounded to 8 bits, each row with a scale of its own, and multiplied as integers; `packed.h` has the
formula. Codes of 2 and 3 bits are widened to 4 bits on the way. One code serves all processors: a file for each set of
instructions (`lanes_*.h`) has what differs. They give the same bits, whichever the processor, the number of rows and
the number of threads.
"""

import torch

from rlrc.native.arguments import address, threads
from rlrc.packed.cpu.library import LIBRARY
from rlrc.packed.layout import PackedWeight, dequantized

__all__ = ["BLOCK", "NAME", "linear", "missing", "refuses", "unpack"]

NAME = "cpu"

unpack = dequantized

missing = LIBRARY.missing

BLOCK = 32
"""Groups must be multiples of this many columns."""


def refuses(weight: PackedWeight, device: torch.device, dtype: torch.dtype) -> str | None:
    """Return why a weight is not taken, with inputs of `dtype` on `device`; None where it is."""
    if device.type != "cpu":
        return "it is for the CPU"
    if dtype not in (torch.bfloat16, torch.float32):
        return f"it reads bfloat16 and float32, not {dtype}"
    if weight.group_size % BLOCK:
        return f"it needs groups of a multiple of {BLOCK} weights, not of {weight.group_size}"
    return missing()


def linear(weight: PackedWeight, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """x (..., in) in bfloat16 or float32 times the weight, plus a bias (out): (..., out) in x's dtype."""
    x = x.contiguous()
    y = x.new_empty(*x.shape[:-1], weight.out_features)
    rows = x.numel() // weight.in_features
    bias = None if bias is None else bias.detach().float().contiguous()
    tensors = (weight.codes, weight.scales, weight.zeros)
    shape = (weight.bits, weight.group_size, weight.out_features, weight.in_features)
    bf16 = int(x.dtype == torch.bfloat16)
    LIBRARY.loaded().packed_product(
        *map(address, tensors), *shape, bf16, address(x), rows, address(bias), address(y), threads()
    )
    return y
