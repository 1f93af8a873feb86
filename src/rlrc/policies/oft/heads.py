"""The small networks of OpenVLA-OFT beside its trunk, with the published tensors' names."""

import math

import torch
import torch.nn.functional as F
from torch import nn


class ResidualBlock(nn.Module):
    """x + ReLU(Linear(LayerNorm(x)))."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.ffn = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.ReLU())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.ffn(x)


class ActionHead(nn.Module):
    """States of a chunk's positions (B, H * D, hidden) to numbers (B, H, D), which nothing bounds.

    One action's D states are read together, as one row of D * hidden numbers.
    """

    def __init__(self, hidden_size: int, action_dim: int) -> None:
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(action_dim * hidden_size)
        self.fc1 = nn.Linear(action_dim * hidden_size, hidden_size)
        self.mlp_resnet_blocks = nn.ModuleList(ResidualBlock(hidden_size) for _ in range(2))
        self.layer_norm2 = nn.LayerNorm(hidden_size)
        self.fc2 = nn.Linear(hidden_size, action_dim)
        self.action_dim = action_dim

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        x = states.unflatten(1, (-1, self.action_dim)).flatten(2)
        x = F.relu(self.fc1(self.layer_norm1(x)))
        for block in self.mlp_resnet_blocks:
            x = block(x)
        return self.fc2(self.layer_norm2(x))


class TokenProjector(nn.Module):
    """Numbers (..., width) to one embedding (..., hidden): the state, or one noisy number of an action."""

    def __init__(self, width: int, hidden_size: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden_size)
        self.fc2 = nn.Linear(hidden_size, hidden_size)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


def timestep_embedding(timesteps: torch.Tensor, width: int) -> torch.Tensor:
    """Timesteps (B,) to float32 (B, width): sines of falling frequencies, then their cosines."""
    half = width // 2
    frequencies = torch.exp(torch.arange(half, device=timesteps.device) * (-math.log(10000) / (half - 1)))
    angles = timesteps[:, None].float() * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=-1)
