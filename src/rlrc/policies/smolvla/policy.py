"""SmolVLA as a policy."""

from rlrc.policies.flow.policy import FlowPolicy
from rlrc.policies.smolvla.layout import SmolVLALayout
from rlrc.policies.smolvla.model import SmolVLAModel


class SmolVLAPolicy(FlowPolicy):
    """SmolVLA (Shukor et al., 2025)."""

    model: SmolVLAModel
    model_class = SmolVLAModel
    layout = SmolVLALayout()
    family = "smolvla"
    place = "right-bottom"


FAMILY = SmolVLAPolicy
