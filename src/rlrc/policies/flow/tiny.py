"""New flow-matching policies from scratch: random weights, a tokenizer of their own, and the config of a small one."""

from collections.abc import Sequence
from typing import Any

import torch

from rlrc.configs.train import FlowOptions, Shape
from rlrc.errors import UserError
from rlrc.policies.flow.policy import FlowPolicy
from rlrc.policies.parts.word_tokenizer import train_tokenizer


def new_flow_policy(
    family: type[FlowPolicy],
    shape: Shape,
    texts: Sequence[str],
    norm_stats: dict[str, Any],
    seed: int,
    options: FlowOptions,
    stacks: dict[str, Any],
    more: dict[str, Any],
) -> FlowPolicy:
    """A policy with random weights (float32) whose tokenizer is trained on `texts`.

    Args:
        stacks: fields that both stacks have in the family, such as their activation.
        more: fields of the family's config.

    Raises:
        UserError: there are no statistics of a state.
    """
    tokenizer = train_tokenizer(texts)
    entry = next(iter(norm_stats.values()))
    if "proprio" not in entry:
        raise UserError("the demonstrations hold no state, which the policy reads; name its column with state_key")
    head_dim = shape.hidden_size // shape.num_attention_heads
    heads = {
        "num_attention_heads": shape.num_attention_heads,
        "num_key_value_heads": options.num_key_value_heads,
        "head_dim": head_dim,
        "num_hidden_layers": shape.num_hidden_layers,
        "vocab_size": len(tokenizer),
        "pad_token_id": tokenizer.pad_token_id,
        **stacks,
    }
    tower = shape.towers[1]
    config = family.model_class.config_class(
        text_config=heads | {"hidden_size": shape.hidden_size, "intermediate_size": shape.intermediate_size},
        expert_config=heads
        | {"hidden_size": options.expert_hidden_size, "intermediate_size": options.expert_intermediate_size},
        vision_config={
            "hidden_size": tower.hidden_size,
            "intermediate_size": tower.intermediate_size,
            "num_hidden_layers": tower.num_hidden_layers - 1,
            "num_attention_heads": tower.num_attention_heads,
            "image_size": shape.image_size,
            "patch_size": shape.patch_size,
            "stem_channels": list(tower.stem_channels),
        },
        cameras=list(options.cameras),
        state_dim=len(entry["proprio"]["mean"]),
        action_dim=len(entry["action"]["mean"]),
        horizon=options.horizon,
        execute=options.horizon,
        num_steps=options.num_steps,
        norm_stats=norm_stats,
        **more,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = family.model_class(config).eval()
    return family(model, family.new_processor(tokenizer, config))
