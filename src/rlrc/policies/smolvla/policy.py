"""SmolVLA as a policy."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rlrc.policies.flow.lerobot import exported
from rlrc.policies.flow.policy import FlowPolicy
from rlrc.policies.groups import Block, Group
from rlrc.policies.smolvla.groups import smolvla_groups
from rlrc.policies.smolvla.layout import SmolVLALayout
from rlrc.policies.smolvla.lerobot import held_config, lerobot_fields, vlm_for
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

    def lerobot_form(self, folder: Path, vlm: str | None) -> Exported:
        held = held_config(self.model.config)
        described = vlm_for(held, folder, vlm)
        newline = {"registry_name": "smolvla_new_line_processor", "config": {}}
        form = exported(self, held, lerobot_fields(held, described.name), [newline], described.name)
        return replace(form, files=form.files | described.files, copies=described.copies)


FAMILY = SmolVLAPolicy
