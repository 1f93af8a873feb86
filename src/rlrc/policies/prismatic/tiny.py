"""Common parts of new policies on the trunk: sizes, pictures in [-1, 1], and a tokenizer of their own.

Same classes as at full size, small sizes; most parameters sit in the decoder, as they do there.
"""

from typing import Any

from transformers import PreTrainedTokenizerFast

from rlrc.configs.train import Shape
from rlrc.policies.parts.config import DecoderConfig
from rlrc.policies.prismatic.config import PrismaticConfig
from rlrc.policies.prismatic.processor import ImageProcessor, Processor

PADDING_IDS = 64


def config_fields(
    shape: Shape, tokenizer: PreTrainedTokenizerFast, norm_stats: dict[str, Any] | None
) -> dict[str, Any]:
    """Fields of the config of a policy of this shape, whose prompts are the instructions alone."""
    return {
        "text_config": DecoderConfig(
            vocab_size=len(tokenizer) + 256 + PADDING_IDS,
            hidden_size=shape.hidden_size,
            intermediate_size=shape.intermediate_size,
            num_hidden_layers=shape.num_hidden_layers,
            num_attention_heads=shape.num_attention_heads,
            max_position_embeddings=512,
            pad_token_id=tokenizer.pad_token_id,
        ),
        "vision_towers": [
            {**tower.model_dump(mode="json"), "image_size": shape.image_size, "patch_size": shape.patch_size}
            for tower in shape.towers
        ],
        "image_sizes": [shape.image_size] * len(shape.towers),
        "norm_stats": norm_stats,
        "pad_to_multiple_of": PADDING_IDS,
        "pad_token_id": tokenizer.pad_token_id,
        "prompt_template": "{instruction}",
        "action_head_only": True,
        "prompt_end_token_id": None,
    }


def new_processor(shape: Shape, tokenizer: PreTrainedTokenizerFast, config: PrismaticConfig) -> Processor:
    """The processor of pictures and instructions."""
    return Processor(ImageProcessor.for_size(shape.image_size, len(shape.towers)), tokenizer, config)
