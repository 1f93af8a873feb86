"""Pictures of LIBERO's cameras, drawn as robosuite draws them, or faster.

robosuite's own renderer keeps an OpenGL context for each environment and draws with every step; here one context
serves the process, and a picture is drawn when it is asked for.
"""

import io

import mujoco
import numpy as np
from PIL import Image

from rlrc.envs.opengl import Canvas

SIZE = 256
"""Side in px of the pictures that LIBERO's datasets and OpenVLA's evaluation render before they resize."""
_MAX_GEOMS = 1000


class Painter:
    """Draws one model. Official pictures are robosuite's, bit for bit; fast ones lack reflections and multisampling.

    Raises:
        UserError: this machine has no OpenGL for MuJoCo; the message names the packages.
    """

    def __init__(self, model: mujoco.MjModel, fast: bool) -> None:
        if fast:
            model.vis.quality.offsamples = 0
        self._model = model
        self._canvas = Canvas(model, SIZE)
        self._scene = mujoco.MjvScene(model, _MAX_GEOMS)
        self._scene.flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = not fast
        self._camera = mujoco.MjvCamera()
        self._camera.type = mujoco.mjtCamera.mjCAMERA_FIXED
        self._options = mujoco.MjvOption()
        self._options.geomgroup[0] = 0  # collision shapes

    def draw(self, data: mujoco.MjData, camera: str) -> np.ndarray:
        """A camera's picture as OpenGL keeps it, bottom row first: uint8 (256,256,3)."""
        self._camera.fixedcamid = self._model.camera(camera).id
        everything = mujoco.mjtCatBit.mjCAT_ALL
        mujoco.mjv_updateScene(self._model, data, self._options, None, self._camera, everything, self._scene)
        return self._canvas.draw(self._scene)


def as_openvla_sees(pixels: np.ndarray, size: int) -> np.ndarray:
    """A raw picture as OpenVLA's LIBERO evaluation shows it to a policy, uint8 (size,size,3).

    Turned by 180 degrees, which leaves it upright and mirrored, as LIBERO's training data in RLDS are, those of the
    wrist camera as well; through JPEG at
    TensorFlow's default quality, as those were; then resized with an antialiased Lanczos filter of three lobes.
    """
    file = io.BytesIO()
    Image.fromarray(pixels[::-1, ::-1]).save(file, "JPEG", quality=95, subsampling="4:2:0")
    return np.asarray(Image.open(file).resize((size, size), Image.Resampling.LANCZOS))
