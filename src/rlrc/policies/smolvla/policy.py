"""SmolVLA as a policy."""

from collections.abc import Sequence

from rlrc.policies.flow.lerobot import exported
from rlrc.policies.flow.policy import FlowPolicy
from rlrc.policies.groups import Block, Group
from rlrc.policies.smolvla.groups import smolvla_groups
from rlrc.policies.smolvla.layout import PUBLISHED_VLM, SmolVLALayout, lerobot_fields
from rlrc.policies.smolvla.model import SmolVLAModel
from rlrc.policies.values import Exported


class SmolVLAPolicy(FlowPolicy):
    """SmolVLA (Shukor et al., 2025)."""

    model: SmolVLAModel
    model_class = SmolVLAModel
    layout = SmolVLALayout()
    family = "smolvla"
    place = "right-bottom"

    def groups(self, index: int, block: Block) -> Sequence[Group]:
        return list(smolvla_groups(index, block))

    def exported(self, vlm: str | None = None) -> Exported:
        name = vlm or PUBLISHED_VLM
        newline = {"registry_name": "smolvla_new_line_processor", "config": {}}
        return exported(self, lerobot_fields(self.model.config, name), [newline], name)


FAMILY = SmolVLAPolicy
