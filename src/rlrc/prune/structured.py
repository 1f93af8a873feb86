"""Cutting: units really leave the matrices, and the config learns the new shapes."""

from collections.abc import Sequence

import torch
from torch import nn
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from rlrc.prune.groups import Group, linear


def cut(
    layers: Sequence[LlamaDecoderLayer], config: LlamaConfig, groups: Sequence[Group], kept: Sequence[torch.Tensor]
) -> None:
    """Keep only the units `kept` (sorted indices) of each group, in place, and write the shapes to `per_layer_config`.

    The dense model with the other units' output columns zeroed computes the same function.
    """
    for group, units in zip(groups, kept, strict=True):
        if len(units) == group.units:
            continue
        for member in group.members:
            module = linear(layers, group, member)
            width = torch.arange(member.width, device=module.weight.device)
            index = (units.to(width.device)[:, None] * member.width + width).flatten()
            _cut_linear(module, index, member.axis)
        if group.kind == "channels":
            layers[group.layer].mlp.intermediate_size = len(units)
    config.per_layer_config = {index: _shape(layer) for index, layer in enumerate(layers)}


def _cut_linear(module: nn.Linear, index: torch.Tensor, axis: int) -> None:
    module.weight = nn.Parameter(module.weight.detach().index_select(axis, index), module.weight.requires_grad)
    if axis == 0 and module.bias is not None:
        module.bias = nn.Parameter(module.bias.detach()[index], module.bias.requires_grad)
    module.out_features, module.in_features = module.weight.shape


def _shape(layer: LlamaDecoderLayer) -> dict[str, int]:
    """As transformers' sparse schema stores it; whole key-value heads leave, so `num_key_value_groups` holds."""
    attention = layer.self_attn
    return {
        "num_attention_heads": attention.q_proj.out_features // attention.head_dim,
        "num_key_value_heads": attention.k_proj.out_features // attention.head_dim,
        "intermediate_size": layer.mlp.gate_proj.out_features,
    }
