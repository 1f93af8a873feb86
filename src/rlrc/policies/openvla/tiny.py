"""New policies from scratch: a mini OpenVLA with random weights and a tokenizer of its own."""

from collections.abc import Sequence
from typing import Any

import torch

from rlrc.configs.train import Shape
from rlrc.policies.openvla.config import OpenVLAConfig
from rlrc.policies.openvla.model import OpenVLAForActionPrediction
from rlrc.policies.openvla.policy import OpenVLAPolicy
from rlrc.policies.parts.word_tokenizer import train_tokenizer
from rlrc.policies.prismatic.tiny import config_fields, new_processor


def new_policy(
    shape: Shape,
    instructions: Sequence[str],
    norm_stats: dict[str, Any] | None,
    seed: int = 0,
    options: None = None,
) -> OpenVLAPolicy:
    """A policy with random weights (float32) whose tokenizer is trained on `instructions`."""
    tokenizer = train_tokenizer(instructions)
    config = OpenVLAConfig(**config_fields(shape, tokenizer, norm_stats))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = OpenVLAForActionPrediction(config).eval()
    return OpenVLAPolicy(model, new_processor(shape, tokenizer, config))
