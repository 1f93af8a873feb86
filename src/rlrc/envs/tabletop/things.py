"""The things on the table: 25 objects and 7 receptacles, built of MuJoCo's primitives.

An object's frame has its origin at the middle of its underside and its long axis along x, so a gripper closes across y.
All objects are 3 to 4.5 cm wide across y and 3.5 to 6 cm tall, and stand on something flat, as toys do.
"""

from dataclasses import dataclass
from typing import Literal

Shape = Literal["box", "cylinder", "capsule", "sphere", "ellipsoid"]
Rgb = tuple[float, float, float]

ALONG_X = (0.0, 90.0, 0.0)
ALONG_Y = (90.0, 0.0, 0.0)


@dataclass(frozen=True)
class Part:
    """One primitive: MuJoCo's half sizes and position in m, XYZ Euler angles in degrees."""

    shape: Shape
    size: tuple[float, ...]
    pos: tuple[float, float, float]
    rgb: Rgb
    euler: tuple[float, float, float] = (0.0, 0.0, 0.0)
    solid: bool = True
    """True if the part collides and weighs; decoration does neither."""


@dataclass(frozen=True)
class Object:
    """Something to pick up. `symmetry` is the number of equal grasps in a turn: 2 (long), 4 (square) or 0 (round:
    any)."""

    name: str
    symmetry: Literal[0, 2, 4]
    parts: tuple[Part, ...]


@dataclass(frozen=True)
class Receptacle:
    """Something flat to put an object on, fixed on the table; what lies within `radius` m of its middle counts as on
    it."""

    name: str
    radius: float
    height: float
    parts: tuple[Part, ...]


RED, ORANGE, YELLOW, GREEN = (0.85, 0.12, 0.1), (0.98, 0.5, 0.08), (0.98, 0.85, 0.15), (0.15, 0.6, 0.2)
BLUE, PURPLE, PINK, BROWN = (0.12, 0.3, 0.85), (0.42, 0.12, 0.5), (0.95, 0.4, 0.65), (0.5, 0.3, 0.15)
WHITE, BLACK, CREAM, SILVER = (0.95, 0.95, 0.95), (0.1, 0.1, 0.1), (0.95, 0.88, 0.7), (0.7, 0.72, 0.75)
DARK_GREEN, CYAN, LIME = (0.05, 0.35, 0.12), (0.2, 0.75, 0.85), (0.65, 0.8, 0.2)


def _foot(half_x: float, half_y: float, rgb: Rgb) -> Part:
    """A flat underside for what would roll."""
    return Part("box", (half_x, half_y, 0.004), (0, 0, 0.004), rgb)


def _round_foot(radius: float, rgb: Rgb) -> Part:
    return Part("cylinder", (radius, 0.004), (0, 0, 0.004), rgb)


