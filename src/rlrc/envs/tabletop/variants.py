"""The episodes of this world: what each variant draws from, and how an episode id draws it.

The thirteen challenges follow RL4VLA (Liu et al. 2025): each changes one factor of the in-distribution task and nothing
else.
"""

import zlib
from dataclasses import dataclass, field
from typing import Literal, TypeVar

import numpy as np

from rlrc.envs.tabletop.tables import TEST_TABLES, TRAIN_TABLES
from rlrc.envs.tabletop.things import PLATE, TEST_OBJECTS, TEST_RECEPTACLES, TRAIN_OBJECTS, Object, Receptacle
from rlrc.errors import UserError

T = TypeVar("T")
Challenge = Literal["main", "vision", "semantics", "execution"]
Blend = Literal["none", "noise", "objects", "whole"]

CENTER = np.array([0.28, 0.0])
YAWS = tuple(np.deg2rad([-67.5, -22.5, 22.5, 67.5]))
"""Object yaws (rad), symmetric about 0 so that no object has two equally near grasps."""
PLATE_GAP, PLATES_GAP, OBJECTS_GAP = 0.125, 0.16, 0.095
"""Least distances (m) between the middles of object and plate, two plates, two objects."""
MOVE_STEP = 5
"""The control step after which position-change-to moves the object."""

_SPACING = 0.04
WORDING = "put {object} on {plate}"
_UNSEEN_WORDINGS = (
    "place {object} onto {plate}",
    "move {object} to {plate}",
    "set {object} down on {plate}",
    "pick up {object} and put it on {plate}",
    "take {object} and lay it on {plate}",
    "{object} should be on {plate}",
    "transfer {object} to {plate}",
    "please put {object} on top of {plate}",
    "grab {object} and drop it on {plate}",
    "bring {object} over to {plate}",
    "i want {object} on {plate}",
    "can you place {object} on {plate}",
)


def _grid(count: int) -> np.ndarray:
    """The (count^2, 2) points of a square grid about the center of the table, in m."""
    steps = (np.arange(count) - (count - 1) / 2) * _SPACING
    return CENTER + np.stack(np.meshgrid(steps, steps, indexing="ij"), axis=-1).reshape(-1, 2)


TRAIN_POSITIONS = _grid(6)
TEST_POSITIONS = _grid(7)
"""Positions between and around those of training: every point is at least 2.8 cm from each of them."""


@dataclass(frozen=True, eq=False)
class Variant:
    """The factors of an episode; the defaults are the training distribution."""

    challenge: Challenge = "main"
    objects: tuple[Object, ...] = TRAIN_OBJECTS
    receptacles: tuple[Receptacle, ...] = (PLATE,)
    other_receptacles: tuple[Receptacle, ...] = ()
    """A second receptacle that the instruction does not name is drawn from these."""
    other_object: bool = False
    """True if a second object, which the instruction does not name, lies on the table."""
    tables: tuple[int, ...] = TRAIN_TABLES
    wordings: tuple[str, ...] = (WORDING,)
    positions: np.ndarray = field(default_factory=lambda: TRAIN_POSITIONS)
    random_start: bool = False
    """True if the hand starts away from its usual pose."""
    moved: bool = False
    """True if the object is somewhere else from step MOVE_STEP on."""
    blend: Blend = "none"
    """Kind of what is laid over the picture: noise, or an unseen texture on all but the table or on everything."""
    strength: float = 0.0


UNSEEN = Variant(objects=TEST_OBJECTS, tables=TEST_TABLES)
"""`main` on the split ood: unseen objects on unseen tables."""
CATALOGUE: dict[str, Variant] = {
    "main": Variant(),
    "vision-image": Variant("vision", blend="noise", strength=0.12),
    "vision-texture-03": Variant("vision", blend="objects", strength=0.3),
    "vision-texture-05": Variant("vision", blend="objects", strength=0.5),
    "vision-whole-03": Variant("vision", blend="whole", strength=0.3),
    "vision-whole-05": Variant("vision", blend="whole", strength=0.5),
    "carrot": Variant("semantics", objects=TEST_OBJECTS),
    "plate": Variant("semantics", receptacles=TEST_RECEPTACLES),
    "instruct": Variant("semantics", wordings=_UNSEEN_WORDINGS),
    "multi-carrot": Variant("semantics", other_object=True),
    "multi-plate": Variant("semantics", other_receptacles=TEST_RECEPTACLES),
    "position": Variant("execution", positions=TEST_POSITIONS),
    "ee-pose": Variant("execution", random_start=True),
    "position-change-to": Variant("execution", moved=True),
}


@dataclass(frozen=True)
class Belt:
    """A conveyor belt across the table, on which the objects lie."""

    x: float
    """Place of its middle, m."""
    speed: float
    """Speed along y, m/s."""


