"""Fewer tokens of each picture for the language model: pooled, shuffled, merged, or selected.

How many stay is fixed, so that shapes do not depend on what is seen. Gradients pass, so that a policy can be trained
behind it. The tokens that stay keep their order, and for the language model they stand where their patches stood: with
position ids that close the gaps, a policy that points at things no longer finds them (Chien et al., arXiv 2506.21873).
"""

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

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


class PictureTokens(NamedTuple):
    """The tokens of pictures, a row for each picture or for the pictures of all cameras."""

    embeddings: torch.Tensor
    """(B, P, width)."""
    places: torch.Tensor | None
    """The places of the tokens among the patches of their own picture, int64 (B, P); None where every patch is one."""

    def scattered(self, there: torch.Tensor) -> "PictureTokens":
        """Rows where bool (N,) `there` is true, and zeros elsewhere."""

        def spread(rows: torch.Tensor) -> torch.Tensor:
            return rows.new_zeros(len(there), *rows.shape[1:]).index_put((there,), rows)

        return PictureTokens(spread(self.embeddings), None if self.places is None else spread(self.places))

    def by_row(self, rows: int) -> "PictureTokens":
        """The pictures of all cameras in a row, where each picture had one of its own."""
        return PictureTokens(
            self.embeddings.unflatten(0, (rows, -1)).flatten(1, 2),
            None if self.places is None else self.places.unflatten(0, (rows, -1)).flatten(1, 2),
        )


def refuse_selection(reduction: TokenReduction | None) -> None:
    """
    Raises:
        UserError: which tokens stay depends on the instruction, so that the pictures alone do not tell what is read.
    """
    if reduction is not None and reduction.kind == "select":
        raise UserError("the policy selects tokens by the instruction; prune its vision towers before you select")


def lightened(features: torch.Tensor, reduction: TokenReduction | None) -> PictureTokens:
    """Features (B, P, width) of the patches of pictures as the projector reads them: (B, count, width), or wider where
    they are shuffled. Tokens are selected behind it."""
    if reduction is None or reduction.kind == "select":
        return PictureTokens(features, None)
    if reduction.kind == "merge":
        return merged(features, reduction.count)
    places = window_places(features.shape[1], reduction.count, features.device).expand(len(features), -1)
    return PictureTokens((pooled if reduction.kind == "pool" else shuffled)(features, reduction.count), places)


def window_places(patches: int, count: int, device: torch.device) -> torch.Tensor:
    """The middles (count,) of square windows of a square of patches, rounded down."""
    by = math.isqrt(patches) // math.isqrt(count)
    square = torch.arange(patches, device=device).view(1, -1, 1)
    return shuffled(square, count)[0].sum(dim=-1) // by**2


def pooled(features: torch.Tensor, count: int) -> torch.Tensor:
    """Means over square windows of a square of patches."""
    side, left = math.isqrt(features.shape[1]), math.isqrt(count)
    square = features.transpose(1, 2).unflatten(2, (side, side))
    return F.avg_pool2d(square, side // left).flatten(2).transpose(1, 2)


def shuffled(features: torch.Tensor, count: int) -> torch.Tensor:
    """Pixel shuffle: features of square windows of a square of patches side by side, (B, count, patches of a window *
    width). In contrast to means nothing is lost.

    Idefics3's order (transformers' `SmolVLMConnector`): a token holds its rows one after the other.
    """
    side, left = math.isqrt(features.shape[1]), math.isqrt(count)
    by = side // left
    return features.unflatten(1, (left, by, left, by)).transpose(2, 3).flatten(3, 5).flatten(1, 2)


def widened(weight: torch.Tensor, patches: int) -> torch.Tensor:
    """The weight (rows, width) of a linear layer for so many patches side by side, (rows, patches * width). It does
    with them at first what the layer did with their mean."""
    return (weight / patches).repeat(1, patches)


def merged(features: torch.Tensor, count: int) -> PictureTokens:
    """Means over those that are most alike, found by token merging (Bolya et al., arXiv 2210.09461): every second token
    looks for the most similar one among the others, and the most similar pairs become one, until `count` are left. A
    mean counts each patch once, however often it was merged. It stands where the first of a token stood that others
    joined."""
    sums, sizes = features.float(), features.new_ones(*features.shape[:2], 1, dtype=torch.float32)
    places = torch.arange(features.shape[1], device=features.device).expand(features.shape[:2])
    while sums.shape[1] > count:
        sums, sizes, places = _merge_pairs(sums, sizes, places, min(sums.shape[1] - count, sums.shape[1] // 2))
    return PictureTokens((sums / sizes).to(features.dtype), places)


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


def selected(tokens: torch.Tensor, text: torch.Tensor, count: int) -> PictureTokens:
    """Of tokens (B, P, hidden) those whose direction is nearest to that of a text's mean embedding (B, hidden)."""
    nearness = F.cosine_similarity(tokens.float(), text.float()[:, None], dim=-1)
    places = nearness.topk(count, dim=1).indices.sort(dim=1).values
    return PictureTokens(_rows(tokens, places), places)


def stretched(
    positions: torch.Tensor,
    places: torch.Tensor | None,
    first: int,
    picture: tuple[int, int],
    there: torch.Tensor | None = None,
) -> torch.Tensor:
    """Position ids (B, T) where tokens of pictures stand where their patches stood, and what is behind them further on.

    Args:
        positions: ids without a gap, (B, T) or (1, T).
        places: `PictureTokens.places` of C cameras, (B, C * P); with None nothing changes.
        first: index of the first token of a picture.
        picture: the patches of one picture, and its tokens.
        there: bool (B, C), false where a row lacks a camera, which takes no position; None where all are there.
    """
    if places is None:
        return positions
    patches, tokens = picture
    own = places.unflatten(1, (-1, tokens))
    seen = torch.ones(own.shape[:2], dtype=torch.bool, device=places.device) if there is None else there
    before = seen.cumsum(dim=1) - seen.long()
    pictures = (first + patches * before[..., None] + own).flatten(1)
    behind = positions[:, first + places.shape[1] :] + (patches - tokens) * seen.sum(dim=1, keepdim=True)
    return torch.cat([positions[:, :first].expand(len(places), -1), pictures, behind], dim=1)


def mean_of_text(embeddings: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """The mean (B, hidden) of embeddings (B, L, hidden) where the mask (B, L) is not 0; None counts all."""
    weights = torch.ones_like(embeddings[..., 0]) if mask is None else mask.to(embeddings.dtype)
    return (embeddings * weights[..., None]).sum(dim=1) / weights.sum(dim=1, keepdim=True)


def _rows(tensor: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Rows (B, K) of a tensor (B, P, width)."""
    return tensor.gather(1, rows[..., None].expand(-1, -1, tensor.shape[-1]))
