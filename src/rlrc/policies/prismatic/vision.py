"""The vision side of the trunk: one or two ViT towers, features concatenated by channel, and the projector.

What inference never reads is never built: the last block of each tower, its final norm and SigLIP's attention pool
(43 M parameters of OpenVLA-7B). Nor is the critic, which older checkpoints may hold.
"""

import re
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from rlrc.policies.groups import FUSED_VISION, VISION
from rlrc.policies.parts.config import VisionTowerConfig
from rlrc.policies.parts.tokens import refuse_selection
from rlrc.policies.parts.vit import Block, VisionTower
from rlrc.policies.prismatic.inputs import PrismaticInputs
from rlrc.policies.prismatic.schema import TowerFields
from rlrc.policies.values import Stack, States, VisionPass, sparse


class VisionBackbone(nn.Module):
    """One or two towers side by side: pixels (B, 3 * towers, H, W) to features (B, P, sum of hidden sizes)."""

    def __init__(self, towers: list[VisionTowerConfig]) -> None:
        super().__init__()
        self.featurizer = VisionTower(towers[0])
        if len(towers) > 1:
            self.fused_featurizer = VisionTower(towers[1])

    def forward(self, pixel_values: torch.Tensor, condition: torch.Tensor | None = None) -> torch.Tensor:
        pictures = pixel_values.split(3, dim=1)
        features = [tower(x, condition) for tower, x in zip(self.children(), pictures, strict=True)]
        return torch.cat(features, dim=-1)


def vision_stacks(backbone: VisionBackbone, towers: Sequence[VisionTowerConfig]) -> list[Stack]:
    """The blocks of the towers, as pruning sees them; `towers` are their configs."""
    modules: Iterable[tuple[str, Any]] = backbone.named_children()
    return [
        Stack(
            name,
            f"vision_backbone.{module}.blocks",
            tower.blocks,
            config,
            partial(_tower_of, number=number),
            partial(Block, config),
        )
        for number, (name, (module, tower), config) in enumerate(
            zip((VISION, FUSED_VISION), modules, towers, strict=False)
        )
    ]


def _tower_of(config: Any, number: int) -> VisionTowerConfig:
    tower: VisionTowerConfig = config.towers[number]
    return tower


def lighter_tower(tower: VisionTowerConfig, shapes: Sequence[dict[str, int]] | None) -> dict[str, Any]:
    """The entry of a config's `vision_towers` for a tower whose blocks get these shapes; None leaves them as they are.

    The block that is never run counts, and comes last.
    """
    if shapes is not None:
        tower.head_dim = tower.head_size
        tower.per_layer_config = sparse(tower, shapes)
        tower.num_hidden_layers = len(shapes) + 1
    values = tower.to_dict()
    return {name: values[name] for name in TowerFields.model_fields if values.get(name) is not None}


def vision_pass(model: Any, inputs: PrismaticInputs) -> VisionPass:
    """The pictures of N rows before the blocks of the towers.

    Args:
        model: a `prismatic.model.Prismatic`.
    """
    refuse_selection(model.config.reduction)
    pictures, condition = model.pictures_of(inputs)
    towers = dict(zip((VISION, FUSED_VISION), model.vision_backbone.children(), strict=False))
    entering = zip(towers.items(), pictures.split(3, dim=1), strict=True)
    cameras, tokens = len(pictures) // len(inputs), model.config.tokens_of_picture

    def share(read: torch.Tensor) -> torch.Tensor:
        """The pictures stand behind BOS, camera by camera."""
        return read[:, 1 : 1 + cameras * tokens].unflatten(1, (cameras, tokens)).flatten(0, 1)

    def leaving(states: States) -> torch.Tensor:
        features = [tower.leave(states[name]) for name, tower in towers.items()]
        return model.tokens_from(torch.cat(features, dim=-1)).embeddings

    states = States({name: tower.enter(part) for (name, tower), part in entering})
    return VisionPass(states, leaving, share, {} if condition is None else {"condition": condition})


VALUE_HEAD = re.compile(r"value_head\.(head_l[12]\.(weight|bias)|head_l3\.weight)")
"""Tensors of the critic, which was once part of the model and of its checkpoints."""


def is_dead(name: str, towers: list[VisionTowerConfig]) -> bool:
    """Return whether a checkpoint's tensor of this name is one that inference never reads."""
    if VALUE_HEAD.fullmatch(name):
        return True
    for prefix, tower in zip(
        ("vision_backbone.featurizer.", "vision_backbone.fused_featurizer."), towers, strict=False
    ):
        last_block = f"blocks.{tower.num_hidden_layers - 1}."
        if name.startswith(prefix) and name.removeprefix(prefix).startswith((last_block, "norm.", "attn_pool.")):
            return True
    return False


class Projector(nn.Module):
    """Vision features to the decoder's embeddings, token by token: (B, P, vision) -> (B, P, hidden).

    Args:
        size: width behind the first layer.
    """

    def __init__(self, vision_size: int, size: int, hidden_size: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(vision_size, size)
        self.fc2 = nn.Linear(size, hidden_size)
        self.fc3 = nn.Linear(hidden_size, hidden_size)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.fc3(F.gelu(self.fc2(F.gelu(self.fc1(features)))))
