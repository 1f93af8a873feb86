"""The config of a pi0 policy."""

from rlrc.policies.flow.config import FlowConfig


class Pi0Config(FlowConfig):
    """pi0 at any size; see `FlowConfig`."""

    model_type = "rlrc_pi0"
