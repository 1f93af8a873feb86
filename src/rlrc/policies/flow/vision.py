"""SigLIP (Zhai et al., arXiv 2303.15343) with the tensor names of transformers, and layers of any shape."""

from typing import Any

import torch
from torch import nn

from rlrc.bfloat16.attention import attend
from rlrc.bfloat16.gelu import gelu_tanh
from rlrc.policies.flow.config import FlowVisionConfig
from rlrc.policies.parts.vit import convolutions

LAYERS = "encoder.layers"
"""Name of a tower's list of layers."""


class Holder(nn.Module):
    """Modules under names, so that tensors have the names of published checkpoints."""

    def __init__(self, **children: nn.Module) -> None:
        super().__init__()
        for name, child in children.items():
            self.add_module(name, child)


class Embeddings(nn.Module):
    """Pixels (B, 3, S, S) to embeddings of the patches (B, P, hidden), row by row, with their positions."""

    def __init__(self, config: FlowVisionConfig) -> None:
        super().__init__()
        channels = [3, *(config.stem_channels or [])]
        self.stem = convolutions(channels)
        stride = config.patch_size // 2 ** (len(channels) - 1)
        self.patch_embedding = nn.Conv2d(channels[-1], config.hidden_size, stride, stride)
        self.position_embedding = nn.Embedding(config.num_patches, config.hidden_size)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        x = pixels.contiguous(memory_format=torch.channels_last)
        patches = self.patch_embedding(self.stem(x)).flatten(2).transpose(1, 2)
        return patches + self.position_embedding(torch.arange(patches.shape[1], device=patches.device))


class Attention(nn.Module):
    """Every patch sees every other."""

    def __init__(self, width: int, head_dim: int, heads: int) -> None:
        super().__init__()
        self.head_dim = head_dim
        for name in ("q_proj", "k_proj", "v_proj"):
            self.add_module(name, nn.Linear(width, heads * head_dim))
        self.out_proj = nn.Linear(heads * head_dim, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        projected = (self.get_submodule(name)(x) for name in ("q_proj", "k_proj", "v_proj"))
        heads = (tensor.unflatten(2, (-1, self.head_dim)).transpose(1, 2) for tensor in projected)
        return self.out_proj(attend(*heads).transpose(1, 2).flatten(2))


class MLP(nn.Module):
    def __init__(self, width: int, channels: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, channels)
        self.fc2 = nn.Linear(channels, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc2(gelu_tanh(self.fc1(x)))


class VisionLayer(nn.Module):
    def __init__(self, config: FlowVisionConfig, index: int) -> None:
        super().__init__()
        shape: Any = config.per_layer_config[index]  # type: ignore[index]
        width, head_dim = config.hidden_size, config.head_size
        self.layer_norm1 = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.self_attn = Attention(width, head_dim, shape.num_attention_heads)
        self.layer_norm2 = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.mlp = MLP(width, shape.intermediate_size)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.self_attn(self.layer_norm1(x))
        return x + self.mlp(self.layer_norm2(x))


class VisionTower(nn.Module):
    """Pixels (B, 3, S, S) to features of the patches (B, P, hidden)."""

    def __init__(self, config: FlowVisionConfig) -> None:
        super().__init__()
        self.embeddings = Embeddings(config)
        layers = nn.ModuleList(VisionLayer(config, index) for index in range(config.num_hidden_layers))
        self.encoder = Holder(layers=layers)
        self.post_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        x = self.embeddings(pixels)
        for layer in self.encoder.get_submodule("layers").children():
            x = layer(x)
        return self.post_layernorm(x)
