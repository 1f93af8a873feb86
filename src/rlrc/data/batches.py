"""Batches for training: which frames in which order, and how their pictures are varied."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from rlrc.configs.augmentation import Augmentation
from rlrc.errors import UserError


class ShuffledBatches:
    """Endless batches of indices: one permutation of all of them after another, cut into batches.

    The order depends on the seed alone. All processes walk it together, each taking its share of every global batch, so
    the position is the same for all, and a run resumed from `state_dict()` goes on with exactly the batch it was to see
    next.
    """

    def __init__(self, length: int, batch_size: int, seed: int, rank: int = 0, world_size: int = 1) -> None:
        """
        Args:
            length: how many indices there are.
            batch_size: of this process; the global batch is `world_size` times as large.

        Raises:
            UserError: there is nothing to draw from.
        """
        if length < 1 or batch_size < 1:
            raise UserError(f"cannot make batches of {batch_size} from {length} frames")
        self._length = length
        self._batch_size = batch_size
        self._rank = rank
        self._world_size = world_size
        self._move_to(seed, 0, 0)

    def __iter__(self) -> Iterator[np.ndarray]:
        return self

    def __next__(self) -> np.ndarray:
        """This process's next batch, int64 (batch_size,)."""
        missing = self._batch_size * self._world_size
        parts = []
        while missing:
            if self._position == self._length:
                self._move_to(self._seed, self._epoch + 1, 0)
            parts.append(self._order[self._position : self._position + missing])
            self._position += len(parts[-1])
            missing -= len(parts[-1])
        return np.concatenate(parts)[self._rank :: self._world_size]

    def state_dict(self) -> dict[str, int]:
        return {"seed": self._seed, "epoch": self._epoch, "position": self._position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self._move_to(state["seed"], state["epoch"], state["position"])

    def _move_to(self, seed: int, epoch: int, position: int) -> None:
        self._seed, self._epoch, self._position = seed, epoch, position
        self._order = np.random.default_rng([seed, epoch]).permutation(self._length)


def vary(images: Tensor, how: Augmentation, generator: torch.Generator) -> Tensor:
    """Vary uint8 images (B, H, W, 3) on the CPU; the same generator state gives the same result.

    Every picture of a batch gets its own draw. All colour changes of a picture are one affine map of its colours, so
    saturation and hue are those of the YIQ space (a stretch and a turn of its chroma plane) and not of HSV, and values
    are clipped once, at the end.
    """
    if how.shift or how.crop_area < 1:
        images = _crop(images, how.crop_area, how.shift, generator)
    if how.brightness or how.contrast or how.saturation or how.hue:
        images = _vary_colours(images, how, generator)
    return images


def _vary_colours(images: Tensor, how: Augmentation, generator: torch.Generator) -> Tensor:
    pixels = images.float().view(len(images), -1, 3)
    brightness, contrast, saturation, hue = torch.rand(4, len(images), 1, 1, generator=generator) * 2 - 1
    contrast = 1 + how.contrast * contrast
    chroma = (1 + how.saturation * saturation) * torch.exp(2j * torch.pi * how.hue * hue)
    mix = _chroma_map(chroma.flatten())
    # ((pixel + brightness - mean) * contrast + mean) @ mix, with the mean of the brightened picture.
    mean = pixels.mean(1, keepdim=True)
    offset = (255 * how.brightness * brightness + (1 - contrast) * mean) @ mix
    varied = np.matmul(pixels.numpy(), (contrast * mix).numpy())  # torch's bmm is ten times slower on 3 columns
    return torch.from_numpy(varied).add_(offset).round_().clamp_(0, 255).byte().view(images.shape)


def _crop(images: Tensor, area: float, shift: int, generator: torch.Generator) -> Tensor:
    """Windows of `area` at random whole pixels, at most `shift` of them beyond the edge, resized back (bilinear)."""
    height, width = images.shape[1:3]
    padded = np.pad(images.numpy(), ((0, 0), (shift, shift), (shift, shift), (0, 0)), mode="edge")
    size = round(height * area**0.5), round(width * area**0.5)
    spare = torch.tensor(padded.shape[1:3]) - torch.tensor(size) + 1
    corners = (torch.rand(len(images), 2, generator=generator) * spare).long().tolist()
    windows = np.empty((len(images), *size, 3), np.uint8)
    for window, image, (top, left) in zip(windows, padded, corners, strict=True):
        window[:] = image[top : top + size[0], left : left + size[1]]
    planes = torch.from_numpy(windows).permute(0, 3, 1, 2)
    # On bytes in this memory layout torch has a kernel that is ten times faster than the one on floats.
    return functional.interpolate(planes, (height, width), mode="bilinear").permute(0, 2, 3, 1)


_TO_YIQ = torch.tensor([[0.299, 0.587, 0.114], [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])
"""Matrix that turns RGB into luma and the two axes of the chroma plane (NTSC, FCC 1953)."""


def _chroma_map(chroma: Tensor) -> Tensor:
    """Matrices (B, 3, 3), for row vectors of RGB, that multiply the complex chroma I + iQ by `chroma` (B,)."""
    change = torch.zeros(len(chroma), 3, 3)
    change[:, 0, 0] = 1
    change[:, 1, 1] = change[:, 2, 2] = chroma.real
    change[:, 1, 2], change[:, 2, 1] = -chroma.imag, chroma.imag
    return (torch.linalg.inv(_TO_YIQ) @ change @ _TO_YIQ).mT
