"""Fewer tokens of each picture for the language model: pooled, shuffled, merged, or selected.

How many stay is fixed, so that shapes do not depend on what is seen. Gradients pass, so that a policy can be trained
behind it. The tokens that stay keep their order.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F

from rlrc.errors import UserError

Kind = Literal["pool", "shuffle", "merge", "select"]


@dataclass(frozen=True)
class TokenReduction:
    """A way to make fewer tokens of a picture."""

    kind: Kind
    count: int
    """Tokens of one picture that stay."""

    def patches_of_token(self, patches: int) -> int:
        """How many of a picture's patches have their features side by side in one token."""
        return patches // self.count if self.kind == "shuffle" else 1


def refuse_selection(reduction: TokenReduction | None) -> None:
    """
    Raises:
        UserError: which tokens stay depends on the instruction, so that the pictures alone do not tell what is read.
    """
    if reduction is not None and reduction.kind == "select":
        raise UserError("the policy selects tokens by the instruction; prune its vision towers before you select")


def lightened(features: torch.Tensor, reduction: TokenReduction | None) -> torch.Tensor:
    """Features (B, P, width) of the patches of pictures as the projector reads them: (B, count, width), or wider where
    they are shuffled. Tokens are selected behind it."""
    if reduction is None or reduction.kind == "select":
        return features
    return {"pool": pooled, "shuffle": shuffled, "merge": merged}[reduction.kind](features, reduction.count)


def pooled(features: torch.Tensor, count: int) -> torch.Tensor:
    """Means over square windows of a square of patches."""
    side, left = math.isqrt(features.shape[1]), math.isqrt(count)
    square = features.transpose(1, 2).unflatten(2, (side, side))
    return F.avg_pool2d(square, side // left).flatten(2).transpose(1, 2)


def shuffled(features: torch.Tensor, count: int) -> torch.Tensor:
    """Features of square windows of a square of patches side by side, (B, count, patches of a window * width), as pixel
    shuffle orders them (Shi et al., arXiv 1609.05158). Nothing is lost, in contrast to means."""
    side, left = math.isqrt(features.shape[1]), math.isqrt(count)
    by = side // left
    return features.unflatten(1, (left, by, left, by)).transpose(2, 3).flatten(3, 5).flatten(1, 2)


def widened(weight: torch.Tensor, patches: int) -> torch.Tensor:
    """The weight (rows, width) of a linear layer for so many patches side by side, (rows, patches * width). It does
    with them at first what the layer did with their mean."""
    return (weight / patches).repeat(1, patches)


def merged(features: torch.Tensor, count: int) -> torch.Tensor:
    """Means over those that are most alike, found by token merging (Bolya et al., arXiv 2210.09461): every second token
    looks for the most similar one among the others, and the most similar pairs become one, until `count` are left. A
    mean counts each patch once, however often it was merged."""
    sums, sizes = features.float(), features.new_ones(*features.shape[:2], 1, dtype=torch.float32)
    places = torch.arange(features.shape[1], device=features.device).expand(features.shape[:2])
    while sums.shape[1] > count:
        sums, sizes, places = _merge_pairs(sums, sizes, places, min(sums.shape[1] - count, sums.shape[1] // 2))
    return (sums / sizes).to(features.dtype)


def _merge_pairs(
    sums: torch.Tensor, sizes: torch.Tensor, places: torch.Tensor, pairs: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """One round, in which `pairs` tokens join others; tokens are sums over patches, with how many and the first one."""
    direction = F.normalize(sums, dim=-1)
    best, partner = (direction[:, ::2] @ direction[:, 1::2].transpose(1, 2)).max(dim=-1)
    order = best.argsort(dim=-1, descending=True, stable=True)
    going, staying = order[:, :pairs], order[:, pairs:]
    into = partner.gather(1, going)
    left = []
    for tensor in (sums, sizes):
        leaving, remaining = (_rows(tensor[:, ::2], rows) for rows in (going, staying))
        joined = tensor[:, 1::2].scatter_add(1, into[..., None].expand_as(leaving), leaving)
        left.append(torch.cat([remaining, joined], dim=1))
    places = torch.cat([places[:, ::2].gather(1, staying), places[:, 1::2]], dim=1)
    places, by_place = places.sort(dim=1)
    return _rows(left[0], by_place), _rows(left[1], by_place), places


def selected(tokens: torch.Tensor, text: torch.Tensor, count: int) -> torch.Tensor:
    """Of tokens (B, P, hidden) those whose direction is nearest to that of a text's mean embedding (B, hidden)."""
    nearness = F.cosine_similarity(tokens.float(), text.float()[:, None], dim=-1)
    return _rows(tokens, nearness.topk(count, dim=1).indices.sort(dim=1).values)


def mean_of_text(embeddings: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """The mean (B, hidden) of embeddings (B, L, hidden) where the mask (B, L) is not 0; None counts all."""
    weights = torch.ones_like(embeddings[..., 0]) if mask is None else mask.to(embeddings.dtype)
    return (embeddings * weights[..., None]).sum(dim=1) / weights.sum(dim=1, keepdim=True)


def _rows(tensor: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Rows (B, K) of a tensor (B, P, width)."""
    return tensor.gather(1, rows[..., None].expand(-1, -1, tensor.shape[-1]))
