"""The coupled groups of all blocks, in words."""

from collections.abc import Sequence
from itertools import groupby

from rlrc.errors import UserError
from rlrc.policies.contract import Policy
from rlrc.policies.groups import Block, Group


def blocks_of(policy: Policy) -> list[Block]:
    """The layers of a policy by number, as the model has them."""
    stacks = {stack.name: stack.layers for stack in policy.stacks()}
    return [Block(dict(zip(stacks, layers, strict=True))) for layers in zip(*stacks.values(), strict=True)]


def coupled_groups(policy: Policy, stacks: Sequence[str] | None = None) -> list[Group]:
    """The coupled groups of a policy whose units are counted in one of the named stacks; None takes all.

    Raises:
        UserError: there is no such stack, or a layer is quantized.
    """
    there = [stack.name for stack in policy.stacks()]
    if lacking := [name for name in stacks or () if name not in there]:
        raise UserError(f"stacks: this policy has no {lacking[0]}; it has {', '.join(there)}")
    groups = (group for index, block in enumerate(blocks_of(policy)) for group in policy.groups(index, block))
    return [group for group in groups if stacks is None or group.stack in stacks]


def describe(groups: Sequence[Group]) -> str:
    """Describe, for people, what would be cut together; neighbouring layers of one shape share an entry."""
    lines = []
    for stack, kind in dict.fromkeys((group.stack, group.kind) for group in groups):
        same_kind = [group for group in groups if (group.stack, group.kind) == (stack, kind)]
        for _, run in groupby(same_kind, key=lambda group: (group.units, group.members)):
            alike = list(run)
            first = alike[0]
            where = span([group.layer for group in alike], stack)
            lines.append(f"{where}: {first.units} {first.noun} of {first.unit_parameters:,} parameters; one takes")
            for member in first.members:
                axis = ("row", "column")[member.axis] + "s" * (member.width > 1)
                lines.append(f"    {member.place:<17} {member.width} {axis}")
    return "\n".join(lines)


def span(layers: Sequence[int], stack: str) -> str:
    """Neighbouring layers of a stack in words."""
    return f"{stack} layer {layers[0]}" if len(layers) == 1 else f"{stack} layers {layers[0]}-{layers[-1]}"
