"""The arithmetic of PPO: advantages and the clipped losses, as functions of tensors alone.

Schulman et al., "High-dimensional continuous control using generalized advantage estimation" (2015) and "Proximal
policy optimization algorithms" (2017), with the value loss of RL4VLA (Liu et al., arXiv 2505.19789).
"""

from typing import Literal

import torch
import torch.nn.functional as F


def gae(
    rewards: torch.Tensor, values: torch.Tensor, masks: torch.Tensor, gamma: float, lam: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Advantages and returns, both (T, N).

    Args:
        rewards: (T, N).
        values: (T + 1, N); the last row is the value after the last step.
        masks: (T + 1, N); masks[t + 1] is 0 where the episode ended with step t. Nothing is bootstrapped across an
            end, also where it is a time limit: an episode of fixed length is a task of finite horizon (as in RL4VLA).
    """
    advantages = torch.zeros_like(rewards)
    running = torch.zeros_like(rewards[0])
    for t in reversed(range(len(rewards))):
        delta = rewards[t] + gamma * values[t + 1] * masks[t + 1] - values[t]
        running = delta + gamma * lam * masks[t + 1] * running
        advantages[t] = running
    return advantages, advantages + values[:-1]


def normalise(advantages: torch.Tensor, buffer: torch.Tensor) -> torch.Tensor:
    """`advantages` with the mean and the population standard deviation (+ 1e-5) of the whole `buffer` taken out."""
    return (advantages - buffer.mean()) / (buffer.std(correction=0) + 1e-5)


def summed(
    logprobs: torch.Tensor, executed: torch.Tensor, each: Literal["chunk", "action", "token"] = "chunk"
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities (M,) of whole chunks, of actions or of numbers, and the rows (M,) that they belong to.

    Args:
        logprobs: of the numbers of chunks, (N, H, D).
        executed: bool (N, H); what was not executed is left out.
    """
    if each == "chunk":
        whole = (logprobs * executed[..., None]).flatten(1).sum(dim=1)
        return whole, torch.arange(len(logprobs), device=executed.device)
    chosen = logprobs[executed]
    rows = executed.nonzero()[:, 0]
    if each == "action":
        return chosen.sum(dim=-1), rows
    return chosen.flatten(), rows.repeat_interleave(logprobs.shape[-1])


def policy_loss(
    logprobs: torch.Tensor, old_logprobs: torch.Tensor, advantages: torch.Tensor, clip: float
) -> torch.Tensor:
    """PPO's clipped surrogate, negated: all arguments (B,), a scalar out."""
    ratio = (logprobs - old_logprobs).exp()
    return -torch.minimum(ratio * advantages, ratio.clamp(1 - clip, 1 + clip) * advantages).mean()


def value_loss(
    values: torch.Tensor, old_values: torch.Tensor, returns: torch.Tensor, clip: float, huber_delta: float
) -> torch.Tensor:
    """Huber loss of the values (B,), or of their change clipped to +-`clip`, whichever is larger."""
    clipped = old_values + (values - old_values).clamp(-clip, clip)
    return torch.maximum(huber(returns - values, huber_delta), huber(returns - clipped, huber_delta)).mean()


def huber(error: torch.Tensor, delta: float) -> torch.Tensor:
    """e²/2 within +-delta and delta (|e| - delta/2) beyond, elementwise."""
    return F.huber_loss(error, torch.zeros_like(error), reduction="none", delta=delta)


def approx_kl(log_ratio: torch.Tensor) -> torch.Tensor:
    """KL(old || new) from samples of old: the mean of (r - 1) - log r, unbiased and never negative (Schulman, 2020)."""
    return (log_ratio.expm1() - log_ratio).mean()


def explained_variance(values: torch.Tensor, returns: torch.Tensor) -> torch.Tensor:
    """1 for a perfect critic, 0 for one no better than a constant; nan where returns do not vary."""
    return 1 - (returns - values).var(correction=0) / returns.var(correction=0)
