"""Model inputs: prompts as token ids, pictures as pixels or as what the projector made of them, and a state."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Self

import torch


@dataclass(frozen=True)
class PrismaticInputs:
    """A left-padded batch: `input_ids` (B, L) = [BOS, padding, prompt], `attention_mask` (B, L), pictures, a state.

    The pictures are `pixel_values` (B, 3 * towers * cameras, H, W), or `image_embeddings` (B, P, hidden) where the
    projector has already run.
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    pixel_values: torch.Tensor | None = None
    image_embeddings: torch.Tensor | None = None
    state: torch.Tensor | None = None
    """Normalised, float32 (B, S)."""

    def __len__(self) -> int:
        return len(self.input_ids)

    def __getitem__(self, rows: Any) -> Self:
        """Some rows, without the positions where all of them have padding."""
        chosen = self._map(lambda tensor: tensor[rows])
        used = chosen.attention_mask.bool().any(dim=0)
        if used.all():
            return chosen
        return replace(chosen, input_ids=chosen.input_ids[:, used], attention_mask=chosen.attention_mask[:, used])

    def to(self, device: torch.device | str) -> Self:
        return self._map(lambda tensor: tensor.to(device))

    @classmethod
    def concatenate(cls, parts: Sequence[Self]) -> Self:
        """The rows of all parts, in order; shorter prompts are padded behind BOS."""
        length = max(part.input_ids.shape[1] for part in parts)
        padded = [part._padded(length) for part in parts]
        return padded[0]._map_named(lambda name: torch.cat([getattr(part, name) for part in padded]))

    def _padded(self, length: int) -> Self:
        missing = length - self.input_ids.shape[1]
        if not missing:
            return self
        wider = {
            name: torch.cat([ids[:, :1], ids.new_zeros(len(ids), missing), ids[:, 1:]], dim=1)
            for name, ids in (("input_ids", self.input_ids), ("attention_mask", self.attention_mask))
        }
        return replace(self, **wider)

    def _map(self, function: Any) -> Self:
        return self._map_named(lambda name: function(getattr(self, name)))

    def _map_named(self, function: Any) -> Self:
        present = [field.name for field in fields(self) if getattr(self, field.name) is not None]
        return replace(self, **{name: function(name) for name in present})
