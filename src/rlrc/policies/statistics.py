"""The statistics that turn normalised actions and states into physical units, and back."""

from typing import Any, Literal

import numpy as np

from rlrc.errors import UserError, shorten
from rlrc.policies.schema import ActionStatistics, BoundStatistics
from rlrc.reading import validate

Kind = Literal["quantiles", "bounds"]
"""Ends of the range that becomes [-1, 1]: `q01` and `q99`, or `min` and `max`."""
Entry = Literal["action", "proprio"]
"""Part of a set of statistics: that of actions, or that of the state."""
TOLERANCE = 1 / 256
"""Distance that a normalised number may lie outside [-1, 1] and not count as clipped: half an action bin."""


def chosen(norm_stats: dict[str, Any] | None, key: str | None) -> tuple[str, dict[str, Any]]:
    """The name of the set of statistics in use, and the set.

    Raises:
        UserError: there are none, the key is unknown, or it is missing where there are several.
    """
    if not norm_stats:
        raise UserError(
            "the checkpoint holds no action statistics ('norm_stats'), without which it cannot act; prune and sft take "
            "those of your demonstrations by --statistics dataset"
        )
    names = shorten(", ".join(norm_stats))
    if key is None and len(norm_stats) > 1:
        raise UserError(f"choose an unnorm_key: the checkpoint holds statistics for {names}")
    key = next(iter(norm_stats)) if key is None else key
    if key not in norm_stats:
        raise UserError(f"unknown unnorm_key '{shorten(key)}': the checkpoint knows {names}")
    return key, norm_stats[key]


def action_statistics(
    norm_stats: dict[str, Any] | None,
    unnorm_key: str | None,
    action_dim: int | None = None,
    kind: Kind = "quantiles",
    entry: Entry = "action",
) -> dict[str, np.ndarray]:
    """An entry of `norm_stats[unnorm_key]` as arrays (D,); the key may be left out where there is only one.

    Args:
        action_dim: how many dimensions they must have; None takes any number.
        entry: "proprio" for those of the state.

    Returns:
        `low`, `high`, `mask` (true where a dimension is normalised), and `constant` (true where a dimension never
        moves).

    Raises:
        UserError: the key is unknown, or missing where several exist, or the entry is damaged or of another size.
    """
    name, found = chosen(norm_stats, unnorm_key)
    where = f"norm_stats.{shorten(name)}.{entry}"
    fields = ActionStatistics if kind == "quantiles" else BoundStatistics
    stats: Any = validate(found.get(entry), fields, where)
    lowest, highest = (stats.q01, stats.q99) if kind == "quantiles" else (stats.min, stats.max)
    if action_dim is not None and len(lowest) != action_dim:
        numbers = "action_dim" if entry == "action" else "state_dim"
        raise UserError(
            f"{where} has {len(lowest)} dimensions, and the policy's {numbers} is {action_dim}; "
            f"rlrc reads policies whose statistics and {'actions' if entry == 'action' else 'states'} have the same "
            "number"
        )
    mask = np.ones(len(lowest), dtype=bool) if stats.mask is None else np.asarray(stats.mask, dtype=bool)
    low, high = (np.asarray(values, dtype=np.float64) for values in (lowest, highest))
    never_moves = low == high if stats.min is None or stats.max is None else np.equal(stats.min, stats.max)
    return {"low": low, "high": high, "mask": mask, "constant": never_moves}


def normalise(actions: np.ndarray, stats: dict[str, Any]) -> np.ndarray:
    """Actions (..., D) in physical units to float32 in [-1, 1].

    OpenVLA's clip(2 (x - q01) / (q99 - q01 + 1e-8) - 1, -1, 1), the way into its action tokens.

    Args:
        stats: an "action" entry of `norm_stats`; dimensions whose `mask` is false are left as they are.
    """
    low, high = np.asarray(stats["low"]), np.asarray(stats["high"])
    scaled = np.clip(2 * (actions - low) / (high - low + 1e-8) - 1, -1, 1)
    return np.where(stats["mask"], scaled, actions).astype(np.float32)


def clipped(values: np.ndarray, stats: dict[str, np.ndarray]) -> np.ndarray:
    """Return which numbers (T, D) lie outside what `stats` can say, by more than `TOLERANCE`, bool (T, D)."""
    low, high = stats["low"], stats["high"]
    scaled = np.where(stats["mask"], 2 * (values - low) / (high - low + 1e-8) - 1, values)
    return np.abs(scaled) > 1 + TOLERANCE


def unnormalise(actions: np.ndarray, stats: dict[str, np.ndarray], margin: float = 0.0) -> np.ndarray:
    """Normalised actions (..., D) in [-1, 1] to physical units, where `mask` is true; the rest is left as it is.

    Args:
        margin: is added to each range, as some published code does.
    """
    low, high = stats["low"], stats["high"]
    return np.where(stats["mask"], 0.5 * (actions + 1.0) * (high - low + margin) + low, actions)
