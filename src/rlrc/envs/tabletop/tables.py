"""Twenty-one table appearances, drawn by formula: 16 to train on, 5 kept unseen."""

from dataclasses import dataclass
from functools import cache

import numpy as np

SIZE = 128


@dataclass(frozen=True)
class Table:
    """A pattern in two colours (0-255)."""

    pattern: str
    dark: tuple[int, int, int]
    light: tuple[int, int, int]


TABLES: tuple[Table, ...] = (
    Table("wood", (110, 72, 42), (150, 104, 66)),
    Table("wood", (62, 44, 34), (92, 68, 52)),
    Table("wood", (168, 132, 92), (196, 160, 116)),
    Table("plain", (92, 104, 116), (100, 112, 124)),
    Table("plain", (58, 84, 74), (64, 92, 82)),
    Table("marble", (96, 98, 104), (142, 144, 150)),
    Table("marble", (52, 58, 70), (84, 92, 106)),
    Table("checker", (112, 92, 92), (140, 118, 116)),
    Table("checker", (72, 86, 110), (94, 110, 136)),
    Table("stripes", (88, 108, 96), (116, 136, 122)),
    Table("stripes", (120, 84, 76), (148, 110, 100)),
    Table("dots", (96, 88, 118), (140, 132, 160)),
    Table("weave", (118, 110, 92), (156, 148, 128)),
    Table("weave", (70, 70, 76), (98, 98, 106)),
    Table("speckle", (110, 106, 98), (150, 146, 136)),
    Table("tiles", (98, 116, 126), (134, 152, 160)),
    # Unseen in training: new colours, and two new patterns.
    Table("wood", (96, 40, 34), (134, 64, 54)),
    Table("waves", (44, 96, 116), (78, 136, 154)),
    Table("tiles", (120, 128, 84), (158, 164, 116)),
    Table("diamonds", (108, 78, 112), (146, 114, 148)),
    Table("marble", (134, 118, 104), (182, 166, 148)),
)
TRAIN_TABLES = tuple(range(16))
TEST_TABLES = tuple(range(16, 21))


@cache
def texture(index: int) -> np.ndarray:
    """Table `index` as uint8 (128, 128, 3); it repeats without a seam."""
    table = TABLES[index]
    mix = np.clip(_pattern(table.pattern, np.random.default_rng(index)), 0.0, 1.0)[..., None]
    dark, light = np.array(table.dark, float), np.array(table.light, float)
    return np.round(dark + mix * (light - dark)).astype(np.uint8)


def _pattern(name: str, rng: np.random.Generator) -> np.ndarray:
    """Brightness (128, 128) in about 0..1."""
    y, x = np.mgrid[0:SIZE, 0:SIZE] / SIZE
    cloud = _cloud(rng)
    match name:
        case "plain":
            return 0.5 + 0.3 * cloud
        case "wood":
            return 0.5 + 0.4 * np.sin(2 * np.pi * (8 * y + 1.2 * cloud)) * (0.6 + 0.4 * np.sin(2 * np.pi * x))
        case "marble":
            return 0.5 + 0.5 * np.sin(2 * np.pi * (x + y + 0.8 * cloud))
        case "checker":
            return ((np.floor(4 * x) + np.floor(4 * y)) % 2).astype(float)
        case "stripes":
            return (np.floor(8 * x) % 2).astype(float)
        case "dots":
            return (np.hypot((4 * x) % 1 - 0.5, (4 * y) % 1 - 0.5) < 0.25).astype(float)
        case "weave":
            return 0.5 + 0.25 * np.sin(2 * np.pi * 16 * x) + 0.25 * np.sin(2 * np.pi * 16 * y)
        case "speckle":
            return (rng.random((SIZE, SIZE)) > 0.8) * 0.8
        case "tiles":
            return ((((4 * x) % 1) > 0.08) & (((4 * y) % 1) > 0.08)) * (0.8 + 0.2 * cloud)
        case "waves":
            return 0.5 + 0.5 * np.sin(2 * np.pi * (6 * y + 0.3 * np.sin(2 * np.pi * 2 * x)))
        case "diamonds":
            return ((np.floor(4 * (x + y)) + np.floor(4 * (x - y))) % 2).astype(float)
    raise AssertionError(name)


def _cloud(rng: np.random.Generator) -> np.ndarray:
    """Smooth periodic noise (128, 128) of about unit size: a few random low frequencies."""
    y, x = np.mgrid[0:SIZE, 0:SIZE] / SIZE
    total = np.zeros((SIZE, SIZE))
    for _ in range(12):
        fx, fy = rng.integers(-4, 5, 2)
        total += np.sin(2 * np.pi * (fx * x + fy * y + rng.random())) / (1.0 + np.hypot(fx, fy))
    return total / np.abs(total).max()
