"""Coupled groups: what must leave a block of layers together, described as data.

Cutting attention head h means cutting its rows of q, k and v and its columns of o; with grouped-query attention the
unit is a key-value head with all its query heads. Cutting MLP channel j means row j of gate and up and column j of
down. A layer's input and output widths stay, so that blocks are independent of each other (LLM-Pruner, arXiv
2305.11627, "block-wise").
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from rlrc.errors import UserError

DECODER = "decoder"
"""Name of the stack that every family has: the layers of its language model."""
EXPERT = "expert"
"""Name of the stack of an action expert."""
VISION, FUSED_VISION = "vision", "fused_vision"
"""Names of the stacks of vision towers: of the only one or the first, and of a second one beside it."""

LLAMA_SIZES = {
    "self_attn.k_proj": "num_key_value_heads",
    "self_attn.q_proj": "num_attention_heads",
    "mlp.gate_proj": "intermediate_size",
}
VISION_SIZES = {
    "self_attn.q_proj": "num_attention_heads",
    "attn.qkv": "num_attention_heads",
    "mlp.fc1": "intermediate_size",
}
"""Matrices whose rows tell a layer's shape, and the fields of its config that do; the latter of vision towers."""
FUSED = {"attn.qkv": 3}
"""Matrices whose rows are those of several, one after the other."""

Places = list[tuple[str, str, Literal[0, 1], int]]
"""Matrices by stack and name, the axis that loses units, and the width of a unit."""


class Block(nn.Module):
    """The layers of one number, one of each stack that runs together; `block.decoder` is that of the language model."""

    def __init__(self, layers: Mapping[str, nn.Module]) -> None:
        super().__init__()
        for stack, layer in layers.items():
            self.add_module(stack, layer)

    def layer(self, stack: str) -> Any:
        """The layer of a stack."""
        return self.get_submodule(stack)


@dataclass(frozen=True)
class Member:
    """A matrix of a group: in the linear layer `name`, unit u owns [u * width, (u + 1) * width) of its `axis`: 0 its
    rows, 1 its columns."""

    stack: str
    name: str
    """Such as "self_attn.q_proj"."""
    axis: Literal[0, 1]
    width: int
    across: int
    """Numbers along the other axis."""
    reads_decoder: bool = False
    """True where its inputs are keys or values of the language model, though it belongs to another stack."""
    part: int = 0
    """Its number where the rows of the linear layer are those of several matrices (FUSED)."""

    @property
    def parts(self) -> int:
        """Number of matrices whose rows the linear layer holds."""
        return FUSED.get(self.name, 1)

    def of(self, rows: torch.Tensor) -> torch.Tensor:
        """The member's own rows of a tensor that is like the weight of the linear layer."""
        return rows.unflatten(0, (self.parts, -1))[self.part]

    def matrix(self, block: Block) -> nn.Linear:
        """The linear layer."""
        return linear(block, self.stack, self.name)

    @property
    def place(self) -> str:
        """The name among all matrices of a block; in the language model's layer without the name of the stack."""
        return self.name if self.stack == DECODER else f"{self.stack}.{self.name}"

    @property
    def is_output(self) -> bool:
        """True of a matrix whose results are added to what passes the layer."""
        return self.name in ("self_attn.o_proj", "mlp.down_proj", "self_attn.out_proj", "attn.proj", "mlp.fc2")


@dataclass(frozen=True)
class Group:
    """`units` exchangeable units of one kind in one block; the first member is LLM-Pruner's root."""

    layer: int
    kind: Literal["heads", "channels"]
    units: int
    members: tuple[Member, ...]
    unit_parameters: int
    """Parameters that leave with one unit, biases included."""

    @property
    def stack(self) -> str:
        """The stack that the units are counted in: that of the first member."""
        return self.members[0].stack

    @property
    def key(self) -> str:
        """The name of the group in files of measurements."""
        return f"{self.layer}.{self.kind}" if self.stack == DECODER else f"{self.stack}.{self.layer}.{self.kind}"

    def inputs(self, member: Member) -> int:
        """Inputs of a member's matrix."""
        return self.units * member.width if member.axis else member.across

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
        return f"{self.stack} layer {self.layer}, {self.noun}"


