"""The simulator's files: where they lie and what they describe. `rlrc assets maniskill` fetches them."""

import json
import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from rlrc.errors import UserError
from rlrc.files import cache_folder

ROBOT = Path("data/robots/widowx/wx250s.urdf")
STAGE = Path("data/tasks/bridge_v2_real2sim_dataset/stages/bridge_table_1_v1.glb")
OBJECTS, PLATES, TABLES = (Path("carrot") / name for name in ("more_carrot", "more_plate", "more_table"))
"""The robot, the table that things lie on, and the folders of models and of background pictures, in `folder`."""


@dataclass(frozen=True)
class Model:
    """A rigid thing: its name in instructions, its box's size (m, its own axes), its density (kg/m3) and folder."""

    name: str
    size: tuple[float, float, float]
    density: float
    folder: Path

    @property
    def visual(self) -> Path:
        """The mesh that is drawn."""
        path = self.folder / "textured.dae"
        return path if path.exists() else self.folder / "textured.glb"

    @property
    def collision(self) -> Path:
        """The convex pieces that are collided with."""
        return self.folder / "collision.obj"


@dataclass(frozen=True)
class Table:
    """A background picture, a texture, and how strongly that texture may be blended in (0 to 1)."""

    picture: Path
    texture: Path
    mix: float


def folder() -> Path:
    """Return the folder of the files: `maniskill/` below $RLRC_ASSETS, or below ~/.cache/rlrc/assets."""
    return Path(os.environ.get("RLRC_ASSETS") or cache_folder() / "assets") / "maniskill"


@cache
def objects() -> tuple[Model, ...]:
    """The 25 objects, in the order in which episodes number them."""
    return _models(OBJECTS)


@cache
def plates() -> tuple[Model, ...]:
    """The 17 plates and other flat things, the usual plate first."""
    return _models(PLATES)


@cache
def tables() -> tuple[Table, ...]:
    """The 21 backgrounds."""
    root = folder() / TABLES
    return tuple(
        Table(root / "imgs" / name, root / "textures" / entry["texture"], entry["mix"])
        for name, entry in _database(TABLES).items()
    )


def require() -> None:
    """Check that the files are there, before anything starts.

    Raises:
        UserError: some of them are missing; the message names the first and what to do.
    """
    missing = missing_files()
    if missing:
        raise UserError(
            f"putonplate: {len(missing)} simulator files are missing below {folder()}, the first is {missing[0]}: "
            "run `rlrc assets maniskill`, or set RLRC_ASSETS to a folder that has them below maniskill/"
        )


def missing_files() -> list[str]:
    """The files that the world needs and that are absent, relative to `folder()`."""
    return [path for path in (*checksums(), str(STAGE)) if not (folder() / path).is_file()]


def checksums() -> dict[str, str | None]:
    """The published files, relative to `folder()`, and the SHA-256 of each, where we have seen the original."""
    lines = Path(__file__).with_name("published.sha256").read_text().splitlines()
    pairs = (line.split("  ", 1) for line in lines)
    return {path: None if sha256 == "-" else sha256 for sha256, path in pairs}


def _models(part: Path) -> tuple[Model, ...]:
    found = []
    for key, entry in _database(part).items():
        low, high = np.array(entry["bbox"]["min"]), np.array(entry["bbox"]["max"])
        found.append(Model(entry["name"], tuple(high - low), entry.get("density", 1000), folder() / part / key))
    return tuple(found)


def _database(part: Path) -> dict[str, dict]:
    database: dict[str, dict] = json.loads((folder() / part / "model_db.json").read_text())
    return database
