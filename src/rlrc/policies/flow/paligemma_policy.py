"""What pi0 and pi0.5 have in common as policies: PaliGemma, and how LeRobot saves it."""

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from rlrc.policies.flow.lerobot import exported
from rlrc.policies.flow.paligemma_groups import paligemma_groups
from rlrc.policies.flow.paligemma_layout import TOKENIZER, lerobot_fields
from rlrc.policies.flow.policy import FlowPolicy
from rlrc.policies.groups import Block, Group
from rlrc.policies.values import Exported


class PaligemmaPolicy(FlowPolicy):
    """Base of both."""

    place = "centre"
    prompt_step: ClassVar[str]
    """LeRobot's name of the step that makes the prompt."""

    def groups(self, index: int, block: Block) -> Sequence[Group]:
        return list(paligemma_groups(index, block))

    def lerobot_form(self, folder: Path, vlm: str | None) -> Exported:
        config = self.model.config
        prompt = {"registry_name": self.prompt_step, "config": {}}
        return exported(self, config, lerobot_fields(config), [prompt], vlm or TOKENIZER)
