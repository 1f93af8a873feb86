"""The published files of OpenVLA, at its size and in small."""

from typing import Any

from rlrc.policies.folder import Published
from rlrc.policies.openvla.config import OpenVLAConfig
from rlrc.policies.openvla.model import OpenVLAForActionPrediction
from rlrc.policies.prismatic.layout import published_layout, trunk_config


def publish(preset: str) -> Published:
    """The files and the shapes of "openvla-7b" or "openvla-tiny"."""
    return published_layout(OpenVLAForActionPrediction, published_config(tiny=preset == "openvla-tiny"), README)


def published_config(tiny: bool = False) -> dict[str, Any]:
    """What `config.json` holds: the published fields, and in a tiny policy the shapes that differ."""
    own = {"architectures": [OpenVLAForActionPrediction.__name__], "model_type": OpenVLAConfig.model_type}
    return dict(sorted((trunk_config(tiny) | own).items()))


README = """\
Names, shapes and files are those of the published OpenVLA checkpoint, so that size, speed and memory are the real ones.
"""
