"""OpenVLA's shapes through transformers' own modules and `generate`: dense, pruned, compiled, packed by others."""

from typing import Any

import numpy as np
import rivals
import shapes
import torch
from either import any_in_float32, choose_for_each, widen_convolutions
from names import TRANSFORMERS, Run
from torch import nn
from transformers import LlamaForCausalLM, StaticCache

from rlrc.policies.openvla.model import OpenVLAForActionPrediction
from rlrc.policies.parts.decoder import HeterogeneousLlamaForCausalLM
from rlrc.policies.prismatic.config import PrismaticConfig
from rlrc.policies.values import Observation

TOKENS = 7
"""Tokens of an action."""
BF16 = "weights bf16, computed in bf16"
EITHER = "weights bf16, each linear layer computed in bf16 or float32, whichever is faster"
COMPILING: dict[str, Any] = {"mode": "reduce-overhead", "dynamic": False, "fullgraph": True}
"""Options for torch.compile: one graph a shape, and on a GPU its launches recorded (CUDA graphs)."""


class Towers(nn.Module):
    """Pictures to a decoder's inputs: both towers whole, and the projector."""

    def __init__(self, config: PrismaticConfig, device: str) -> None:
        from transformers import (
            Dinov2WithRegistersConfig,
            Dinov2WithRegistersModel,
            SiglipVisionConfig,
            SiglipVisionModel,
        )

        super().__init__()
        first, second = (
            {key: getattr(tower, key) for key in ("hidden_size", "num_hidden_layers", "num_attention_heads")}
            | {"image_size": tower.image_size, "patch_size": tower.patch_size}
            for tower in config.towers
        )
        dino = Dinov2WithRegistersConfig(**first)
        siglip = SiglipVisionConfig(**second, intermediate_size=config.towers[1].intermediate_size)
        self.dino = shapes.empty(lambda: Dinov2WithRegistersModel(dino), None, device)
        self.siglip = shapes.empty(lambda: SiglipVisionModel(siglip), None, device)
        self.projector = shapes.empty(lambda: OpenVLAForActionPrediction(config).projector, None, device)
        self.processor = shapes.processor(config)
        self.device = torch.device(device)
        self.before_patches = 1 + dino.num_register_tokens

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Pixels (1, 6, H, W) to the decoder's embeddings of the patches (1, P, hidden)."""
        features = [
            self.dino(pixels[:, :3], output_hidden_states=True).hidden_states[-2][:, self.before_patches :],
            self.siglip(pixels[:, 3:], output_hidden_states=True).hidden_states[-2],
        ]
        return self.projector(torch.cat(features, dim=-1))


class Transformers:
    """A policy of these towers and a decoder with the full head, sdpa, in bf16 or packed by another package.

    Args:
        text: config of the decoder.
        towers: of this policy alone if they are to be packed; policies in bf16 may share them.
        memory: weights for the decoder to lie in.
    """

    cameras = ("front",)
    state_width = 0
    actions_per_call = 1

    def __init__(self, run: Run, text: Any, towers: Towers, memory: shapes.Memory | None) -> None:
        self._towers, self.compiled = towers, run.compiled
        decoder = HeterogeneousLlamaForCausalLM if text.per_layer_config else LlamaForCausalLM
        self.llama: Any = shapes.empty(lambda: decoder(text), memory, towers.device.type)
        self._row: dict[str, Any] = {"multipliers": []}
        dense: list[nn.Module] = [towers, self.llama]
        if run.by != TRANSFORMERS:
            dense = [towers.projector, self.llama.lm_head]
            self._row["dtype"] = rivals.pack(run, [towers.dino, towers.siglip, self.llama.model], dense)
        if towers.device.type == "cpu":
            self._row["timed_layers"] = choose_for_each(dense)
            widen_convolutions(towers, towers.device)
        if run.by == TRANSFORMERS:
            self._row["dtype"] = EITHER if any_in_float32(dense) else BF16
        self._row["weight_bytes"] = rivals.weight_bytes(towers) + rivals.weight_bytes(self.llama)
        self._see: Any = towers
        self._cache: StaticCache | None = None
        if self.compiled:
            # Not in place, since other policies may share the towers.
            self._see = torch.compile(towers, **COMPILING)
            self.llama.model.compile(**COMPILING)
            self._row["compiled"] = "towers, prompt and tokens by torch.compile, with a static cache"

    @torch.no_grad()
    def act(self, observation: Observation) -> np.ndarray:
        """The tokens of an action (1, 7)."""
        embeddings = self._embeddings(observation)
        options: dict[str, Any] = {}
        if self.compiled:
            options = {"past_key_values": self._empty_cache(embeddings), "disable_compile": True}
        tokens = self.llama.generate(
            inputs_embeds=embeddings,
            attention_mask=torch.ones(embeddings.shape[:2], dtype=torch.long, device=embeddings.device),
            max_new_tokens=TOKENS,
            min_new_tokens=TOKENS,
            do_sample=False,
            **options,
        )
        return tokens.cpu().numpy()

    def _embeddings(self, observation: Observation) -> torch.Tensor:
        """The prompt's embeddings (1, T, hidden): BOS, the patches, the text."""
        inputs = self._towers.processor(observation, self.cameras).to(self._towers.device)
        assert inputs.pixel_values is not None
        image = self._see(inputs.pixel_values.to(self.llama.lm_head.weight.dtype))
        text = self.llama.get_input_embeddings()(inputs.input_ids)
        return torch.cat([text[:, :1], image, text[:, 1:]], dim=1)

    def _empty_cache(self, embeddings: torch.Tensor) -> StaticCache:
        """The one cache of all actions, emptied: compiled code and recorded launches are for tensors in one place."""
        if self._cache is None:
            text = self.llama.config
            self._cache = StaticCache(config=text, max_cache_len=embeddings.shape[1] + TOKENS)
            width = text.head_dim or text.hidden_size // text.num_attention_heads
            kind = (embeddings.dtype, embeddings.device)
            self._cache.early_initialization(1, text.num_key_value_heads, width, *kind)
        self._cache.reset()
        return self._cache

    def stages(self, _observation: Observation) -> None:
        """Nothing: no clock follows `generate`."""

    def work(self, _observation: Observation) -> None:
        """Nothing, as there are no stages."""

    def facts(self) -> dict[str, Any]:
        """Return what the row says of the policy."""
        return self._row
