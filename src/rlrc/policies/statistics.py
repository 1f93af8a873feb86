"""The statistics that turn normalised actions and states into physical units, and back."""

from typing import Any

import numpy as np

from rlrc.errors import UserError
from rlrc.policies.schema import ActionStatistics
from rlrc.reading import shorten, validate


def action_statistics(
    norm_stats: dict[str, Any] | None, unnorm_key: str | None, action_dim: int | None = None
) -> dict[str, np.ndarray]:
    """The `action` entry of `norm_stats[unnorm_key]` as arrays (D,); the key may be left out where there is only one.

    Args:
        action_dim: how many dimensions they must have; None takes any number.

    Raises:
        UserError: the key is unknown, or missing where several exist, or the entry is damaged or of another size.
    """
    if not norm_stats:
        raise UserError("the checkpoint holds no action statistics ('norm_stats'); actions cannot be un-normalised")
    names = shorten(", ".join(norm_stats))
    if unnorm_key is None:
        if len(norm_stats) > 1:
            raise UserError(f"choose an unnorm_key: the checkpoint holds statistics for {names}")
        unnorm_key = next(iter(norm_stats))
    if unnorm_key not in norm_stats:
        raise UserError(f"unknown unnorm_key '{shorten(unnorm_key)}': the checkpoint knows {names}")
    where = f"norm_stats.{shorten(unnorm_key)}.action"
    stats = validate(norm_stats[unnorm_key].get("action"), ActionStatistics, where)
    if action_dim is not None and len(stats.q01) != action_dim:
        raise UserError(
            f"{where} has {len(stats.q01)} dimensions, and the policy's action_dim is {action_dim}; "
            "rlrc reads policies whose statistics and actions have the same number"
        )
    mask = np.ones(len(stats.q01), dtype=bool) if stats.mask is None else np.asarray(stats.mask, dtype=bool)
    low, high = (np.asarray(values, dtype=np.float64) for values in (stats.q01, stats.q99))
    return {"low": low, "high": high, "mask": mask}


def normalise(actions: np.ndarray, stats: dict[str, Any]) -> np.ndarray:
    """Actions (..., D) in physical units to float32 in [-1, 1].

    OpenVLA's clip(2 (x - q01) / (q99 - q01 + 1e-8) - 1, -1, 1), the way into its action tokens.

    Args:
        stats: an "action" entry of `norm_stats`; dimensions whose `mask` is false are left as they are.
    """
    low, high = np.asarray(stats["low"]), np.asarray(stats["high"])
    scaled = np.clip(2 * (actions - low) / (high - low + 1e-8) - 1, -1, 1)
    return np.where(stats["mask"], scaled, actions).astype(np.float32)


def unnormalise(actions: np.ndarray, stats: dict[str, np.ndarray]) -> np.ndarray:
    """Normalised actions (..., D) in [-1, 1] to physical units, where `mask` is true; the rest is left as it is."""
    low, high = stats["low"], stats["high"]
    return np.where(stats["mask"], 0.5 * (actions + 1.0) * (high - low) + low, actions)
