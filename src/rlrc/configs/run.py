"""Options of `run` and `study`."""

from pathlib import Path

import tyro
from pydantic import Field

from rlrc.config import Config


class RunConfig(Config):
    """Run a recipe, or continue it where it was cut off."""

    recipe: tyro.conf.Positional[Path]
    """Recipe file. Its stages are written to runs/<its name>/<stage>/."""
    jobs: int = Field(default=1, ge=1, le=256)
    """Number of stages that run at once. With more than one, each tells its progress in
    runs/<its name>/progress/<stage>.txt."""


class StudyConfig(RunConfig):
    """Run every cell of a study, or continue where it was cut off, and write its evidence."""
