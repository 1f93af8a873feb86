"""The episodes of this world: RL4VLA's episode number decides what lies where, and our ids choose the number.

RL4VLA (Liu et al. 2025, arXiv:2505.19789) numbers the combinations of object, plate, table, position and yaw of each of
its tasks in mixed radix, the last digit running fastest. A task has a set "train" and a set "test" of them ("all" joins
both).
"""

import hashlib
from dataclasses import dataclass, replace
from functools import cache
from itertools import permutations, product
from math import prod
from typing import Literal, NamedTuple

import numpy as np

from rlrc.episode_ids import FIRST_TRAINING_EPISODE
from rlrc.errors import UserError

Challenge = Literal["main", "vision", "semantics", "execution"]
ObjectSet = Literal["train", "test", "all"]

CONTROL_HZ = 5
BASE = np.array([0.147, 0.028, 0.870])
"""Position of the robot (m, world frame)."""
MOVE_STEP = 5
"""The control step at which position-change-to moves the object."""
_CENTER, _HALF_EDGE = np.array([-0.16, 0.0]), 0.075
"""Middle (m, world frame) and half the edge (m) of the square in which things lie in training."""
_GAP, _FAR_GAP = 0.070, 0.150
"""Least distances (m) between the middles of an object and a plate, and between those of two alike."""
_UPRIGHT = np.array([1.0, 0.0, 0.0, 0.0])

WORDINGS = (
    "put {object} on {plate}",
    "Place the {object} on the {plate}",
    "set {object} on {plate}",
    "move the {object} to the {plate}",
    "Take the {object} and put it on the {plate}",
    "pick up {object} and set it down on {plate}",
    "please put the {object} on the {plate}",
    "Put {object} onto {plate}.",
    "place the {object} onto the {plate} surface",
    "Make sure {object} is on {plate}.",
    "on the {plate}, put the {object}",
    "put the {object} where the {plate} is",
    "Move the {object} from the table to the {plate}",
    "Move {object} so it’s on {plate}.",  # noqa: RUF001  # the published wording has this apostrophe
    "Can you put {object} on {plate}?",
    "{object} on the {plate}, please.",
    "the {object} should be placed on the {plate}.",
)
"""The wording of training, then the sixteen unseen ones."""


class Factor(NamedTuple):
    """The choices that one digit of the episode number counts, in each set."""

    train: range
    test: range

    def of(self, obj_set: ObjectSet) -> range:
        """The choices of a set; "all" joins the two."""
        joined = range(min(self.train.start, self.test.start), max(self.train.stop, self.test.stop))
        return {"train": self.train, "test": self.test, "all": joined}[obj_set]


def _same(count: int) -> Factor:
    return Factor(range(count), range(count))


Layout = Literal["pairs", "pairs-and-ring", "two-objects", "two-plates"]
Extra = Literal["none", "texture", "wording", "start", "object", "plate"]

_ONE, _FOUR, _SIXTEEN = _same(1), _same(4), _same(16)
_OBJECTS = Factor(range(16), range(16, 25))
_TABLES = Factor(range(16), range(16, 21))
_UNSEEN = Factor(range(1), range(1, 17))
_PLATE_POOL = Factor(range(17), range(1, 17))
"""Plates from which a second one is drawn."""
_STARTS = (-0.15, -0.08, 0.0, 0.08, 0.15)


@dataclass(frozen=True)
class Variant:
    """One of RL4VLA's tasks; the defaults are what it trains on."""

    task: str
    """Name of the task in RL4VLA."""
    challenge: Challenge
    objects: Factor = _SIXTEEN
    plates: Factor = _ONE
    tables: Factor = _SIXTEEN
    yaws: Factor = _FOUR
    layout: Layout = "pairs"
    extra: Extra = "none"
    """Meaning of the extra digit."""
    extras: Factor = _ONE
    blend: Literal["none", "objects", "whole"] = "none"
    """Part of the picture in which an unseen texture shows through."""
    strength: float = 0.0
    moved: bool = False
    """True if the object is put somewhere else at MOVE_STEP (not in the set train)."""


