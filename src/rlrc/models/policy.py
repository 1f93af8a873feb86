"""A policy: model, processor and action statistics in one object, from pictures and instructions to robot actions."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rlrc.models.actions import ActionTokenizer, action_statistics, normalise, unnormalise
from rlrc.models.openvla import ActionSample, Generators, OpenVLAForActionPrediction, PolicyInputs
from rlrc.models.processor import Processor


class Policy:
    """What `rlrc.load` returns.

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
        self.source: Path | None = None
        """The folder it was loaded from: the parent of what `save` writes."""
        self.actions = ActionTokenizer(model.config.action_vocab_end, model.config.n_action_bins)
        if unnorm_key is not None:
            action_statistics(self.norm_stats, unnorm_key)  # an unknown key fails here, not at the first action

    @property
    def norm_stats(self) -> dict[str, Any] | None:
        return self.model.config.norm_stats

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
        return self.model.sample_actions(inputs, temperature, generator)

    def decode(self, tokens: torch.Tensor) -> np.ndarray:
        """Action token ids (B, 7) to physical units, float32 (B, 7)."""
        normalised = self.actions.decode(tokens.cpu().numpy())
        return unnormalise(normalised, action_statistics(self.norm_stats, self.unnorm_key)).astype(np.float32)

    def encode(self, actions: np.ndarray) -> torch.Tensor:
        """The way back: actions (B, 7) in physical units to token ids (B, 7) on the policy's device."""
        normalised = normalise(actions, action_statistics(self.norm_stats, self.unnorm_key))
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
            UserError: wrong image shape or dtype, instructions that do not match, or no usable statistics.
        """
        return self.decode(self.sample(self.prepare(images, instructions), temperature, generator).tokens)

    def reset(self) -> None:
        """Called when episodes begin: forget what earlier actions have left, which here is nothing."""

    def save(self, path: str | Path, stage: dict[str, Any] | None = None, dtype: torch.dtype | None = None) -> None:
        """Write a Hugging Face repository; `stage` is appended to the lineage in `compression.json`."""
        from rlrc.models.checkpoint import save_policy

        save_policy(self, Path(path), stage, dtype)
