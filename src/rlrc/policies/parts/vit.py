"""A vision transformer, read after its second-to-last block.

Module names follow timm's (`blocks.0.attn.qkv`, `ls1.scale_factor`, ...), which published checkpoints use, so that
their tensors need no renaming.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from rlrc.bfloat16.attention import attend
from rlrc.policies.parts.config import VisionTowerConfig


class GeluOfChannelsLast(nn.GELU):
    """GELU of (B, C, H, W) stored channels last, given to the kernel in the order of memory: twice as fast on a CPU."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def convolutions(channels: Sequence[int]) -> nn.Sequential:
    """Convolutions of stride 2 from each number of channels to the next, which come before a patch embedding."""
    stem = nn.Sequential()
    for c_in, c_out in pairwise(channels):
        stem.extend([nn.Conv2d(c_in, c_out, 3, stride=2, padding=1), GeluOfChannelsLast()])
    return stem


class PatchEmbed(nn.Module):
    """Pixels (B, 3, H, W) to patch embeddings (B, P, hidden).

    Everything is stored channels last: convolutions are faster so, and their last output is the patches in order.
    """

    def __init__(self, config: VisionTowerConfig) -> None:
        super().__init__()
        channels = [3, *(config.stem_channels or [])]
        self.stem = convolutions(channels)
        stride = config.patch_size // 2 ** (len(channels) - 1)
        self.proj = nn.Conv2d(channels[-1], config.hidden_size, stride, stride)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        x = pixel_values.contiguous(memory_format=torch.channels_last)
        return self.proj(self.stem(x)).flatten(2).transpose(1, 2)


class LayerScale(nn.Module):
    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.scale_factor = nn.Parameter(torch.ones(hidden_size))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.scale_factor


class Attention(nn.Module):
    def __init__(self, width: int, head_dim: int, heads: int) -> None:
        super().__init__()
        self.head_dim = head_dim
        self.qkv = nn.Linear(width, 3 * heads * head_dim)
        self.proj = nn.Linear(heads * head_dim, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, length, _ = x.shape
        q, k, v = self.qkv(x).view(batch, length, 3, -1, self.head_dim).permute(2, 0, 3, 1, 4)
        x = attend(q, k, v)
        return self.proj(x.transpose(1, 2).reshape(batch, length, -1))


class Mlp(nn.Module):
    def __init__(self, width: int, channels: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, channels)
        self.fc2 = nn.Linear(channels, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    """A transformer block. A condition (FiLM, Perez et al., 2018) scales and shifts what leaves its attention."""

    def __init__(self, config: VisionTowerConfig, index: int) -> None:
        super().__init__()
        shape: Any = config.per_layer_config[index]  # type: ignore[index]
        self.norm1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.attn = Attention(config.hidden_size, config.head_size, shape.num_attention_heads)
        self.ls1 = LayerScale(config.hidden_size) if config.layer_scale else nn.Identity()
        self.norm2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = Mlp(config.hidden_size, shape.intermediate_size)
        self.ls2 = LayerScale(config.hidden_size) if config.layer_scale else nn.Identity()
        if config.condition_size:
            self.scale = nn.Linear(config.condition_size, config.hidden_size)
            self.shift = nn.Linear(config.condition_size, config.hidden_size)

    def forward(self, x: torch.Tensor, condition: torch.Tensor | None = None) -> torch.Tensor:
        x = x + self.ls1(self.attn(self.norm1(x)))
        if condition is not None:
            x = x * (1 + self.scale(condition)[:, None]) + self.shift(condition)[:, None]
        return x + self.ls2(self.mlp(self.norm2(x)))


class VisionTower(nn.Module):
    """A ViT without its last block: pixels (B, 3, H, W) to patch features (B, P, hidden), prefix tokens dropped.

    One with a `condition_size` also takes a condition (B, condition_size), which modulates each block.
    """

    def __init__(self, config: VisionTowerConfig) -> None:
        super().__init__()
        self.patch_embed = PatchEmbed(config)
        self.pos_embed = nn.Parameter(torch.zeros(1, config.num_patches, config.hidden_size))
        self.cls_token = self.reg_token = None
        if config.class_token:
            self.cls_token = nn.Parameter(torch.zeros(1, 1, config.hidden_size))
        if config.num_register_tokens:
            self.reg_token = nn.Parameter(torch.zeros(1, config.num_register_tokens, config.hidden_size))
        self.blocks = nn.ModuleList(Block(config, index) for index in range(config.num_hidden_layers - 1))
        self.num_patches = config.num_patches

    def forward(self, pixel_values: torch.Tensor, condition: torch.Tensor | None = None) -> torch.Tensor:
        x = self.enter(pixel_values)
        for block in self.blocks:
            x = block(x, condition)
        return self.leave(x)

    def enter(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Pixels (B, 3, H, W) to what enters the first block, (B, prefix + P, hidden)."""
        # The position embedding covers the patches only (timm's no_embed_class), so the prefix joins after it.
        x = self.patch_embed(pixel_values) + self.pos_embed
        prefix = [token.expand(len(x), -1, -1) for token in (self.cls_token, self.reg_token) if token is not None]
        return torch.cat([*prefix, x], dim=1) if prefix else x

    def leave(self, x: torch.Tensor) -> torch.Tensor:
        """Return the patches (B, P, hidden) of what leaves the last block."""
        return x[:, -self.num_patches :]
