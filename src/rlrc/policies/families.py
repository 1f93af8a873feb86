"""The families of policies that rlrc reads, by name. Nothing is imported here: to look them up is quick."""

from typing import NamedTuple


class Family(NamedTuple):
    """The code of one family, and its names in transformers' Auto classes."""

    package: str
    """Holds `policy`, `model`, `layout` and `tiny`."""
    model_type: str
    """The field of this name in its config.json."""
    config_class: str
    """Name of the config's class in its module `model`."""
    model_class: str
    """Name of the model's class in its module `model`."""


FAMILIES = {
    "openvla": Family("rlrc.policies.openvla", "openvla", "OpenVLAConfig", "OpenVLAForActionPrediction"),
    "openvla-oft": Family("rlrc.policies.oft", "openvla_oft", "OFTConfig", "OFTForActionPrediction"),
    "pi0": Family("rlrc.policies.pi0", "rlrc_pi0", "Pi0Config", "Pi0Model"),
    "pi05": Family("rlrc.policies.pi05", "rlrc_pi05", "Pi05Config", "Pi05Model"),
    "smolvla": Family("rlrc.policies.smolvla", "rlrc_smolvla", "SmolVLAConfig", "SmolVLAModel"),
}
PRESETS = {
    "openvla-7b": "openvla",
    "openvla-tiny": "openvla",
    "openvla-oft-7b": "openvla-oft",
    "openvla-oft-tiny": "openvla-oft",
    "pi0": "pi0",
    "pi0-tiny": "pi0",
    "pi05": "pi05",
    "pi05-tiny": "pi05",
    "smolvla": "smolvla",
    "smolvla-tiny": "smolvla",
}
"""Sizes of random checkpoints (`make-random`) -> the family that they belong to."""
