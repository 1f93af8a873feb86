"""Inputs of flow-matching policies: pictures or what the projector made of them, prompts, and a padded state."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
import torch.nn.functional as F

from rlrc.policies.device import moved
from rlrc.policies.parts.tensors import TensorFields


@dataclass(frozen=True)
class FlowInputs(TensorFields):
    """B rows with pictures of C cameras and right-padded prompts.

    The pictures are `pixel_values` (B, C, 3, S, S) in [-1, 1], or, where the projector has already run,
    `image_embeddings` (B, C * P, hidden) with their `image_places` (see `PictureTokens`).
    """

    input_ids: torch.Tensor
    """(B, L)."""
    text_mask: torch.Tensor | None = None
    """Bool (B, L), false where there is padding; None where there is none."""
    pixel_values: torch.Tensor | None = None
    image_embeddings: torch.Tensor | None = None
    image_places: torch.Tensor | None = None
    camera_mask: torch.Tensor | None = None
    """Bool (B, C), false where a row lacks a camera; None where all are there."""
    state: torch.Tensor | None = None
    """Normalised and padded with zeros, float32 (B, padded_dim); None where no tensor of the model reads it."""
    previous: torch.Tensor | None = None
    """Actions that the rows carry out meanwhile, normalised and padded with zeros, float32 (B, H, padded_dim)."""
    pull: torch.Tensor | None = None
    """How much the new actions shall be near to these, float32 (B, H, padded_dim)."""

    def __len__(self) -> int:
        return len(self.input_ids)

    def __getitem__(self, rows: Any) -> Self:
        """Some rows, without the positions where all of them have padding."""
        chosen = self.mapped(lambda tensor: tensor[rows])
        if chosen.text_mask is not None:
            used = chosen.text_mask.any(dim=0)
            mask = chosen.text_mask[:, used]
            chosen = replace(chosen, input_ids=chosen.input_ids[:, used], text_mask=None if mask.all() else mask)
        if chosen.camera_mask is not None and chosen.camera_mask.all():
            chosen = replace(chosen, camera_mask=None)
        return chosen

    def to(self, device: torch.device | str) -> Self:
        return self.mapped(lambda tensor: moved(tensor, device))

    @classmethod
    def concatenate(cls, parts: Sequence[Self]) -> Self:
        """The rows of all parts, in order; shorter prompts are padded."""
        length = max(part.input_ids.shape[1] for part in parts)
        if any(part.text_mask is not None or part.input_ids.shape[1] != length for part in parts):
            parts = [part.padded(length) for part in parts]
        if any(part.camera_mask is not None for part in parts):
            parts = [part._with_camera_mask(next(p for p in parts if p.camera_mask is not None)) for part in parts]
        if any(part.previous is not None for part in parts):
            parts = [part._with_previous(next(p for p in parts if p.previous is not None)) for part in parts]
        columns = {name: [part.tensors()[name] for part in parts] for name in parts[0].tensors()}
        return replace(parts[0], **{name: torch.cat(column) for name, column in columns.items()})

    def padded(self, length: int) -> Self:
        """The same rows with prompts of `length` positions, and a mask whether needed or not."""
        mask = torch.ones_like(self.input_ids, dtype=torch.bool) if self.text_mask is None else self.text_mask
        missing = (0, length - self.input_ids.shape[1])
        return replace(self, input_ids=F.pad(self.input_ids, missing), text_mask=F.pad(mask, missing))

    def _with_camera_mask(self, like: Self) -> Self:
        if self.camera_mask is not None or like.camera_mask is None:
            return self
        return replace(self, camera_mask=like.camera_mask.new_ones(len(self), like.camera_mask.shape[1]))

    def _with_previous(self, like: Self) -> Self:
        if self.previous is not None or like.previous is None:
            return self
        nothing = like.previous.new_zeros(len(self), *like.previous.shape[1:])
        return replace(self, previous=nothing, pull=nothing)
