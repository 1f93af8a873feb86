"""Options of `inspect`."""

from pathlib import Path

import tyro

from rlrc.configs.parts import SpecPart


class InspectConfig(SpecPart):
    """Print a policy's shapes, bytes and lineage."""

    policy: tyro.conf.Positional[Path]
    """Policy to describe: a folder or a Hugging Face hub id."""