def group_of(index: int, block: Block, kind: Literal["heads", "channels"], places: Places) -> Group:
    """A group of the matrices at `places`.

    Raises:
        UserError: a matrix is quantized; packed weights cannot be cut.
    """
    members, parameters, units = [], 0, 0
    for stack, name, axis, width in places:
        module = block.layer(stack).get_submodule(name)
        if not isinstance(module, nn.Linear):
            raise UserError(f"{stack} layer {index}: {name} is a {type(module).__name__}; prune first, quantize last")
        across, along = (module.out_features, module.in_features)[:: 1 if axis else -1]
        crosses = getattr(block.layer(stack), "crosses", False)
        reads_decoder = crosses and name in ("self_attn.k_proj", "self_attn.v_proj")
        parts = [Member(stack, name, axis, width, across, reads_decoder, part) for part in range(FUSED.get(name, 1))]
        members += parts
        parameters += len(parts) * width * (across + (module.bias is not None and axis == 0))
        units = units or along // width // len(parts)
    return Group(index, kind, units, tuple(members), parameters)


def llama_groups(index: int, block: Block, stack: str = DECODER) -> Iterator[Group]:
    """The two groups, heads and channels, of a layer that attends to itself alone."""
    yield group_of(index, block, "heads", head_places(stack, block))
    yield channel_group(index, block, stack)


def head_places(stack: str, block: Block) -> Places:
    """The matrices of a layer that lose rows or columns with a key-value head; only k and v of one without queries."""
    attention = block.layer(stack).self_attn
    width = attention.head_dim
    shared: Places = [(stack, "self_attn.k_proj", 0, width), (stack, "self_attn.v_proj", 0, width)]
    if not hasattr(attention, "q_proj"):
        return shared
    queries = attention.q_proj.out_features // (attention.k_proj.out_features // width)
    return [(stack, "self_attn.q_proj", 0, queries), *shared, (stack, "self_attn.o_proj", 1, queries)]


def channel_group(index: int, block: Block, stack: str) -> Group:
    """The MLP channels of a layer."""
    places: Places = [
        (stack, "mlp.gate_proj", 0, 1),
        (stack, "mlp.up_proj", 0, 1),
        (stack, "mlp.down_proj", 1, 1),
    ]
    return group_of(index, block, "channels", places)


def vision_groups(index: int, block: Block) -> Iterator[Group]:
    """The two groups of the layer of a vision transformer, with the names of transformers' SigLIP or those of timm."""
    ((stack, layer),) = block.named_children()
    attention: Any
    if hasattr(layer, "attn"):
        attention, rows, back = layer.attn, ["attn.qkv"], "attn.proj"
    else:
        attention, rows, back = layer.self_attn, [f"self_attn.{name}_proj" for name in "qkv"], "self_attn.out_proj"
    width = attention.head_dim
    heads: Places = [*((stack, name, 0, width) for name in rows), (stack, back, 1, width)]
    yield group_of(index, block, "heads", heads)
    yield group_of(index, block, "channels", [(stack, "mlp.fc1", 0, 1), (stack, "mlp.fc2", 1, 1)])


def sizes_of(stack: str) -> Mapping[str, str]:
    """The matrices of a stack's layers whose rows tell their shapes, and the fields of the config that do."""
    return VISION_SIZES if stack in (VISION, FUSED_VISION) else LLAMA_SIZES


def linear(block: Block, stack: str, name: str) -> nn.Linear:
    """The matrix of this name in the layer of a stack."""
    found = block.layer(stack).get_submodule(name)
    assert isinstance(found, nn.Linear)
    return found