CATALOGUE: dict[str, Variant] = {
    "main": Variant("PutOnPlateInScene25Main-v3", "main", objects=_OBJECTS, tables=_TABLES),
    "vision-image": Variant("PutOnPlateInScene25VisionImage-v1", "vision", tables=_TABLES),
    **{
        f"vision-{name}-{ratio:02d}": Variant(
            f"PutOnPlateInScene25Vision{name.title()}{ratio:02d}-v1",
            "vision",
            extra="texture",
            extras=_UNSEEN,
            blend="objects" if name == "texture" else "whole",
            strength=ratio / 10,
        )
        for name, ratio in product(("texture", "whole"), (3, 5))
    },
    "carrot": Variant("PutOnPlateInScene25Carrot-v1", "semantics", objects=_OBJECTS),
    "plate": Variant("PutOnPlateInScene25Plate-v1", "semantics", plates=_UNSEEN),
    "instruct": Variant("PutOnPlateInScene25Instruct-v1", "semantics", extra="wording", extras=_UNSEEN),
    "multi-carrot": Variant(
        "PutOnPlateInScene25MultiCarrot-v1", "semantics", objects=_OBJECTS, layout="two-objects", extra="object"
    ),
    "multi-plate": Variant(
        "PutOnPlateInScene25MultiPlate-v1",
        "semantics",
        plates=_UNSEEN,
        tables=_same(21),
        layout="two-plates",
        extra="plate",
    ),
    "position": Variant(
        "PutOnPlateInScene25Position-v1",
        "execution",
        layout="pairs-and-ring",
        yaws=Factor(range(4), range(4, 8)),
    ),
    "ee-pose": Variant(
        "PutOnPlateInScene25EEPose-v1", "execution", extra="start", extras=Factor(range(1), range(1, 14376))
    ),
    "position-change-to": Variant(
        "PutOnPlateInScene25PositionChangeTo-v1", "execution", layout="two-objects", moved=True
    ),
    "single": Variant("PutOnPlateInScene25Single-v1", "main", objects=_ONE, tables=_ONE),
    "main-carrot": Variant("PutOnPlateInScene25MainCarrot-v3", "semantics", objects=_OBJECTS, tables=_ONE),
    "main-image": Variant("PutOnPlateInScene25MainImage-v3", "vision", objects=_ONE, tables=_TABLES),
}


@dataclass(frozen=True, eq=False)
class Episode:
    """An episode's placements. Poses are position (m, world frame) and unit quaternion (w, x, y, z), float64 (7,)."""

    object: int
    plate: int
    table: int
    position: int
    """Row of the layout's positions."""
    yaw: int
    object_pose: np.ndarray
    """Pose from which the object is dropped."""
    plate_pose: np.ndarray
    other_object: int | None = None
    """A second object or plate, which the instruction does not name."""
    other_plate: int | None = None
    other_pose: np.ndarray | None = None
    moved_to: np.ndarray | None = None
    """Pose at which the object is put at MOVE_STEP, if it is."""
    wording: str = WORDINGS[0]
    start: np.ndarray | None = None
    """Offset that is added to the arm's usual joint positions, float64 (8,)."""
    blend: Literal["none", "objects", "whole"] = "none"
    texture: int = 0
    strength: float = 0.0
    """Strength of the texture, which is multiplied by the texture's own."""


