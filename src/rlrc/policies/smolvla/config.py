"""The config of a SmolVLA policy."""

from rlrc.policies.flow.config import FlowConfig
from rlrc.policies.flow.schema import StateFields


class SmolVLAConfig(FlowConfig):
    """SmolVLA at any size; see `FlowConfig`."""

    model_type = "rlrc_smolvla"

    @classmethod
    def fields(cls) -> type[StateFields]:
        """The schema of its config.json."""
        return StateFields
