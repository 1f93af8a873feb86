"""The physics: an arm with the WidowX-250S's proportions, a two-finger gripper, a table and what lies on it.

The world frame is the arm's base frame, the table top is z = 0. One compiled model serves every episode with the same
things on the table; `compile_scene` keeps the recent ones. Table appearances are materials of every model, chosen when
drawing.
"""

from functools import lru_cache

import mujoco
import numpy as np

from rlrc.envs.tabletop.tables import TABLES, texture
from rlrc.envs.tabletop.things import Object, Part, Receptacle

TIMESTEP = 0.008
FINGERS = slice(6, 8)
"""Places of the fingers in qpos: the arm's six joints come before them, objects after."""
DENSITY = 700.0
"""Density of every object, kg/m^3: 30 to 80 g apiece."""

# Lengths (m) after the WidowX-250S: shoulder 0.11 above the table, upper arm 0.25 up and 0.05 forward, forearm 0.25,
# wrist to fingertips 0.18. The hand's x axis points to the fingertips; with the arm straight ahead it is the world's x
# axis. The fingers' damping bounds their speed to 0.2 m/s: a faster pad would be inside what it hits before the next 8
# ms are over. The pads decide the friction of what they hold (priority 1); their soft impedance keeps a squeezed object
# from chattering. Arm bodies are weightless (gravcomp), as on an arm that compensates.
_ARM = f"""
<mujoco model="tabletop">
  <compiler angle="radian" autolimits="true" eulerseq="XYZ"/>
  <option timestep="{TIMESTEP}" integrator="implicitfast" cone="elliptic" impratio="10"/>
  <visual>
    <headlight ambient="0.5 0.5 0.5" diffuse="0.28 0.28 0.28" specular="0 0 0"/>
    <quality shadowsize="0" offsamples="0" numslices="16" numstacks="8" numquads="1"/>
    <map znear="0.05" zfar="5"/>
    <global offwidth="512" offheight="512"/>
  </visual>
  <default>
    <default class="arm">
      <geom contype="0" conaffinity="0" mass="0.05" rgba="0.16 0.17 0.2 1"/>
      <joint damping="0.5" armature="0.02" range="-3.1 3.1"/>
      <site group="5"/>
    </default>
    <default class="big"><position kp="400" kv="16" forcerange="-60 60"/></default>
    <default class="small"><position kp="80" kv="3" forcerange="-15 15"/></default>
    <default class="finger">
      <joint type="slide" damping="30" armature="0.05" range="0 0.045"/>
      <geom type="box" mass="0.03" contype="2" conaffinity="1" condim="4" priority="1"
            friction="2 0.02 0.0001" solimp="0.8 0.9 0.001"/>
    </default>
  </default>
  <worldbody>
    <light directional="true" pos="0.25 0.1 1.5" dir="0 -0.05 -1" diffuse="0.22 0.22 0.22" specular="0.1 0.1 0.1"/>
    <camera name="front"/>
    <geom name="table" type="plane" size="1.5 1.5 1" contype="1" conaffinity="2" friction="0.8" rgba="1 1 1 1"/>
    <body name="waist" pos="0 0 0.07" gravcomp="1" childclass="arm">
      <geom type="cylinder" size="0.06 0.035" pos="0 0 -0.035"/>
      <joint name="waist" axis="0 0 1"/>
      <geom type="cylinder" size="0.04 0.03" pos="0 0 0.02" rgba="0.3 0.32 0.36 1"/>
      <body name="upper_arm" pos="0 0 0.04" gravcomp="1">
        <joint name="shoulder" axis="0 1 0"/>
        <geom type="box" size="0.02 0.03 0.135" pos="0 0 0.125"/>
        <geom type="box" size="0.03 0.025 0.02" pos="0.025 0 0.25"/>
        <body name="forearm" pos="0.05 0 0.25" gravcomp="1">
          <joint name="elbow" axis="0 1 0"/>
          <geom type="box" size="0.08 0.022 0.02" pos="0.075 0 0" rgba="0.3 0.32 0.36 1"/>
          <body name="forearm_roll" pos="0.15 0 0" gravcomp="1">
            <joint name="forearm_roll" axis="1 0 0"/>
            <geom type="box" size="0.05 0.018 0.016" pos="0.05 0 0"/>
            <body name="wrist" pos="0.1 0 0" gravcomp="1">
              <joint name="wrist_angle" axis="0 1 0"/>
              <geom type="box" size="0.035 0.018 0.018" pos="0.03 0 0" rgba="0.3 0.32 0.36 1"/>
              <body name="hand" pos="0.065 0 0" gravcomp="1">
                <joint name="wrist_rotate" axis="1 0 0"/>
                <geom name="palm" type="box" size="0.01 0.055 0.014" pos="0.01 0 0" contype="2" conaffinity="1"/>
                <site name="tcp" pos="0.095 0 0"/>
                <camera name="wrist"/>
                <body name="left_finger" gravcomp="1">
                  <joint name="left_finger" class="finger" axis="0 1 0"/>
                  <geom class="finger" size="0.049 0.005 0.011" pos="0.064 0.005 0" rgba="1 0.6 0.1 1"/>
                </body>
                <body name="right_finger" gravcomp="1">
                  <joint name="right_finger" class="finger" axis="0 -1 0"/>
                  <geom class="finger" size="0.049 0.005 0.011" pos="0.064 -0.005 0" rgba="1 0.6 0.1 1"/>
                </body>
              </body>
            </body>
          </body>
        </body>
      </body>
    </body>
  </worldbody>
  <equality><joint joint1="right_finger" joint2="left_finger" polycoef="0 1 0 0 0" solref="0.016 1"/></equality>
  <actuator>
    <position class="big" joint="waist"/>
    <position class="big" joint="shoulder"/>
    <position class="big" joint="elbow"/>
    <position class="small" joint="forearm_roll"/>
    <position class="small" joint="wrist_angle"/>
    <position class="small" joint="wrist_rotate"/>
    <position joint="left_finger" kp="1000" forcerange="-12 12"/>
  </actuator>
</mujoco>
"""