TRAIN_OBJECTS: tuple[Object, ...] = (
    Object(
        "carrot",
        2,
        (
            Part("capsule", (0.017, 0.028), (0, 0, 0.018), ORANGE, ALONG_X),
            _foot(0.03, 0.012, ORANGE),
            Part("box", (0.012, 0.012, 0.006), (0.052, 0, 0.018), GREEN, solid=False),
        ),
    ),
    Object(
        "banana",
        2,
        (
            Part("capsule", (0.0155, 0.022), (-0.022, 0.003, 0.0165), YELLOW, (0, 90, -20)),
            Part("capsule", (0.0155, 0.022), (0.022, 0.003, 0.0165), YELLOW, (0, 90, 20)),
            _foot(0.03, 0.01, YELLOW),
            Part("sphere", (0.007,), (-0.058, -0.01, 0.0165), BROWN, solid=False),
        ),
    ),
    Object(
        "apple",
        0,
        (
            Part("sphere", (0.0215,), (0, 0, 0.0225), RED),
            _round_foot(0.012, RED),
            Part("cylinder", (0.003, 0.008), (0, 0, 0.048), BROWN, solid=False),
        ),
    ),
    Object(
        "cucumber",
        2,
        (
            Part("capsule", (0.0175, 0.04), (0, 0, 0.0185), DARK_GREEN, ALONG_X),
            _foot(0.035, 0.012, DARK_GREEN),
        ),
    ),
    Object(
        "eggplant",
        2,
        (
            Part("ellipsoid", (0.045, 0.021, 0.021), (0, 0, 0.022), PURPLE),
            _foot(0.025, 0.011, PURPLE),
            Part("sphere", (0.013,), (0.043, 0, 0.022), GREEN, solid=False),
        ),
    ),
    Object(
        "lemon",
        2,
        (
            Part("ellipsoid", (0.03, 0.0215, 0.0215), (0, 0, 0.0225), (0.98, 0.92, 0.3)),
            _foot(0.016, 0.01, (0.98, 0.92, 0.3)),
            Part("sphere", (0.006,), (0.031, 0, 0.0225), LIME, solid=False),
        ),
    ),
    Object(
        "toy brick",
        2,
        (
            Part("box", (0.032, 0.02, 0.016), (0, 0, 0.016), BLUE),
            Part("cylinder", (0.01, 0.004), (-0.016, 0, 0.036), BLUE),
            Part("cylinder", (0.01, 0.004), (0.016, 0, 0.036), BLUE),
        ),
    ),
    Object("green cube", 4, (Part("box", (0.02, 0.02, 0.02), (0, 0, 0.02), (0.1, 0.75, 0.25)),)),
    Object(
        "soda can",
        0,
        (
            Part("cylinder", (0.02, 0.026), (0, 0, 0.026), RED),
            Part("cylinder", (0.017, 0.002), (0, 0, 0.054), SILVER, solid=False),
            Part("cylinder", (0.0203, 0.005), (0, 0, 0.03), WHITE, solid=False),
        ),
    ),
    Object(
        "mug",
        2,
        (
            Part("cylinder", (0.021, 0.023), (0, 0, 0.023), CYAN),
            Part("box", (0.009, 0.004, 0.013), (0.028, 0, 0.024), CYAN),
            Part("cylinder", (0.017, 0.001), (0, 0, 0.0462), BROWN, solid=False),
        ),
    ),
    Object(
        "milk carton",
        4,
        (
            Part("box", (0.019, 0.019, 0.021), (0, 0, 0.021), WHITE),
            Part("box", (0.013, 0.013, 0.013), (0, 0, 0.042), BLUE, (45, 0, 0), solid=False),
            Part("box", (0.0193, 0.0193, 0.006), (0, 0, 0.018), BLUE, solid=False),
        ),
    ),
    Object(
        "toy car",
        2,
        (
            Part("box", (0.036, 0.018, 0.011), (0, 0, 0.017), PINK),
            Part("box", (0.018, 0.016, 0.008), (-0.004, 0, 0.034), WHITE),
            Part("cylinder", (0.008, 0.02), (-0.021, 0, 0.008), BLACK, ALONG_Y),
            Part("cylinder", (0.008, 0.02), (0.021, 0, 0.008), BLACK, ALONG_Y),
        ),
    ),
    Object(
        "mushroom",
        0,
        (
            Part("cylinder", (0.015, 0.014), (0, 0, 0.014), CREAM),
            Part("ellipsoid", (0.0225, 0.0225, 0.015), (0, 0, 0.031), BROWN),
        ),
    ),
    Object(
        "candle",
        0,
        (
            Part("cylinder", (0.018, 0.022), (0, 0, 0.022), (0.75, 0.55, 0.9)),
            Part("ellipsoid", (0.005, 0.005, 0.009), (0, 0, 0.053), ORANGE, solid=False),
        ),
    ),
    Object(
        "sponge",
        2,
        (
            Part("box", (0.036, 0.021, 0.012), (0, 0, 0.012), YELLOW),
            Part("box", (0.036, 0.021, 0.006), (0, 0, 0.03), GREEN),
        ),
    ),
    Object(
        "bread",
        2,
        (
            Part("box", (0.033, 0.021, 0.015), (0, 0, 0.015), (0.8, 0.58, 0.3)),
            Part("ellipsoid", (0.035, 0.0205, 0.012), (0, 0, 0.03), (0.65, 0.4, 0.16)),
        ),
    ),
)

