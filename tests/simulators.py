"""Whether ManiSkill can run here: tests that need it skip where it cannot, and say why."""

import os
from importlib.util import find_spec
from pathlib import Path

import pytest

from rlrc.errors import UserError


def need_maniskill() -> None:
    """Skip unless the extra is installed and something can draw."""
    if find_spec("mani_skill") is None:
        pytest.skip("the extra 'maniskill' is not installed")
    from rlrc.envs.maniskill.simulator import start

    try:
        start()
    except UserError as error:
        pytest.skip(str(error))


def need_putonplate(shared: Path) -> None:
    """Skip unless ManiSkill runs and the files of PutOnPlateInScene25 are here, and point RLRC_ASSETS at them."""
    need_maniskill()
    if not (shared / "assets" / "maniskill").is_dir():
        pytest.skip(f"simulator files not found: {shared / 'assets' / 'maniskill'} does not exist")
    os.environ["RLRC_ASSETS"] = str(shared / "assets")
