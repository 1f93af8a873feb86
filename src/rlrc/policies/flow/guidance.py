"""Real-time chunking: a chunk that goes on from the one that the robot carries out while the policy thinks.

Black, Galliker and Levine, "Real-Time Execution of Action Chunking Flow Policies", arXiv 2506.07339. Each velocity is
pulled so that the action which it means (x0 = x - t v) comes near the actions of the chunk before. Those that will have
been carried out when the new chunk arrives pull with weight 1, later ones less and less, and where nothing is left
nothing pulls. Time 1 is noise here and time 0 the action, the other way round than in the paper (tau = 1 - t).
"""

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F

from rlrc.policies.flow.config import FlowConfig
from rlrc.policies.flow.inputs import FlowInputs
from rlrc.policies.parts.observed import require_previous
from rlrc.policies.values import Previous

STRONGEST = 5.0
"""Largest factor of the pull: the paper's beta, which keeps few steps of denoising stable."""


def prefix_weights(delay: torch.Tensor, left: torch.Tensor, horizon: int) -> torch.Tensor:
    """Weights (N, H) of the actions of the chunk before: the paper's equation 5.

    Args:
        delay: control steps until the new chunk arrives, int (N,).
        left: actions of the chunk before that are left, int (N,).
    """
    number = torch.arange(horizon, device=left.device)
    certain, left = torch.minimum(delay, left)[:, None], left[:, None]
    share = (left - number) / (left - certain + 1)
    fading = share * torch.expm1(share) / (math.e - 1)
    return torch.where(number < certain, 1.0, torch.where(number < left, fading, 0.0))


def pulled(
    inputs: FlowInputs, previous: Previous, config: FlowConfig, normalise: Callable[[np.ndarray], np.ndarray]
) -> FlowInputs:
    """Inputs whose chunks go on from previous ones.

    Args:
        normalise: physical actions (N, H, D) to the model's.

    Raises:
        UserError: the previous actions have a wrong type or shape, or hold NaN or infinity.
    """
    shape = (len(inputs), config.horizon, config.action_dim)
    require_previous(previous, shape)
    delay, left = torch.from_numpy(previous.delay), torch.from_numpy(previous.left)
    weights = prefix_weights(delay, left, config.horizon)[..., None].expand(shape)
    actions = torch.from_numpy(np.where(weights.numpy() > 0, normalise(previous.actions), 0).astype(np.float32))
    padding, device = (0, config.padded_dim - config.action_dim), inputs.input_ids.device
    return replace(inputs, previous=F.pad(actions, padding).to(device), pull=F.pad(weights, padding).to(device))


def guided(
    velocity: Callable[[torch.Tensor], torch.Tensor],
    x: torch.Tensor,
    times: torch.Tensor,
    previous: torch.Tensor,
    weights: torch.Tensor,
) -> torch.Tensor:
    """The velocity (N, H, D) with its pull: the paper's equation 2. The gradient flows back through `velocity`.

    Args:
        x: chunks on their way from noise to action, (N, H, D).
        times: of x, (N,).
        previous: what the actions should be near to, (N, H, D).
        weights: how much, (N, H, D).
    """
    time = times[:, None, None]
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        plain = velocity(x)
        clean = x - time * plain
        (pull,) = torch.autograd.grad(clean, x, weights * (previous - clean.detach()))
    factor = ((1 - time).square() + time.square()) / (time * (1 - time))  # infinite at time 1
    return plain.detach() - factor.clamp(max=STRONGEST) * pull
