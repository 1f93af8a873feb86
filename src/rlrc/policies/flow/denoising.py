"""Steps of denoising: Euler's, and two kinds of random ones whose chain has a likelihood.

Time 1 is noise and time 0 the action: x_t = t noise + (1 - t) action. With x0 = x - t v (the action that a velocity
means) and x1 = x + (1 - t) v (the noise), a step from t to t - d has a mean and a standard deviation:

- Euler: mean (1 - t + d) x0 + (t - d) x1 = x - d v, and no deviation.
- Flow-SDE (pi_RL, arXiv 2510.25889): s = level sqrt(t / (1 - t)), mean (1 - t + d) x0 + (t - d - s^2 d / (2 t)) x1,
  deviation s sqrt(d). At time 1, 1 - t is that of the second step.
- Flow-Noise (the same): Euler's mean, and a deviation that a small network gives.
"""

import math
from typing import NamedTuple

import torch
from torch import nn

LOG_TWO_PI = math.log(2 * math.pi)
DEVIATIONS = (0.08, 0.16)
"""Bounds of Flow-Noise's deviations."""


class Step(NamedTuple):
    """The distribution of the next x: a mean and a standard deviation, both (N, H, D)."""

    mean: torch.Tensor
    deviation: torch.Tensor


def euler(x: torch.Tensor, velocity: torch.Tensor, steps: int) -> torch.Tensor:
    """The next x (N, H, D) of `steps` in all."""
    return x - velocity / steps


def sde_step(x: torch.Tensor, velocity: torch.Tensor, numbers: torch.Tensor, steps: int, level: float) -> Step:
    """Flow-SDE's step.

    Args:
        numbers: which step each row takes (N,), counted from 0, at time 1.
        steps: number of steps in all, at least 2.
    """
    width = 1 / steps
    time = (1 - numbers.to(x.dtype) * width)[:, None, None]
    clean, noise = x - time * velocity, x + (1 - time) * velocity
    left = torch.where(numbers[:, None, None] == 0, width, 1 - time)
    scale = level * (time / left).sqrt()
    mean = (1 - time + width) * clean + (time - width - scale.square() * width / (2 * time)) * noise
    return Step(mean, (scale * width**0.5).expand_as(mean))


def log_density(x: torch.Tensor, step: Step) -> torch.Tensor:
    """Log-density of each number of x (N, H, D) alone."""
    distance = (x - step.mean) / step.deviation
    return -0.5 * (distance.square() + LOG_TWO_PI) - step.deviation.log()


def entropy(deviation: torch.Tensor) -> torch.Tensor:
    """Entropy of each number alone."""
    return 0.5 * (1 + LOG_TWO_PI) + deviation.log()


class NoiseNetwork(nn.Module):
    """Flow-Noise's deviations: states of the expert (N, H, width) to (N, H, padded_dim).

    It is trained beside the policy, and nothing of it is left afterwards.
    """

    def __init__(self, width: int, numbers: int, hidden: tuple[int, int] = (128, 64)) -> None:
        super().__init__()
        first, second = hidden
        self.layers = nn.Sequential(
            nn.Linear(width, first), nn.Tanh(), nn.Linear(first, second), nn.Tanh(), nn.Linear(second, numbers)
        )

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        low, high = (math.log(bound**2) for bound in DEVIATIONS)
        share = (torch.tanh(self.layers(states.float())) + 1) / 2
        return (0.5 * (low + (high - low) * share)).exp()
