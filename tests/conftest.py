"""Shared fixtures: where the reference tensors are, and small policies to test on."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from rlrc.policies.contract import Policy

os.environ.setdefault("OMP_NUM_THREADS", "1")
"""Tests run side by side, one on each core."""

os.environ["RLRC_FRAME_CACHE_GB"] = "0"
"""Tests leave no frames on the disk, except those that are about that."""

with contextlib.suppress(ImportError):
    import triton  # noqa: F401  (Triton's LLVM crashes where it is loaded after that of Mesa, which draws)

SHARED = Path(__file__).resolve().parents[2] / "shared"
FIXTURES = (Path(__file__).parent / "fixtures", SHARED / "fixtures")
"""Where tensors of reference implementations are: the small ones come with the tests, all of them lie beside the
checkout."""


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of reference tensors beside the checkout; tests that need it skip where it is absent."""
    if not (SHARED / "fixtures").is_dir():
        pytest.skip(f"reference tensors not found: {SHARED / 'fixtures'} does not exist")
    return SHARED


def fixture_folder(name: str) -> Path:
    """The folder of reference tensors of this name; the test that asks for it skips where there is none."""
    found = next((root / name for root in reversed(FIXTURES) if (root / name).exists()), None)
    if found is None:
        pytest.skip(f"reference tensors not found: {FIXTURES[-1] / name} does not exist")
    return found


def fixture_cases(name: str) -> list[str]:
    """The cases of a fixture that are here; where there are none, one for which `fixture_folder` says so."""
    here = {path.name for root in FIXTURES if (root / name).is_dir() for path in (root / name).iterdir()}
    return sorted(here) or ["(any case)"]


TINY_STATS = {
    "tabletop": {
        "action": {
            "q01": [-0.05, -0.05, -0.05, -0.5, -0.5, -0.5, -1.0],
            "q99": [0.05, 0.05, 0.05, 0.5, 0.5, 0.5, 1.0],
            "mask": [True] * 6 + [False],
        }
    }
}


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random OpenVLA of 0.3 M parameters, saved as a checkpoint (float32): ten heads and 40 channels a layer."""
    from rlrc.configs.train import Shape, TowerShape
    from rlrc.policies.openvla.tiny import new_policy

    tower = TowerShape(hidden_size=16, num_attention_heads=2, intermediate_size=32, stem_channels=(4, 8))
    shape = Shape(
        patch_size=32,
        towers=(tower.model_copy(update={"class_token": True, "layer_scale": True, "num_register_tokens": 2}), tower),
        hidden_size=40,
        num_hidden_layers=3,
        intermediate_size=40,
    )
    instructions = ["put carrot on plate", "put red cube on plate"]
    path = tmp_path_factory.mktemp("tiny") / "checkpoint"
    new_policy(shape, instructions, TINY_STATS).save(path)
    return path


@pytest.fixture
def tiny_policy(tiny_checkpoint: Path) -> "Policy":
    """`tiny_checkpoint`, loaded anew for each test."""
    import rlrc

    return rlrc.load(tiny_checkpoint)


@pytest.fixture(scope="session")
def grouped_policy() -> "Policy":
    """A random OpenVLA with key-value heads that several query heads share, and layers of different shapes."""
    import torch

    from rlrc.configs.train import Shape, TowerShape
    from rlrc.policies.openvla.tiny import new_policy

    tower = TowerShape(hidden_size=16, num_attention_heads=2, intermediate_size=32, stem_channels=(4, 8))
    shape = Shape(patch_size=32, towers=(tower, tower), hidden_size=40, num_hidden_layers=3, intermediate_size=40)
    instructions = ["put carrot on plate", "put red cube on plate"]
    config = new_policy(shape, instructions, None).model.config
    config.text_config.num_attention_heads, config.text_config.num_key_value_heads = 4, 2
    config.text_config.per_layer_config = {1: {"num_attention_heads": 2, "num_key_value_heads": 1}}
    policy = new_policy(shape, instructions, None)
    torch.manual_seed(0)
    policy.model = type(policy.model)(config).eval()
    return policy


@pytest.fixture(scope="module")
def quick_rates() -> Iterator[None]:
    """`bench` measures the machine's rates with small tensors: others take a processor without bf16 20 seconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rlrc.roofline.READ_BYTES", 2**20)
        patch.setattr("rlrc.roofline.WIDTH", 64)
        yield
