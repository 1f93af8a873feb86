"""The vision tower as pruning sees it: its layers as a stack, and pictures on their way through them."""

import math
from functools import partial
from typing import Any

import torch

from rlrc.policies.flow.inputs import FlowInputs
from rlrc.policies.flow.model import FlowModel
from rlrc.policies.flow.vision import LAYERS, VisionLayer
from rlrc.policies.groups import VISION
from rlrc.policies.parts.tokens import refuse_selection
from rlrc.policies.values import Stack, States, VisionPass


def vision_stack(model: FlowModel) -> Stack:
    """The layers of the model's tower."""
    config, prefix = model.config.vision_config, f"{model.names.vision}.{LAYERS}"
    layers: Any = model.get_submodule(prefix)
    return Stack(VISION, prefix, layers, config, lambda c: c.vision_config, partial(VisionLayer, config))


def vision_pass(model: FlowModel, inputs: FlowInputs) -> VisionPass:
    """The pictures of N rows before the layers of the tower; those that are not there are left out."""
    refuse_selection(model.config.reduction)
    pixels = inputs.pixel_values
    assert pixels is not None, "pictures before the tower"
    tower: Any = model.get_submodule(model.names.vision)
    cameras, tokens_of_one = pixels.shape[1], model.config.tokens_of_picture
    there = torch.ones(pixels.shape[:2], dtype=torch.bool, device=pixels.device)
    there = (there if inputs.camera_mask is None else inputs.camera_mask).flatten()
    pictures = pixels.flatten(0, 1).to(model.dtype)[there]
    scale = math.sqrt(model.config.text_config.hidden_size) if model.picture_scale else 1.0

    def share(entering: torch.Tensor) -> torch.Tensor:
        """The pictures stand first, camera by camera."""
        tokens = entering[:, : cameras * tokens_of_one].unflatten(1, (cameras, tokens_of_one))
        return tokens.flatten(0, 1)[there]

    return VisionPass(
        States({VISION: tower.embeddings(pictures)}),
        lambda states: scale * model.tokens_from(tower.post_layernorm(states[VISION])).embeddings,
        share,
    )
