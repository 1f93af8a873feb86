"""Options of `report`."""

from pathlib import Path

import tyro

from rlrc.config import Config


class ReportConfig(Config):
    """Write the page of a run: one HTML file that needs nothing else."""

    run: tyro.conf.Positional[Path]
    """Folder of the run, as `rlrc run` made it."""
