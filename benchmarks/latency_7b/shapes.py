"""Policies of OpenVLA-7B's and OpenVLA-OFT's real shapes, pruned and quantized, for timing.

Nothing is read from disk. All matrices are cut from one block of random numbers, scaled by their width, so that fifteen
gigabytes are there in seconds, on the device that computes.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import cycle
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from accelerate import init_empty_weights
from torch import nn

from rlrc.configs.prune import Tokens
from rlrc.packed.layers import quantization_config
from rlrc.policies.contract import Policy
from rlrc.policies.filling import empty_model
from rlrc.policies.groups import VISION
from rlrc.policies.oft.config import OFTConfig
from rlrc.policies.oft.layout import random_config
from rlrc.policies.oft.policy import OFTPolicy
from rlrc.policies.openvla.config import OpenVLAConfig
from rlrc.policies.openvla.layout import published_config
from rlrc.policies.openvla.policy import OpenVLAPolicy
from rlrc.policies.parts.llama_tokenizer import llama_like_tokenizer
from rlrc.policies.prismatic.config import PrismaticConfig
from rlrc.policies.prismatic.layout import image_processor
from rlrc.policies.prismatic.processor import ImageProcessor, Processor
from rlrc.policies.random_weights import fill_at_random, nothing
from rlrc.policies.wide import widen_where_slow
from rlrc.prune.allocate import Rounding
from rlrc.prune.child import child_of, plan_by_count
from rlrc.prune.groups import chain_of
from rlrc.prune.method import Target
from rlrc.prune.tokens import TokensMethod
from rlrc.quantize import linear_names

LAYERS, TINY_LAYERS = 32, 8
"""Decoder layers of OpenVLA-7B, and of a tiny policy: enough for every shape below."""
KEPT_MULTIPLE, TINY_KEPT_MULTIPLE = 128, 32
"""Kept channels are a multiple of this number, as kernels like them."""
TINY_OVERALL = 0.5
"""Share of a tiny decoder's parameters that is lost at most, since its two whole layers hold a quarter of them."""
ENDS = frozenset({0, -1})
PARTS = ("decoder", "vision", "projector", "embedding")
"""These parts are packed in 8 and 4 bits: all but the output head."""
LEAST_LENT = 2**22
"""Numbers in a weight from which it can be lent to another policy."""


class Shape(NamedTuple):
    """The size of a policy: what block-wise pruning leaves of a dense one."""

    ratio: float = 0.0
    """Share of the heads and channels that each layer loses."""
    overall: float = 0.0
    """Share of the decoder's parameters that is lost, in place of `ratio`."""
    protected: frozenset[int] = ENDS
    """Layers that lose nothing; negative numbers count from the last."""
    output_bias: bool = False
    """Whether o_proj and down_proj have a bias."""
    tower: int | None = None
    """Number of the vision tower that stays alone; None keeps both."""
    vision: float = 0.0
    """Share of the heads and channels that each block of the vision towers loses."""
    tokens: float = 0.0
    """Share of a picture's tokens that is lost."""
    tokens_by: Literal["pool", "shuffle"] = "pool"
    """Way to make fewer tokens, as `rlrc.configs.prune.Tokens` has it."""
    only_layers: int | None = None
    """Number of decoder layers; None is all."""
    of_oft: bool = False
    """Whether the dense policy is OpenVLA-OFT in place of OpenVLA."""


# Every part is made lighter, until none takes most of an action. The shares are those of its time in 4 bits, and the
# factors compare with "rlrc-overall"; both are seconds of one thread.
BALANCED = Shape(
    # Vision, 48 %: the second tower alone, with half of its heads and channels, takes 0.31 times as long.
    tower=1,
    vision=0.5,
    # Prefill, 36 %, and the projector, 3 %: with 64 of 256 tokens (and the decoder below) they take 0.26 times as long.
    tokens=0.75,
    # Decode, 12 %: the first and the last layer stay whole and are most of what is read, so it takes 0.69 times as
    # long. Of each layer between them one head and 256 channels are left; rounded up to these, 91 % are gone.
    overall=0.92,
)
SHAPES = {
    "dense": Shape(),
    "rlrc": Shape(ratio=0.9),
    "rlrc-overall": Shape(overall=0.9),
    "llm-pruner-25": Shape(ratio=0.25, protected=frozenset({0, 1, 2, 3, -2, -1})),
    # FLAP ranks all layers together; on random weights that means nothing, so here each layer loses the same share.
    "flap-20": Shape(ratio=0.2, protected=frozenset(), output_bias=True),
    "depth-0-31": Shape(only_layers=2),
    "two-layers": Shape(only_layers=2),
    "ratio-0.25": Shape(ratio=0.25),
    "ratio-0.5": Shape(ratio=0.5),
    "ratio-0.75": Shape(ratio=0.75),
    "balanced": BALANCED,
    # The policy on the tabletop that succeeds as often as the dense one.
    "balanced-shuffled": BALANCED._replace(tokens_by="shuffle"),
    "oft": Shape(of_oft=True),
    "oft-rlrc": Shape(ratio=0.9, of_oft=True),
}


