"""Small random policies of every family, for what every family has to do."""

from typing import Any, NamedTuple

import numpy as np
import torch

from rlrc.configs.train import FlowOptions, OFTOptions, Shape, TowerShape
from rlrc.policies.contract import Policy
from rlrc.policies.registry import new_policy
from rlrc.policies.values import Exploration, Observation, Sampler

TEXTS = ["put carrot on plate", "put the red cube on plate now", "stop"]
"""Instructions of different lengths, so that a batch has padding."""
STATISTICS = {
    "toy": {
        name: {
            "min": [-2.0] * width,
            "max": [2.0] * width,
            "mean": [0.2] * width,
            "std": [0.7] * width,
            "q01": [-1.0] * width,
            "q99": [1.5] * width,
            "mask": [True] * (width - 1) + [False],
        }
        for name, width in (("action", 7), ("proprio", 5))
    }
}
TOWER = TowerShape(hidden_size=16, num_attention_heads=2, intermediate_size=32, stem_channels=(4,))
SHAPE = Shape(
    image_size=32,
    patch_size=16,
    towers=(TOWER.model_copy(update={"class_token": True, "layer_scale": True}), TOWER),
    hidden_size=40,
    num_hidden_layers=3,
    intermediate_size=48,
)


class Case(NamedTuple):
    """A family, the options that it alone has, and how it is sampled with noise where it can be."""

    family: str
    options: Any = None
    sampler: Sampler = Sampler(1.0)
    exploring: Sampler = Sampler(0.7)
    """How PPO samples it, where it has a likelihood."""
    denoising_steps: int | None = None
    """Of a policy that denoises in more than a test needs."""

    def paced(self, policy: Policy) -> Policy:
        """The policy, told to denoise in these steps, which its files do not keep."""
        if self.denoising_steps is not None:
            policy.denoise_in(self.denoising_steps)
        return policy


TWO = ("front", "wrist")
FLOW = FlowOptions(
    horizon=3, cameras=TWO, num_steps=2, num_key_value_heads=2, expert_hidden_size=24, expert_intermediate_size=36
)
EXPLORING = Sampler(1.0, exploration=Exploration())
CASES = {
    "openvla": Case("openvla"),
    "oft-l1": Case("openvla-oft", OFTOptions(horizon=3, cameras=TWO), Sampler()),
    "oft-tokens": Case("openvla-oft", OFTOptions(horizon=3, cameras=TWO, head="tokens")),
    # Random weights denoise into nowhere, and many steps would make large what rounding makes of small differences.
    "oft-diffusion": Case("openvla-oft", OFTOptions(horizon=3, cameras=TWO, head="diffusion"), denoising_steps=2),
    "pi0": Case("pi0", FLOW, exploring=EXPLORING),
    "pi05": Case("pi05", FLOW, exploring=EXPLORING),
    "smolvla": Case("smolvla", FLOW, exploring=EXPLORING),
    "oft-no-state": Case("openvla-oft", OFTOptions(horizon=2, head="tokens", state=False)),
}


def make(case: Case) -> Policy:
    policy = new_policy(case.family, SHAPE, TEXTS, STATISTICS, seed=1, options=case.options)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():  # larger weights than training starts with, so that everything depends on everything
        for name, parameter in policy.model.named_parameters():
            if parameter.ndim > 1 and "blocks" not in name:
                parameter += 0.15 * torch.randn(parameter.shape, generator=generator)
    return case.paced(policy)


def look(policy: Policy, rows: int = 3, seed: int = 0) -> Observation:
    random = np.random.default_rng(seed)
    images = {camera: random.integers(0, 256, (rows, 32, 32, 3), np.uint8) for camera in policy.spec.cameras}
    state = random.uniform(-1, 1, (rows, len(policy.spec.state))).astype(np.float32) if policy.spec.state else None
    return Observation(images, [TEXTS[row % len(TEXTS)] for row in range(rows)], state)
