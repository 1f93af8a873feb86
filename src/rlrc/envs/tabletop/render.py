"""Pictures: one offscreen OpenGL context a process and picture size, shared by all scenes.

Cheap on purpose (no shadow map, reflection or multisampling, coarse round shapes). In place of the shadow map a flat
dark ellipse lies under the hand: it shows where over the table the hand is and how far its fingers are open.
"""

import os
from functools import cache

import mujoco
import numpy as np

from rlrc.envs.opengl import Canvas
from rlrc.envs.tabletop.scene import FINGERS, compile_scene

os.environ.setdefault("LP_NUM_THREADS", "0")  # Mesa's own threads cost more than they bring for small pictures.

_MAX_GEOMS = 128
_SHADOW_RGBA = np.array([0.0, 0.0, 0.0, 0.45], np.float32)
_SHADOW_WIDTH, _SHADOW_MARGIN, _SHADOW_LIFT = 0.014, 0.012, 0.001


class Painter:
    """Draws scenes compiled by `compile_scene` as square pictures of `size` px.

    Raises:
        UserError: this machine has no OpenGL for MuJoCo; the message names the packages.
    """

    def __init__(self, size: int) -> None:
        model = compile_scene()
        self._canvas = Canvas(model, size)
        self._scene = mujoco.MjvScene(model, _MAX_GEOMS)
        self._scene.flags[mujoco.mjtRndFlag.mjRND_SHADOW] = 0
        self._scene.flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = 0
        self._camera = mujoco.MjvCamera()
        self._camera.type = mujoco.mjtCamera.mjCAMERA_FIXED
        self._tcp = model.site("tcp").id
        self._options = mujoco.MjvOption()

    def draw(self, model: mujoco.MjModel, data: mujoco.MjData, camera: str) -> np.ndarray:
        """A camera's picture, uint8 (size, size, 3)."""
        self._update(model, data, camera)
        self._add_shadow(data)
        return self._read()

    def foreground(self, model: mujoco.MjModel, data: mujoco.MjData, camera: str) -> np.ndarray:
        """Return where a camera's picture shows something other than the table, bool (size, size)."""
        self._update(model, data, camera)
        flags = [int(mujoco.mjtRndFlag.mjRND_SEGMENT), int(mujoco.mjtRndFlag.mjRND_IDCOLOR)]
        self._scene.flags[flags] = 1
        number = self._read() @ np.array([1, 256, 65536])
        self._scene.flags[flags] = 0
        table = next(g.segid for g in self._scene.geoms[: self._scene.ngeom] if g.objid == model.geom("table").id)
        return (number > 0) & (number != table + 1)

    def _update(self, model: mujoco.MjModel, data: mujoco.MjData, camera: str) -> None:
        self._camera.fixedcamid = model.camera(camera).id
        mujoco.mjv_updateScene(model, data, self._options, None, self._camera, mujoco.mjtCatBit.mjCAT_ALL, self._scene)

    def _read(self) -> np.ndarray:
        return self._canvas.draw(self._scene)[::-1].copy()

    def _add_shadow(self, data: mujoco.MjData) -> None:
        position, opening_axis = data.site_xpos[self._tcp], data.site_xmat[self._tcp].reshape(3, 3)[:, 1]
        yaw = np.arctan2(-opening_axis[0], opening_axis[1])
        spread = data.qpos[FINGERS][0] + _SHADOW_MARGIN
        turn = np.array([[np.cos(yaw), -np.sin(yaw), 0.0], [np.sin(yaw), np.cos(yaw), 0.0], [0.0, 0.0, 1.0]])
        ground = _ground(data, position) + _SHADOW_LIFT
        geom = self._scene.geoms[self._scene.ngeom]
        disc = mujoco.mjtGeom.mjGEOM_CYLINDER
        mujoco.mjv_initGeom(geom, disc, np.ones(3), np.append(position[:2], ground), turn.ravel(), _SHADOW_RGBA)
        geom.size = [_SHADOW_WIDTH, spread, 1e-4]  # Elliptic, which the call above cannot make.
        self._scene.ngeom += 1


@cache
def painter(size: int) -> Painter:
    """This process's painter for pictures of `size` px."""
    return Painter(size)


def _ground(data: mujoco.MjData, position: np.ndarray) -> float:
    """Height (m) of the table, or of the receptacle under `position`: receptacles are the mocap bodies, 8 mm high."""
    if data.mocap_pos.size == 0:
        return 0.0
    nearest = np.linalg.norm(data.mocap_pos[:, :2] - position[:2], axis=1).min()
    return 0.008 if nearest < 0.07 else 0.0
