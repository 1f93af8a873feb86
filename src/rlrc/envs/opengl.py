"""Drawing without a screen: what MuJoCo's worlds draw their pictures on."""

import os
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import mujoco
import numpy as np

from rlrc.errors import UserError


class Canvas:
    """Square pictures of a model's scenes, of `size` px; all of one size share this process's OpenGL context.

    Raises:
        UserError: this machine has no OpenGL for MuJoCo; the message names the packages.
    """

    def __init__(self, model: mujoco.MjModel, size: int) -> None:
        model.vis.global_.offwidth = model.vis.global_.offheight = size
        platform = os.environ.get("MUJOCO_GL") or ("glfw" if "DISPLAY" in os.environ else "egl")
        try:
            self._context = _context(platform, size)
            self._context.make_current()
            self._buffers = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_100)
        except (ImportError, AttributeError, RuntimeError, mujoco.FatalError) as error:
            raise UserError(
                f"cannot draw with OpenGL through {platform}: install the Debian packages libegl1 libgl1-mesa-dri "
                f"libosmesa6, or set MUJOCO_GL to egl, osmesa or glfw ({' '.join(str(error).split())})"
            ) from error
        self._size = size

    def draw(self, scene: mujoco.MjvScene) -> np.ndarray:
        """The picture as OpenGL keeps it, bottom row first: uint8 (size, size, 3)."""
        self._context.make_current()
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self._buffers)
        rect = mujoco.MjrRect(0, 0, self._size, self._size)
        pixels = np.empty((self._size, self._size, 3), np.uint8)
        mujoco.mjr_render(rect, scene, self._buffers)
        mujoco.mjr_readPixels(pixels, None, rect, self._buffers)
        return pixels


@cache
def _context(platform: str, size: int) -> Any:
    """One for a process and size: making them costs time, and MuJoCo's resources of a model can share it."""
    if find_spec("triton") is not None:
        # Its LLVM crashes where it is loaded after that of Mesa; a policy that is loaded later would load it.
        import_module("triton")
    return import_module(f"mujoco.{platform}").GLContext(size, size)
