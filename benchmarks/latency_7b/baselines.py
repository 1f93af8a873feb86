"""OpenVLA's shapes through transformers' own modules and `generate`: dense, pruned, compiled, packed by others."""

from typing import Any

import numpy as np
import rivals
import shapes
import torch
from either import choose_for_each
from names import COMPILED, TRANSFORMERS, run_of
from torch import nn
from transformers import LlamaForCausalLM

from rlrc.packed.cpu.processor import multiplies_bfloat16
from rlrc.policies.openvla.model import OpenVLAForActionPrediction
from rlrc.policies.parts.decoder import HeterogeneousLlamaForCausalLM
from rlrc.policies.prismatic.config import PrismaticConfig
from rlrc.policies.values import Observation

DECODE_STEP = "the decode step (torch.compile with inductor, static cache); prompt and picture are not compiled"
EVERYTHING = "both towers, prompt and decode step (torch.compile with inductor, static cache)"
BF16 = "weights bf16, computed in bf16"
EITHER = "weights bf16, each linear layer computed in bf16 or float32, whichever is faster"


class Towers:
    """Pictures and text to a decoder's inputs: both towers whole, and the projector."""

    def __init__(self, config: PrismaticConfig) -> None:
        from transformers import (
            Dinov2WithRegistersConfig,
            Dinov2WithRegistersModel,
            SiglipVisionConfig,
            SiglipVisionModel,
        )

        first, second = (
            {key: getattr(tower, key) for key in ("hidden_size", "num_hidden_layers", "num_attention_heads")}
            | {"image_size": tower.image_size, "patch_size": tower.patch_size}
            for tower in config.towers
        )
        dino = Dinov2WithRegistersConfig(**first)
        siglip = SiglipVisionConfig(**second, intermediate_size=config.towers[1].intermediate_size)
        self.dino = shapes.empty(lambda: Dinov2WithRegistersModel(dino))
        self.siglip = shapes.empty(lambda: SiglipVisionModel(siglip))
        self.projector = shapes.empty(lambda: OpenVLAForActionPrediction(config).projector)
        self.processor = shapes.processor(config)
        self.before_patches = 1 + dino.num_register_tokens

    def read(self, observation: Observation, embed: nn.Module, dtype: torch.dtype) -> torch.Tensor:
        """Embeddings (1, T, hidden): BOS, the patches, the prompt."""
        inputs = self.processor(observation, list(observation.images))
        assert inputs.pixel_values is not None
        pixels = inputs.pixel_values.to(dtype)
        features = [
            self.dino(pixels[:, :3], output_hidden_states=True).hidden_states[-2][:, self.before_patches :],
            self.siglip(pixels[:, 3:], output_hidden_states=True).hidden_states[-2],
        ]
        image = self.projector(torch.cat(features, dim=-1))
        text = embed(inputs.input_ids)
        return torch.cat([text[:, :1], image, text[:, 1:]], dim=1)


class Transformers:
    """A policy of these towers and a decoder with the full head, sdpa, in bf16 or packed by another package."""

    cameras = ("front",)
    state_width = 0
    actions_per_call = 1

    def __init__(self, name: str, config: PrismaticConfig, towers: Towers, memory: shapes.Memory | None) -> None:
        self._name, self._towers = name, towers
        text = config.text_config
        decoder = HeterogeneousLlamaForCausalLM if text.per_layer_config else LlamaForCausalLM
        self.llama: Any = shapes.empty(lambda: decoder(text), memory)
        self.row: dict[str, Any] = {}
        run = run_of(name)
        if run.by == TRANSFORMERS:
            self._choose_dtype()
        else:
            self.row["dtype"] = rivals.pack(run, [towers.dino, towers.siglip, self.llama.model], self._others)
        self._generating: dict[str, Any] = {}
        if name == COMPILED:
            self._compile_decode_step()
        elif rivals.wants_compiling(run):
            self._compile_everything()

    @property
    def _others(self) -> list[nn.Module]:
        """Parts whose linear layers nobody packs."""
        return [self._towers.projector, self.llama.lm_head]

    @property
    def _parts(self) -> list[nn.Module]:
        return [self._towers.dino, self._towers.siglip, self._towers.projector, self.llama]

    def _choose_dtype(self) -> None:
        if multiplies_bfloat16():
            self.row["dtype"] = BF16
        else:
            self.row |= {"dtype": EITHER, "timed_layers": choose_for_each(self._parts)}

    def _compile_decode_step(self) -> None:
        from transformers import CompileConfig

        compiling = CompileConfig(fullgraph=True, dynamic=False, mode="default")
        compiling._compile_all_devices = True  # without it, transformers compiles for accelerators alone
        self._generating = {"cache_implementation": "static", "compile_config": compiling}
        self.row["compiled"] = DECODE_STEP

    def _compile_everything(self) -> None:
        for part in (self._towers.dino, self._towers.siglip, self.llama.model):
            part.compile(dynamic=False)
        self._generating = {"cache_implementation": "static"}
        self.row["compiled"] = EVERYTHING

    @torch.no_grad()
    def act(self, observation: Observation) -> np.ndarray:
        """Seven tokens (1, 7)."""
        embeddings = self._towers.read(observation, self.llama.get_input_embeddings(), self.llama.lm_head.weight.dtype)
        tokens = self.llama.generate(
            inputs_embeds=embeddings,
            attention_mask=torch.ones(embeddings.shape[:2], dtype=torch.long),
            max_new_tokens=7,
            min_new_tokens=7,
            do_sample=False,
            **self._generating,
        )
        return tokens.numpy()

    def stages(self, _observation: Observation) -> None:
        """Nothing: no clock follows `generate`."""

    def facts(self) -> dict[str, Any]:
        """What the row says of the policy."""
        bytes_of = sum(rivals.weight_bytes(part) for part in self._parts)
        return self.row | {"multipliers": [], "weight_bytes": bytes_of}
