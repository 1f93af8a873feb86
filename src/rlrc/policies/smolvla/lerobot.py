"""SmolVLA in LeRobot's class, whose layers have one shape each, and whose VLM is described by a folder of its own.

Layers that pruning has left smaller than others get heads and channels of zeros, which change no action.
"""

from fnmatch import fnmatch
from pathlib import Path
from typing import Any, NamedTuple

from rlrc.errors import UserError
from rlrc.policies.flow.config import FlowConfig
from rlrc.policies.flow.lerobot import refuse_biases
from rlrc.policies.flow.published import TOKENIZER_FILES
from rlrc.policies.locate import CONFIG_FILE, on_disk
from rlrc.policies.smolvla.layout import PUBLISHED_VLM, read_vlm
from rlrc.reading import read_json

VLM_FOLDER = "vlm"
"""Folder within the policy's that describes a VLM whose layers are smaller than the published ones."""
VLM_FILES = (*TOKENIZER_FILES, "*processor_config.json")
"""Files of a VLM that LeRobot reads: all but its weights."""


class Vlm(NamedTuple):
    """The VLM that LeRobot is told of."""

    name: str
    """Its folder or hub id."""
    files: dict[str, Any]
    """JSON files to write, by name."""
    copies: dict[str, Path]
    """Files to copy, by name."""


def held_config(config: FlowConfig) -> Any:
    """The config of the smallest shape that LeRobot's class can hold and that the policy fits into.

    All layers of the language model and of the expert have as many heads as the layer that has most, for LeRobot gives
    both stacks the heads of the VLM. The language model's layers have the channels of its widest one, and the expert's
    those that LeRobot derives from its width.

    Raises:
        UserError: there is none.
    """
    text, expert = config.text_config, config.expert_config
    layers = text.num_hidden_layers
    if config.cross_layers != [layer for layer in range(layers) if layer % 2]:
        raise UserError(
            "LeRobot's SmolVLA has experts that read the language model alone in every second layer, from layer 1 on; "
            f"here they are layers {config.cross_layers}: remove neighbouring layers in pairs, or the last ones"
        )
    for stack, told in ((text, "a language model"), (expert, "an expert")):
        refuse_biases(stack, told)
    shapes = [*text.per_layer_config, *expert.per_layer_config]
    heads = {
        name: max(getattr(shape, name) for shape in shapes) for name in ("num_attention_heads", "num_key_value_heads")
    }
    derived = 256 * -(-int(4 * int(2 * expert.hidden_size / 3)) // 256)
    widest = max(shape.intermediate_size for shape in expert.per_layer_config)
    if widest > derived:
        raise UserError(
            f"LeRobot's SmolVLA gives an expert of width {expert.hidden_size} {derived} MLP channels, and this one has "
            f"{widest}; serve the policy with rlrc"
        )
    with_channels = list(text.per_layer_config)[:-1] or text.per_layer_config  # nothing reads those of the last layer
    of_text = max(shape.intermediate_size for shape in with_channels)
    values = config.to_dict()
    for field, channels in (("text_config", of_text), ("expert_config", derived)):
        values[field] |= heads | {"intermediate_size": channels, "per_layer_config": None}
    return type(config)(**values)


def lerobot_fields(config: FlowConfig, vlm: str) -> dict[str, Any]:
    """Fields of LeRobot's config.json for a policy of this shape.

    Args:
        vlm: folder or hub id of the VLM whose config gives LeRobot the sizes.
    """
    size = config.vision_config.image_size
    return {
        "resize_imgs_with_padding": [size, size],
        "num_steps": config.num_steps,
        "vlm_model_name": vlm,
        "load_vlm_weights": False,
        "add_image_special_tokens": False,
        "attention_mode": "cross_attn",
        "prefix_length": 0,
        "pad_language_to": "max_length",
        "num_expert_layers": 0,
        "num_vlm_layers": config.text_config.num_hidden_layers,
        "self_attn_every_n_layers": 2,
        "expert_width_multiplier": config.expert_config.hidden_size / config.text_config.hidden_size,
        "adapt_to_pi_aloha": False,
    }


def vlm_for(held: FlowConfig, folder: Path, vlm: str | None) -> Vlm:
    """The VLM whose config gives LeRobot the sizes of the language model: the one it was made from where it still has
    them, else a folder within the policy's.

    Args:
        folder: where the policy will lie.
        vlm: folder or hub id of the VLM that the policy was made from.

    Raises:
        UserError: that VLM has another width, or its files cannot be read.
    """
    name, text = vlm or PUBLISHED_VLM, held.text_config
    found = read_vlm(name).text_config
    head_dim = found.head_dim or found.hidden_size // found.num_attention_heads
    if (text.head_dim, text.hidden_size) != (head_dim, found.hidden_size):
        raise UserError(
            f"{name}: this VLM has heads of {head_dim} and a width of {found.hidden_size}, and the policy was made "
            f"from one with heads of {text.head_dim} and a width of {text.hidden_size}; name that one with --vlm"
        )
    sizes = {size: getattr(text, size) for size in ("num_attention_heads", "num_key_value_heads", "intermediate_size")}
    if all(getattr(found, size) == number for size, number in sizes.items()):
        return Vlm(name, {}, {})
    source = on_disk(name, VLM_FILES)
    described = read_json(source / CONFIG_FILE)
    described["text_config"] |= sizes | {"head_dim": text.head_dim}
    copies = {
        f"{VLM_FOLDER}/{path.name}": path
        for path in source.iterdir()
        if path.name != CONFIG_FILE and any(fnmatch(path.name, pattern) for pattern in VLM_FILES)
    }
    return Vlm(str((folder / VLM_FOLDER).resolve()), {f"{VLM_FOLDER}/{CONFIG_FILE}": described}, copies)