TEST_OBJECTS: tuple[Object, ...] = (
    Object(
        "pear",
        0,
        (
            Part("sphere", (0.0215,), (0, 0, 0.0225), LIME),
            _round_foot(0.012, LIME),
            Part("sphere", (0.013,), (0, 0, 0.045), LIME),
        ),
    ),
    Object(
        "corn",
        2,
        (
            Part("capsule", (0.017, 0.03), (0, 0, 0.018), YELLOW, ALONG_X),
            _foot(0.03, 0.012, YELLOW),
            Part("capsule", (0.0185, 0.012), (0.03, 0, 0.0195), GREEN, ALONG_X, solid=False),
        ),
    ),
    Object(
        "bottle",
        0,
        (
            Part("cylinder", (0.019, 0.02), (0, 0, 0.02), (0.1, 0.5, 0.35)),
            Part("cylinder", (0.008, 0.009), (0, 0, 0.049), (0.1, 0.5, 0.35)),
            Part("cylinder", (0.009, 0.003), (0, 0, 0.058), RED, solid=False),
        ),
    ),
    Object(
        "toy boat",
        2,
        (
            Part("box", (0.036, 0.018, 0.012), (0, 0, 0.012), RED),
            Part("box", (0.014, 0.014, 0.01), (-0.01, 0, 0.034), WHITE),
            Part("cylinder", (0.006, 0.008), (-0.01, 0, 0.052), BLACK, solid=False),
        ),
    ),
    Object(
        "rubber duck",
        2,
        (
            Part("ellipsoid", (0.03, 0.021, 0.019), (0, 0, 0.02), YELLOW),
            _foot(0.016, 0.011, YELLOW),
            Part("sphere", (0.014,), (0.017, 0, 0.044), YELLOW),
            Part("box", (0.007, 0.006, 0.003), (0.034, 0, 0.043), ORANGE, solid=False),
        ),
    ),
    Object(
        "tea box",
        2,
        (
            Part("box", (0.03, 0.017, 0.023), (0, 0, 0.023), (0.45, 0.1, 0.15)),
            Part("box", (0.0303, 0.0173, 0.007), (0, 0, 0.026), CREAM, solid=False),
        ),
    ),
    Object(
        "snowman",
        0,
        (
            Part("sphere", (0.021,), (0, 0, 0.022), WHITE),
            _round_foot(0.012, WHITE),
            Part("sphere", (0.014,), (0, 0, 0.047), WHITE),
            Part("cylinder", (0.01, 0.004), (0, 0, 0.062), BLACK, solid=False),
        ),
    ),
    Object(
        "strawberry",
        0,
        (
            Part("ellipsoid", (0.02, 0.02, 0.024), (0, 0, 0.025), (0.9, 0.1, 0.3)),
            _round_foot(0.011, (0.9, 0.1, 0.3)),
            Part("cylinder", (0.013, 0.003), (0, 0, 0.047), GREEN, solid=False),
        ),
    ),
    Object(
        "hot dog",
        2,
        (
            Part("box", (0.036, 0.02, 0.012), (0, 0, 0.012), (0.85, 0.65, 0.35)),
            Part("capsule", (0.011, 0.038), (0, 0, 0.028), (0.75, 0.2, 0.1), ALONG_X),
        ),
    ),
)


def _disc(name: str, rgb: Rgb, inner: Rgb, radius: float = 0.075) -> Receptacle:
    return Receptacle(
        name,
        radius,
        0.008,
        (
            Part("cylinder", (radius, 0.004), (0, 0, 0.004), rgb),
            Part("cylinder", (0.7 * radius, 0.0002), (0, 0, 0.0082), inner, solid=False),
        ),
    )


def _slab(name: str, rgb: Rgb, inner: Rgb, half: float = 0.068) -> Receptacle:
    return Receptacle(
        name,
        0.075,
        0.008,
        (
            Part("box", (half, half, 0.004), (0, 0, 0.004), rgb),
            Part("box", (0.75 * half, 0.75 * half, 0.0002), (0, 0, 0.0082), inner, solid=False),
        ),
    )


PLATE = _disc("plate", WHITE, (0.82, 0.86, 0.92))
TEST_RECEPTACLES: tuple[Receptacle, ...] = (
    _slab("cutting board", (0.72, 0.5, 0.28), (0.62, 0.4, 0.2)),
    _slab("tray", (0.3, 0.32, 0.36), (0.45, 0.48, 0.52)),
    _slab("napkin", (0.85, 0.35, 0.35), (0.95, 0.9, 0.85)),
    _disc("frying pan", (0.15, 0.15, 0.16), (0.25, 0.25, 0.27), 0.078),
    _disc("cork mat", (0.7, 0.52, 0.35), (0.6, 0.42, 0.27)),
    _disc("blue dish", (0.2, 0.4, 0.75), (0.35, 0.55, 0.85), 0.072),
)
