"""The families of policies that rlrc reads, by name. Nothing is imported here: to look them up is quick."""

from typing import NamedTuple


class Family(NamedTuple):
    """Where the code of a family lies, and what transformers' Auto classes call it."""

    package: str
    """Holds `policy`, `model`, `layout` and `tiny`."""
    model_type: str
    """Of its config.json."""
    config_class: str
    """In its module `model`."""
    model_class: str
    """In its module `model`."""


FAMILIES = {
    "openvla": Family("rlrc.policies.openvla", "openvla", "OpenVLAConfig", "OpenVLAForActionPrediction"),
    "openvla-oft": Family("rlrc.policies.oft", "openvla_oft", "OFTConfig", "OFTForActionPrediction"),
}
PRESETS = {"openvla-7b": "openvla", "openvla-tiny": "openvla"}
"""Sizes of random checkpoints (`make-random`) -> the family that they belong to."""
