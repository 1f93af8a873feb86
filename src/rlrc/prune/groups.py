"""The coupled groups of all blocks, in words."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

from rlrc.errors import UserError
from rlrc.policies.contract import Policy
from rlrc.policies.groups import VISION, Block, Group, vision_groups
from rlrc.policies.values import Stack


@dataclass(frozen=True)
class Chain:
    """Stacks whose layers pass by block by block: those of language, of which a block has a layer each, since they run
    together; or vision towers, one after the other."""

    stacks: Sequence[Stack]
    groups_of: Callable[[int, Block], Iterable[Group]]
    """The coupled groups of the block of a number."""
    is_vision: bool

    @property
    def places(self) -> list[dict[str, int]]:
        """The layers of each block: their numbers within their stacks."""
        if self.is_vision:
            return [{stack.name: number} for stack in self.stacks for number in range(len(stack.layers))]
        return [{stack.name: number for stack in self.stacks} for number in range(len(self.stacks[0].layers))]

    @property
    def blocks(self) -> list[Block]:
        """The layers, as the model has them."""
        layers = {stack.name: stack.layers for stack in self.stacks}
        return [Block({name: layers[name][number] for name, number in place.items()}) for place in self.places]

    @property
    def groups(self) -> list[Group]:
        """
        Raises:
            UserError: a layer is quantized.
        """
        return [group for index, block in enumerate(self.blocks) for group in self.groups_of(index, block)]

    def __len__(self) -> int:
        return len(self.places)


def chain_of(policy: Policy, names: Sequence[str] | None = None) -> Chain:
    """The chain that holds the named stacks; None means language.

    Raises:
        UserError: there is no such stack.
    """
    language, vision = policy.stacks(), policy.vision_stacks()
    there = [stack.name for stack in (*language, *vision)]
    if lacking := [name for name in names or () if name not in there]:
        raise UserError(f"stacks: '{lacking[0]}' cannot be pruned in this policy; it has {', '.join(there)}")
    if VISION not in (names or ()):
        return Chain(language, policy.groups, False)
    return Chain(vision, vision_groups, True)


def blocks_of(policy: Policy) -> list[Block]:
    """The layers of a policy's language chain by number, as the model has them."""
    return chain_of(policy).blocks


def coupled_groups(policy: Policy, stacks: Sequence[str] | None = None) -> list[Group]:
    """The coupled groups of a policy whose units are counted in one of the named stacks; None takes those of language.

    Raises:
        UserError: see `chain_of`; or a layer is quantized.
    """
    chain = chain_of(policy, stacks)
    return [group for group in chain.groups if stacks is None or chain.is_vision or group.stack in stacks]


def single_matrices(policy: Policy, stacks: Sequence[str] | None = None) -> list[Group]:
    """The coupled groups of a policy with the matrices of the named stacks alone; None takes those of language.

    Raises:
        UserError: see `coupled_groups`.
    """
    chain = chain_of(policy, stacks)
    if stacks is None or chain.is_vision:
        return list(chain.groups)
    named = ((group, tuple(m for m in group.members if m.stack in stacks)) for group in chain.groups)
    return [replace(group, members=members) for group, members in named if members]


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
                place = member.place if member.parts == 1 else f"{member.place}[{member.part}]"
                lines.append(f"    {place:<17} {member.width} {axis}")
    return "\n".join(lines)


def span(layers: Sequence[int], stack: str) -> str:
    """Neighbouring layers of a stack in words."""
    return f"{stack} layer {layers[0]}" if len(layers) == 1 else f"{stack} layers {layers[0]}-{layers[-1]}"
