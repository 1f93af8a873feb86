"""A policy: model, processor and action statistics in one object, from pictures and instructions to robot actions."""

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rlrc.errors import UserError
from rlrc.models.actions import ActionTokenizer, action_statistics, normalise, unnormalise
from rlrc.models.openvla import ActionSample, Generators, OpenVLAForActionPrediction, PolicyInputs
from rlrc.models.processor import Processor
from rlrc.models.saving import extend_lineage, write_policy
from rlrc.models.weights import Weights
from rlrc.reading import shorten


class Policy:
    """A policy, as `rlrc.load` returns it.

    `unnorm_key` chooses the action statistics; it may be left out where the checkpoint has one set, or names a default.
    """

    def __init__(
        self,
        model: OpenVLAForActionPrediction,
        processor: Processor,
        unnorm_key: str | None = None,
        lineage: dict[str, Any] | None = None,
    ) -> None:
        self.model = model
        self.processor = processor
        self.unnorm_key = unnorm_key or model.config.default_unnorm_key
        self.lineage = lineage or {"stages": []}
        self.weights: Weights | None = None
        """Weights on disk that the policy was loaded from, the parent of what `save` writes; None for a new policy."""
        self.actions = ActionTokenizer(model.config.action_vocab_end, model.config.n_action_bins)
        if self.unnorm_key is not None or len(self.norm_stats or ()) == 1:
            _ = self.statistics  # what is wrong with them fails here, not at the first action

    @property
    def norm_stats(self) -> dict[str, Any] | None:
        return self.model.config.norm_stats

    @property
    def statistics(self) -> dict[str, np.ndarray]:
        """`q01`, `q99` and `mask` of the actions, each (D,).

        Raises:
            UserError: they are damaged, `unnorm_key` is needed or unknown, or they have not `action_dim` dimensions.
        """
        return action_statistics(self.norm_stats, self.unnorm_key, self.model.config.action_dim)

    @property
    def source(self) -> Path | None:
        """The folder that the policy was loaded from."""
        return None if self.weights is None else self.weights.folder

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def image_size(self) -> int:
        return self.processor.images.image_size

    def prepare(self, images: np.ndarray, instructions: Sequence[str]) -> PolicyInputs:
        """Pictures uint8 (B, H, W, 3) and B instructions to model inputs on the policy's device."""
        return self.processor(images, instructions).to(self.device)

    def sample(self, inputs: PolicyInputs, temperature: float = 0.0, generator: Generators = None) -> ActionSample:
        """Choose action tokens; see `OpenVLAForActionPrediction.sample_actions`."""
        require_temperature(temperature)
        if isinstance(generator, Sequence) and len(generator) != len(inputs):
            raise UserError(f"{len(inputs)} rows came with {len(generator)} generators; give one to each")
        return self.model.sample_actions(inputs, temperature, generator)

    def decode(self, tokens: torch.Tensor) -> np.ndarray:
        """Action token ids (B, 7) to physical units, float32 (B, 7)."""
        normalised = self.actions.decode(tokens.cpu().numpy())
        return unnormalise(normalised, self.statistics).astype(np.float32)

    def encode(self, actions: np.ndarray) -> torch.Tensor:
        """The inverse of `decode`: actions (B, 7) in physical units to token ids (B, 7) on the policy's device."""
        normalised = normalise(actions, self.statistics)
        return torch.from_numpy(self.actions.encode(normalised)).to(self.device)

    def act(
        self,
        images: np.ndarray,
        instructions: Sequence[str],
        temperature: float = 0.0,
        generator: Generators = None,
    ) -> np.ndarray:
        """Pictures uint8 (B, H, W, 3) and B instructions to actions float32 (B, 7) in physical units.

        (dx, dy, dz, three rotation deltas, gripper), as the statistics of `unnorm_key` say.

        Raises:
            UserError: wrong image shape or dtype, no pictures, instructions that do not match or are no texts, a
                negative or infinite temperature, or no usable statistics.
        """
        return self.decode(self.sample(self.prepare(images, instructions), temperature, generator).tokens)

    def reset(self) -> None:
        """Called when episodes begin: forget what earlier actions have left, which here is nothing."""

    def save(
        self,
        path: str | Path,
        stage: dict[str, Any] | None = None,
        dtype: torch.dtype | None = None,
        tensors: Iterable[tuple[str, torch.Tensor]] | None = None,
    ) -> None:
        """Write a Hugging Face repository; `stage` is appended to the lineage in `compression.json`.

        Where the checkpoint holds several action statistics, the ones in use become its default.

        Args:
            dtype: of the floating-point weights on disk; None keeps the model's own.
            tensors: the weights by name, where the policy is an outline: they are written as they come.

        Raises:
            UserError: something else than an earlier checkpoint lies at `path`, or the disk is full.
        """
        if len(self.norm_stats or ()) > 1:
            self.model.config.default_unnorm_key = self.unnorm_key
        files = () if self.weights is None else self.weights.paths
        lineage = extend_lineage(self.lineage, self.source, files, stage)
        write_policy(Path(path), self.model, self.processor, lineage, dtype, tensors)


def require_temperature(temperature: float) -> None:
    """Refuse what no distribution can be tempered by.

    Raises:
        UserError: it is no number of at least 0.
    """
    if isinstance(temperature, bool) or not isinstance(temperature, int | float | np.number):
        raise UserError(f"the temperature must be a number, not {shorten(repr(temperature))}")
    if not 0 <= temperature < math.inf:
        raise UserError(f"the temperature must be a finite number of at least 0, not {temperature}")
