"""Tensors that are published and whose output nothing uses; they are neither loaded nor saved."""

from typing import Any

from rlrc.policies.flow.model import Names

Shapes = dict[str, tuple[int, ...]]


def dead_in_last_layer(names: Names, text: Any) -> Shapes:
    """Of the language model's last layer all but keys and values, and the norm behind it: an expert reads no more."""
    last = text.num_hidden_layers - 1
    shape, width = text.per_layer_config[last], text.hidden_size
    queries, channels = shape.num_attention_heads * text.head_dim, shape.intermediate_size
    layer = f"{names.decoder}.{last}"
    return {
        f"{layer}.self_attn.q_proj.weight": (queries, width),
        f"{layer}.self_attn.o_proj.weight": (width, queries),
        f"{layer}.post_attention_layernorm.weight": (width,),
        f"{layer}.mlp.gate_proj.weight": (channels, width),
        f"{layer}.mlp.up_proj.weight": (channels, width),
        f"{layer}.mlp.down_proj.weight": (width, channels),
        f"{names.decoder.rpartition('.')[0]}.norm.weight": (width,),
    }
