"""Options of `make-random`."""

from pathlib import Path
from typing import Annotated, Literal

import tyro

from rlrc.config import Config, Seed

Preset = Literal[
    "openvla-7b",
    "openvla-tiny",
    "openvla-oft-7b",
    "openvla-oft-tiny",
    "smolvla",
    "smolvla-tiny",
    "pi0",
    "pi0-tiny",
    "pi05",
    "pi05-tiny",
]


class MakeRandomConfig(Config):
    """Write a checkpoint of published names and shapes whose weights are random."""

    preset: Preset
    """Kind and size of the checkpoint: OpenVLA or OpenVLA-OFT for LIBERO at 7 B (15 GB), SmolVLA (0.9 GB), pi0 or pi0.5
    (7 GB), or all of their parts in small (10 MB)."""
    out_folder: Annotated[tyro.conf.Positional[Path | None], tyro.conf.arg(metavar="OUT")] = None
    """Folder to write the checkpoint to. It is the same as --out."""
    seed: Seed = 0
    """Seed for the weights."""
