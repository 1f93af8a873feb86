"""The base of OpenVLA and OpenVLA-OFT as policies: inputs, normalisation, the decoder's layers, saving."""

from abc import abstractmethod
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch

from rlrc.errors import UserError
from rlrc.policies.contract import Policy
from rlrc.policies.folder import Reading
from rlrc.policies.graphs import Graphs
from rlrc.policies.prismatic.checkpoint import Supplement, empty_model, fill, read_outline, rows_of
from rlrc.policies.prismatic.inputs import PrismaticInputs
from rlrc.policies.prismatic.model import Prismatic
from rlrc.policies.prismatic.processor import Processor
from rlrc.policies.prismatic.published import published_parameters
from rlrc.policies.prismatic.weights import Weights
from rlrc.policies.saving import extend_lineage, write_policy
from rlrc.policies.statistics import Kind, action_statistics, normalise, unnormalise
from rlrc.policies.values import Observation, PolicySpec, Stack

PARTS = {
    "decoder": "language_model.model.layers",
    "vision": "vision_backbone",
    "projector": "projector",
    "embedding": "language_model.model.embed_tokens",
    "head": "language_model.lm_head",
}

BUCKET = 16
"""Prompts in a CUDA graph have a multiple of this many tokens."""


class PrismaticPolicy(Policy):
    """A policy on the trunk of `prismatic/model.py`.

    `unnorm_key` chooses the action statistics; it may be left out where the checkpoint has one set, or names a default.
    """

    model: Any
    model_class: ClassVar[type[Prismatic]]
    parts = PARTS

    def __init__(
        self,
        model: Prismatic,
        processor: Processor,
        unnorm_key: str | None = None,
        lineage: dict[str, Any] | None = None,
    ) -> None:
        self.model = model
        self.processor = processor
        self.unnorm_key = unnorm_key or model.config.default_unnorm_key
        self.lineage = lineage or {"stages": []}
        self.weights: Weights | None = None
        self._graphs = Graphs(model)
        self.spec = self.describe()
        if self.unnorm_key is not None or len(self.norm_stats or ()) == 1:
            _ = self.action_statistics()  # what is wrong with them fails here, not at the first action

    @abstractmethod
    def describe(self) -> PolicySpec:
        """Describe what the policy sees and does, from its config."""

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

    def fill(self, wanted: Callable[[str], bool] = lambda name: True) -> None:
        assert self.weights is not None
        fill(self.model, self.weights, wanted)

    def stored(self, name: str) -> torch.Tensor:
        assert self.weights is not None
        return self.weights.read(name, rows_of(name, self.weights, self.model.config))

    def rebuilt(self, config: Any) -> Self:
        origin = self.source or Path()
        model = empty_model(self.model_class, config, origin).eval().to(self.model.dtype)
        policy = type(self)(model, self.processor, self.unnorm_key, self.lineage)
        policy.weights = self.weights
        return policy

    # -- acting --------------------------------------------------------------------------------------------------------

    def prepare(self, observation: Observation) -> PrismaticInputs:
        return self.processor(observation, self.spec.cameras, self.device)

    def do(
        self,
        action: Callable[..., tuple[torch.Tensor, ...]],
        inputs: PrismaticInputs,
        drawn: torch.Tensor | None,
        key: Hashable,
    ) -> tuple[torch.Tensor, ...]:
        """Return `action(inputs, drawn)`, which is computed as one CUDA graph where the policy `records`.

        For that, prompts are padded to a multiple of BUCKET tokens, so that few graphs serve all instructions.

        Args:
            action: what the policy does. It does not wait for the GPU.
            drawn: random numbers; None where nothing is left to chance.
            key: what `action` depends on besides its arguments.
        """
        if not self.records:
            return action(inputs, drawn)
        length = inputs.input_ids.shape[1]
        tensors = inputs.padded(length + -length % BUCKET).tensors()

        def act(tensors: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, ...]:
            fields = dict(tensors)
            drawn = fields.pop("drawn", None)
            return action(PrismaticInputs(**fields), drawn)

        return self._graphs.run(act, key, tensors if drawn is None else tensors | {"drawn": drawn})

    @property
    def records(self) -> bool:
        # What autocast casts is kept somewhere else at each call, so it cannot be recorded.
        return self.device.type == "cuda" and not self.eager and not torch.is_autocast_enabled("cuda")

    def encode(self, inputs: PrismaticInputs) -> PrismaticInputs:
        return replace(inputs, pixel_values=None, image_embeddings=self.model.images_of(inputs))

    def features(self, inputs: PrismaticInputs) -> torch.Tensor:
        assert inputs.image_embeddings is not None, "encode them first"
        return inputs.image_embeddings

    @property
    def num_patches(self) -> int:
        return len(self.spec.cameras) * self.model.config.towers[0].num_patches

    @property
    def image_size(self) -> int:
        return self.processor.images.image_size

    @property
    def frame_size(self) -> tuple[int, int] | None:
        return self.processor.images.one_size

    def crop_pictures(self) -> None:
        self.processor.images = replace(self.processor.images, center_crop=True)

    @property
    def can_read_instructions(self) -> bool:
        return self.processor.tokenizer is not None

    @property
    def unknown_word(self) -> str | None:
        tokenizer = self.processor.tokenizer
        return None if tokenizer is None else tokenizer.unk_token

    # -- normalisation -------------------------------------------------------------------------------------------------

    @property
    def norm_stats(self) -> dict[str, Any] | None:
        return self.model.config.norm_stats

    def adopt(self, statistics: dict[str, Any], key: str) -> None:
        self.model.config.norm_stats = {**(self.norm_stats or {}), key: statistics}
        self.model.config.default_unnorm_key = self.unnorm_key = key

    def action_statistics(self) -> dict[str, np.ndarray]:
        return self.statistics_of("action", self.model.config.action_dim)

    def statistics_of(
        self, entry: Literal["action", "proprio"], count: int, kind: Kind = "quantiles"
    ) -> dict[str, np.ndarray]:
        """The statistics in use of actions or states of `count` numbers; errors name the policy's folder."""
        try:
            return action_statistics(self.norm_stats, self.unnorm_key, count, kind, entry)
        except UserError as error:
            raise error if self.source is None else UserError(f"{self.source}: {error}") from None

    def to_physical(self, actions: np.ndarray) -> np.ndarray:
        return unnormalise(actions, self.action_statistics()).astype(np.float32)

    def to_normalised(self, actions: np.ndarray) -> np.ndarray:
        return normalise(actions, self.action_statistics())

    # -- changing ------------------------------------------------------------------------------------------------------

    def stacks(self) -> Sequence[Stack]:
        decoder = self.model.language_model.model
        return [
            Stack(
                prefix=PARTS["decoder"],
                layers=decoder.layers,
                config=self.model.config.text_config,
                rotary=decoder.rotary_emb,
                config_in=lambda config: config.text_config,
                embedding=PARTS["embedding"],
                norm="language_model.model.norm",
                head=PARTS["head"],
            )
        ]

    def save(
        self,
        path: str | Path,
        stage: dict[str, Any] | None = None,
        dtype: torch.dtype | None = None,
        tensors: Iterable[tuple[str, torch.Tensor]] | None = None,
    ) -> None:
        if len(self.norm_stats or ()) > 1:  # those in use become the checkpoint's default
            self.model.config.default_unnorm_key = self.unnorm_key
        files = () if self.weights is None else self.weights.paths
        lineage = extend_lineage(self.lineage, self.source, files, stage)
        write_policy(Path(path), self.model, self.processor, self.spec, lineage, dtype, tensors)

    @property
    def published_parameters(self) -> int:
        return published_parameters(self.model_class, self.model.config)
