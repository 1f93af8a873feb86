"""Meshes of few faces for the fast worlds: what is only seen is simplified once and kept in the user's cache folder.

A corner of the simplified mesh takes its texture coordinates and normal from an original corner that is near, on a face
that looks the same way (a plate has two sides), and from that part of the texture in which the middle of its face lies.
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
_VERSION = 2
"""Version of `simplify`. Files that another version wrote are left alone."""
_NEAR = 0.05
"""Share of a mesh's diagonal that is the unit of distance. A corner so far away counts as unlike as one whose face
looks a radian aside."""
_FACE = 0.15
"""Share of a texture's diagonal. No face reaches farther from its middle than this."""
_SEAM = 10.0
"""Units of distance that are added to a corner whose texture lies farther than that from its face's."""
_CANDIDATES = 24
"""Number of original corners, the nearest ones, of which one is chosen."""


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
    """Return whether a geom collides with nothing and is not of group 0, from which robosuite takes masses and
    inertias."""
    return geom.get("contype") == geom.get("conaffinity") == "0" and geom.get("group", "0") != "0"


@cache
def _simplified_file(source: Path) -> Path:
    digest = hashlib.sha256(source.read_bytes()).hexdigest()[:24]
    path = cache_folder() / "libero-meshes" / f"{digest}-{MAX_FACES}-{_VERSION}.msh"
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
    corners = corners.reshape(-1, 3).astype(np.int32)
    points, faces = fast_simplification.simplify(points, corners, target_count=max_faces)
    new = points[faces].astype(np.float64)

    unit = _NEAR * _diagonal(points)
    middles = cKDTree(np.hstack([mesh.positions.mean(axis=1) / unit, _sides(mesh.positions)]))
    there = mesh.texcoords[middles.query(np.hstack([new.mean(axis=1) / unit, _sides(new)]))[1]].mean(axis=1)
    away, candidates = cKDTree(_corners(mesh.positions, unit)).query(_corners(new, unit), k=_CANDIDATES)
    away, candidates = away.reshape(-1, 3, _CANDIDATES), candidates.reshape(-1, 3, _CANDIDATES)
    texcoords = mesh.texcoords.reshape(-1, 2)
    across_seam = np.linalg.norm(texcoords[candidates] - there[:, None, None], axis=-1) > _FACE * _diagonal(texcoords)
    best = (away + _SEAM * across_seam).argmin(axis=-1)
    chosen = np.take_along_axis(candidates, best[..., None], axis=-1)[..., 0]
    return Mesh(new, mesh.normals.reshape(-1, 3)[chosen], texcoords[chosen])


def _diagonal(points: np.ndarray) -> float:
    """Length of the diagonal of the smallest box around points (N,D)."""
    return float(np.linalg.norm(np.ptp(points, axis=0)))


def _corners(faces: np.ndarray, unit: float) -> np.ndarray:
    """Each corner's position in units and the side of its face, (3F,6), for faces (F,3,3)."""
    return np.hstack([faces.reshape(-1, 3) / unit, np.repeat(_sides(faces), 3, axis=0)])


def _sides(faces: np.ndarray) -> np.ndarray:
    """Unit vectors (F,3) that faces (F,3,3) look along; zero for one without area."""
    sides = np.cross(faces[:, 1] - faces[:, 0], faces[:, 2] - faces[:, 0])
    return sides / np.maximum(np.linalg.norm(sides, axis=1, keepdims=True), 1e-30)


def _write_msh(path: Path, mesh: Mesh) -> None:
    """MuJoCo's binary format: four counts, then positions, normals, texture coordinates and faces."""
    corners = mesh.positions.size // 3
    with path.open("wb") as file:
        np.array([corners, corners, corners, len(mesh.positions)], np.int32).tofile(file)
        for values in mesh:
            values.astype(np.float32).tofile(file)
        np.arange(corners, dtype=np.int32).tofile(file)
