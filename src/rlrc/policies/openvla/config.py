"""The config of an OpenVLA policy (Kim et al., 2024)."""

from rlrc.policies.prismatic.config import PrismaticConfig


class OpenVLAConfig(PrismaticConfig):
    """OpenVLA at any size: one action a call, as tokens that are decoded one by one."""

    model_type = "openvla"
