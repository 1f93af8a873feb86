"""Model inputs: prompts as token ids, pictures as pixels or as what the projector made of them, and a state."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Self

import torch

from rlrc.policies.device import moved
from rlrc.policies.parts.tensors import TensorFields


class DecoderInputs(NamedTuple):
    """The decoder reads this of B rows."""

    embeddings: torch.Tensor
    """(B, T, hidden)."""
    mask: torch.Tensor | None
    """(B, T), 0 where there is padding; None where there is none."""
    positions: torch.Tensor
    """Position ids (B, T)."""


@dataclass(frozen=True)
class PrismaticInputs(TensorFields):
    """A left-padded batch: `input_ids` (B, L) = [BOS, padding, prompt], pictures, a state.

    The pictures are `pixel_values` (B, 3 * towers * cameras, H, W), or, where the projector has already run,
    `image_embeddings` (B, P, hidden) with their `image_places` (see `PictureTokens`).
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor | None = None
    """(B, L), 0 where there is padding; None where there is none. So whether anything is padded is known without
    reading back from a GPU."""
    pixel_values: torch.Tensor | None = None
    image_embeddings: torch.Tensor | None = None
    image_places: torch.Tensor | None = None
    state: torch.Tensor | None = None
    """Normalised, float32 (B, S)."""

    def __len__(self) -> int:
        return len(self.input_ids)

    def __getitem__(self, rows: Any) -> Self:
        """Some rows, without the positions where all of them have padding."""
        chosen = self.mapped(lambda tensor: tensor[rows])
        if chosen.attention_mask is None:
            return chosen
        used = chosen.attention_mask.bool().any(dim=0)
        mask = chosen.attention_mask[:, used]
        return replace(chosen, input_ids=chosen.input_ids[:, used], attention_mask=None if mask.all() else mask)

    def to(self, device: torch.device | str) -> Self:
        return self.mapped(lambda tensor: moved(tensor, device))

    @classmethod
    def concatenate(cls, parts: Sequence[Self]) -> Self:
        """The rows of all parts, in order; shorter prompts are padded behind BOS."""
        length = max(part.input_ids.shape[1] for part in parts)
        whole = all(part.attention_mask is None and part.input_ids.shape[1] == length for part in parts)
        padded = parts if whole else [part.padded(length) for part in parts]
        columns = {name: [part.tensors()[name] for part in padded] for name in padded[0].tensors()}
        return replace(padded[0], **{name: torch.cat(column) for name, column in columns.items()})

    def padded(self, length: int) -> Self:
        """The same rows with prompts of `length` positions, padded behind BOS, and a mask whether needed or not."""
        ids, mask = self.input_ids, self.attention_mask
        mask = torch.ones_like(ids) if mask is None else mask
        missing = ids.new_zeros(len(ids), length - ids.shape[1])
        wider = (torch.cat([tensor[:, :1], missing, tensor[:, 1:]], dim=1) for tensor in (ids, mask))
        return replace(self, **dict(zip(("input_ids", "attention_mask"), wider, strict=True)))
