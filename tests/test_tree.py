"""The size of what people clone."""

import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MEBIBYTE = 2**20


def files() -> list[Path]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=False)
    if listed.returncode:
        pytest.skip("this is no git checkout, so it may hold files that are not the project's")
    return [ROOT / name for name in listed.stdout.decode().split("\0") if name]


def test_the_whole_tree_is_below_60_mebibytes() -> None:
    sizes = [path.stat().st_size for path in files() if path.exists()]
    assert 2**20 < sum(sizes) < 60 * MEBIBYTE


def test_the_mini_openvla_oft_is_at_most_8_megabytes() -> None:
    folder = ROOT / "checkpoints" / "tabletop-oft-base"
    sizes = [path.stat().st_size for path in files() if path.exists() and path.is_relative_to(folder)]
    assert 10**6 < sum(sizes) <= 8 * 10**6
