"""Random weights for a policy without memory, so that one of any shape can be timed before there is one."""

import math

import torch
from torch import nn

from rlrc.packed.layers import QuantizedLinear
from rlrc.packed.layout import pack
from rlrc.policies.contract import Policy

NUMBERS = 2**20
"""Random numbers that are drawn; tensors hold them again and again."""


@torch.no_grad()
def fill_at_random(policy: Policy, seed: int = 0) -> None:
    """Give every tensor without memory some on the CPU: biases 0, scales of norms 1, matrices of variance 1 / fan-in,
    and packed ones codes of about that variance."""
    random = torch.Generator().manual_seed(seed)
    block = torch.randn(NUMBERS, generator=random)
    codes = torch.randint(0, 256, (NUMBERS,), dtype=torch.uint8, generator=random)
    for module in policy.model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.is_meta:
                numbers = _numbers(name, parameter.shape, block).to(parameter.dtype)
                setattr(module, name, nn.Parameter(numbers, requires_grad=False))
        if isinstance(module, QuantizedLinear):
            _fill_packed(module, codes)


def _numbers(name: str, shape: torch.Size, block: torch.Tensor) -> torch.Tensor:
    if name == "bias":
        return torch.zeros(shape)
    if len(shape) == 1:
        return torch.ones(shape)
    return _repeated(block / math.sqrt(math.prod(shape[1:])), shape)


def _repeated(block: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """A tensor that holds the numbers of a block again and again."""
    tensor = torch.empty(shape, dtype=block.dtype)
    for chunk in tensor.view(-1).split(len(block)):
        chunk.copy_(block[: len(chunk)])
    return tensor


def _fill_packed(layer: QuantizedLinear, codes: torch.Tensor) -> None:
    """Fill in random codes around the middle zero point."""
    layer.codes = _repeated(codes, layer.codes.shape)
    deviation = 2**layer.bits / math.sqrt(12)
    layer.scales = torch.full_like(layer.scales, 1 / (deviation * math.sqrt(layer.in_features)), device="cpu")
    middle = torch.full(layer.scales.shape, 2 ** (layer.bits - 1), dtype=torch.uint8)
    layer.zeros = pack(middle, layer.bits)