def config_of(shape: str, tiny: bool = False) -> PrismaticConfig:
    """The config of a policy of this shape; a tiny one has few and narrow layers, pruned in the same way."""
    wanted = SHAPES[shape]
    made = outline(dense(wanted.of_oft, wanted.only_layers or (TINY_LAYERS if tiny else LAYERS), tiny))
    rounding = Rounding(TINY_KEPT_MULTIPLE if tiny else KEPT_MULTIPLE, "up")
    overall = min(wanted.overall, TINY_OVERALL) if tiny else wanted.overall
    if wanted.ratio or overall:
        target = Target(wanted.ratio or None, overall or None, wanted.protected, rounding)
        made = narrowed(made, None, target, wanted.output_bias)
    if wanted.tower is not None:
        made = made.joined_towers().alone(wanted.tower)
    if wanted.vision:
        made = narrowed(made, (VISION,), Target(wanted.vision, rounding=rounding))
    if wanted.tokens:
        target = Target(wanted.tokens, tokens=made.model.config.tokens_of_picture)
        chain = chain_of(made)
        made = child_of(made, chain, TokensMethod(Tokens(by=wanted.tokens_by)).plan({}, (), len(chain), target))
    return made.model.config


def narrowed(policy: Policy, stacks: Sequence[str] | None, target: Target, output_bias: bool = False) -> Policy:
    """A policy whose layers have lost heads and channels, no matter which.

    Args:
        stacks: those that lose them; None is the language model's.
        target: its negative numbers of protected layers count from the last.
        output_bias: whether o_proj and down_proj get a bias.
    """
    chain = chain_of(policy, stacks)
    target = replace(target, protected=frozenset(layer % len(chain) for layer in target.protected))
    return child_of(policy, chain, replace(plan_by_count(policy, stacks, target), output_bias=output_bias))


def dense(of_oft: bool, layers: int, tiny: bool) -> PrismaticConfig:
    """The published config with some number of decoder layers; the head holds the action rows.

    OpenVLA-OFT is as published for LIBERO: two cameras, a state of 8 numbers, 8 actions a call, an L1 head.
    """
    config: PrismaticConfig
    if of_oft:
        config = OFTConfig.from_dict(random_config(tiny) | {"action_head_only": True})
    else:
        config = OpenVLAConfig.from_dict(published_config(tiny) | {"action_head_only": True})
    config.text_config.num_hidden_layers = layers
    return config


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


def policy(config: PrismaticConfig, bits: int = 16, memory: Memory | None = None, device: str = "cpu") -> Policy:
    """Make a policy in bf16, perhaps in the `memory` of another one, or with all but the head in 4 or 8 bits."""
    if bits < 16:
        config.quantization_config = quantization_config(bits, 32, linear_names(outline(config), PARTS))
    made = outline(config)
    fill_at_random(made.model, device, torch.bfloat16, nothing if memory is None else memory.take)
    widen_where_slow(made.model, torch.device(device))  # as `rlrc.load` does
    return made


def outline(config: PrismaticConfig) -> Policy:
    """A policy whose parameters have shapes and no memory."""
    family = OFTPolicy if isinstance(config, OFTConfig) else OpenVLAPolicy
    return family(empty_model(family.model_class, config, Path()).eval(), processor(config))


def processor(config: PrismaticConfig) -> Processor:
    """Return what makes inputs of observations, with the published settings."""
    sizes = config.image_sizes or []
    images = image_processor(*sizes) if len(sizes) == 2 else ImageProcessor.for_size(sizes[0], 1)
    return Processor(images, llama_like_tokenizer(), config)


def empty(build: Callable[[], nn.Module], memory: Memory | None, device: str) -> nn.Module:
    """A module in bf16 with filled weights, perhaps in the `memory` of another one; buffers are computed as usual."""
    with init_empty_weights(include_buffers=False):
        module = build()
    fill_at_random(module, device, torch.bfloat16, nothing if memory is None else memory.take)
    return module.eval()
