"""Weights of demonstrated frames: those count more in which the action depends most on what is seen.

That is SQIL (arXiv 2505.15304): the saliency of a state is what blurring the picture here or there changes in the
action of the policy in full precision (`prune/saliency.py`), and the most salient states weigh more in the loss. A
frame costs a pass through that policy for each cell of the grid, so neighbouring frames of an episode, which look
alike, share the saliency of the one in their middle.
"""

from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from rlrc.configs.sft import SalientStates
from rlrc.data.demonstrations import Demonstrations
from rlrc.data.samples import chunks, observe
from rlrc.files import atomic_path
from rlrc.policies.contract import Policy
from rlrc.policies.values import Observation
from rlrc.progress import say, track
from rlrc.prune.saliency import blurred_everywhere, saliency_of, weights_of_states

FILE = "saliency.safetensors"
AT_ONCE = 32
"""Frames that are scored together, which bounds memory."""


def frame_weights(config: SalientStates, policy: Policy, demonstrations: Demonstrations, out: Path) -> torch.Tensor:
    """The weight of each demonstrated frame in the loss, float32 (T,) where `policy` is, 1 on average over all frames.

    Scores are kept in `out`, so that a run that was cut off does not compute them again. Of several processes each
    computes all of them.
    """
    middles = middle_frames(demonstrations, config.every)
    rows, block = np.unique(middles, return_inverse=True)
    path = out / FILE
    if path.exists():
        scores = load_file(path)["scores"]
    else:
        parts = np.split(rows, range(AT_ONCE, len(rows), AT_ONCE))
        scores = torch.cat([score(policy, demonstrations, part, config.grid) for part in track(parts, "saliency")])
        with atomic_path(path) as aside:
            save_file({"scores": scores}, aside)
    weights = weights_of_states(scores[torch.from_numpy(block)], config)
    say(f"{(weights > 1).float().mean():.1%} of {len(weights):,} frames are salient and weigh {config.weight:g} times")
    return (weights / weights.mean()).to(policy.device)


def middle_frames(demonstrations: Demonstrations, every: int) -> np.ndarray:
    """The frame (T,) whose saliency each frame has: the middle one of its `every` neighbours in the episode."""
    ends = demonstrations.episode_ends
    _, starts, lengths = np.unique(ends, return_index=True, return_counts=True)
    within = np.arange(len(ends)) - np.repeat(starts, lengths)
    return np.minimum(np.arange(len(ends)) - within % every + every // 2, ends - 1)


@torch.no_grad()
def score(policy: Policy, demonstrations: Demonstrations, rows: np.ndarray, grid: int) -> torch.Tensor:
    """The saliency of the frames `rows`, integers (N,): float32 (N,), the sum over all numbers of their chunks.

    A policy that denoises has the same noise in its actions whatever the pictures are.
    """
    observation = observe(demonstrations, rows, policy)
    actions = chunks(demonstrations, rows, policy)[0].to(policy.device)

    def act(seen: Observation) -> torch.Tensor:
        noise = [torch.Generator(policy.device).manual_seed(int(row)) for row in rows]
        return policy.mean_actions(policy.predict(policy.prepare(seen), actions, noise)[0])

    others = [act(blurred) for blurred in blurred_everywhere(observation, grid)]
    return saliency_of(act(observation), others).flatten(1).sum(dim=1).float().cpu()
