"""Actions as tokens: the last 256 ids of the vocabulary are bins over [-1, 1].

The arithmetic is OpenVLA's (Kim et al., 2024, and its published code): the bin is counted down from the end of the
*unpadded* vocabulary.
"""

import numpy as np
import torch
import torch.nn.functional as F

from rlrc.policies.device import moved


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

    def encode(self, actions: torch.Tensor) -> torch.Tensor:
        """Normalised actions float32 (..., D) to token ids (..., D) int64, on their own device."""
        # The published code compares with bins in float64. No float32 lies between a bin and its next larger float32.
        bins = self.bins.astype(np.float32)
        bins = np.where(bins < self.bins, np.nextafter(bins, np.float32(np.inf)), bins)
        edges = moved(torch.from_numpy(bins), actions.device)
        return self.vocab_end - torch.bucketize(actions.clamp(-1.0, 1.0), edges, right=True)

    def decode(self, tokens: np.ndarray) -> np.ndarray:
        """Token ids (..., D) to bin centres (..., D) float64; ids outside the range clip to the nearest bin."""
        index = np.clip(self.vocab_end - tokens - 1, 0, len(self.bin_centers) - 1)
        return self.bin_centers[index]

    def centres(self, like: torch.Tensor) -> torch.Tensor:
        """The action in the middle of each bin, normalised (n_bins,), of the dtype and device of `like`."""
        centres = torch.from_numpy(self.decode(np.arange(self.first_id, self.vocab_end)))
        return moved(centres.to(like.dtype), like.device)

    def mean(self, logits: torch.Tensor) -> torch.Tensor:
        """Logits (..., n_bins) to the mean of each distribution, normalised (...)."""
        return logits.softmax(dim=-1) @ self.centres(logits)

    def best(self, logits: torch.Tensor) -> torch.Tensor:
        """Logits (..., n_bins) to the likeliest actions, normalised (...)."""
        return self.centres(logits)[logits.argmax(dim=-1)]


def token_errors(logits: torch.Tensor, bins: torch.Tensor, label_spread: float) -> torch.Tensor:
    """Cross-entropy (...) of logits (..., n_bins) against bin numbers (...), spread over their neighbours if asked."""
    labels = spread_labels(bins.flatten(), label_spread, logits.shape[-1]) if label_spread else bins.flatten()
    return F.cross_entropy(logits.flatten(0, -2), labels, reduction="none").view(bins.shape)


def likelihood_of(logits: torch.Tensor, bins: torch.Tensor, temperature: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities (...) of bin numbers (...) given logits (..., n_bins), and the entropies (...)."""
    logprobs = F.log_softmax(logits / temperature, dim=-1)
    entropies = -(logprobs.exp() * logprobs).sum(dim=-1)
    return logprobs.gather(-1, bins[..., None]).squeeze(-1), entropies


def spread_labels(labels: torch.Tensor, spread: float, bins: int) -> torch.Tensor:
    """Bin numbers (B,) to distributions (B, bins): a Gaussian of deviation `spread` (in bins) around each label."""
    distance = torch.arange(bins, device=labels.device) - labels[:, None]
    return (-0.5 * (distance / spread) ** 2).softmax(dim=-1)


def choose(
    logits: torch.Tensor, temperature: float = 0.0, uniform: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Bins (B, ...) and their log-probabilities (B, ...) from logits (B, ..., bins); the likeliest at temperature 0.

    Log-probabilities are those of the distribution that is sampled from; at temperature 0 of the untempered one.

    Args:
        uniform: numbers from [0, 1), (B, ...), which decide what is sampled (inverse transform sampling); None at
            temperature 0.
    """
    logprobs = F.log_softmax(logits.float() / (temperature or 1.0), dim=-1)
    if uniform is None:
        bins = logprobs.argmax(dim=-1)
    else:
        cumulative = logprobs.exp().cumsum(dim=-1)
        threshold = uniform * cumulative[..., -1]
        bins = (cumulative <= threshold[..., None]).sum(dim=-1).clamp(max=logits.shape[-1] - 1)
    return bins, logprobs.gather(-1, bins[..., None]).squeeze(-1)
