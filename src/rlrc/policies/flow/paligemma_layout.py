"""The published folders of pi0 and pi0.5: sizes off the tensors, and what neither these nor config.json say."""

from typing import Any

from rlrc.errors import UserError
from rlrc.policies.flow.config import FlowConfig
from rlrc.policies.flow.dead import Shapes, dead_in_last_layer
from rlrc.policies.flow.lerobot import uniform
from rlrc.policies.flow.paligemma import PALIGEMMA, ROOT, PaliGemmaModel
from rlrc.policies.flow.published import Published
from rlrc.policies.flow.random_layout import TINY, TINY_VOCABULARY, resized

EMBEDDING = f"{ROOT}.paligemma.lm_head.weight"
TOKENIZER = "google/paligemma-3b-pt-224"
VISION_HEADS = {1152: 16}
"""Heads of the published tower, by its width."""
GEMMA_LAYERS: dict[str, Any] = {"hidden_act": "gelu_pytorch_tanh", "rms_norm_eps": 1e-6, "num_key_value_heads": 1}


class PaliGemmaLayout:
    """See `checkpoint.Layout`."""

    needs_bos = True

    def config(self, published: Published) -> dict[str, Any]:
        names = PaliGemmaModel.names
        layers = published.layers(names.decoder)
        head_dim = published.shape(f"{names.decoder}.0.self_attn.k_proj.weight")[0]
        stacks = {}
        for field, prefix in (("text_config", names.decoder), ("expert_config", names.expert)):
            queries = published.shape(f"{prefix}.0.self_attn.q_proj.weight")[0]
            heads = {"num_attention_heads": queries // head_dim, "head_dim": head_dim}
            vocabulary = {"vocab_size": published.shape(EMBEDDING)[0]}
            stacks[field] = published.stack(prefix, layers) | heads | vocabulary | GEMMA_LAYERS
        width = published.shape(f"{names.vision}.embeddings.patch_embedding.weight")[0]
        heads_of_vision = published.spec.vision_heads or VISION_HEADS.get(width)
        published.require(
            heads_of_vision is not None,
            f"its vision tower has a width of {width}, and nothing says how many heads; add vision_heads= to spec",
        )
        assert heads_of_vision is not None
        vision = published.vision(names.vision, heads_of_vision)
        published.require(width % heads_of_vision == 0, f"vision_heads={heads_of_vision} does not divide {width}")
        size = published.fields.image_resolution
        published.require(
            size is None or size == [vision["image_size"]] * 2,
            f"image_resolution is {size}, and the vision tower reads pictures of {vision['image_size']} pixels a side",
        )
        published.require(published.spec.vlm is None, "spec vlm= belongs to SmolVLA; name the tokenizer= of pi")
        return stacks | {"vision_config": vision}

    def named_tokenizer(self, published: Published) -> str | None:
        return published.spec.tokenizer

    def dead(self, config: FlowConfig) -> Shapes:
        shape = (config.text_config.vocab_size, config.expert_config.hidden_size)
        dead = dead_in_last_layer(PaliGemmaModel.names, config.text_config)
        return dead | {f"{ROOT}.gemma_expert.lm_head.weight": shape}

    def alias(self, name: str, known: set[str]) -> str:
        tied = f"{PALIGEMMA}.language_model.embed_tokens.weight"
        return EMBEDDING if name == tied and EMBEDDING not in known else name


def lerobot_fields(config: FlowConfig) -> dict[str, Any]:
    """Fields of LeRobot's config.json for a policy.

    Raises:
        UserError: LeRobot's class cannot hold the policy's shape.
    """
    published = random_config(tiny=False)
    for field, told in (("text_config", "a language model"), ("expert_config", "an expert")):
        stack, wanted = getattr(config, field), published[field]
        shape = uniform(stack, told) | {"hidden_size": stack.hidden_size, "num_hidden_layers": stack.num_hidden_layers}
        if any(shape[name] != wanted[name] for name in shape):
            raise UserError(
                f"LeRobot's class holds {told} of the published shape alone, and this one has {shape}; serve the "
                "policy with rlrc"
            )
    size = config.vision_config.image_size
    return {
        "paligemma_variant": "gemma_2b",
        "action_expert_variant": "gemma_300m",
        "num_inference_steps": config.num_steps,
        "image_resolution": [size, size],
        "dtype": str(config.dtype).removeprefix("torch."),
    }


def random_config(tiny: bool) -> dict[str, Any]:
    """Fields of the config of pi0 and pi0.5 at the published sizes, or small ones."""
    heads = {"num_attention_heads": 8, "head_dim": 256, "num_hidden_layers": 18, "vocab_size": 257_152, **GEMMA_LAYERS}
    values: dict[str, Any] = {
        "text_config": heads | {"hidden_size": 2048, "intermediate_size": 16_384},
        "expert_config": heads | {"hidden_size": 1024, "intermediate_size": 4096},
        "vision_config": {
            "hidden_size": 1152,
            "intermediate_size": 4304,
            "num_hidden_layers": 27,
            "num_attention_heads": 16,
            "image_size": 224,
            "patch_size": 14,
        },
        "cameras": ["base_0_rgb", "left_wrist_0_rgb", "right_wrist_0_rgb"],
        "horizon": 50,
        "execute": 50,
    }
    if not tiny:
        return values
    small = {field: dict(sizes) for field, sizes in TINY.items()}
    small["text_config"] |= {"head_dim": 16}
    small["expert_config"] |= {"head_dim": 16, "vocab_size": TINY_VOCABULARY}
    small["vision_config"] |= {"image_size": 56}
    return resized(values, small)
