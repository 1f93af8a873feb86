"""Stand-ins for the policies of `benchmarks/latency_7b`, for a process that shall not have to import much."""

from collections.abc import Sequence
from typing import Any


class Answers:
    """A policy that answers one question and fails at another."""

    def act(self) -> float:
        return 0.5

    def stages(self) -> None:
        raise ValueError("first line\nc++: error: no compiler")


def answers(names: Sequence[str]) -> dict[str, Any]:
    """A policy for each name but "broken", which cannot be made."""
    return {name: RuntimeError("cannot be made") if name == "broken" else Answers() for name in names}
