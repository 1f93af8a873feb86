"""Connects a policy with a world: its cameras, and the numbers of both in each other's conventions.

A number's unit and convention (`Dim`) are compared before anything runs. What is not said is taken as the other side's
own: published OpenVLA folders say nothing. What differs is converted where there is a rule, and refused in one line
where there is none:

- units: lengths (m, cm, mm) and angles (rad, deg), with a factor or not, such as "0.05 m" where 1 is five centimetres;
- grippers: "A opens, B closes" for any two numbers, by the line through both;
- rotations: three numbers in a row that are each "rotation vector" (or "axis-angle"), "Euler xyz" (about fixed axes,
  R = Rz Ry Rx) or "Euler XYZ" (about moving axes, R = Rx Ry Rz).

What follows a comma in a convention, such as the frame, must be the same on both sides.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.spatial.transform import Rotation

from rlrc.configs.parts import OTHER_CAMERAS
from rlrc.envs.world import WorldSpec
from rlrc.errors import UserError, shorten
from rlrc.policies.dim import Dim
from rlrc.policies.values import Observation, PolicySpec

_UNITS = {
    "m": ("length", 1.0),
    "cm": ("length", 0.01),
    "mm": ("length", 0.001),
    "rad": ("angle", 1.0),
    "deg": ("angle", math.pi / 180),
}
_UNIT = re.compile(r"(?:(\d+(?:\.\d+)?) )?(\w+)")
_GRIPPER = re.compile(r"(-?\d+(?:\.\d+)?) opens, (-?\d+(?:\.\d+)?) closes")
_ROTATIONS = {"rotation vector": "vector", "axis-angle": "vector", "Euler xyz": "xyz", "Euler XYZ": "XYZ"}
"""Name of a rotation's form -> scipy's name of its order of axes, or "vector"."""


@dataclass(frozen=True)
class Turn:
    """Three numbers that are a rotation in one form, and shall be in another."""

    first: int
    """Number of the first of them."""
    given: str
    wanted: str

    def __call__(self, values: np.ndarray) -> np.ndarray:
        """Rotations (N, 3) in rad."""
        turn = Rotation.from_rotvec(values) if self.given == "vector" else Rotation.from_euler(self.given, values)
        return turn.as_rotvec() if self.wanted == "vector" else turn.as_euler(self.wanted)


@dataclass(frozen=True)
class Conversion:
    """Numbers (N, D) from one side's conventions to the other's."""

    before: np.ndarray
    """(D,), the factor to the unit in which turns are computed; 1 elsewhere."""
    turns: tuple[Turn, ...]
    factor: np.ndarray
    """(D,)."""
    offset: np.ndarray
    """(D,)."""

    @property
    def is_identity(self) -> bool:
        return not self.turns and bool((self.factor == 1).all() and (self.offset == 0).all())

    def __call__(self, values: np.ndarray) -> np.ndarray:
        """Float32 (N, D); the same array where nothing differs."""
        if self.is_identity:
            return values
        converted = values.astype(np.float64) * self.before
        for turn in self.turns:
            place = slice(turn.first, turn.first + 3)
            converted[:, place] = turn(converted[:, place])
        return (converted * self.factor + self.offset).astype(np.float32)


@dataclass(frozen=True)
class Interface:
    """The cameras and conversions between a policy and a world."""

    cameras: tuple[str, ...]
    """Cameras that the policy sees, in its order."""
    state: Conversion | None
    """Conversion of the world's numbers to the policy's; None where it reads no state."""
    action: Conversion
    """Conversion of the policy's numbers to the world's."""

    def seen(self, observation: Mapping[str, Any]) -> Observation:
        """The policy's part of an environment's observation."""
        images = {camera: observation["images"][camera] for camera in self.cameras}
        state = None if self.state is None else self.state(observation["state"])
        return Observation(images, observation["instruction"], state)


def connect(policy: PolicySpec, world: WorldSpec) -> Interface:
    """Hold what a policy sees and does against what a world has.

    Raises:
        UserError: the world lacks a camera, the numbers of state or action dimensions differ, or two conventions do
            and no rule converts one into the other.
    """
    if lacking := [camera for camera in policy.cameras if camera not in world.cameras]:
        raise UserError(
            f"the policy sees the camera '{shorten(lacking[0])}', and the world '{world.name}' has "
            f"{', '.join(world.cameras)}; {OTHER_CAMERAS}"
        )
    state = conversion(world.state, policy.state, "state", world.name) if policy.state else None
    return Interface(policy.cameras, state, conversion(policy.action, world.action, "action", world.name))


def conversion(given: Sequence[Dim], wanted: Sequence[Dim], what: str, world: str) -> Conversion:
    """Find the conversion of one side's numbers to the other's.

    Args:
        what: "state", which the world gives and the policy wants, or "action", the other way round.

    Raises:
        UserError: there are more on one side than on the other, or they differ and there is no rule.
    """
    policys, worlds = (given, wanted) if what == "action" else (wanted, given)
    if len(given) != len(wanted):
        raise UserError(f"the policy has {len(policys)} {what} dimensions, and the world '{world}' has {len(worlds)}")
    rules = []
    for number, (one, other) in enumerate(zip(given, wanted, strict=True)):
        try:
            rules.append(_rule(one, other))
        except _NoRule as missing:
            said = [shorten(getattr(dims[number], missing.aspect)) for dims in (policys, worlds)]
            raise UserError(
                f"{what} dimension {number} ('{shorten(worlds[number].name)}'): its {missing.aspect} is '{said[0]}' in "
                f"the policy and '{said[1]}' in the world '{world}', and no rule converts one into the other"
            ) from missing
    before, factor, offset = (
        np.array([getattr(rule, name) for rule in rules]) for name in ("before", "factor", "offset")
    )
    return Conversion(before, _turns([rule.forms for rule in rules], what), factor, offset)


class _NoRule(Exception):
    """Two numbers differ, and nothing converts one into the other."""

    def __init__(self, aspect: str) -> None:
        self.aspect = aspect


@dataclass(frozen=True)
class _Rule:
    """The conversion of one number to the other side's."""

    before: float = 1.0
    factor: float = 1.0
    offset: float = 0.0
    forms: tuple[str, str] | None = None
    """The two forms of a rotation, of which the number is a part."""


