"""Denoising of chunks: DDIM (Song et al., arXiv 2010.02502) with a squared-cosine schedule, as diffusers has it."""

import math
from collections.abc import Callable
from functools import lru_cache

import torch


@lru_cache
def alphas_cumprod(steps: int) -> torch.Tensor:
    """Share of the variance that is signal after each of `steps` training steps, float32 (steps,).

    Nichol and Dhariwal's squared cosine (arXiv 2102.09672), each step's noise bounded by 0.999.
    """

    def signal(time: float) -> float:
        return math.cos((time + 0.008) / 1.008 * math.pi / 2) ** 2

    betas = [min(1 - signal((step + 1) / steps) / signal(step / steps), 0.999) for step in range(steps)]
    return torch.cumprod(1 - torch.tensor(betas), dim=0)


def timesteps(training: int, steps: int) -> list[int]:
    """The training steps that are visited, from the noisiest down ("leading" spacing)."""
    stride = training // steps
    return [stride * step for step in reversed(range(steps))]


def add_noise(actions: torch.Tensor, noise: torch.Tensor, times: torch.Tensor, training: int) -> torch.Tensor:
    """Chunks (B, H, D) as they are after the training steps `times` (B,)."""
    signal = alphas_cumprod(training).to(noise.device)[times][:, None, None].to(noise.dtype)
    return signal.sqrt() * actions + (1 - signal).sqrt() * noise


def denoise(
    predict: Callable[[torch.Tensor, int], torch.Tensor], chunks: torch.Tensor, training: int, steps: int
) -> torch.Tensor:
    """Take the noise out of chunks (B, H, D), in `steps` deterministic steps.

    Args:
        predict: the noise in chunks at a training step.
    """
    signal = alphas_cumprod(training).tolist()
    stride = training // steps
    for time in timesteps(training, steps):
        now, then = signal[time], signal[time - stride] if time >= stride else 1.0
        noise = predict(chunks, time)
        clean = ((chunks - (1 - now) ** 0.5 * noise) / now**0.5).clamp(-1, 1)
        chunks = then**0.5 * clean + (1 - then) ** 0.5 * noise
    return chunks
