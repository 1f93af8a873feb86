"""Pruning's view of a plain Llama in memory, calibrated on token ids; what the fixtures of other codes were made of."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM

from rlrc.policies.groups import DECODER, Block, Group, llama_groups
from rlrc.policies.parts.config import DecoderConfig
from rlrc.policies.parts.decoder import HeterogeneousLlamaForCausalLM, attention_mask
from rlrc.policies.values import States
from rlrc.prune.method import Plan, Source, Target
from rlrc.prune.stream import Calibration


def blocks_of(model: LlamaForCausalLM) -> list[Block]:
    return [Block({DECODER: layer}) for layer in model.model.layers]


def coupled_groups(model: LlamaForCausalLM) -> list[Group]:
    return [group for index, block in enumerate(blocks_of(model)) for group in llama_groups(index, block)]


def source_of(model: LlamaForCausalLM, ids: torch.Tensor | None = None, **target: Any) -> Source:
    """`ids` (N, T) are the calibration samples, `target` the fields of a Target."""
    source = Source(blocks_of(model), coupled_groups(model), Target(**target))
    if ids is None:
        return source

    def loss(states: States, rows: slice) -> torch.Tensor:
        logits = model.lm_head(model.model.norm(states[DECODER]))[:, :-1].flatten(0, 1)
        return F.cross_entropy(logits, ids[rows, 1:].flatten(), reduction="sum") / ids[:, 1:].numel()

    with torch.no_grad():
        embeddings = model.model.embed_tokens(ids)
    mask, positions = torch.ones_like(ids, dtype=torch.bool), torch.arange(ids.shape[1]).expand(ids.shape)

    def run(block: Block, states: States, context: Mapping[str, torch.Tensor]) -> States:
        hidden = states[DECODER]
        seen = attention_mask(context["mask"], True, hidden.dtype)
        rotary = model.model.rotary_emb(hidden, position_ids=context["positions"])
        layer = block.layer(DECODER)
        return States({DECODER: layer(hidden, attention_mask=seen, position_embeddings=rotary)})

    context = {"mask": mask, "positions": positions}
    states = States({DECODER: embeddings})
    return replace(source, calibration=Calibration(states, {DECODER: mask}, context, run, loss))


def apply(plan: Plan, model: LlamaForCausalLM) -> LlamaForCausalLM:
    """The model that `plan` makes of `model`, built anew from the config that it would be saved with."""
    layers = [model.model.layers[index] for index in plan.layers]
    for old, layer in zip(plan.layers, layers, strict=True):
        plan.edit(old, Block({DECODER: layer}))
    config = DecoderConfig(**model.config.to_dict())
    config.num_hidden_layers = len(layers)
    config.per_layer_config = {
        new: plan.shapes[old, DECODER] for new, old in enumerate(plan.layers) if (old, DECODER) in plan.shapes
    } or None
    config.output_bias = plan.output_bias
    pruned = HeterogeneousLlamaForCausalLM(config).eval()
    state = {name: tensor for name, tensor in model.state_dict().items() if ".layers." not in name}
    for new, layer in enumerate(layers):
        state |= {f"model.layers.{new}.{name}": tensor for name, tensor in layer.state_dict().items()}
    pruned.load_state_dict(state)
    return pruned


class LlamaFixture:
    """A folder of reference tensors: `cases` by name, and the model that they were computed with."""

    def __init__(self, folder: Path) -> None:
        self.meta = json.loads((folder / "meta.json").read_text())
        self.cases = load_file(folder / "cases.safetensors")
        self._weights = {name: tensor.float() for name, tensor in load_file(folder / "model.safetensors").items()}

    @property
    def ids(self) -> torch.Tensor:
        return self.cases["calibration.input_ids"]

    def model(self) -> LlamaForCausalLM:
        known = {key: value for key, value in self.meta["config"].items() if not key.startswith("calibration_")}
        rope = {"rope_type": "default", "rope_theta": known.pop("rope_theta")}
        model = LlamaForCausalLM(LlamaConfig(**known, rope_parameters=rope, tie_word_embeddings=False))
        model.load_state_dict(self._weights)
        return model.eval()

    def logits(self, model: LlamaForCausalLM) -> torch.Tensor:
        with torch.no_grad():
            return model(self.cases["eval.input_ids"], use_cache=False).logits
