"""Cutting: units really leave the matrices, and the config learns the new shapes."""

from collections.abc import Sequence
from itertools import groupby
from typing import Any

import torch
from torch import nn

from rlrc.policies.groups import DECODER, FUSED, Block, Group, sizes_of
from rlrc.prune.method import Plan

Means = dict[str, torch.Tensor]
"""Mean inputs, by a group's key, of the matrix that gives them to the next layers (width,)."""


def plan_cut(layers: int, groups: Sequence[Group], kept: Sequence[torch.Tensor], means: Means | None = None) -> Plan:
    """Keep the units `kept` (sorted indices) of each group, and of the others nothing or their mean contribution.

    With nothing, the dense model with the other units' output columns zeroed computes the same function.

    Args:
        means: mean inputs of o_proj ("heads") and down_proj ("channels"); FLAP's bias compensation.
    """
    of_layer: dict[int, list[tuple[Group, torch.Tensor]]] = {}
    for group, units in zip(groups, kept, strict=True):
        of_layer.setdefault(group.layer, []).append((group, units))

    def edit(index: int, block: Block) -> None:
        for group, units in of_layer.get(index, ()):
            if means is not None:
                _compensate(block, group, units, means[group.key])
            if len(units) < group.units:
                _cut(block, group, units)

    shapes: dict[tuple[int, str], dict[str, int]] = {}
    for index, pairs in of_layer.items():
        for group, units in pairs:
            for stack, shape in _shape_left(group, len(units)).items():
                shapes.setdefault((index, stack), {}).update(shape)
    return Plan(tuple(range(layers)), edit, shapes, means is not None, _indices(groups, kept))


def _cut(block: Block, group: Group, units: torch.Tensor) -> None:
    """Let all but `units` leave the matrices of the group."""
    for _, same in groupby(group.members, key=lambda member: member.place):
        members = list(same)
        first, module = members[0], members[0].matrix(block)
        width = torch.arange(first.width, device=module.weight.device)
        index = (units.to(width.device)[:, None] * first.width + width).flatten()
        rows = group.units * first.width
        _cut_linear(module, torch.cat([index + member.part * rows for member in members]), first.axis)
    if group.kind == "channels":
        block.layer(group.stack).mlp.intermediate_size = len(units)


def _compensate(block: Block, group: Group, units: torch.Tensor, mean: torch.Tensor) -> None:
    """Add what the lost inputs of the group's output matrix used to give, on average, to its bias."""
    output = group.members[-1]
    module = output.matrix(block)
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


def _shape_left(group: Group, units: int) -> dict[str, dict[str, int]]:
    """The shapes that a group gives its layers, by stack, as transformers' sparse schema stores them."""
    shapes: dict[str, dict[str, int]] = {}
    for member in group.members:
        field = sizes_of(member.stack).get(member.name)
        if field is not None and member.axis == 0:
            shapes.setdefault(member.stack, {})[field] = units * member.width // group.channels
    for shape in shapes.values():
        if "num_key_value_heads" in shape:  # a layer without queries still has a number of them in its config
            shape.setdefault("num_attention_heads", shape["num_key_value_heads"])
    return shapes


def layer_shape(layer: Any, stack: str = DECODER) -> dict[str, int]:
    """The shape that a layer of a stack has, as far as it has the matrices that tell it."""
    shape = {}
    for name, matrix in layer.named_modules():
        if name in sizes_of(stack):
            width = getattr(layer.get_submodule(name.partition(".")[0]), "head_dim", 1)
            shape[sizes_of(stack)[name]] = matrix.out_features // FUSED.get(name, 1) // width
    return shape


def _indices(groups: Sequence[Group], kept: Sequence[torch.Tensor]) -> dict[str, Any]:
    """Kept indices by kind and layer, those of other stacks than the language model under their name; groups that stay
    whole are left out."""
    indices: dict[str, Any] = {"heads": {}, "channels": {}}
    for group, units in zip(groups, kept, strict=True):
        if len(units) < group.units:
            of_stack = indices if group.stack == DECODER else indices.setdefault(group.stack, {})
            of_stack.setdefault(group.kind, {})[group.layer] = units.tolist()
    return indices
