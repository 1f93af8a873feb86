"""Options of `assets`."""

from typing import Literal

import tyro

from rlrc.config import Config


class AssetsConfig(Config):
    """Fetch a simulator's files from their publishers."""

    simulator: tyro.conf.Positional[Literal["maniskill", "libero"]]
    """Simulator whose files are fetched: maniskill for the world putonplate, or libero."""
