"""Demonstrated frames on which a policy and its lighter versions are compared."""

from dataclasses import dataclass

import numpy as np
import torch

from rlrc.data import Demonstrations
from rlrc.data.samples import chunks, observe
from rlrc.data.statistics import require_fit
from rlrc.policies.contract import Policy
from rlrc.policies.values import Observation, Sampler
from rlrc.stats import ClusterMean, cluster_mean

AT_ONCE = 16
"""Frames that pass the policy together."""
NOTICEABLE = 1 / 256
"""Distance of normalised numbers from which an action counts as changed: half of one of OpenVLA's 256 bins."""


@dataclass(frozen=True)
class Behaviour:
    """This is what a policy makes of the frames."""

    losses: np.ndarray
    """Its training loss on each frame's chunk, float64 (N,)."""
    actions: torch.Tensor
    """Its actions, normalised (N, H, D)."""


@dataclass(frozen=True)
class Frames:
    """N frames, and the noise with which each is seen."""

    observation: Observation
    actions: torch.Tensor
    """Demonstrated chunks, normalised (N, H, D)."""
    padded: torch.Tensor
    """Bool (N, H), true behind the end of an episode."""
    episodes: np.ndarray
    """Numbers of the frames' episodes (N,)."""
    seed: int

    @classmethod
    def draw(cls, policy: Policy, demonstrations: Demonstrations, count: int, seed: int) -> "Frames":
        """Frames that importance with the same seed is not measured on.

        Raises:
            UserError: there are not as many, or they do not fit the policy.
        """
        require_fit(policy, demonstrations)
        rows = demonstrations.draw(count, seed, held_out=True)
        actions, padded = chunks(demonstrations, rows, policy)
        return cls(observe(demonstrations, rows, policy), actions, padded, demonstrations.episode_index[rows], seed)

    @torch.no_grad()
    def shown_to(self, policy: Policy) -> Behaviour:
        """The policy's losses, teacher-forced, and the actions that it takes by itself."""
        losses, taken = [], []
        sampler = Sampler(policy.default_temperature)
        for first in range(0, len(self.observation), AT_ONCE):
            rows = np.arange(first, min(first + AT_ONCE, len(self.observation)))
            inputs = policy.prepare(self.observation[rows])
            actions = self.actions[rows].to(policy.device)
            noise = [torch.Generator(policy.device).manual_seed(self.seed + int(row)) for row in rows]
            errors = policy.errors(*policy.predict(inputs, actions, noise)).cpu().double()
            counted = (~self.padded[rows])[..., None].expand(errors.shape)
            losses.append((errors * counted).sum((1, 2)) / counted.sum((1, 2)))
            taken.append(policy.sample(inputs, sampler, noise).actions.float().cpu())
        return Behaviour(torch.cat(losses).numpy(), torch.cat(taken))

    def loss_change(self, before: Behaviour, after: Behaviour) -> ClusterMean:
        """By how much the mean loss rises, with its interval over episodes; the frames are the same."""
        return cluster_mean(after.losses - before.losses, self.episodes, self.seed)

    def changed(self, before: Behaviour, after: Behaviour) -> ClusterMean:
        """The share of the actions' numbers that change noticeably, with its interval over episodes."""
        moved = (after.actions - before.actions).abs() > NOTICEABLE
        return cluster_mean(moved.double().mean((1, 2)).numpy(), self.episodes, self.seed)
