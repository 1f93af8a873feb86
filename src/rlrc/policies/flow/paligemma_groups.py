"""What leaves together in pi0 and pi0.5.

Query heads are the units, in each stack on its own: the key-value head is shared by all queries of both and stays.
"""

from collections.abc import Iterator

from rlrc.policies.groups import DECODER, EXPERT, Block, Group, Places, channel_group, group_of


def paligemma_groups(index: int, block: Block) -> Iterator[Group]:
    """Query heads and MLP channels of both layers, as far as they are there."""
    for stack in (DECODER, EXPERT):
        layer = block.layer(stack)
        if layer.reads:
            width = layer.self_attn.head_dim
            places: Places = [(stack, "self_attn.q_proj", 0, width), (stack, "self_attn.o_proj", 1, width)]
            yield group_of(index, block, "heads", places)
            yield channel_group(index, block, stack)
