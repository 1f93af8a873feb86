"""What leaves together in SmolVLA.

The unit is a key-value head with its queries. Where the expert attends to both, head g of both stacks leaves together;
where it reads the language model alone, head g of that takes with it the columns of the expert's k and v that read it,
and the expert's own heads are free.
"""

from collections.abc import Iterator

from rlrc.policies.groups import DECODER, EXPERT, Block, Group, Places, channel_group, group_of, head_places


def smolvla_groups(index: int, block: Block) -> Iterator[Group]:
    """Heads and MLP channels of both layers, as far as they are there."""
    decoder, expert = block.layer(DECODER), block.layer(EXPERT)
    width = decoder.self_attn.head_dim
    if expert.crosses:
        read: Places = [(EXPERT, "self_attn.k_proj", 1, width), (EXPERT, "self_attn.v_proj", 1, width)]
        yield group_of(index, block, "heads", [*head_places(DECODER, block), *read])
        yield group_of(index, block, "heads", head_places(EXPERT, block))
    else:
        yield group_of(index, block, "heads", [*head_places(DECODER, block), *head_places(EXPERT, block)])
    if decoder.reads:
        yield channel_group(index, block, DECODER)
    yield channel_group(index, block, EXPERT)
