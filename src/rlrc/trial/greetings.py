"""What the servers of the policies say of themselves, and how much of it the robot's program may know.

It is told what all servers say alike, since that cannot tell one policy from another. A text that differs reads
"hidden"; anything else that differs is left out.
"""

import json
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rlrc.client import PolicyClient, ServerGone, ServerRefused
from rlrc.errors import UserError, shorten

NEEDED = ("spec.cameras", "spec.state", "spec.action", "spec.horizon", "spec.execute", "names")
"""What a robot's program acts upon: it has to be the same for all policies of a plan."""
HIDDEN = "hidden"
TIMEOUT_S = 10.0
"""Seconds that a server may take to greet."""

Greeting = dict[str, Any]


def ask(policies: Mapping[str, str], key: str | None) -> dict[str, Greeting]:
    """What the server at each address says on connection, by the policy's name.

    Raises:
        UserError: nobody answers at an address, or no policy's server.
    """
    greetings = {}
    for name, address in policies.items():
        try:
            with PolicyClient(address, key, TIMEOUT_S) as client:
                greeting = _as_json(client.metadata)
        except (ServerGone, ServerRefused, ValueError) as error:
            raise UserError(f"policy '{name}': {error}") from error
        greetings[name] = {word: value for word, value in greeting.items() if word != "timestamp"}
    return greetings


def require_alike(greetings: Mapping[str, Greeting]) -> None:
    """Check that one program of a robot can talk to all policies.

    Raises:
        UserError: they read or do different things.
    """
    for path in NEEDED:
        told = {name: found for name, greeting in greetings.items() if (found := _at(greeting, path)) is not None}
        first, *others = told.items() or [("", None)]
        for name, value in others:
            if value != first[1]:
                where, one, other = _first_difference(path, first[1], value)
                raise UserError(
                    f"the policies '{first[0]}' and '{name}' differ in {where}: {one} and {other}; one program of a "
                    "robot cannot talk to both, so they cannot be compared blind"
                )


def require_unchanged(before: Mapping[str, Greeting], now: Mapping[str, Greeting]) -> None:
    """Check that the servers hold what they held when the plan was made.

    Raises:
        UserError: one says something else of itself.
    """
    for name, greeting in now.items():
        if changed := [word for word in {**before[name], **greeting} if before[name].get(word) != greeting.get(word)]:
            raise UserError(
                f"policy '{name}': its server says another '{shorten(changed[0])}' than when the plan was made; serve "
                "the same policy again, or begin a new plan with another --out"
            )


def shared(greetings: Mapping[str, Greeting]) -> Greeting:
    """Return what the robot's program may know."""
    told: Greeting = _shared(list(greetings.values()))
    return told


def withheld(greetings: Mapping[str, Greeting]) -> list[str]:
    """The dotted names of what it may not know."""
    return list(_withheld(list(greetings.values()), ""))


def as_told(greeting: Greeting) -> Greeting:
    """The greeting of a connection; vla-eval's clients want to know when it was sent."""
    return greeting | {"timestamp": time.time()} if greeting.get("type") == "hello" else greeting


def _shared(values: Sequence[Any]) -> Any:
    """What several servers say under one name; None where that tells them apart."""
    first, *others = values
    if all(other == first for other in others):
        return first
    if all(isinstance(value, str) for value in values):
        return HIDDEN
    if not all(isinstance(value, dict) for value in values):
        return None
    common = {word: _shared([value[word] for value in values]) for word in _words(values)}
    return {word: value for word, value in common.items() if value is not None}


def _withheld(values: Sequence[dict[str, Any]], above: str) -> list[str]:
    names: list[str] = []
    for word in dict.fromkeys(word for value in values for word in value):
        found = [value.get(word) for value in values]
        if all(isinstance(value, dict) for value in found):
            names += _withheld([value for value in found if isinstance(value, dict)], f"{above}{word}.")
        elif any(value != found[0] for value in found):
            names.append(f"{above}{word}")
    return names


def _words(values: Sequence[dict[str, Any]]) -> list[str]:
    return [word for word in values[0] if all(word in value for value in values)]


def _at(greeting: Greeting, path: str) -> Any:
    found: Any = greeting
    for word in path.split("."):
        found = found.get(word) if isinstance(found, dict) else None
    return found


def _as_json(greeting: Greeting) -> Greeting:
    """A greeting as the plan's file keeps it, with lists for arrays.

    Raises:
        ValueError: it holds bytes, or a number that is not finite.
    """

    def plain(value: Any) -> Any:
        if isinstance(value, np.ndarray | np.generic):
            return value.tolist()
        raise TypeError(f"a value of type {type(value).__name__}")

    try:
        kept: Greeting = json.loads(json.dumps(greeting, default=plain, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise ValueError(f"the server's greeting cannot be kept as JSON ({shorten(str(error))})") from error
    return kept


def _first_difference(path: str, one: Any, other: Any) -> tuple[str, str, str]:
    """Tell where two unequal values differ first, and what either has there."""
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        one, other = dict(enumerate(one)), dict(enumerate(other))
    if isinstance(one, dict) and isinstance(other, dict) and one.keys() == other.keys():
        word = next(word for word in one if one[word] != other[word])
        return _first_difference(f"{path}.{word}", one[word], other[word])
    return path, shorten(json.dumps(one), 80), shorten(json.dumps(other), 80)
