"""pi0 as a policy."""

from rlrc.policies.flow.paligemma_policy import PaligemmaPolicy
from rlrc.policies.pi0.layout import Pi0Layout
from rlrc.policies.pi0.model import Pi0Model


class Pi0Policy(PaligemmaPolicy):
    """pi0 (Black et al., 2024)."""

    model: Pi0Model
    model_class = Pi0Model
    layout = Pi0Layout()
    family = "pi0"
    prompt_step = "pi0_new_line_processor"


FAMILY = Pi0Policy
