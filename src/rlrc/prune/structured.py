"""Cutting: units really leave the matrices, and the config learns the new shapes."""

from collections.abc import Sequence

import torch
from torch import nn
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from rlrc.prune.groups import Group, matrix
from rlrc.prune.method import Plan

Means = dict[tuple[int, str], torch.Tensor]
"""Mean inputs, by layer and kind of unit, of the matrix that gives them to the next layers (width,)."""


def plan_cut(layers: int, groups: Sequence[Group], kept: Sequence[torch.Tensor], means: Means | None = None) -> Plan:
    """Keep the units `kept` (sorted indices) of each group, and of the others nothing or their mean contribution.

    With nothing, the dense model with the other units' output columns zeroed computes the same function.

    Args:
        means: mean inputs of o_proj ("heads") and down_proj ("channels") by layer; FLAP's bias compensation.
    """
    of_layer: dict[int, list[tuple[Group, torch.Tensor]]] = {}
    for group, units in zip(groups, kept, strict=True):
        of_layer.setdefault(group.layer, []).append((group, units))

    def edit(index: int, layer: LlamaDecoderLayer) -> None:
        for group, units in of_layer[index]:
            if means is not None:
                _compensate(layer, group, units, means[index, group.kind])
            if len(units) < group.units:
                _cut(layer, group, units)

    shapes = {index: _shape_left(pairs) for index, pairs in of_layer.items()}
    return Plan(tuple(range(layers)), edit, shapes, means is not None, _indices(groups, kept))


def _cut(layer: LlamaDecoderLayer, group: Group, units: torch.Tensor) -> None:
    """Let all but `units` leave the matrices of the group."""
    for member in group.members:
        module = matrix(layer, member.name)
        width = torch.arange(member.width, device=module.weight.device)
        index = (units.to(width.device)[:, None] * member.width + width).flatten()
        _cut_linear(module, index, member.axis)
    if group.kind == "channels":
        layer.mlp.intermediate_size = len(units)


def _compensate(layer: LlamaDecoderLayer, group: Group, units: torch.Tensor, mean: torch.Tensor) -> None:
    """Add what the lost inputs of the group's output matrix used to give, on average, to its bias."""
    output = group.members[-1]
    module = matrix(layer, output.name)
    gone = torch.ones(group.units, dtype=torch.bool)
    gone[units] = False
    lost = mean * gone.repeat_interleave(output.width)
    bias = module.weight.float() @ lost.to(module.weight.device)
    bias += 0 if module.bias is None else module.bias.float()
    module.bias = nn.Parameter(bias.to(module.weight.dtype), requires_grad=False)


def _cut_linear(module: nn.Linear, index: torch.Tensor, axis: int) -> None:
    module.weight = nn.Parameter(module.weight.detach().index_select(axis, index), module.weight.requires_grad)
    if axis == 0 and module.bias is not None:
        module.bias = nn.Parameter(module.bias.detach()[index], module.bias.requires_grad)
    module.out_features, module.in_features = module.weight.shape


def _shape_left(pairs: Sequence[tuple[Group, torch.Tensor]]) -> dict[str, int]:
    """A layer's shape as transformers' sparse schema stores it; whole key-value heads leave with their queries."""
    shape = {}
    for group, units in pairs:
        if group.kind == "channels":
            shape["intermediate_size"] = len(units)
        else:
            shape["num_attention_heads"] = len(units) * group.queries
            shape["num_key_value_heads"] = len(units)
    return shape


def layer_shape(layer: LlamaDecoderLayer) -> dict[str, int]:
    """The shape a layer has."""
    attention = layer.self_attn
    return {
        "num_attention_heads": attention.q_proj.out_features // attention.head_dim,
        "num_key_value_heads": attention.k_proj.out_features // attention.head_dim,
        "intermediate_size": layer.mlp.gate_proj.out_features,
    }


def _indices(groups: Sequence[Group], kept: Sequence[torch.Tensor]) -> dict[str, dict[int, list[int]]]:
    """Kept indices by kind and layer; groups that stay whole are left out."""
    indices: dict[str, dict[int, list[int]]] = {"heads": {}, "channels": {}}
    for group, units in zip(groups, kept, strict=True):
        if len(units) < group.units:
            indices[group.kind][group.layer] = units.tolist()
    return indices