_ROLLING_DRAG = 1e-4
"""Damping of turns, N m s: what lies on its side rolls a few centimetres, not off the table."""
_NET_FORCE = 3
"""The contact sensor's reduction: one summed force in the world frame."""

BELT_HALF_WIDTH, BELT_TOP = 0.045, 0.002
"""Half the width of the conveyor belt and the height of its surface, m."""
_BELT_HALF_LENGTH, _BELT_MASS, _BELT_GAIN = 2.5, 5.0, 2000.0
_STRIPE_SPACING, _STRIPED = 0.08, 1.2

_CAMERA_TARGET = np.array([0.272, 0.0, 0.045])
_CAMERA_AZIMUTH, _CAMERA_ELEVATION, _CAMERA_DISTANCE, _CAMERA_FOVY = 20.0, 50.0, 0.85, 28.0
_WRIST_CAMERA, _WRIST_TARGET = np.array([-0.02, 0.0, 0.075]), np.array([0.12, 0.0, 0.012])
"""Place of the wrist camera and the point that it looks at, in the hand's frame (m)."""
_WRIST_FOVY = 70.0


@lru_cache(maxsize=64)
def compile_scene(
    objects: tuple[Object, ...] = (), receptacles: tuple[Receptacle, ...] = (), belt: bool = False
) -> mujoco.MjModel:
    """The arm at a table with these things on it; the first of each is what the instruction names.

    Bodies are called object0, object1, ..., plate0, plate1, ...; objects move freely, receptacles are placed by mocap
    pose. A body called belt, which runs along y at the speed (m/s) that its actuator commands, is there if asked for.
    Sensors left_touch, right_touch and plate_touch are the net forces between object0 and the fingers and plate0.
    """
    spec = mujoco.MjSpec.from_string(_ARM)
    _aim_front_camera(spec.camera("front"))
    _aim_wrist_camera(spec.camera("wrist"))
    for index in range(len(TABLES)):
        _add_table_material(spec, index)
    for index, thing in enumerate(objects):
        body = spec.worldbody.add_body(name=f"object{index}")
        body.add_freejoint(name=f"object{index}")
        for part in thing.parts:
            _add_part(body, part, DENSITY)
    for index, receptacle in enumerate(receptacles):
        body = spec.worldbody.add_body(name=f"plate{index}", mocap=True)
        for part in receptacle.parts:
            _add_part(body, part, 0.0)
    if belt:
        _add_belt(spec)
    if objects and receptacles:
        _add_touch(spec, "left_touch", "left_finger", "object0")
        _add_touch(spec, "right_touch", "right_finger", "object0")
        _add_touch(spec, "plate_touch", "plate0", "object0")
    model = spec.compile()
    for index in range(len(objects)):
        spin = model.joint(f"object{index}").dofadr[0] + np.arange(3, 6)
        model.dof_damping[spin] = _ROLLING_DRAG
    return model


