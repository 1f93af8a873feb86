"""New policies from scratch: a mini pi0.5 with random weights and a tokenizer of its own."""

from collections.abc import Sequence
from typing import Any

from rlrc.configs.train import FlowOptions, Shape
from rlrc.policies.flow.paligemma_layout import GEMMA_LAYERS as GEMMA
from rlrc.policies.flow.policy import FlowPolicy
from rlrc.policies.flow.tiny import new_flow_policy
from rlrc.policies.pi05.policy import BINS, Pi05Policy


def new_policy(
    shape: Shape,
    instructions: Sequence[str],
    norm_stats: dict[str, Any],
    seed: int = 0,
    options: FlowOptions | None = None,
) -> FlowPolicy:
    """A policy with random weights (float32) whose tokenizer is trained on `instructions`; see `new_flow_policy`."""
    numbers = " ".join(str(number) for number in range(-1, BINS))
    texts = [*instructions, f"Task: , State: {numbers};\nAction: "]
    more = {
        "state_in_prompt": "real",
        "max_prompt_tokens": 200,
        "normalisation": {"action": "quantiles", "state": "quantiles"},
    }
    return new_flow_policy(Pi05Policy, shape, texts, norm_stats, seed, options or FlowOptions(), GEMMA, more)
