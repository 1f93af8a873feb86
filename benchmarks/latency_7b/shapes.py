"""Policies of OpenVLA-7B's and OpenVLA-OFT's real shapes, pruned and quantized, for timing.

Nothing is read from disk. All matrices are cut from one block of random numbers, scaled by their width, so that fifteen
gigabytes are there in seconds.
"""

import math
from collections.abc import Callable
from itertools import cycle
from pathlib import Path

import torch
from accelerate import init_empty_weights
from torch import nn

from rlrc.packed.cpu.processor import multiplies_bfloat16
from rlrc.packed.layers import QuantizedLinear, quantization_config
from rlrc.policies.contract import Policy
from rlrc.policies.oft.config import OFTConfig
from rlrc.policies.oft.layout import random_config
from rlrc.policies.oft.policy import OFTPolicy
from rlrc.policies.openvla.config import OpenVLAConfig
from rlrc.policies.openvla.layout import published_config
from rlrc.policies.openvla.policy import OpenVLAPolicy
from rlrc.policies.parts.llama_tokenizer import llama_like_tokenizer
from rlrc.policies.prismatic.checkpoint import empty_model
from rlrc.policies.prismatic.config import PrismaticConfig
from rlrc.policies.prismatic.layout import image_processor
from rlrc.policies.prismatic.processor import Processor
from rlrc.policies.wide import widen_products
from rlrc.prune.allocate import Rounding, choose
from rlrc.prune.groups import coupled_groups
from rlrc.prune.structured import plan_cut
from rlrc.quantize import linear_names

LAYERS = 32
ENDS = frozenset({0, LAYERS - 1})
PARTS = ("decoder", "vision", "projector", "embedding")
LEAST_LENT = 2**22
"""Numbers in a weight from which it can be lent to another policy."""


def pruned(
    ratio: float | None = None,
    overall: float | None = None,
    protected: frozenset[int] = ENDS,
    round_to: int = 128,
    output_bias: bool = False,
    of: Callable[[], PrismaticConfig] | None = None,
) -> PrismaticConfig:
    """The config after block-wise pruning; kept channels are a multiple of `round_to`, as kernels like them.

    Args:
        of: gives the config of the dense policy; None is OpenVLA's.
    """
    config = (of or published)()
    groups = coupled_groups(outline(config).stacks()[0].layers)
    scores = [torch.zeros(group.units) for group in groups]
    kept = choose(groups, scores, protected, "local", ratio, overall, Rounding(round_to, "up"))
    whole = config.text_config.to_dict()
    shapes = plan_cut(LAYERS, groups, kept).shapes
    changed = {layer: shape for layer, shape in shapes.items() if not shape.items() <= whole.items()}
    config.text_config.per_layer_config = changed or None
    config.text_config.output_bias = output_bias
    return config


def published(layers: int = LAYERS) -> OpenVLAConfig:
    """The published config, or one with fewer decoder layers; the head holds the action rows."""
    config = OpenVLAConfig.from_dict(published_config())
    config.action_head_only = True
    config.text_config.num_hidden_layers = layers
    return config


def oft() -> OFTConfig:
    """OpenVLA-OFT as published for LIBERO: two cameras, a state of 8 numbers, 8 actions a call, an L1 head."""
    return OFTConfig.from_dict(random_config() | {"action_head_only": True})


class Memory:
    """Weights of one policy that can also serve a second one, since there is no room for fifteen gigabytes twice."""

    def __init__(self, module: nn.Module) -> None:
        large = [parameter for parameter in module.parameters() if parameter.numel() > LEAST_LENT]
        self._tensors = cycle(large)
        self._count = len(large)

    def take(self, shape: torch.Size) -> torch.Tensor | None:
        """A matrix of this shape out of the next tensor that is large enough, if there is one."""
        for _ in range(self._count):
            tensor = next(self._tensors)
            if tensor.numel() >= shape.numel():
                return tensor.detach().view(-1)[: shape.numel()].view(shape)
        return None


def policy(config: PrismaticConfig, bits: int = 16, memory: Memory | None = None) -> Policy:
    """Make a policy in bf16, perhaps in the `memory` of another one, or with all but the head in 4 or 8 bits."""
    if bits < 16:
        config.quantization_config = quantization_config(bits, 32, linear_names(outline(config), PARTS))
    made = outline(config)
    fill(made.model, memory)
    if not multiplies_bfloat16():
        widen_products(made.model)  # as `rlrc.load` does
    return made


def outline(config: PrismaticConfig) -> Policy:
    """A policy whose parameters have shapes and no memory."""
    family = OFTPolicy if isinstance(config, OFTConfig) else OpenVLAPolicy
    return family(empty_model(family.model_class, config, Path()).eval(), processor(config))


def processor(config: PrismaticConfig) -> Processor:
    return Processor(image_processor(*config.image_sizes), llama_like_tokenizer(), config)


@torch.no_grad()
def fill(model: nn.Module, memory: Memory | None = None) -> None:
    """Give every parameter without memory some, in bf16."""
    block = torch.randn(2**20, generator=torch.Generator().manual_seed(0)).bfloat16()
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.is_meta:
                lent = memory.take(parameter.shape) if memory is not None and parameter.ndim == 2 else None
                numbers = _numbers(name, parameter.shape, block) if lent is None else lent
                setattr(module, name, nn.Parameter(numbers, requires_grad=False))
        if isinstance(module, QuantizedLinear):
            _fill_packed(module, memory)


def _numbers(name: str, shape: torch.Size, block: torch.Tensor) -> torch.Tensor:
    if name == "bias":
        return torch.zeros(shape, dtype=block.dtype)
    if len(shape) == 1:
        return torch.ones(shape, dtype=block.dtype)
    tensor = torch.empty(shape, dtype=block.dtype)
    scaled = block / math.sqrt(math.prod(shape[1:]))
    for chunk in tensor.view(-1).split(len(block)):
        chunk.copy_(scaled[: len(chunk)])
    return tensor


def _fill_packed(layer: QuantizedLinear, memory: Memory | None) -> None:
    """Fill in random codes around the middle zero point, of the dense weight's variance; or the numbers that memory
    holds."""
    layer.scales, layer.zeros = (torch.empty_like(buffer, device="cpu") for buffer in (layer.scales, layer.zeros))
    lent = memory and memory.take(torch.Size((math.ceil(layer.codes.numel() / 2),)))
    if lent is None:
        layer.codes = torch.empty_like(layer.codes, device="cpu")
        block = torch.randint(0, 256, (2**20,), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
        for chunk in layer.codes.view(-1).split(len(block)):
            chunk.copy_(block[: len(chunk)])
    else:
        layer.codes = lent.view(torch.uint8)[: layer.codes.numel()].view(layer.codes.shape)
    step = 1 / (2**layer.bits / math.sqrt(12) * math.sqrt(layer.in_features))
    layer.scales.fill_(step)
    layer.zeros.fill_(0x88 if layer.bits == 4 else 128)


def empty(build: Callable[[], nn.Module], memory: Memory | None = None) -> nn.Module:
    """A module in bf16 with filled weights, perhaps in the `memory` of another one; buffers are computed as usual."""
    with init_empty_weights(include_buffers=False):
        module = build()
    fill(module, memory)
    return module.eval()
