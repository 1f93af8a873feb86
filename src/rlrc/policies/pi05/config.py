"""The config of a pi0.5 policy."""

from rlrc.policies.flow.config import FlowConfig


class Pi05Config(FlowConfig):
    """pi0.5 at any size; see `FlowConfig`."""

    model_type = "rlrc_pi05"
