"""New policies from scratch: a mini OpenVLA-OFT with random weights and a tokenizer of its own."""

from collections.abc import Sequence
from typing import Any

import torch

from rlrc.configs.train import OFTOptions, Shape
from rlrc.errors import UserError
from rlrc.policies.oft.config import OFTConfig
from rlrc.policies.oft.model import OFTForActionPrediction
from rlrc.policies.oft.policy import OFTPolicy
from rlrc.policies.parts.word_tokenizer import train_tokenizer
from rlrc.policies.prismatic.tiny import config_fields, new_processor


def new_policy(
    shape: Shape,
    instructions: Sequence[str],
    norm_stats: dict[str, Any],
    seed: int = 0,
    options: OFTOptions | None = None,
) -> OFTPolicy:
    """A policy with random weights (float32) whose tokenizer is trained on `instructions`.

    Raises:
        UserError: a state is to be read, and there are no statistics of one.
    """
    options = options or OFTOptions()
    tokenizer = train_tokenizer(instructions)
    entry = next(iter(norm_stats.values()))
    if options.state and "proprio" not in entry:
        raise UserError("oft.state: the demonstrations hold no state; name its column with state_key, or say no")
    config = OFTConfig(
        **config_fields(shape, tokenizer, norm_stats),
        action_dim=len(entry["action"]["q01"]),
        horizon=options.horizon,
        cameras=list(options.cameras),
        state_dim=len(entry["proprio"]["q01"]) if options.state else 0,
        head=options.head,
        stop_token_id=tokenizer.eos_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = OFTForActionPrediction(config).eval()
    return OFTPolicy(model, new_processor(shape, tokenizer, config))
