"""Names of the numbers that policies, worlds and datasets exchange; importing this brings no torch to a simulator."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Dim:
    """One number of a state or an action."""

    name: str
    unit: str = ""
    """Such as m or rad, or 0.05 m where 1 stands for five centimetres; empty where nobody has said it."""
    convention: str = ""
    """Meaning of its values, such as "1 opens, 0 closes"; empty where nobody has said it. `act/conventions.py` tells
    which of them can be converted."""


def dims(names: str, unit: str = "", convention: str = "") -> tuple[Dim, ...]:
    """Numbers of one kind, by their names with spaces between."""
    return tuple(Dim(name, unit, convention) for name in names.split())


def dims_of(named: list[dict[str, str]] | None, count: int) -> tuple[Dim, ...]:
    """Numbers as a config describes them, or `count` of them that are called 0, 1, ..."""
    return tuple(Dim(**dim) for dim in named) if named else tuple(Dim(str(number)) for number in range(count))
