"""LeRobot's summaries of a feature, per episode and over the dataset: extremes, moments and quantiles, all exact."""

from typing import Any

import numpy as np

from rlrc.data.format import QUANTILES


class VectorSummary:
    """Summary of a feature that has one number or one vector in each frame."""

    def __init__(self) -> None:
        self._episodes: list[np.ndarray] = []

    def add(self, values: np.ndarray) -> dict[str, Any]:
        """Take in an episode (T,) or (T, D) and return its own summary, lists of length D."""
        self._episodes.append(values.reshape(len(values), -1))
        return self._summarise(self._episodes[-1])

    def total(self) -> dict[str, Any]:
        return self._summarise(np.concatenate(self._episodes))

    @staticmethod
    def _summarise(values: np.ndarray) -> dict[str, Any]:
        wide = values.astype(np.float64)
        numbers = {"min": values.min(0), "max": values.max(0), "mean": wide.mean(0), "std": wide.std(0)}
        quantiles = dict(zip(QUANTILES, np.quantile(wide, list(QUANTILES.values()), axis=0), strict=True))
        return {"count": [len(values)]} | {name: value.tolist() for name, value in (numbers | quantiles).items()}


class ImageSummary:
    """A camera's summary: per channel over pixels scaled to [0, 1], from counts of the 256 values a byte can take."""

    def __init__(self) -> None:
        self._frames = 0
        self._counts = np.zeros((3, 256), np.int64)

    def add(self, images: np.ndarray) -> dict[str, Any]:
        """Take in an episode uint8 (T, H, W, 3) and return its own summary, nested lists of shape (3, 1, 1)."""
        counts = np.stack([np.bincount(images[..., channel].ravel(), minlength=256) for channel in range(3)])
        self._frames += len(images)
        self._counts += counts
        return self._summarise(len(images), counts)

    def total(self) -> dict[str, Any]:
        return self._summarise(self._frames, self._counts)

    @staticmethod
    def _summarise(frames: int, counts: np.ndarray) -> dict[str, Any]:
        levels = np.arange(256) / 255
        pixels = counts[0].sum()
        mean = counts @ levels / pixels
        numbers = {
            "min": levels[(counts > 0).argmax(1)],
            "max": levels[255 - (counts[:, ::-1] > 0).argmax(1)],
            "mean": mean,
            "std": np.sqrt((counts * (levels - mean[:, None]) ** 2).sum(1) / pixels),
        }
        below = counts.cumsum(1)
        quantiles = {name: levels[(below >= q * pixels).argmax(1)] for name, q in QUANTILES.items()}
        return {"count": [frames]} | {name: v.reshape(3, 1, 1).tolist() for name, v in (numbers | quantiles).items()}
