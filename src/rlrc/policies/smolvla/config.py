"""The config of a SmolVLA policy."""

from rlrc.policies.flow.config import FlowConfig


class SmolVLAConfig(FlowConfig):
    """SmolVLA at any size; see `FlowConfig`."""

    model_type = "rlrc_smolvla"
