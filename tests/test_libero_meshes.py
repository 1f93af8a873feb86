"""The simplified meshes of LIBERO's fast worlds."""

import numpy as np
import pytest

from rlrc.envs.libero.meshes import Mesh, simplify

pytest.importorskip("fast_simplification", reason="LIBERO is not installed: make libero")

THICKNESS = 0.003


def height(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return 0.02 * np.sin(9 * x) * np.cos(7 * y)


def texture(x: np.ndarray, y: np.ndarray, upper: np.ndarray) -> np.ndarray:
    """The two sides of a sheet lie in opposite quarters of the texture."""
    return np.stack([x, y], axis=-1) * 0.4 + np.where(upper, 0.0, 0.6)[..., None]


def area(corners: np.ndarray) -> float:
    """Of the texture that faces (F,3,2) show."""
    one, other = corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]
    return float(np.abs(one[:, 0] * other[:, 1] - one[:, 1] * other[:, 0]).sum()) / 2


def sheet(cells: int) -> Mesh:
    """A wavy thin sheet with two sides, that share the points of its rim and no place in the texture."""
    step = 1 / cells
    x, y = (grid.ravel() * step for grid in np.meshgrid(np.arange(cells), np.arange(cells), indexing="ij"))
    square = np.stack(
        [np.stack([x + dx * step, y + dy * step], axis=-1) for dx, dy in ((0, 0), (1, 0), (1, 1), (0, 1))]
    )
    flat = np.concatenate([square[[0, 1, 2]], square[[0, 2, 3]]], axis=1).transpose(1, 0, 2)
    flat = np.concatenate([flat, flat[:, ::-1]])
    upper = np.repeat(np.arange(len(flat)) < len(flat) // 2, 3).reshape(-1, 3)
    x, y = flat[..., 0], flat[..., 1]
    inside = np.minimum.reduce([x, 1 - x, y, 1 - y]) > step / 2
    positions = np.stack([x, y, height(x, y) + THICKNESS * (upper & inside)], axis=-1)
    sides = np.cross(positions[:, 1] - positions[:, 0], positions[:, 2] - positions[:, 0])
    sides /= np.linalg.norm(sides, axis=-1, keepdims=True)
    return Mesh(positions, np.repeat(sides[:, None], 3, axis=1), texture(x, y, upper))


def test_a_thin_thing_keeps_the_texture_and_the_normals_of_each_side() -> None:
    mesh = sheet(60)
    fewer = simplify(mesh, 1500)
    assert 0 < len(fewer.positions) <= 1500 < len(mesh.positions)
    sides = np.cross(fewer.positions[:, 1] - fewer.positions[:, 0], fewer.positions[:, 2] - fewer.positions[:, 0])
    seen = np.abs(sides[:, 2]) > 0.5 * np.linalg.norm(sides, axis=1)
    upper = np.repeat(sides[seen, None, 2] > 0, 3, axis=1)
    x, y = fewer.positions[seen, :, 0], fewer.positions[seen, :, 1]
    away = np.linalg.norm(fewer.texcoords[seen] - texture(x, y, upper), axis=-1)
    assert seen.mean() > 0.9
    assert away.max() < 0.05, "of a texture of side 1"
    assert area(fewer.texcoords) == pytest.approx(area(mesh.texcoords), rel=0.05)
    assert (np.sign(fewer.normals[seen, :, 2]) == np.where(upper, 1, -1)).all()


def test_a_mesh_of_few_faces_is_left_as_it_is() -> None:
    mesh = sheet(4)
    assert simplify(mesh, 100) is mesh
