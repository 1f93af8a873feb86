"""SmolVLA as a policy."""

from collections.abc import Sequence

from rlrc.policies.flow.policy import FlowPolicy
from rlrc.policies.groups import Block, Group
from rlrc.policies.smolvla.groups import smolvla_groups
from rlrc.policies.smolvla.layout import SmolVLALayout
from rlrc.policies.smolvla.model import SmolVLAModel


class SmolVLAPolicy(FlowPolicy):
    """SmolVLA (Shukor et al., 2025)."""

    model: SmolVLAModel
    model_class = SmolVLAModel
    layout = SmolVLALayout()
    family = "smolvla"
    place = "right-bottom"

    def groups(self, index: int, block: Block) -> Sequence[Group]:
        return list(smolvla_groups(index, block))


FAMILY = SmolVLAPolicy
