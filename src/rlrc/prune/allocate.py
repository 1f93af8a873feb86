"""Turns scores into the units that stay.

Both rules are LLM-Pruner's own, rounding included, so that its published ratios give its published shapes:

- local: of a layer's C channels (head_dim a head), C - int(C * (1 - ratio)) go; heads only go whole, so that part of
  a head stays a head. 90 % of 32 heads keeps 4, and 90 % of 11008 MLP channels keeps 1100.
- global: the scores of all units, heads and channels alike, share one threshold; a group of which nothing would stay is
  left whole.
"""

import math
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from rlrc.errors import Impossible
from rlrc.policies.groups import Group


@dataclass(frozen=True)
class Rounding:
    """Kept MLP channels become a multiple of `multiple`, widths that matrix kernels like; heads are whole anyway."""

    multiple: int = 1
    direction: Literal["up", "down", "nearest"] = "up"

    def __call__(self, group: Group, kept: int) -> int:
        if group.kind == "heads":
            return kept
        added = {"up": self.multiple - 1, "down": 0, "nearest": self.multiple // 2}[self.direction]
        return min(group.units, (kept + added) // self.multiple * self.multiple)


def choose(
    groups: Sequence[Group],
    scores: Sequence[torch.Tensor],
    protected: frozenset[int],
    scope: Literal["local", "global"],
    ratio: float | None,
    overall: float | None,
    rounding: Rounding,
) -> list[torch.Tensor]:
    """The sorted indices of the units that stay, for each group; protected layers keep all.

    Args:
        ratio: of the units of each layer (local) or of all unprotected layers together (global).
        overall: instead of `ratio`, of the parameters of all groups, protected ones included.

    Raises:
        UserError: nothing would be left of a layer, or the unprotected layers do not hold that much.
    """
    free = [(group, score) for group, score in zip(groups, scores, strict=True) if group.layer not in protected]
    if overall is not None:
        ratio = share_of_free(overall, groups, [group for group, _ in free])
    assert ratio is not None
    if scope == "local":
        _check_ratio([group for group, _ in free], ratio, rounding)
        kept = [_keep_best(score, _units_left(group, ratio, rounding)) for group, score in free]
    else:
        threshold = _threshold(free, ratio, by_parameters=overall is not None)
        kept = [_keep_best(score, _global_count(group, score, threshold, rounding)) for group, score in free]
    of_group = dict(zip((group for group, _ in free), kept, strict=True))
    return [of_group.get(group, torch.arange(group.units)) for group in groups]


def share_of_free(overall: float, groups: Iterable[Group], free: Iterable[Group]) -> float:
    """Return the share of the groups `free` that amounts to `overall` of the parameters of all. Protected layers give
    nothing, so the others must give more.

    Raises:
        UserError: they do not hold that much.
    """
    total, held = (sum(group.units * group.unit_parameters for group in some) for some in (groups, free))
    if overall * total >= held:
        raise Impossible(
            f"overall {overall:g} is out of reach: the unprotected layers hold {held / total:.4f} of the decoder's "
            f"linear parameters and must keep some; ask for less, or protect fewer layers"
        )
    return overall * total / held


def _keep_best(score: torch.Tensor, count: int) -> torch.Tensor:
    return score.argsort()[len(score) - count :].sort().values


def _check_ratio(groups: Sequence[Group], ratio: float, rounding: Rounding) -> None:
    """Refuse a ratio that empties a group, and name the group that allows least."""
    if all(_units_left(group, ratio, rounding) for group in groups):
        return
    largest = {group: _largest_ratio(group, rounding) for group in groups}
    tightest = min(groups, key=lambda group: largest[group])
    one = "head" if tightest.kind == "heads" else "channel"
    raise Impossible(
        f"{tightest}: a ratio of {ratio:.4g} leaves no {one} of {tightest.units}; "
        f"the largest workable ratio is {largest[tightest]:g}"
    )


def _largest_ratio(group: Group, rounding: Rounding) -> float:
    too_large = bisect_left(range(10_001), True, key=lambda r: _units_left(group, r / 10_000, rounding) == 0)
    return (too_large - 1) / 10_000


def _units_left(group: Group, ratio: float, rounding: Rounding) -> int:
    channels = group.units * group.channels
    removed = channels - int(channels * (1 - ratio))
    return rounding(group, group.units - removed // group.channels)


def _global_count(group: Group, score: torch.Tensor, threshold: float, rounding: Rounding) -> int:
    return rounding(group, int((score > threshold).sum())) or group.units


def _threshold(free: Sequence[tuple[Group, torch.Tensor]], ratio: float, by_parameters: bool) -> float:
    """The highest score that goes, when `ratio` of the pooled units, or of their parameters, does."""
    pool, order = torch.cat([score for _, score in free]).sort()
    if by_parameters:
        costs = torch.cat([torch.full((group.units,), group.unit_parameters) for group, _ in free])[order].cumsum(0)
        removed = int((costs < ratio * costs[-1]).sum()) + 1
    else:
        removed = len(pool) - int(len(pool) * (1 - ratio))
    if removed >= len(pool):
        largest = math.floor((1 - 1 / len(pool)) * 10_000) / 10_000
        raise Impossible(
            f"{free[0][0]} and all others: a ratio of {ratio:.4g} leaves none of the {len(pool)} heads and channels; "
            f"the largest workable ratio is {largest:g}"
        )
    return float(pool[removed - 1]) if removed else -math.inf
