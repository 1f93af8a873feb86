"""One of the trunk's two vision towers alone: what joins them, and the files of a policy without the other one."""

from collections.abc import Callable
from typing import Any, TypeVar

from rlrc.errors import UserError
from rlrc.policies.parts.towers import JoinedTowers
from rlrc.policies.prismatic.config import PrismaticConfig
from rlrc.policies.prismatic.vision import lighter_tower

Config = TypeVar("Config", bound=PrismaticConfig)
PREFIXES = ("vision_backbone.featurizer", "vision_backbone.fused_featurizer")
BY_TOWER = (
    *("timm_model_ids", "timm_override_act_layers", "image_sizes"),  # config.json
    *("input_sizes", "interpolations", "means", "stds"),  # preprocessor_config.json
    *("tvf_crop_params", "tvf_normalize_params", "tvf_resize_params"),
)
"""Fields of both files that have an entry for each tower, where they are there."""
FEATURE_READER = "projector.fc1"
"""Dotted name of the linear layer that reads the features of the towers."""
FUSED = "use_fused_vision_backbone"
"""The field of both files by which published code knows that there are two towers."""


def joined_towers(config: PrismaticConfig, alone: Callable[[int], Any]) -> JoinedTowers:
    """The two towers of a policy of this config.

    Args:
        alone: see `JoinedTowers`.

    Raises:
        UserError: there is one alone, or layers are quantized.
    """
    if getattr(config, "quantization_config", None) is not None:
        raise UserError("tower: the policy is quantized, and packed weights cannot be cut; prune first, quantize last")
    if len(config.towers) < 2:
        raise UserError("tower: the policy has one vision tower alone, which has to stay")
    first, second = config.towers
    widths = first.hidden_size, second.hidden_size
    return JoinedTowers(PREFIXES, widths, config.patches_of_token, FEATURE_READER, alone)


def config_of_one(config: Config, number: int) -> Config:
    """The config of a policy that has one of two towers, and the other layers as they are."""
    values = of_one(config.to_dict(), number)
    values["vision_towers"] = [lighter_tower(config.towers[number], None)]
    values["projector_size"] = config.projector_size or 4 * config.features
    return type(config).from_dict(values)


def of_one(values: dict[str, Any], number: int) -> dict[str, Any]:
    """The fields of a file with the entries of one of two towers."""
    both = [name for name in BY_TOWER if isinstance(values.get(name), list) and len(values[name]) == 2]
    fused = {FUSED: False} if FUSED in values else {}
    return values | {name: [values[name][number]] for name in both} | fused
