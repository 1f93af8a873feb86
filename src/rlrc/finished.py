"""The contents of the folder of a stage that ended, for those who show it or go on from it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field

from rlrc.errors import UserError
from rlrc.ownership import DONE, RECORD, read_record
from rlrc.reading import FileModel, read_model


class Done(FileModel):
    """A stage's `done.json`."""

    fingerprint: str
    seconds: float = Field(ge=0)
    machine: str | None = None
    """Processor that it ended on, and its cores; what ended before this was recorded does not say."""
    result: dict[str, Any]


@dataclass(frozen=True)
class Finished:
    """A stage that ended, as it is described in its folder."""

    name: str
    folder: Path
    verb: str
    config: dict[str, Any]
    seconds: float
    machine: str | None
    result: dict[str, Any]


def read_finished(folder: Path) -> Finished | None:
    """The record of the stage in `folder`, or None if it has not ended.

    Raises:
        UserError: what it left is damaged.
    """
    if not (folder / DONE).exists():
        return None
    done, record = read_done(folder), read_record(folder)
    if record is None:
        raise UserError(f"{folder / RECORD}: no such file, and {DONE} lies beside it; delete {DONE} and run it again")
    return Finished(folder.name, folder, record.verb, record.config, done.seconds, done.machine, done.result)


def read_done(folder: Path) -> Done:
    """The `done.json` of the stage in `folder`.

    Raises:
        UserError: it is missing or damaged.
    """
    try:
        return read_model(folder / DONE, Done)
    except UserError as error:
        raise UserError(f"{error}; delete this file, and the same command brings the stage to its end again") from error
