"""Overlays on the camera's picture: a photograph of a table as background, and a variant's unseen texture.

Batched tensors on whatever device the picture is. At 640 x 480 px the pictures are RL4VLA's; smaller ones show the
same view.
"""

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image
from torch.nn.functional import grid_sample

from rlrc.envs.putonplate import files
from rlrc.envs.putonplate.episodes import Episode


class Overlay:
    """The backgrounds and textures of N environments at `width` x `height` px."""

    def __init__(self, width: int, height: int) -> None:
        self._width, self._height = width, height

    def choose(self, episodes: Sequence[Episode], device: torch.device) -> None:
        """Take those of the N episodes that start; they are of one variant, so their blends are alike."""
        tables = files.tables()
        size = (self._width, self._height)
        self._blend = episodes[0].blend
        self._backgrounds = _stack([(tables[e.table].picture, size) for e in episodes], device)
        if self._blend == "none":
            return
        # `whole` looks at a texture twice as large as the picture through a window that moves with the foreground.
        zoom = 2 if self._blend == "whole" else 1
        size = (zoom * self._width, zoom * self._height)
        self._textures = _stack([(tables[e.texture].texture, size) for e in episodes], device).float()
        weights = [tables[e.texture].mix * e.strength for e in episodes]
        self._weights = torch.tensor(weights, dtype=torch.float32, device=device)[:, None, None, None]

    def lay(self, rgb: torch.Tensor, foreground: torch.Tensor) -> torch.Tensor:
        """Return the pictures that are seen, uint8 (N,H,W,3), from those rendered and the masks (N,H,W) of robot and
        things."""
        over = torch.where(foreground[..., None], rgb, self._backgrounds.to(rgb.device))
        if self._blend == "none":
            return over
        box = _boxes(foreground)
        weights, textures = self._weights.to(rgb.device), self._textures.to(rgb.device)
        texture = _stretched(textures, box, rgb.shape[1:3]) if self._blend == "objects" else _window(textures, box)
        blended = (1 - weights) * over + weights * texture
        if self._blend == "objects":
            blended = torch.where(foreground[..., None], blended, over.float())
        return blended.clamp(0, 255).to(torch.uint8)


def _boxes(mask: torch.Tensor) -> torch.Tensor:
    """Bounding boxes (N,4) of masks (N,H,W): first and last column, first and last row; all 0 where there is none."""
    columns, rows = mask.any(dim=1), mask.any(dim=2)
    ends = [
        torch.stack([line.int().argmax(dim=1), line.shape[1] - 1 - line.flip(1).int().argmax(dim=1)], dim=1)
        for line in (columns, rows)
    ]
    return torch.cat(ends, dim=1) * columns.any(dim=1)[:, None]


def _stretched(textures: torch.Tensor, box: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """Textures (N,h,w,3) stretched bilinearly over their boxes; float32 (N,H,W,3), meaningless outside of the boxes."""
    left, right, top, bottom = (edge[:, None].float() for edge in box.T)
    x = 2 * (torch.arange(size[1], device=box.device) - left + 0.5) / (right - left + 1) - 1
    y = 2 * (torch.arange(size[0], device=box.device) - top + 0.5) / (bottom - top + 1) - 1
    grid = torch.stack([x[:, None, :].expand(-1, size[0], -1), y[:, :, None].expand(-1, -1, size[1])], dim=-1)
    channels_first = textures.permute(0, 3, 1, 2)
    return grid_sample(channels_first, grid, padding_mode="border", align_corners=False).permute(0, 2, 3, 1)


def _window(textures: torch.Tensor, box: torch.Tensor) -> torch.Tensor:
    """Windows (N,H,W,3) of textures (N,2H,2W,3) whose upper left corners are the middles of the boxes."""
    height, width = textures.shape[1] // 2, textures.shape[2] // 2
    x = ((box[:, 0] + box[:, 1]) // 2).clamp(1, width - 1)
    y = ((box[:, 2] + box[:, 3]) // 2).clamp(1, height - 1)
    rows = y[:, None] + torch.arange(height, device=box.device)
    columns = x[:, None] + torch.arange(width, device=box.device)
    number = torch.arange(len(textures), device=box.device)[:, None, None]
    return textures[number, rows[:, :, None], columns[:, None, :]]


def _stack(wanted: Sequence[tuple[Path, tuple[int, int]]], device: torch.device) -> torch.Tensor:
    return torch.tensor(np.stack([_picture(path, size) for path, size in wanted]), device=device)


@cache
def _picture(path: Path, size: tuple[int, int]) -> np.ndarray:
    """An RGB picture, uint8, resized to `size` (width, height) px: averaged to shrink it, bilinear to make it grow."""
    pixels = np.asarray(Image.open(path).convert("RGB"))
    shrinks = size[0] < pixels.shape[1] and size[1] < pixels.shape[0]
    return cv2.resize(pixels, size, interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
