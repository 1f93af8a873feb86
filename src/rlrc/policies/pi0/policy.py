"""pi0 as a policy."""

from collections.abc import Sequence
from pathlib import Path

from rlrc.policies.flow.lerobot import exported
from rlrc.policies.flow.paligemma_groups import paligemma_groups
from rlrc.policies.flow.paligemma_layout import TOKENIZER, lerobot_fields
from rlrc.policies.flow.policy import FlowPolicy
from rlrc.policies.groups import Block, Group
from rlrc.policies.pi0.layout import Pi0Layout
from rlrc.policies.pi0.model import Pi0Model
from rlrc.policies.values import Exported


class Pi0Policy(FlowPolicy):
    """pi0 (Black et al., 2024)."""

    model: Pi0Model
    model_class = Pi0Model
    layout = Pi0Layout()
    family = "pi0"
    place = "centre"

    def groups(self, index: int, block: Block) -> Sequence[Group]:
        return list(paligemma_groups(index, block))

    def lerobot_form(self, folder: Path, vlm: str | None) -> Exported:
        prompt = {"registry_name": "pi0_new_line_processor", "config": {}}
        config = self.model.config
        return exported(self, config, lerobot_fields(config), [prompt], vlm or TOKENIZER)


FAMILY = Pi0Policy
