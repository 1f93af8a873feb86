"""The published layout of a policy: every tensor of a checkpoint as its authors wrote it, by name and shape.

Acting never reads the last block and the final norm of a vision tower, SigLIP's pool and most rows of `lm_head`; rlrc
neither builds nor stores them, but papers count them. Here they are counted, also for shapes that pruning left behind.
"""

import copy
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rlrc.policies.filling import empty_model
from rlrc.policies.parts.config import VisionTowerConfig
from rlrc.policies.parts.vit import Block, Mlp
from rlrc.policies.prismatic.config import PrismaticConfig
from rlrc.policies.prismatic.model import Prismatic


class AttentionPool(nn.Module):
    """SigLIP's head: one learnt query reads all patches. Its output is never used, so it has no forward."""

    def __init__(self, config: VisionTowerConfig) -> None:
        super().__init__()
        self.latent = nn.Parameter(torch.zeros(1, 1, config.hidden_size))
        self.q = nn.Linear(config.hidden_size, config.hidden_size)
        self.kv = nn.Linear(config.hidden_size, 2 * config.hidden_size)
        self.proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        last: Any = config.per_layer_config[-1]  # type: ignore[index]  # never run either, so never pruned
        self.mlp = Mlp(config.hidden_size, last.intermediate_size)


def published_tensors(model_class: type[Prismatic], config: PrismaticConfig) -> dict[str, tuple[int, ...]]:
    """Shapes of all tensors that a published checkpoint of this config holds, by name; packed layers count as dense.

    Towers with a convolutional stem are rlrc's own and hold nothing that is never read.
    """
    config = copy.deepcopy(config)
    config.action_head_only = False
    config.quantization_config = None
    model = empty_model(model_class, config, Path("config.json"))
    towers = [name for name, _ in model.vision_backbone.named_children()]
    with torch.device("meta"):
        for name, tower in zip(towers, config.towers, strict=True):
            if not tower.stem_channels:
                _add_dead_parts(model.vision_backbone.get_submodule(name), tower, pooled=name == towers[-1])
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def published_parameters(model_class: type[Prismatic], config: PrismaticConfig) -> int:
    """Number of parameters as papers count them."""
    return sum(torch.Size(shape).numel() for shape in published_tensors(model_class, config).values())


def _add_dead_parts(module: nn.Module, tower: VisionTowerConfig, pooled: bool) -> None:
    """Give a tower's module what `rlrc.policies.parts.vit.is_dead` knows."""
    blocks = module.get_submodule("blocks")
    blocks.add_module(str(tower.num_hidden_layers - 1), Block(tower, tower.num_hidden_layers - 1))
    module.add_module("norm", nn.LayerNorm(tower.hidden_size, eps=tower.layer_norm_eps))
    if pooled and not tower.class_token:
        module.add_module("attn_pool", AttentionPool(tower))