@dataclass(frozen=True, eq=False)
class Episode:
    """Everything an episode id fixes. The first object and receptacle are the ones the instruction names."""

    instruction: str
    objects: tuple[Object, ...]
    object_positions: np.ndarray
    object_yaws: np.ndarray
    receptacles: tuple[Receptacle, ...]
    receptacle_positions: np.ndarray
    table: int
    start_offset: np.ndarray
    """Delta (6,) from the usual start pose of the hand."""
    moved_to: np.ndarray | None
    """Place (x, y, yaw) where the object is put at MOVE_STEP, if it is."""
    blend: Blend
    strength: float
    texture: int
    noise_seed: int
    belt: Belt | None = None


def find_variant(split: str, name: str) -> Variant:
    """The factors of a split's variant: `main` is on both splits, the challenges on `ood` (each is out of
    distribution).

    Raises:
        UserError: there is no such split or variant.
    """
    if split not in ("ind", "ood"):
        raise UserError(f"unknown split '{split}' (known: ind, ood)")
    if name not in CATALOGUE:
        raise UserError(f"unknown variant '{name}' of tabletop (known: {', '.join(CATALOGUE)})")
    if name == "main":
        return CATALOGUE["main"] if split == "ind" else UNSEEN
    if split == "ind":
        raise UserError(f"variant '{name}' is out of distribution: use split ood, or variant main with split ind")
    return CATALOGUE[name]


def draw_episode(split: str, name: str, episode_id: int) -> Episode:
    """Episode `episode_id` (any integer from 0) of a split's variant: the same on every machine, in every order.

    Raises:
        UserError: there is no such split or variant, or the id is negative.
    """
    variant = find_variant(split, name)
    if episode_id < 0:
        raise UserError(f"episode id {episode_id} is negative: ids count from 0")
    rng = np.random.default_rng([zlib.crc32(f"{split}/{name}".encode()), episode_id])
    objects = _draw(rng, variant.objects, 2 if variant.other_object else 1)
    receptacles = _draw(rng, variant.receptacles, 1)
    if variant.other_receptacles:
        receptacles += _draw(rng, variant.other_receptacles, 1)
    object_positions, receptacle_positions = _draw_layout(rng, variant.positions, len(objects), len(receptacles))
    object_yaws = rng.choice(YAWS, len(objects))
    moved_to = _draw_move(rng, variant.positions, object_positions[0], receptacle_positions) if variant.moved else None
    return Episode(
        instruction=_draw(rng, variant.wordings, 1)[0].format(object=objects[0].name, plate=receptacles[0].name),
        objects=objects,
        object_positions=object_positions,
        object_yaws=object_yaws,
        receptacles=receptacles,
        receptacle_positions=receptacle_positions,
        table=int(rng.choice(variant.tables)),
        start_offset=_draw_start(rng) if variant.random_start else np.zeros(6),
        moved_to=moved_to,
        blend=variant.blend,
        strength=variant.strength,
        texture=int(rng.choice(TEST_TABLES)),
        noise_seed=int(rng.integers(2**32)),
    )


def _draw(rng: np.random.Generator, choices: tuple[T, ...], count: int) -> tuple[T, ...]:
    return tuple(choices[i] for i in rng.choice(len(choices), count, replace=False))


def _draw_layout(
    rng: np.random.Generator, grid: np.ndarray, objects: int, receptacles: int
) -> tuple[np.ndarray, np.ndarray]:
    """Draw grid positions (objects, 2) and (receptacles, 2) until all are apart."""
    while True:
        points = grid[rng.choice(len(grid), objects + receptacles, replace=False)]
        things, plates = points[:objects], points[objects:]
        if (
            _apart(things, plates, PLATE_GAP)
            and _apart(things[:1], things[1:], OBJECTS_GAP)
            and _apart(plates[:1], plates[1:], PLATES_GAP)
        ):
            return things, plates


def _draw_move(rng: np.random.Generator, grid: np.ndarray, start: np.ndarray, plates: np.ndarray) -> np.ndarray:
    """Draw another grid position, clear of the old one and the plates, and a yaw."""
    clear = [p for p in grid if _apart(p[None], plates, PLATE_GAP) and _apart(p[None], start[None], OBJECTS_GAP)]
    return np.append(clear[rng.integers(len(clear))], rng.choice(YAWS))


def _draw_start(rng: np.random.Generator) -> np.ndarray:
    """Draw an offset of up to 8 cm aside, 5 cm down and 3 cm up, 0.6 rad of yaw and 0.2 rad of tilt: never the usual
    pose."""
    angle = rng.uniform(0, 2 * np.pi)
    aside = rng.uniform(0.04, 0.08) * np.array([np.cos(angle), np.sin(angle)])
    return np.concatenate([aside, [rng.uniform(-0.05, 0.03)], rng.uniform(-0.2, 0.2, 2), [rng.uniform(-0.6, 0.6)]])


def _apart(points: np.ndarray, others: np.ndarray, gap: float) -> bool:
    distances = np.linalg.norm(points[:, None] - others[None], axis=-1)
    return bool((distances >= gap - 1e-9).all())
