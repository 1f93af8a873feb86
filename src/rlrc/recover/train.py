"""Train a base policy from scratch on demonstrations: what `rlrc` then prunes, recovers and quantizes.

    rlrc train --dataset runs/collect/dataset --out runs/train        (recipes/tabletop-base.yaml)

The loop is `sft.fit`'s. What a policy from scratch needs beside the actions is sight: an auxiliary loss asks the
projected patches where the gripper, the object and the plate are, which teaches the vision towers long before the
actions alone would.
"""

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from rlrc.configs.train import TrainConfig
from rlrc.data import Demonstrations
from rlrc.data.format import ENVIRONMENT_STATE
from rlrc.data.statistics import norm_stats
from rlrc.policies.registry import new_policy
from rlrc.progress import say
from rlrc.recover.sft import fit


class StateRegression(nn.Module):
    """Mean squared error of a linear reading of the environment state from the projected patches.

    States are standardised, so that every moving quantity weighs the same; what never moves weighs nothing.
    """

    targets: torch.Tensor

    def __init__(self, states: torch.Tensor, num_patches: int, hidden_size: int, weight: float) -> None:
        super().__init__()
        spread = states.std(dim=0)
        moving = spread > 1e-6
        self.register_buffer("targets", (states - states.mean(dim=0))[:, moving] / spread[moving], persistent=False)
        self.head = nn.Linear(num_patches * hidden_size, int(moving.sum()))
        self.weight = weight

    def forward(self, patches: torch.Tensor, frames: torch.Tensor) -> torch.Tensor:
        """Loss of patches (B, P, hidden) that show the frames numbered `frames` (B,)."""
        return self.weight * F.mse_loss(self.head(patches.flatten(1)).float(), self.targets[frames])


check = Demonstrations.check


def train(config: TrainConfig, out: Path) -> dict[str, Any]:
    """Train a new policy and write `out/checkpoint`; returns what `fit` does."""
    demonstrations = Demonstrations.of(config)
    stats = norm_stats(demonstrations, config.unnorm_key)
    policy = new_policy(config.family, config.shape, demonstrations.tasks, stats, config.seed, config.of_family)
    policy.model.to(torch.bfloat16)  # type: ignore[arg-type]  # how it is stored; the loop trains in float32
    auxiliary = None
    if config.state_loss_weight and demonstrations.environment_state is None:
        say(f"{config.dataset} holds no {ENVIRONMENT_STATE}, so the policy is trained without the auxiliary loss")
    elif config.state_loss_weight:
        states = torch.from_numpy(demonstrations.environment_state)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            auxiliary = StateRegression(states, policy.num_patches, config.shape.hidden_size, config.state_loss_weight)
    return fit("train", policy, config, demonstrations, out, auxiliary)
