"""The vision side of the trunk: one or two ViT towers, features concatenated by channel, and the projector.

What inference never reads is never built: the last block of each tower, its final norm and SigLIP's attention pool
(43 M parameters of OpenVLA-7B). Nor is the critic, which older checkpoints may hold.
"""

import re

import torch
import torch.nn.functional as F
from torch import nn

from rlrc.policies.parts.config import VisionTowerConfig
from rlrc.policies.parts.vit import VisionTower


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
    """Vision features to the decoder's embeddings, patch by patch: (B, P, vision) -> (B, P, hidden)."""

    def __init__(self, vision_size: int, hidden_size: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(vision_size, 4 * vision_size)
        self.fc2 = nn.Linear(4 * vision_size, hidden_size)
        self.fc3 = nn.Linear(hidden_size, hidden_size)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.fc3(F.gelu(self.fc2(F.gelu(self.fc1(features)))))
