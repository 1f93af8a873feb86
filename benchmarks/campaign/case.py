"""One wrong input: how it is made, what is run on it, and what is right."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

Expected = Literal["refused", "works", "either", "stopped"]
"""`refused`: one line and nothing written. `works`: exit 0. `either`: one or the other, since both are reasonable.
`stopped`: a signal ends it, with one line and nothing half-written."""


@dataclass(frozen=True)
class Signal:
    """A signal for a running case."""

    number: int
    after_s: float = 0.0
    """Seconds after `file` is there, or after the start."""
    file: str | None = None


@dataclass(frozen=True)
class Case:
    """One command line on one wrong input. The working directory is a folder of its own that `build` fills."""

    name: str
    """area/kind/instance"""
    arguments: tuple[str, ...]
    build: Callable[["Path"], None]
    expected: Expected = "refused"
    words: tuple[str, ...] = ()
    """Words that the printed line must contain; "a|b" stands for one of several words."""
    environment: dict[str, str] = field(default_factory=dict)
    shell: str | None = None
    """Line of bash that runs instead of `arguments`, as a process of its own; in it `rlrc` is the command."""
    signal: Signal | None = None
    beside: tuple[str, ...] = ()
    """Arguments of another run that is under way meanwhile."""
    beside_file: str = ""
    """File that the run of `beside` has written once it is under way."""
    patience: float = 1.0
    """Number of usual time limits that the case may take, where it works on much."""
    leaves: tuple[str, ...] = ()
    """Folders that are the run's own: what it leaves or replaces there is no matter of this case."""

    @property
    def area(self) -> str:
        return self.name.partition("/")[0]

    @property
    def alone(self) -> bool:
        """True if the case runs as a process of its own, which takes seconds where torch is imported."""
        return self.shell is not None or self.signal is not None
