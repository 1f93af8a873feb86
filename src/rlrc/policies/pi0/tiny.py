"""New policies from scratch: a mini pi0 with random weights and a tokenizer of its own."""

from collections.abc import Sequence
from typing import Any

from rlrc.configs.train import FlowOptions, Shape
from rlrc.policies.flow.paligemma_layout import GEMMA_LAYERS as GEMMA
from rlrc.policies.flow.policy import FlowPolicy
from rlrc.policies.flow.tiny import new_flow_policy
from rlrc.policies.pi0.policy import Pi0Policy


def new_policy(
    shape: Shape,
    instructions: Sequence[str],
    norm_stats: dict[str, Any],
    seed: int = 0,
    options: FlowOptions | None = None,
) -> FlowPolicy:
    """A policy with random weights (float32) whose tokenizer is trained on `instructions`; see `new_flow_policy`."""
    return new_flow_policy(Pi0Policy, shape, instructions, norm_stats, seed, options or FlowOptions(), GEMMA, {})
