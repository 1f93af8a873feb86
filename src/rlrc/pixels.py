"""The one way in which a picture is brought to the size that a policy sees."""

import numpy as np
from PIL import Image


def resize(picture: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A picture uint8 (H, W, 3) at `size` (height, width): Pillow's bicubic filter, antialiased.

    A picture that has this size is returned as it is.
    """
    if picture.shape[:2] == size:
        return picture
    height, width = size
    return np.asarray(Image.fromarray(picture).resize((width, height), Image.Resampling.BICUBIC))
