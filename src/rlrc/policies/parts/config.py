"""Shapes of the parts that families share: vision transformers and Llama decoders."""

from huggingface_hub.dataclasses import strict
from transformers import LlamaConfig, PreTrainedConfig


class VisionTowerConfig(PreTrainedConfig):
    """One ViT, read after its second-to-last block: `num_hidden_layers` counts the block that is never run.

    `stem_channels` puts stride-2 3x3 convolutions before the patch embedding (Xiao et al., "Early convolutions help
    transformers see better", 2021); `patch_size` stays the stride of the whole. `condition_size` is the width of a
    condition that modulates each block; 0 where there is none.
    """

    model_type = "openvla_vision_tower"

    hidden_size: int = 1024
    num_hidden_layers: int = 24
    num_attention_heads: int = 16
    head_dim: int | None = None
    intermediate_size: int = 4096
    image_size: int = 224
    patch_size: int = 14
    num_register_tokens: int = 0
    class_token: bool = False
    layer_scale: bool = False
    layer_norm_eps: float = 1e-6
    stem_channels: list[int] | None = None
    condition_size: int = 0

    @property
    def num_patches(self) -> int:
        return (self.image_size // self.patch_size) ** 2

    @property
    def head_size(self) -> int:
        """Numbers of one head: `head_dim` where layers have lost heads, else their share of the width."""
        return self.head_dim or self.hidden_size // self.num_attention_heads


@strict
class DecoderConfig(LlamaConfig):
    """`LlamaConfig` that also holds layers of different shapes (`per_layer_config`, transformers' sparse schema).

    `output_bias` gives o_proj and down_proj a bias (FLAP's compensation), and the five other matrices none.
    """

    output_bias: bool = False

    def validate_architecture(self) -> None:
        # Llama's own check reads one head count for all layers and wants it to divide hidden_size; with an explicit
        # head_dim neither need hold.
        pass
