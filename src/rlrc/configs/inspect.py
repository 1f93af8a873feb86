"""Options of `inspect`."""

from pathlib import Path

import tyro

from rlrc.config import Config


class InspectConfig(Config):
    """Print a policy's shapes, bytes and lineage."""

    policy: tyro.conf.Positional[Path]
    """Policy to describe: a folder or a Hugging Face hub id."""
