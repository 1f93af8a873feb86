"""pi0 as a policy."""

from collections.abc import Sequence

from rlrc.policies.flow.paligemma_groups import paligemma_groups
from rlrc.policies.flow.policy import FlowPolicy
from rlrc.policies.groups import Block, Group
from rlrc.policies.pi0.layout import Pi0Layout
from rlrc.policies.pi0.model import Pi0Model


class Pi0Policy(FlowPolicy):
    """pi0 (Black et al., 2024)."""

    model: Pi0Model
    model_class = Pi0Model
    layout = Pi0Layout()
    family = "pi0"
    place = "centre"

    def groups(self, index: int, block: Block) -> Sequence[Group]:
        return list(paligemma_groups(index, block))


FAMILY = Pi0Policy
