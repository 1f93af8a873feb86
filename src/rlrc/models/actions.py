"""Actions as tokens: the last 256 ids of the vocabulary are bins over [-1, 1]; statistics give them physical units.

The arithmetic is OpenVLA's (Kim et al., 2024, and its published code): the bin is counted down from the end of the
*unpadded* vocabulary, and only dimensions whose `mask` is true are un-normalised.
"""

from typing import Any

import numpy as np
import torch

from rlrc.errors import UserError
from rlrc.models.schema import ActionStatistics
from rlrc.reading import shorten, validate


class ActionTokenizer:
    """Converts between normalised actions in [-1, 1] and token ids in [vocab_end - n_bins, vocab_end)."""

    def __init__(self, vocab_end: int, n_bins: int = 256) -> None:
        self.vocab_end = vocab_end
        self.n_bins = n_bins
        self.bins = np.linspace(-1.0, 1.0, n_bins)
        self.bin_centers = (self.bins[:-1] + self.bins[1:]) / 2.0

    @property
    def first_id(self) -> int:
        return self.vocab_end - self.n_bins

    def ids_to_bins(self, tokens: torch.Tensor) -> torch.Tensor:
        """Token ids to indices 0..n_bins-1 into the action logits."""
        return tokens - self.first_id

    def encode(self, actions: np.ndarray) -> np.ndarray:
        """Normalised actions (..., D) to token ids (..., D) int64."""
        return self.vocab_end - np.digitize(np.clip(actions, -1.0, 1.0), self.bins)

    def decode(self, tokens: np.ndarray) -> np.ndarray:
        """Token ids (..., D) to bin centres (..., D) float64; ids outside the range clip to the nearest bin."""
        index = np.clip(self.vocab_end - tokens - 1, 0, len(self.bin_centers) - 1)
        return self.bin_centers[index]


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
    return {"q01": low, "q99": high, "mask": mask}


def normalise(actions: np.ndarray, stats: dict[str, Any]) -> np.ndarray:
    """Actions (..., D) in physical units to float32 in [-1, 1].

    OpenVLA's clip(2 (x - q01) / (q99 - q01 + 1e-8) - 1, -1, 1), the way into its action tokens.

    Args:
        stats: an "action" entry of `norm_stats`; dimensions whose `mask` is false are left as they are.
    """
    low, high = np.asarray(stats["q01"]), np.asarray(stats["q99"])
    scaled = np.clip(2 * (actions - low) / (high - low + 1e-8) - 1, -1, 1)
    return np.where(stats["mask"], scaled, actions).astype(np.float32)


def unnormalise(actions: np.ndarray, stats: dict[str, np.ndarray]) -> np.ndarray:
    """Normalised actions (..., D) in [-1, 1] to physical units, where `mask` is true; the rest is left as it is."""
    low, high = stats["q01"], stats["q99"]
    return np.where(stats["mask"], 0.5 * (actions + 1.0) * (high - low) + low, actions)
