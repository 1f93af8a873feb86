"""LeRobot's ways to normalise states and actions, none of which clips anything.

Formulas of `lerobot/processor/normalize_processor.py` (0.4.4 and later), with its epsilon of 1e-8.
"""

from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from rlrc.errors import UserError, shorten
from rlrc.policies.schema import Number
from rlrc.policies.statistics import Entry, chosen
from rlrc.reading import FileModel, validate

Kind = Literal["mean_std", "bounds", "quantiles", "deciles", "identity"]
FIELDS: dict[str, tuple[str, str]] = {
    "mean_std": ("mean", "std"),
    "bounds": ("min", "max"),
    "quantiles": ("q01", "q99"),
    "deciles": ("q10", "q90"),
}
"""The two statistics of each kind."""
LEROBOT_KINDS: dict[str, Kind] = {
    "MEAN_STD": "mean_std",
    "MIN_MAX": "bounds",
    "QUANTILES": "quantiles",
    "QUANTILE10": "deciles",
    "IDENTITY": "identity",
}
EPSILON = 1e-8
FAR = {"mean_std": 5.0, "bounds": 1.5, "quantiles": 1.5, "deciles": 3.0, "identity": np.inf}
"""Normalised values that data of the statistics' own hardly exceed, by kind."""

Numbers = Annotated[list[Annotated[Number, Field(ge=-1e30, le=1e30)]], Field(min_length=1, max_length=1024)]


class EntryFields(FileModel):
    """One entry of a set of statistics, `action` or `proprio`, in physical units."""

    mean: Numbers | None = None
    std: Numbers | None = None
    min: Numbers | None = None
    max: Numbers | None = None
    q01: Numbers | None = None
    q99: Numbers | None = None
    q10: Numbers | None = None
    q90: Numbers | None = None


def statistics_of(
    norm_stats: dict[str, Any] | None, key: str | None, entry: Entry, kind: Kind, count: int
) -> dict[str, np.ndarray]:
    """The two statistics that a kind needs, float64 (count,) each; none of kind "identity".

    Raises:
        UserError: they are missing or damaged, or have another number of dimensions.
    """
    if kind == "identity" and not norm_stats and key is None:
        return {}
    name, found = chosen(norm_stats, key)
    if kind == "identity":
        return {}
    where = f"norm_stats.{shorten(name)}.{entry}"
    fields = validate(found.get(entry), EntryFields, where)
    stats = {}
    for field in FIELDS[kind]:
        numbers = getattr(fields, field)
        if numbers is None:
            raise UserError(f"{where}: '{field}' is missing, which the normalisation by {kind} needs")
        if len(numbers) != count:
            kind_of = "actions" if entry == "action" else "states"
            raise UserError(f"{where}.{field} has {len(numbers)} dimensions, and the policy's {kind_of} have {count}")
        stats[field] = np.asarray(numbers, np.float64)
    return stats


def normalise(values: np.ndarray, stats: dict[str, np.ndarray], kind: Kind) -> np.ndarray:
    """Values (..., D) in physical units as the policy reads or learns them, float32."""
    if kind == "identity":
        return np.asarray(values, np.float32)
    first, second = (stats[field] for field in FIELDS[kind])
    if kind == "mean_std":
        return ((values - first) / (second + EPSILON)).astype(np.float32)
    return (2 * (values - first) / _ranges(first, second) - 1).astype(np.float32)


def far(values: np.ndarray, stats: dict[str, np.ndarray], kind: Kind) -> np.ndarray:
    """Which values (T, D) in physical units lie far from all that the statistics were made of, bool (T, D)."""
    return np.abs(normalise(values, stats, kind)) > FAR[kind]


def unnormalise(values: np.ndarray, stats: dict[str, np.ndarray], kind: Kind) -> np.ndarray:
    """The way back of `normalise`, float32; of the mean and deviation it leaves out the epsilon, as LeRobot does."""
    if kind == "identity":
        return np.asarray(values, np.float32)
    first, second = (stats[field] for field in FIELDS[kind])
    if kind == "mean_std":
        return (values * second + first).astype(np.float32)
    return ((values + 1) / 2 * _ranges(first, second) + first).astype(np.float32)


def _ranges(low: np.ndarray, high: np.ndarray) -> np.ndarray:
    return np.where(high == low, EPSILON, high - low)
