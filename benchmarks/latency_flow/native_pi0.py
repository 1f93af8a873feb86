"""transformers' own pi0 (`PI0ForConditionalGeneration`): the same weights by another implementation."""

from pathlib import Path
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import PI0Config, PI0ForConditionalGeneration

from rlrc.bench import noise_observation, now, peak_resident
from rlrc.policies.checkpoint import outline
from rlrc.policies.flow.config import FlowConfig
from rlrc.policies.flow.inputs import FlowInputs

DECODER_FIELDS = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
VISION_FIELDS = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "patch_size")


def native_config(config: FlowConfig) -> PI0Config:
    """The same sizes in transformers' words."""
    text, expert, vision = config.text_config, config.expert_config, config.vision_config
    common = {"model_type": "gemma", "vocab_size": text.vocab_size, "head_dim": text.head_dim}
    sizes = {name: getattr(vision, name) for name in VISION_FIELDS}
    return PI0Config(
        vlm_config={
            "model_type": "paligemma",
            "text_config": common | {name: getattr(text, name) for name in DECODER_FIELDS},
            "vision_config": {
                "model_type": "siglip_vision_model",
                "image_size": vision.image_size,
                "vision_use_head": False,
                **sizes,
            },
            "projection_dim": text.hidden_size,
            "image_token_id": text.vocab_size,
        },
        dit_config=common | {name: getattr(expert, name) for name in DECODER_FIELDS},
        chunk_size=config.horizon,
        max_state_dim=config.padded_dim,
        max_action_dim=config.padded_dim,
        num_inference_steps=config.num_steps,
        min_period=config.min_period,
        max_period=config.max_period,
    )


def load_native(folder: Path, config: FlowConfig, dtype: torch.dtype = torch.float32) -> PI0ForConditionalGeneration:
    """The policy of a LeRobot folder, with transformers' own mapping of names.

    Args:
        config: of the same policy as rlrc has loaded it, for its sizes.

    Raises:
        SystemExit: a weight is missing, or one is left over.
    """
    model, told = PI0ForConditionalGeneration.from_pretrained(
        folder, config=native_config(config), dtype=dtype, output_loading_info=True
    )
    if told["missing_keys"] or told["unexpected_keys"]:
        raise SystemExit(f"transformers reads other weights: {sorted(told['missing_keys'] | told['unexpected_keys'])}")
    return model.eval()


def native_inputs(inputs: FlowInputs, config: FlowConfig) -> dict[str, Any]:
    """Model inputs of rlrc as transformers wants them: a token in the place of each of a picture's, and then the text;
    cameras that a row lacks have none."""
    assert inputs.pixel_values is not None
    rows, cameras = inputs.pixel_values.shape[:2]
    there = torch.ones(rows, cameras, dtype=torch.bool) if inputs.camera_mask is None else inputs.camera_mask
    words = torch.ones_like(inputs.input_ids, dtype=torch.bool) if inputs.text_mask is None else inputs.text_mask
    ids = []
    for row in range(rows):
        pictures = int(there[row].sum()) * config.tokens_of_picture
        ids.append(
            torch.cat([torch.full((pictures,), config.text_config.vocab_size), inputs.input_ids[row][words[row]]])
        )
    masks = [torch.ones_like(row) for row in ids]
    return {
        "input_ids": pad_sequence(ids, batch_first=True),
        "attention_mask": pad_sequence(masks, batch_first=True),
        "pixel_values": inputs.pixel_values,
        "pixel_attention_mask": there,
        "state": inputs.state,
    }


class Native:
    """transformers' own pi0 with the same weights, in bf16.

    Args:
        policy: the same in rlrc, whose weights are not needed: it prepares what the model reads.
        device: "cpu" or "cuda".
    """

    def __init__(self, folder: Path, policy: Any, device: str) -> None:
        self._policy, self._observation = policy, noise_observation(policy, 1)
        self._device = torch.device(device)
        self._model = load_native(folder, policy.model.config, torch.bfloat16).to(self._device)
        self.nbytes = sum(tensor.nbytes for tensor in self._model.state_dict().values())

    def timed(self) -> float:
        """Act once, from pictures to actions, and return the seconds."""
        started = now(self._device)
        state = self._policy.normalised_state(self._observation)
        inputs = self._policy.processor(self._observation, state, torch.device("cpu"))
        given = {key: value.to(self._device) for key, value in native_inputs(inputs, self._policy.model.config).items()}
        for name in ("pixel_values", "state"):
            given[name] = given[name].to(torch.bfloat16)
        chunk = self._model.sample_actions(**given).float().cpu()
        self._policy.to_physical(chunk[..., : len(self._policy.spec.action)].numpy())
        return now(self._device) - started


def native_peak(folder: Path, device: str) -> int:
    """The most memory (bytes) that this process, which must be a fresh one, has taken when the policy has acted: its
    resident size, or on a GPU its tensors."""
    native = Native(folder, outline(folder), device)
    native.timed()
    return torch.cuda.max_memory_allocated() if device == "cuda" else peak_resident()