def find_episode(split: str, variant: str, episode_id: int) -> Episode:
    """Episode `episode_id` of a split's variant: RL4VLA's set "train" is main on ind, "test" is all that is on ood.

    Ids count through a fixed pseudo-random order of all combinations, so that the first n of them are a fair sample:
    ids from 0 from its beginning, ids from FIRST_TRAINING_EPISODE from its end backwards, so that none is both shown
    and asked before all are used up.

    Raises:
        UserError: there is no such split or variant, or the id is negative.
    """
    if split not in ("ind", "ood"):
        raise UserError(f"unknown split '{split}' (known: ind, ood)")
    if variant not in CATALOGUE:
        raise UserError(f"unknown variant '{variant}' of putonplate (known: {', '.join(CATALOGUE)})")
    if split == "ind" and variant != "main":
        raise UserError(f"variant '{variant}' is out of distribution: use split ood, or variant main with split ind")
    if episode_id < 0:
        raise UserError(f"episode id {episode_id} is negative: ids count from 0")
    obj_set: ObjectSet = "train" if split == "ind" else "test"
    total = count_episodes(variant, obj_set)
    place = episode_id if episode_id < FIRST_TRAINING_EPISODE else FIRST_TRAINING_EPISODE - 1 - episode_id
    return numbered_episode(variant, obj_set, shuffled(place % total, total, f"{split}/{variant}"))


def count_episodes(variant: str, obj_set: ObjectSet) -> int:
    """Return the number of combinations that a set of a variant has."""
    return prod(len(choices) for choices in _digits(CATALOGUE[variant], obj_set).values())


def numbered_episode(variant: str, obj_set: ObjectSet, number: int) -> Episode:
    """The episode that RL4VLA calls `number` (modulo how many there are) in a set of a variant."""
    factors = CATALOGUE[variant]
    chosen: dict[str, int] = {}
    for name, choices in reversed(_digits(factors, obj_set).items()):
        number, digit = divmod(number, len(choices))
        chosen[name] = choices[digit]
    positions, turn = _positions(factors.layout)[chosen["position"]], _yaw_quaternion(chosen["yaw"])
    episode = Episode(
        object=chosen["object"],
        plate=chosen["plate"],
        table=chosen["table"],
        position=chosen["position"],
        yaw=chosen["yaw"],
        object_pose=np.concatenate([positions[0], turn]),
        plate_pose=np.concatenate([positions[1], _UPRIGHT]),
    )
    if factors.moved and obj_set != "train":
        episode = replace(episode, moved_to=np.concatenate([positions[2], turn]))
    extra = chosen["extra"]
    match factors.extra:
        case "texture":
            return replace(episode, texture=extra, blend=factors.blend, strength=factors.strength)
        case "wording":
            return replace(episode, wording=WORDINGS[extra])
        case "start":
            return replace(episode, start=_starts()[extra])
        case "object":
            pool = factors.objects.of(obj_set)
            # The index, not its place in the pool, is counted on from; so in the set test it can be the object itself,
            # of which there is one: it lies where the other one would.
            other = (episode.object + extra + 1) % len(pool) + pool.start
            pose = np.concatenate([positions[2], turn])
            if other == episode.object:
                return replace(episode, object_pose=pose)
            return replace(episode, other_object=other, other_pose=pose)
        case "plate":
            pool = _PLATE_POOL.of(obj_set)
            other = (episode.plate - pool.start + extra + 1) % len(pool) + pool.start
            return replace(episode, other_plate=other, other_pose=np.concatenate([positions[2], _UPRIGHT]))
    return episode


def shuffled(place: int, total: int, key: str) -> int:
    """Return the number at `place` in a fixed pseudo-random order of range(total) that depends on `key`.

    A Feistel network of four rounds over an even number of bits, repeated until the result is below `total`
    ("cycle walking", Black and Rogaway 2002), which makes it a permutation of the range.
    """
    half = ((total - 1).bit_length() + 1) // 2
    mask = (1 << half) - 1
    while True:
        left, right = place >> half, place & mask
        for turn in range(4):
            digest = hashlib.blake2b(f"{key}/{turn}/{right}".encode(), digest_size=8).digest()
            left, right = right, left ^ (int.from_bytes(digest, "little") & mask)
        place = left << half | right
        if place < total:
            return place


