"""New policies from scratch: a mini SmolVLA with random weights and a tokenizer of its own."""

from collections.abc import Sequence
from typing import Any

from rlrc.configs.train import FlowOptions, Shape
from rlrc.policies.flow.policy import FlowPolicy
from rlrc.policies.flow.tiny import new_flow_policy
from rlrc.policies.smolvla.policy import SmolVLAPolicy


def new_policy(
    shape: Shape,
    instructions: Sequence[str],
    norm_stats: dict[str, Any],
    seed: int = 0,
    options: FlowOptions | None = None,
) -> FlowPolicy:
    """A policy with random weights (float32) whose tokenizer is trained on `instructions`; see `new_flow_policy`."""
    more = {"cross_layers": list(range(1, shape.num_hidden_layers, 2))}
    return new_flow_policy(
        SmolVLAPolicy, shape, instructions, norm_stats, seed, options or FlowOptions(), {"rms_norm_eps": 1e-5}, more
    )
