"""New policies from scratch: the shape of a mini OpenVLA, its random weights, and a tokenizer of its own.

Same classes as OpenVLA-7B, small sizes; most parameters sit in the decoder, as they do there.
"""

from collections.abc import Sequence
from typing import Any

import torch

from rlrc.configs.train import Shape
from rlrc.policies.openvla.config import OpenVLAConfig
from rlrc.policies.openvla.model import OpenVLAForActionPrediction
from rlrc.policies.openvla.policy import OpenVLAPolicy
from rlrc.policies.parts.config import DecoderConfig
from rlrc.policies.parts.word_tokenizer import train_tokenizer
from rlrc.policies.prismatic.processor import ImageProcessor, Processor

PADDING_IDS = 64


def new_policy(
    shape: Shape, instructions: Sequence[str], norm_stats: dict[str, Any] | None, seed: int = 0
) -> OpenVLAPolicy:
    """A policy with random weights (float32) whose tokenizer is trained on `instructions`."""
    tokenizer = train_tokenizer(instructions)
    action_vocab_end = len(tokenizer) + 256
    config = OpenVLAConfig(
        text_config=DecoderConfig(
            vocab_size=action_vocab_end + PADDING_IDS,
            hidden_size=shape.hidden_size,
            intermediate_size=shape.intermediate_size,
            num_hidden_layers=shape.num_hidden_layers,
            num_attention_heads=shape.num_attention_heads,
            max_position_embeddings=512,
            pad_token_id=tokenizer.pad_token_id,
        ),
        vision_towers=[
            {**tower.model_dump(mode="json"), "image_size": shape.image_size, "patch_size": shape.patch_size}
            for tower in shape.towers
        ],
        image_sizes=[shape.image_size] * len(shape.towers),
        norm_stats=norm_stats,
        pad_to_multiple_of=PADDING_IDS,
        pad_token_id=tokenizer.pad_token_id,
        prompt_template="{instruction}",
        action_head_only=True,
        prompt_end_token_id=None,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = OpenVLAForActionPrediction(config).eval()
    return OpenVLAPolicy(
        model, Processor(ImageProcessor.for_size(shape.image_size, len(shape.towers)), tokenizer, config)
    )