def _digits(factors: Variant, obj_set: ObjectSet) -> dict[str, range]:
    """The digits of an episode's number, most significant first, and what each chooses from."""
    match factors.extra:
        case "object":
            extras = range(len(factors.objects.of(obj_set)) - 1)
        case "plate":
            extras = range(len(_PLATE_POOL.of(obj_set)) - 1)
        case _:
            extras = factors.extras.of(obj_set)
    if factors.layout == "pairs-and-ring":
        ring = range(len(_positions("pairs")), len(_positions("pairs-and-ring")))
        spots = Factor(range(ring.start), ring).of(obj_set)
    else:
        spots = range(len(_positions(factors.layout)))
    middle = {"extra": extras, "plate": factors.plates.of(obj_set)}
    if factors.extra == "plate":
        middle = dict(reversed(middle.items()))
    return {
        "object": factors.objects.of(obj_set),
        **middle,
        "table": factors.tables.of(obj_set),
        "position": spots,
        "yaw": factors.yaws.of(obj_set),
    }


@cache
def _positions(layout: Layout) -> np.ndarray:
    """Return where things are dropped, m in the world frame: (P,2,3) object and plate, or (P,3,3) with a third one.

    The third is the second object, the second plate, or where the object is moved to.
    """
    inner = [(x / 5, y / 5) for x in range(6) for y in range(6)]
    match layout:
        case "pairs":
            return _apart(inner, {(0, 1): _GAP}, (0.95, 0.95))
        case "pairs-and-ring":
            ring = [(x / 5, y / 5) for x in range(-1, 7) for y in range(-1, 7) if {x, y} & {-1, 6}]
            return np.concatenate([_positions("pairs"), _apart(ring, {(0, 1): _GAP}, (0.95, 0.95))])
        case "two-objects":
            return _apart(inner, {(0, 1): _GAP, (1, 2): _GAP, (0, 2): _FAR_GAP}, (0.95, 0.92, 1.0))
        case "two-plates":
            return _apart(inner, {(0, 1): _GAP, (1, 2): _FAR_GAP, (0, 2): _GAP}, (1.0, 0.92, 0.96))


def _apart(
    grid: list[tuple[float, float]], gaps: dict[tuple[int, int], float], heights: tuple[float, ...]
) -> np.ndarray:
    """Return all ways (P,T,3) to lay T things on points of a grid (units of the square's edge) with gaps (m) between
    them."""
    points = (np.array(grid) * 2 - 1) * _HALF_EDGE + _CENTER
    far = {gap: np.array([[np.linalg.norm(b - a) > gap for b in points] for a in points]) for gap in {*gaps.values()}}
    chosen = [
        spots
        for spots in permutations(range(len(points)), len(heights))
        if all(far[gap][spots[a], spots[b]] for (a, b), gap in gaps.items())
    ]
    laid = points[np.array(chosen)]
    return np.concatenate([laid, np.broadcast_to(np.array(heights)[:, None], (*laid.shape[:2], 1))], axis=-1)


@cache
def _starts() -> np.ndarray:
    """Offsets (14376,8) of the joint positions (rad, m) at which the arm starts in ee-pose; the first is zero."""
    turns = (-0.6, -0.3, 0.0, 0.3, 0.6)
    offsets = [
        (waist, shoulder, elbow, roll, wrist, turn, 0.0, 0.0)
        for waist, shoulder, elbow, roll, wrist, turn in product(_STARTS, _STARTS, _STARTS, _STARTS, _STARTS, turns)
        if abs(shoulder + elbow) <= 0.25
    ]
    return np.array([(0.0,) * 8, *offsets])


def _yaw_quaternion(index: int) -> np.ndarray:
    """The object's turn about the vertical: 0, 45, 90, 135 degrees, then -22.5 to -157.5 in steps of 45."""
    yaw = np.pi / 4 * index if index < 4 else -np.pi / 8 * (2 * (index - 4) + 1)
    return np.array([np.cos(yaw / 2), 0.0, 0.0, np.sin(yaw / 2)])
