"""Random weights for a model without memory, so that one of any shape can be timed before there is one.

All tensors are cut from one block of random numbers, so that fifteen gigabytes are there in seconds, on the device that
computes.
"""

import math
from collections.abc import Callable

import torch
from torch import nn

from rlrc.packed.layers import QuantizedLinear
from rlrc.packed.layout import pack

NUMBERS = 2**20
"""Random numbers that are drawn; tensors hold them again and again."""

Lend = Callable[[torch.Size], torch.Tensor | None]
"""Gives memory in bf16 of a shape, with whatever numbers it holds, where there is some."""


def nothing(shape: torch.Size) -> None:
    """Lend no memory."""


@torch.no_grad()
def fill_at_random(
    model: nn.Module, device: torch.device | str = "cpu", dtype: torch.dtype | None = None, lend: Lend = nothing
) -> None:
    """Give every tensor without memory some on the device, and bring the rest of the model there.

    Biases are 0, scales of norms 1, matrices have a variance of 1 / fan-in, and packed ones codes of about that.

    Args:
        dtype: of the parameters; None keeps each one's own.
        lend: what lends memory to matrices, in place of new memory.
    """
    random = torch.Generator(device).manual_seed(0)
    block = torch.randn(NUMBERS, generator=random, device=device)
    codes = torch.randint(0, 256, (NUMBERS,), dtype=torch.uint8, generator=random, device=device)
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.is_meta:
                lent = lend(parameter.shape) if parameter.ndim == 2 else None
                numbers = _numbers(name, parameter.shape, block.to(dtype or parameter.dtype)) if lent is None else lent
                setattr(module, name, nn.Parameter(numbers, requires_grad=False))
        if isinstance(module, QuantizedLinear):
            _fill_packed(module, lend, codes)
    model.to(device)


def _numbers(name: str, shape: torch.Size, block: torch.Tensor) -> torch.Tensor:
    if name == "bias":
        return torch.zeros(shape, dtype=block.dtype, device=block.device)
    if len(shape) == 1:
        return torch.ones(shape, dtype=block.dtype, device=block.device)
    return _repeated(block / math.sqrt(math.prod(shape[1:])), shape)


def _repeated(block: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """A tensor that holds the numbers of a block again and again."""
    tensor = torch.empty(shape, dtype=block.dtype, device=block.device)
    for chunk in tensor.view(-1).split(len(block)):
        chunk.copy_(block[: len(chunk)])
    return tensor


def _fill_packed(layer: QuantizedLinear, lend: Lend, codes: torch.Tensor) -> None:
    """Fill in random codes around the middle zero point, or the numbers that lent memory holds."""
    lent = lend(torch.Size((math.ceil(layer.codes.numel() / 2),)))
    if lent is None:
        layer.codes = _repeated(codes, layer.codes.shape)
    else:
        layer.codes = lent.view(torch.uint8)[: layer.codes.numel()].view(layer.codes.shape)
    deviation = 2**layer.bits / math.sqrt(12)
    scale = 1 / (deviation * math.sqrt(layer.in_features))
    layer.scales = torch.full_like(layer.scales, scale, device=codes.device)
    middle = torch.full(layer.scales.shape, 2 ** (layer.bits - 1), dtype=torch.uint8, device=codes.device)
    layer.zeros = pack(middle, layer.bits)