def _aim_front_camera(camera: mujoco.MjsCamera) -> None:
    azimuth, elevation = np.deg2rad([_CAMERA_AZIMUTH, _CAMERA_ELEVATION])
    back = np.array([np.cos(elevation) * np.cos(azimuth), np.cos(elevation) * np.sin(azimuth), np.sin(elevation)])
    right = np.array([-np.sin(azimuth), np.cos(azimuth), 0.0])
    _place_camera(camera, _CAMERA_TARGET + _CAMERA_DISTANCE * back, back, right, _CAMERA_FOVY)


def _aim_wrist_camera(camera: mujoco.MjsCamera) -> None:
    """Fix it to the hand's front; with the hand pointing down, up in the picture is away from the arm's base."""
    back = (_WRIST_CAMERA - _WRIST_TARGET) / np.linalg.norm(_WRIST_CAMERA - _WRIST_TARGET)
    _place_camera(camera, _WRIST_CAMERA, back, np.array([0.0, -1.0, 0.0]), _WRIST_FOVY)


def _place_camera(
    camera: mujoco.MjsCamera, position: np.ndarray, back: np.ndarray, right: np.ndarray, fovy: float
) -> None:
    """Let a camera at `position` look along -`back`, both in the frame of the body that it is fixed to."""
    axes = np.stack([right, np.cross(back, right), back], axis=1)
    camera.pos = position
    quat = np.zeros(4)
    mujoco.mju_mat2Quat(quat, axes.ravel())
    camera.quat = quat
    camera.fovy = fovy


def _add_table_material(spec: mujoco.MjSpec, index: int) -> None:
    name, pixels = f"table{index}", texture(index)
    height, width, channels = pixels.shape
    image = spec.add_texture(
        name=name, type=mujoco.mjtTexture.mjTEXTURE_2D, nchannel=channels, height=height, width=width
    )
    image.data = pixels.tobytes()
    material = spec.add_material(name=name, texuniform=True, texrepeat=[2.0, 2.0], specular=0.0, reflectance=0.0)
    material.textures[mujoco.mjtTextureRole.mjTEXROLE_RGB] = name


def _add_part(body: mujoco.MjsBody, part: Part, density: float) -> None:
    quat = np.zeros(4)
    mujoco.mju_euler2Quat(quat, np.deg2rad(part.euler), "XYZ")
    body.add_geom(
        type=getattr(mujoco.mjtGeom, f"mjGEOM_{part.shape.upper()}"),
        size=[*part.size, 0.0, 0.0][:3],
        pos=part.pos,
        quat=quat,
        rgba=[*part.rgb, 1.0],
        density=density if part.solid else 0.0,
        friction=[0.8, 0.005, 0.0001],
        condim=3,
        contype=int(part.solid),
        conaffinity=3 * int(part.solid),
    )


def _add_belt(spec: mujoco.MjSpec) -> None:
    """A long flat body that slides along y. It carries what lies on it by friction, and does not touch the table."""
    body = spec.worldbody.add_body(name="belt")
    body.add_joint(name="belt", type=mujoco.mjtJoint.mjJNT_SLIDE, axis=[0.0, 1.0, 0.0])
    body.add_geom(
        type=mujoco.mjtGeom.mjGEOM_BOX,
        size=[BELT_HALF_WIDTH, _BELT_HALF_LENGTH, BELT_TOP / 2],
        pos=[0.0, 0.0, BELT_TOP / 2],
        rgba=[0.2, 0.21, 0.23, 1.0],
        mass=_BELT_MASS,
        friction=[0.8, 0.005, 0.0001],
        contype=1,
        conaffinity=2,
    )
    for y in np.arange(-_STRIPED, _STRIPED, _STRIPE_SPACING):
        body.add_geom(
            type=mujoco.mjtGeom.mjGEOM_BOX,
            size=[BELT_HALF_WIDTH, 0.004, BELT_TOP / 2],
            pos=[0.0, y, BELT_TOP / 2 + 1e-4],
            rgba=[0.75, 0.68, 0.2, 1.0],
            mass=0.0,
            contype=0,
            conaffinity=0,
        )
    drive = spec.add_actuator(name="belt", target="belt", trntype=mujoco.mjtTrn.mjTRN_JOINT)
    drive.set_to_velocity(kv=_BELT_GAIN)


def _add_touch(spec: mujoco.MjSpec, name: str, body: str, other: str) -> None:
    sensor = spec.add_sensor(name=name, type=mujoco.mjtSensor.mjSENS_CONTACT)
    sensor.objtype, sensor.objname = mujoco.mjtObj.mjOBJ_BODY, body
    sensor.reftype, sensor.refname = mujoco.mjtObj.mjOBJ_BODY, other
    sensor.intprm = [1 << int(mujoco.mjtConDataField.mjCONDATA_FORCE), _NET_FORCE, 1]
