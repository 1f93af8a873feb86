"""What came of the trials: a file that only grows, written to the disk before the next trial begins.

Each line is one attempt at a trial. A second line of the same attempt corrects the first. A void attempt does not
count, and its trial is due again at the end of its block.
"""

import json
import os
from pathlib import Path
from typing import Annotated, Literal, get_args

from pydantic import Field

from rlrc.errors import UserError
from rlrc.files import fsync
from rlrc.progress import say
from rlrc.reading import MAX_JSON_BYTES, FileModel, Model, read_json_lines, read_text
from rlrc.trial.plan import Plan

Outcome = Literal["success", "failure", "void"]
OUTCOMES: tuple[Outcome, ...] = get_args(Outcome)
MOST_CHARACTERS = 1000
"""Largest length of a note."""


class Attempt(FileModel, extra="forbid"):
    """One attempt at a trial and what came of it."""

    trial: Annotated[int, Field(ge=0)]
    """Number of the trial in the plan, from zero. It does not tell the policy to who reads the file."""
    attempt: Annotated[int, Field(ge=1)]
    outcome: Outcome
    note: Annotated[str, Field(max_length=MOST_CHARACTERS)] = ""
    begun: str
    """Time at which it began, in ISO 8601."""
    seconds: Annotated[float, Field(ge=0)]
    answers: Annotated[int, Field(ge=0)]
    """Number of times that the robot's program got actions from the policy."""
    actions: Annotated[int, Field(ge=0)]
    """Number of actions in these answers."""
    error: str = ""
    """The last error that the robot's program was told."""


class Look(FileModel, extra="forbid"):
    """A look at the results before the end."""

    at: str
    """Time in ISO 8601."""
    counted: Annotated[int, Field(ge=0)]
    """Number of trials that counted by then."""


class Records:
    """The attempts at a plan's trials.

    Raises:
        UserError: the file is damaged, or holds what cannot have come from this plan.
    """

    def __init__(self, plan: Plan, attempts: Path, looks: Path) -> None:
        self._plan, self._path, self._looks_path = plan, attempts, looks
        self.attempts: list[Attempt] = []
        """All attempts in their order, as they were corrected."""
        self._last: dict[int, Attempt] = {}
        for number, attempt in enumerate(_read(attempts, Attempt), start=1):
            if not self._follows(attempt):
                raise UserError(
                    f"{attempts}, line {number}: attempt {attempt.attempt} at trial {attempt.trial} was not due; lines "
                    "are missing or the file was changed: restore it, or begin a new plan with another --out"
                )
            self._take(attempt)
        self.looks = _read(looks, Look)

    def due(self) -> int | None:
        """The number of the trial that is next; None where all are done."""
        size = len(self._plan.policies)
        for first in range(0, len(self._plan.trials), size):
            open_trials = [number for number in range(first, first + size) if self.outcome(number) is None]
            if open_trials:
                return min(open_trials, key=lambda number: (self.attempts_at(number), number))
        return None

    def attempts_at(self, trial: int) -> int:
        """The number of attempts at a trial so far."""
        return self._last[trial].attempt if trial in self._last else 0

    def outcome(self, trial: int) -> bool | None:
        """Whether a trial succeeded; None where no attempt counts yet."""
        last = self._last.get(trial)
        return None if last is None or last.outcome == "void" else last.outcome == "success"

    @property
    def counted(self) -> int:
        """The number of trials that count."""
        return sum(attempt.outcome != "void" for attempt in self._last.values())

    def add(self, attempt: Attempt) -> None:
        """Keep the attempt that was due, or the last one corrected."""
        assert self._follows(attempt)
        _append(self._path, attempt)
        self._take(attempt)

    def add_look(self, look: Look) -> None:
        """Keep that the results were looked at."""
        _append(self._looks_path, look)
        self.looks.append(look)

    def _follows(self, attempt: Attempt) -> bool:
        due = self.due()
        return self._corrects(attempt) or (
            attempt.trial == due and attempt.attempt == self.attempts_at(attempt.trial) + 1
        )

    def _corrects(self, attempt: Attempt) -> bool:
        latest = self.attempts[-1] if self.attempts else None
        return latest is not None and (latest.trial, latest.attempt) == (attempt.trial, attempt.attempt)

    def _take(self, attempt: Attempt) -> None:
        if self._corrects(attempt):
            self.attempts.pop()
        self.attempts.append(attempt)
        self._last[attempt.trial] = attempt


def _read(path: Path, model: type[Model]) -> list[Model]:
    """The lines of a file, without the end that a killed process may have left of one; none where there is no file."""
    if not path.exists():
        return []
    text = read_text(path, MAX_JSON_BYTES)
    whole = text.rfind("\n") + 1
    if whole < len(text):
        say(f"{path}: the last line was cut off and is removed; what it told is asked again")
        os.truncate(path, len(text[:whole].encode()))
    return read_json_lines(path, model)


def _append(path: Path, line: FileModel) -> None:
    """Write a line, and return when it is on the disk."""
    is_new = not path.exists()
    with path.open("a") as file:
        file.write(json.dumps(line.model_dump()) + "\n")
        file.flush()
        os.fsync(file.fileno())
    if is_new:
        fsync(path.parent)
