"""Draw the pictures of docs/tabletop.md: `python -m rlrc.envs.tabletop.gallery docs/pictures/tabletop`.

One contact sheet a variant (six episodes at reset and one of the expert at work, each large and as the policy sees it
at 96 px), one of all objects, each on another table, one of an episode as both cameras see it, and one of the conveyor.
"""

import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from rlrc.envs.tabletop.conveyor import draw_conveyor_episode
from rlrc.envs.tabletop.expert import Expert
from rlrc.envs.tabletop.tables import TABLES
from rlrc.envs.tabletop.things import TEST_OBJECTS, TRAIN_OBJECTS
from rlrc.envs.tabletop.variants import CATALOGUE, draw_episode
from rlrc.envs.tabletop.world import CAMERAS, Tabletop

_LARGE, _SMALL, _COLUMNS = 224, 96, 6
_GAP = 4


def draw_all(folder: Path) -> None:
    """Write every sheet to `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in CATALOGUE:
        for split in ("ind", "ood") if name == "main" else ("ood",):
            title = f"main-{split}" if name == "main" else name
            _save(variant_sheet(split, name), folder / f"{title}.webp")
    _save(all_things(), folder / "things.webp")
    _save(both_cameras(), folder / "cameras.webp")
    _save(conveyor(), folder / "conveyor.webp")


def variant_sheet(split: str, variant: str) -> np.ndarray:
    """Two rows of large pictures (starts of episodes 0 to 5; episode 0 in the expert's hands) and the same at 96 px."""
    large = starts(split, variant, _LARGE) + expert_at_work(split, variant, _LARGE)
    small = starts(split, variant, _SMALL) + expert_at_work(split, variant, _SMALL)
    return np.concatenate([_tiled(large, _COLUMNS), _padded(_tiled(small, 2 * _COLUMNS), _COLUMNS * (_LARGE + _GAP))])


def starts(split: str, variant: str, size: int) -> list[np.ndarray]:
    """The first picture of episodes 0 to 5."""
    world = Tabletop(size)
    pictures: list[np.ndarray] = []
    for episode_id in range(_COLUMNS):
        world.reset(split, variant, episode_id)
        pictures.append(world.draw("front"))
    return pictures


def both_cameras() -> np.ndarray:
    """The expert at work in episode 0, a row of pictures for each camera."""
    return _tiled(
        [picture for camera in CAMERAS for picture in expert_at_work("ind", "main", _LARGE, camera)], _COLUMNS
    )


def conveyor() -> np.ndarray:
    """The expert at work on a belt of 4 cm/s, in two episodes, a row of pictures for each."""
    world = Tabletop(_LARGE, partial(draw_conveyor_episode, speed=0.04))
    return _tiled([picture for id_ in (0, 1) for picture in _played(world, "ind", "main", id_)], _COLUMNS)


def expert_at_work(split: str, variant: str, size: int, camera: str = CAMERAS[0]) -> list[np.ndarray]:
    """Six pictures of episode 0, evenly spaced from the first step to the success."""
    return _played(Tabletop(size), split, variant, 0, camera)


def _played(world: Tabletop, split: str, variant: str, episode_id: int, camera: str = CAMERAS[0]) -> list[np.ndarray]:
    expert = Expert(1)
    reading = world.reset(split, variant, episode_id)
    pictures: list[np.ndarray] = []
    while not reading.success and len(pictures) < 40:
        reading = world.step(expert.act(reading.environment_state[None])[0])
        pictures.append(world.draw(camera))
    return [pictures[i] for i in np.linspace(0, len(pictures) - 1, _COLUMNS).round().astype(int)]


def all_things() -> np.ndarray:
    """The 25 objects, each on another table: those of training first."""
    world = Tabletop(_LARGE)
    pictures: list[np.ndarray] = []
    for index, thing in enumerate((*TRAIN_OBJECTS, *TEST_OBJECTS)):
        world.lay(replace(draw_episode("ind", "main", index), objects=(thing,), table=index % len(TABLES)))
        pictures.append(world.draw("front"))
    blank = np.full_like(pictures[0], 255)
    return _tiled(pictures + [blank] * 3, 7)


def _save(picture: np.ndarray, path: Path) -> None:
    Image.fromarray(picture).save(path, quality=50, method=6)


def _tiled(pictures: list[np.ndarray], columns: int) -> np.ndarray:
    framed = [np.pad(p, ((0, _GAP), (0, _GAP), (0, 0)), constant_values=255) for p in pictures]
    rows = [np.concatenate(framed[i : i + columns], axis=1) for i in range(0, len(framed), columns)]
    return np.concatenate(rows)


def _padded(picture: np.ndarray, width: int) -> np.ndarray:
    return np.pad(picture, ((0, 0), (0, width - picture.shape[1]), (0, 0)), constant_values=255)


if __name__ == "__main__":
    draw_all(Path(sys.argv[1]))