def _rule(given: Dim, wanted: Dim) -> _Rule:
    """
    Raises:
        _NoRule: there is none.
    """
    ratio = _ratio(given.unit, wanted.unit)
    if ratio is None:
        raise _NoRule("unit")
    if not given.convention or not wanted.convention or given.convention == wanted.convention:
        return _Rule(factor=ratio)
    if grippers := _grippers(given.convention, wanted.convention):
        (opens, closes), (to_open, to_close) = grippers
        slope = (to_open - to_close) / (opens - closes)
        return _Rule(factor=slope, offset=to_close - slope * closes)
    (form, _, rest), (to_form, _, to_rest) = (dim.convention.partition(", ") for dim in (given, wanted))
    if rest and to_rest and rest != to_rest:
        raise _NoRule("convention")
    forms = _ROTATIONS.get(form, form), _ROTATIONS.get(to_form, to_form)
    if forms[0] == forms[1]:
        return _Rule(factor=ratio)
    if not set(forms) <= set(_ROTATIONS.values()):
        raise _NoRule("convention")
    radians, to_radians = _in_radians(given.unit or wanted.unit), _in_radians(wanted.unit or given.unit)
    if radians is None or to_radians is None:
        raise _NoRule("unit")
    return _Rule(before=radians, factor=1 / to_radians, forms=forms)


def _grippers(given: str, wanted: str) -> tuple[tuple[float, float], tuple[float, float]] | None:
    """The values that open and close on either side; None where these are no grippers with two values each."""
    matches = _GRIPPER.fullmatch(given), _GRIPPER.fullmatch(wanted)
    if matches[0] is None or matches[1] is None:
        return None
    one, other = ((float(match[1]), float(match[2])) for match in matches if match)
    return None if one[0] == one[1] or other[0] == other[1] else (one, other)


def _turns(forms: Sequence[tuple[str, str] | None], what: str) -> tuple[Turn, ...]:
    """The rotations that change their form, three numbers in a row each.

    Raises:
        UserError: there are one or two of them somewhere.
    """
    turns: list[Turn] = []
    for number, pair in enumerate(forms):
        if pair is None or (turns and number < turns[-1].first + 3):
            continue
        if list(forms[number : number + 3]) != [pair] * 3:
            raise UserError(
                f"{what} dimension {number}: policy and world differ in the form of a rotation, which is three numbers "
                "in a row of the same form, and here there are fewer"
            )
        turns.append(Turn(number, *pair))
    return tuple(turns)


def _ratio(given: str, wanted: str) -> float | None:
    """The factor from one unit to another; 1 where one side says nothing, None where there is no factor."""
    if not given or not wanted or given == wanted:
        return 1.0
    one, other = _parse(given), _parse(wanted)
    return None if one is None or other is None or one[0] != other[0] else one[1] / other[1]


def _in_radians(unit: str) -> float | None:
    """The radians of an angle of 1; None where they are not said."""
    parsed = _parse(unit)
    return parsed[1] if parsed is not None and parsed[0] == "angle" else None


def _parse(unit: str) -> tuple[str, float] | None:
    """Kind of a unit, and how many metres or radians it is."""
    match = _UNIT.fullmatch(unit)
    if match is None or match[2] not in _UNITS or float(match[1] or 1) == 0:
        return None
    kind, size = _UNITS[match[2]]
    return kind, size * float(match[1] or 1)
