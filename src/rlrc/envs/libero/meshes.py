"""Meshes of few faces for the fast worlds: what is only seen is simplified once and kept in the user's cache folder.

A face of the simplified mesh takes its texture coordinates and normals from the original's nearest vertices, from that
side of a seam or an edge on which the face lies.
"""

import hashlib
from functools import cache
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

import mujoco
import numpy as np
from scipy.spatial import cKDTree

from rlrc.files import atomic_path, cache_folder

MAX_FACES = 3000


class Mesh(NamedTuple):
    """Triangles by their corners: positions (F,3,3), normals (F,3,3), texture coordinates (F,3,2)."""

    positions: np.ndarray
    normals: np.ndarray
    texcoords: np.ndarray


def simplified(xml: str) -> str:
    """A MuJoCo scene in which every mesh that only visual geoms use comes from a file of at most `MAX_FACES` faces."""
    root = ElementTree.fromstring(xml)
    solid = {geom.get("mesh") for geom in root.iter("geom") if not _only_seen(geom)}
    for asset in root.iter("mesh"):
        if asset.get("name") not in solid:
            asset.set("file", str(_simplified_file(Path(asset.attrib["file"]))))
    return ElementTree.tostring(root, encoding="unicode")


def _only_seen(geom: ElementTree.Element) -> bool:
    """Collides with nothing, and is not of group 0, from which robosuite's scenes take masses and inertias."""
    return geom.get("contype") == geom.get("conaffinity") == "0" and geom.get("group", "0") != "0"


@cache
def _simplified_file(source: Path) -> Path:
    digest = hashlib.sha256(source.read_bytes()).hexdigest()[:24]
    folder = cache_folder() / "libero-meshes"
    path = folder / f"{digest}-{MAX_FACES}.msh"
    if not path.exists():
        with atomic_path(path) as aside:
            _write_msh(aside, simplify(load_mesh(source), MAX_FACES))
    return path


def load_mesh(path: Path) -> Mesh:
    """Read a mesh of any format that MuJoCo reads, in the file's own frame."""
    root = ElementTree.Element("mujoco")
    asset = ElementTree.SubElement(ElementTree.SubElement(root, "asset"), "mesh")
    asset.attrib |= {"name": "mesh", "file": str(path), "inertia": "shell"}
    ElementTree.SubElement(ElementTree.SubElement(root, "worldbody"), "geom", type="mesh", mesh="mesh")
    model = mujoco.MjModel.from_xml_string(ElementTree.tostring(root, encoding="unicode"))
    matrix = np.zeros(9)
    mujoco.mju_quat2Mat(matrix, model.mesh_quat[0])
    turn = matrix.reshape(3, 3)
    positions = model.mesh_vert[model.mesh_face] @ turn.T + model.mesh_pos[0]
    normals = model.mesh_normal[model.mesh_facenormal] @ turn.T
    textured = model.mesh_texcoordadr[0] >= 0
    texcoords = model.mesh_texcoord[model.mesh_facetexcoord] if textured else np.zeros((len(positions), 3, 2))
    return Mesh(positions, normals, texcoords)


def simplify(mesh: Mesh, max_faces: int) -> Mesh:
    """A mesh like this one with at most `max_faces` faces, by quadric error (Garland and Heckbert 1997)."""
    if len(mesh.positions) <= max_faces:
        return mesh
    import fast_simplification

    points, corners = np.unique(mesh.positions.reshape(-1, 3).astype(np.float32), axis=0, return_inverse=True)
    corners = corners.reshape(-1, 3)
    new_points, new_faces = fast_simplification.simplify(points, corners.astype(np.int32), target_count=max_faces)
    positions = new_points[new_faces].astype(np.float64)
    sides = np.cross(positions[:, 1] - positions[:, 0], positions[:, 2] - positions[:, 0])
    nearest_face = cKDTree(mesh.positions.mean(1)).query(positions.mean(1))[1]
    nearest_point = cKDTree(points).query(new_points)[1][new_faces]

    old_normals, old_texcoords = mesh.normals.reshape(-1, 3), mesh.texcoords.reshape(-1, 2)
    order = np.argsort(corners.ravel(), kind="stable")
    bounds = np.searchsorted(corners.ravel()[order], np.arange(len(points) + 1))
    normals, texcoords = np.empty_like(positions), np.empty((len(positions), 3, 2))
    for face, corner in np.ndindex(nearest_point.shape):
        point = nearest_point[face, corner]
        here = order[bounds[point] : bounds[point + 1]]
        normals[face, corner] = old_normals[here[np.argmax(old_normals[here] @ sides[face])]]
        away = np.linalg.norm(old_texcoords[here] - mesh.texcoords[nearest_face[face]].mean(0), axis=1)
        texcoords[face, corner] = old_texcoords[here[np.argmin(away)]]
    return Mesh(positions, normals, texcoords)


def _write_msh(path: Path, mesh: Mesh) -> None:
    """MuJoCo's binary format: four counts, then positions, normals, texture coordinates and faces."""
    corners = mesh.positions.size // 3
    with path.open("wb") as file:
        np.array([corners, corners, corners, len(mesh.positions)], np.int32).tofile(file)
        for values in mesh:
            values.astype(np.float32).tofile(file)
        np.arange(corners, dtype=np.int32).tofile(file)
