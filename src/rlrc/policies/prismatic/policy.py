"""The base of OpenVLA and OpenVLA-OFT as policies: inputs, normalisation, the decoder's layers, saving."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch

from rlrc.errors import UserError
from rlrc.policies.folder import Reading
from rlrc.policies.groups import DECODER, Block, Group, llama_groups
from rlrc.policies.parts.decoder import attention_mask, decoder_layer
from rlrc.policies.parts.towers import JoinedTowers
from rlrc.policies.prismatic.checkpoint import Supplement, read_outline, rows_of
from rlrc.policies.prismatic.inputs import DecoderInputs, PrismaticInputs
from rlrc.policies.prismatic.model import Prismatic
from rlrc.policies.prismatic.processor import Processor
from rlrc.policies.prismatic.published import published_parameters
from rlrc.policies.prismatic.towers import FEATURE_READER, config_of_one, joined_towers, of_one
from rlrc.policies.prismatic.vision import lighter_tower, vision_pass, vision_stacks
from rlrc.policies.statistics import Entry, Kind, action_statistics, clipped, normalise, unnormalise
from rlrc.policies.stored import StoredPolicy
from rlrc.policies.values import LanguageModel, Observation, Stack, States, TeacherForced, VisionPass

PARTS = {
    "decoder": "language_model.model.layers",
    "vision": "vision_backbone",
    "projector": "projector",
    "embedding": "language_model.model.embed_tokens",
    "head": "language_model.lm_head",
}


class PrismaticPolicy(StoredPolicy):
    """A policy on the trunk of `prismatic/model.py`."""

    model: Any
    processor: Processor
    model_class: ClassVar[type[Prismatic]]
    parts = PARTS
    feature_reader = FEATURE_READER
    causal: ClassVar[bool]
    """True where a position of the decoder sees itself and those before it alone."""

    # -- reading -------------------------------------------------------------------------------------------------------

    @classmethod
    def outline(cls, folder: Path, reading: Reading) -> Self:
        found = read_outline(cls.model_class, folder, reading, cls.supplement(folder, reading))
        try:
            policy = cls(found.model, found.processor, reading.unnorm_key, found.lineage)
        except UserError as error:
            raise UserError(f"{found.statistics_origin}: {error}") from error
        policy.weights = found.weights
        return policy

    @classmethod
    def supplement(cls, folder: Path, reading: Reading) -> Supplement | None:
        """Read what a published folder holds beside config.json and safetensors files; None where that is all.

        Raises:
            UserError: a file is damaged, or the folder and `reading.spec` do not fit each other.
        """
        return None

    def rows_of(self, name: str) -> slice:
        assert self.weights is not None
        return rows_of(name, self.weights, self.model.config)

    # -- acting --------------------------------------------------------------------------------------------------------

    def prepare(self, observation: Observation) -> PrismaticInputs:
        return self.processor(observation, self.spec.cameras, self.device)

    @property
    def image_size(self) -> int:
        return self.processor.images.image_size

    @property
    def frame_size(self) -> tuple[int, int] | None:
        return self.processor.images.one_size

    def crop_pictures(self) -> None:
        self.processor.images = replace(self.processor.images, center_crop=True)

    # -- normalisation -------------------------------------------------------------------------------------------------

    def action_statistics(self) -> dict[str, np.ndarray]:
        return self.statistics_of("action", self.model.config.action_dim)

    def statistics_of(self, entry: Entry, count: int, kind: Kind = "quantiles") -> dict[str, np.ndarray]:
        """The statistics in use of actions or states of `count` numbers; errors name the policy's folder."""
        try:
            return action_statistics(self.norm_stats, self.unnorm_key, count, kind, entry)
        except UserError as error:
            raise error if self.source is None else UserError(f"{self.source}: {error}") from None

    def outside(self, values: np.ndarray, entry: Entry) -> np.ndarray:
        return clipped(values, self.action_statistics())

    def to_physical(self, actions: np.ndarray) -> np.ndarray:
        return unnormalise(actions, self.action_statistics()).astype(np.float32)

    def to_normalised(self, actions: np.ndarray) -> np.ndarray:
        return normalise(actions, self.action_statistics())

    @property
    def critic_width(self) -> int:
        return self.model.config.text_config.hidden_size

    # -- changing ------------------------------------------------------------------------------------------------------

    def stacks(self) -> Sequence[Stack]:
        text = self.model.config.text_config
        return [
            Stack(
                name=DECODER,
                prefix=PARTS["decoder"],
                layers=self.model.language_model.model.layers,
                config=text,
                config_in=lambda config: config.text_config,
                new_layer=partial(decoder_layer, text),
            )
        ]

    def vision_stacks(self) -> Sequence[Stack]:
        return vision_stacks(self.model.vision_backbone, self.model.config.towers)

    def vision_pass(self, inputs: PrismaticInputs) -> VisionPass:
        return vision_pass(self.model, inputs)

    def joined_towers(self) -> JoinedTowers:
        return joined_towers(self.model.config, self._with_tower)

    def _with_tower(self, number: int) -> Self:
        """The policy with one of two vision towers, as an outline."""
        config, processor = config_of_one(self.model.config, number), self.processor
        policy = self.rebuilt(config)
        images = replace(processor.images, config=of_one(processor.images.config, number))
        policy.processor = Processor(images, processor.tokenizer, config)
        return policy

    def reshape(self, config: Any, layers: Sequence[int], shapes: Mapping[str, Sequence[dict[str, int]]]) -> None:
        stacks = self.vision_stacks()
        super().reshape(config, layers, {DECODER: shapes[DECODER]} if DECODER in shapes else {})
        if shapes.keys() & {stack.name for stack in stacks}:
            config.vision_towers = [lighter_tower(stack.config, shapes.get(stack.name)) for stack in stacks]

    @property
    def language_model(self) -> LanguageModel:
        return LanguageModel(PARTS["embedding"], "language_model.model.norm", PARTS["head"])

    def groups(self, index: int, block: Block) -> Sequence[Group]:
        return list(llama_groups(index, block))

    def step(
        self, block: Block, states: States, context: Mapping[str, torch.Tensor], causal: bool | None = None
    ) -> States:
        hidden, positions = states[DECODER], context["positions"]
        rotary = self.model.language_model.model.rotary_emb.to(hidden.device)
        seen = attention_mask(context["mask"], self.causal if causal is None else causal, hidden.dtype)
        after = block.layer(DECODER)(
            hidden,
            attention_mask=seen,
            position_ids=positions,
            position_embeddings=rotary(hidden, position_ids=positions),
        )
        return States({DECODER: after})

    def entering(self, sequence: DecoderInputs, target: torch.Tensor) -> TeacherForced:
        """A sequence as what enters the layers, to predict a target (N, H, D)."""
        positions = sequence.positions
        there = torch.ones_like(positions, dtype=torch.bool) if sequence.mask is None else sequence.mask.bool()
        context = {"mask": there, "positions": positions}
        return TeacherForced(States({DECODER: sequence.embeddings}), {DECODER: there}, context, target)

    @property
    def published_parameters(self) -> int:
        return published_parameters(self.model_class, self.model.config)
