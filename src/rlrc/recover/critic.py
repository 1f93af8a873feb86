"""The critic of reinforcement learning: it reads the state from which a policy predicts its first action."""

import torch
import torch.nn.functional as F
from torch import nn

from rlrc.policies.contract import Policy


class Critic(nn.Module):
    """RL4VLA's value head: hidden (B, H) -> 512 -> 128 -> value (B,)."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.head_l1 = nn.Linear(hidden_size, 512)
        self.head_l2 = nn.Linear(512, 128)
        self.head_l3 = nn.Linear(128, 1, bias=False)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Values (B,) of states (B, H). Call it outside autocast: bf16 would round values to 1 in 256."""
        return self.head_l3(F.gelu(self.head_l2(F.gelu(self.head_l1(hidden))))).squeeze(-1)


def new_critic(policy: Policy, seed: int, privileged: int = 0) -> Critic:
    """A fresh critic for a policy; the last layer starts at N(0, 0.02), so that first values are near zero.

    Args:
        privileged: numbers that it reads beside the policy's state.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        critic = Critic(policy.critic_width + privileged)
        nn.init.normal_(critic.head_l3.weight, std=0.02)
    return critic.to(device=policy.device, dtype=policy.model.dtype)
