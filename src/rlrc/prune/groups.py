"""Coupled groups: what must leave a decoder layer together, described as data.

Cutting attention head h means cutting its rows of q, k and v and its columns of o; with grouped-query attention the
unit is a key-value head with all its query heads. Cutting MLP channel j means row j of gate and up and column j of
down. A layer's input and output widths stay, so that layers are independent of each other (LLM-Pruner, arXiv
2305.11627, "block-wise").
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal

from torch import nn
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from rlrc.errors import UserError


@dataclass(frozen=True)
class Member:
    """A matrix of a group: in the linear layer `name`, unit u owns [u * width, (u + 1) * width) of its `axis`: 0 its
    rows, 1 its columns."""

    name: str
    axis: Literal[0, 1]
    width: int


@dataclass(frozen=True)
class Group:
    """`units` exchangeable units of one kind in one decoder layer; the first member is LLM-Pruner's root."""

    layer: int
    kind: Literal["heads", "channels"]
    units: int
    members: tuple[Member, ...]
    unit_parameters: int
    """Parameters that leave with one unit, biases included."""
    width: int
    """Numbers that enter and leave the layer at each position (the decoder's hidden size)."""

    def inputs(self, member: Member) -> int:
        """Inputs of a member's matrix."""
        return self.units * member.width if member.axis else self.width

    @property
    def channels(self) -> int:
        """Channels of one unit: head_dim for heads, 1 for MLP channels."""
        return min(member.width for member in self.members)

    @property
    def queries(self) -> int:
        """Query heads of one unit: 1 unless they share a key-value head."""
        return self.members[0].width // self.channels

    @property
    def noun(self) -> str:
        if self.kind == "channels":
            return "MLP channels"
        return "attention heads" if self.queries == 1 else f"key-value heads (each with its {self.queries} query heads)"

    def __str__(self) -> str:
        return f"decoder layer {self.layer}, {self.noun}"


def coupled_groups(layers: Sequence[LlamaDecoderLayer]) -> list[Group]:
    """The two groups, heads and channels, of each Llama decoder layer, in order.

    Raises:
        UserError: a layer is quantized; packed weights cannot be cut.
    """
    return [group for index, layer in enumerate(layers) for group in (_heads(index, layer), _channels(index, layer))]


def describe(groups: Sequence[Group]) -> str:
    """Describe, for people, what would be cut together; neighbouring layers of one shape share an entry."""
    lines = []
    for kind in ("heads", "channels"):
        same_kind = [group for group in groups if group.kind == kind]
        for _, run in groupby(same_kind, key=lambda group: (group.units, group.members)):
            alike = list(run)
            first = alike[0]
            where = span([group.layer for group in alike])
            lines.append(f"{where}: {first.units} {first.noun} of {first.unit_parameters:,} parameters; one takes")
            for member in first.members:
                axis = ("row", "column")[member.axis] + "s" * (member.width > 1)
                lines.append(f"    {member.name:<17} {member.width} {axis}")
    return "\n".join(lines)


def span(layers: Sequence[int]) -> str:
    """Neighbouring decoder layers in words."""
    return f"decoder layer {layers[0]}" if len(layers) == 1 else f"decoder layers {layers[0]}-{layers[-1]}"


def _heads(index: int, layer: LlamaDecoderLayer) -> Group:
    head_dim = layer.self_attn.head_dim
    key_value_heads = layer.self_attn.k_proj.out_features // head_dim
    query_width = layer.self_attn.q_proj.out_features // key_value_heads
    members = (
        Member("self_attn.q_proj", 0, query_width),
        Member("self_attn.k_proj", 0, head_dim),
        Member("self_attn.v_proj", 0, head_dim),
        Member("self_attn.o_proj", 1, query_width),
    )
    return _group(index, layer, "heads", key_value_heads, members)


def _channels(index: int, layer: LlamaDecoderLayer) -> Group:
    members = (Member("mlp.gate_proj", 0, 1), Member("mlp.up_proj", 0, 1), Member("mlp.down_proj", 1, 1))
    return _group(index, layer, "channels", layer.mlp.gate_proj.out_features, members)


def _group(
    index: int, layer: LlamaDecoderLayer, kind: Literal["heads", "channels"], units: int, members: tuple[Member, ...]
) -> Group:
    parameters = 0
    for member in members:
        module = _linear(index, layer, member.name)
        across = module.out_features if member.axis else module.in_features
        parameters += member.width * (across + (module.bias is not None and member.axis == 0))
    return Group(index, kind, units, members, parameters, across)


def matrix(layer: LlamaDecoderLayer, name: str) -> nn.Linear:
    """The layer's matrix of this name, such as "mlp.up_proj"."""
    found = layer.get_submodule(name)
    assert isinstance(found, nn.Linear)
    return found


def _linear(index: int, layer: LlamaDecoderLayer, name: str) -> nn.Linear:
    found = layer.get_submodule(name)
    if not isinstance(found, nn.Linear):
        raise UserError(f"decoder layer {index}: {name} is a {type(found).__name__}; prune first, quantize last")
    return found
