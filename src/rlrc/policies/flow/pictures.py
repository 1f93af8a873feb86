"""Pictures of any size in a square, their sides in proportion and the rest black: as openpi and LeRobot show them."""

from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F

from rlrc.policies.device import moved
from rlrc.policies.parts.observed import require_pictures

Place = Literal["centre", "right-bottom"]
"""Place of the picture in its square: in the middle (pi), or to the right and at the bottom (SmolVLA)."""


def letterboxed(images: np.ndarray, size: int, place: Place, device: torch.device | str = "cpu") -> torch.Tensor:
    """Pictures uint8 (B, H, W, 3) to float32 (B, 3, size, size) in [-1, 1] on `device`.

    They are resized with bilinear interpolation that is not antialiased, to sides that are rounded down; what they do
    not cover is -1 (openpi's `resize_with_pad_torch`, LeRobot's after 0.4). They travel as bytes.

    Raises:
        UserError: wrong dtype or shape.
    """
    require_pictures(images)
    planes = moved(torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).contiguous(), device).float()
    height, width = images.shape[1:3]
    ratio = max(height / size, width / size)
    inside = max(int(height / ratio), 1), max(int(width / ratio), 1)
    scaled = planes.div_(255)
    if inside != (height, width):
        scaled = F.interpolate(scaled, size=inside, mode="bilinear", align_corners=False)
    missing = size - inside[0], size - inside[1]
    top, left = (rest // 2 if place == "centre" else rest for rest in missing)
    return F.pad(scaled.mul_(2).sub_(1), (left, missing[1] - left, top, missing[0] - top), value=-1.0)
