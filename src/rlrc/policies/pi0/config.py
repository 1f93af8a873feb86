"""The config of a pi0 policy."""

from rlrc.policies.flow.config import FlowConfig
from rlrc.policies.flow.schema import StateFields


class Pi0Config(FlowConfig):
    """pi0 at any size; see `FlowConfig`."""

    model_type = "rlrc_pi0"

    @classmethod
    def fields(cls) -> type[StateFields]:
        """The schema of its config.json."""
        return StateFields
