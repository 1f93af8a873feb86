"""Differential inverse kinematics by damped least squares (Wampler 1986): joint targets from end-effector deltas.

A delta moves the commanded pose, not the measured one, as in ManiSkill's `use_target` controllers: a zero action then
holds the arm exactly still, and a load or a lag does not add up to drift. A leash keeps the command close to the
measured pose, so that a blocked arm does not wind up a command that no picture shows.
"""

from dataclasses import dataclass

import mujoco
import numpy as np

from rlrc.envs.tabletop.scene import compile_scene

MAX_TRANSLATION = 0.05
"""Largest translation (m) in a control step, along each axis."""
MAX_ROTATION = 0.5
"""Largest rotation (rad) in a control step, for each component of the rotation vector."""
FINGER_TRAVEL = 0.045
"""Distance (m) that each finger moves; the opening is twice that."""
WORKSPACE = np.array([[0.12, -0.2, 0.018], [0.44, 0.2, 0.22]])
"""Lowest and highest commanded position (m): at the lowest, the fingertips just reach the table."""

_LEASH_POSITION, _LEASH_ROTATION = 0.02, 0.2
_DAMPING, _ITERATIONS, _CONVERGED = 0.02, 4, 1e-4
_JOINTS = 6
_READY = np.array([0.0, -0.1, 0.55, 0.0, 1.1, 0.0])
DOWN = np.array([[0.0, 0.0, 1.0], [0.0, 1.0, 0.0], [-1.0, 0.0, 0.0]])
"""The hand's axes when it points down with its fingers opening along y."""


@dataclass(frozen=True)
class Pose:
    """Position (3,) in m and rotation matrix (3,3) of the point between the finger pads, in the arm's base frame."""

    position: np.ndarray
    rotation: np.ndarray

    def moved(self, delta: np.ndarray) -> "Pose":
        """Return the pose translated by delta[:3] and turned by the rotation vector delta[3:6], both along the base
        frame's axes."""
        return Pose(self.position + delta[:3], rotation_matrix(delta[3:6]) @ self.rotation)

    def minus(self, other: "Pose") -> np.ndarray:
        """The delta (6,) that moves `other` here."""
        return np.concatenate([self.position - other.position, rotation_vector(self.rotation @ other.rotation.T)])


class Arm:
    """The commanded pose of one arm and the joint targets that follow it."""

    def __init__(self) -> None:
        self._model = compile_scene()
        self._data = mujoco.MjData(self._model)
        self._tcp = self._model.site("tcp").id
        self._jacobian = np.zeros((6, self._model.nv))
        self.command = Pose(np.zeros(3), DOWN)
        self.joints = _READY

    def place(self, pose: Pose) -> np.ndarray:
        """Command `pose` from scratch; returns its joint angles (6,)."""
        self.command = pose
        self.joints = self._solve(pose, _READY, iterations=30)
        return self.joints

    def move(self, delta: np.ndarray, measured: Pose) -> np.ndarray:
        """Move the command by a delta (6,), clipped a step and to the workspace; returns joint targets (6,)."""
        held = self.command.minus(measured)
        held[:3] = _shortened(held[:3], _LEASH_POSITION)
        held[3:] = _shortened(held[3:], _LEASH_ROTATION)
        limit = np.repeat([MAX_TRANSLATION, MAX_ROTATION], 3)
        moved = measured.moved(held).moved(np.clip(delta, -limit, limit))
        self.command = Pose(np.clip(moved.position, *WORKSPACE), moved.rotation)
        self.joints = self._solve(self.command, self.joints, _ITERATIONS)
        return self.joints

    def _solve(self, pose: Pose, start: np.ndarray, iterations: int) -> np.ndarray:
        joints = start.copy()
        low, high = self._model.jnt_range[:_JOINTS].T
        for _ in range(iterations):
            self._data.qpos[:_JOINTS] = joints
            mujoco.mj_kinematics(self._model, self._data)
            mujoco.mj_comPos(self._model, self._data)
            error = pose.minus(site_pose(self._data, self._tcp))
            if np.linalg.norm(error) < _CONVERGED:
                break
            mujoco.mj_jacSite(self._model, self._data, self._jacobian[:3], self._jacobian[3:], self._tcp)
            jacobian = self._jacobian[:, :_JOINTS]
            normal = jacobian @ jacobian.T + _DAMPING**2 * np.eye(6)
            joints = np.clip(joints + jacobian.T @ np.linalg.solve(normal, error), low, high)
        return joints


def site_pose(data: mujoco.MjData, site: int) -> Pose:
    return Pose(data.site_xpos[site].copy(), data.site_xmat[site].reshape(3, 3).copy())


def rotation_matrix(vector: np.ndarray) -> np.ndarray:
    """Rodrigues' formula: rotation vector (3,) to matrix (3,3)."""
    quat, matrix = np.zeros(4), np.zeros(9)
    angle = float(np.linalg.norm(vector))
    mujoco.mju_axisAngle2Quat(quat, vector / angle if angle > 0 else np.array([0.0, 0.0, 1.0]), angle)
    mujoco.mju_quat2Mat(matrix, quat)
    return matrix.reshape(3, 3)


def rotation_vector(matrix: np.ndarray) -> np.ndarray:
    """The inverse of `rotation_matrix`, of length at most pi."""
    quat, vector = np.zeros(4), np.zeros(3)
    mujoco.mju_mat2Quat(quat, matrix.ravel())
    mujoco.mju_quat2Vel(vector, quat, 1.0)
    return vector


def _shortened(vector: np.ndarray, length: float) -> np.ndarray:
    norm = float(np.linalg.norm(vector))
    return vector if norm <= length else vector * (length / norm)
