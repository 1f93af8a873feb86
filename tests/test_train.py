"""Training a policy from scratch: it learns what its pictures show, and its checkpoint stands alone."""

from pathlib import Path

import numpy as np
import pytest
import torch

import rlrc
from rlrc.configs.train import Shape, TowerShape
from rlrc.data.lerobot import write_dataset
from rlrc.recover.train import StateRegression, TrainConfig, train


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of one bright column; its place is the environment state, and the action moves towards the middle."""
    rng = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("columns") / "dataset"
    with write_dataset(path, fps=5, robot_type="column") as writer:
        for _ in range(12):
            column = rng.choice([2, 8, 14, 20, 26, 29], 16)
            images = np.zeros((16, 32, 32, 3), np.uint8)
            images[np.arange(16), :, column] = 255
            place = (column[:, None] / 31 - 0.5).astype(np.float32)
            actions = np.concatenate([-place, np.zeros((16, 5)), np.sign(place)], axis=1).astype(np.float32)
            writer.append(
                "put column in the middle",
                {
                    "observation.images.front": images,
                    "observation.state": place,
                    "observation.environment_state": np.concatenate([place, np.ones_like(place)], axis=1),
                    "action": actions,
                },
            )
    return path


def test_learns_to_read_the_picture(dataset: Path, tmp_path: Path) -> None:
    tower = TowerShape(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, stem_channels=()
    )
    shape = Shape(
        image_size=32, patch_size=8, towers=(tower, tower), hidden_size=40, num_hidden_layers=2, intermediate_size=64
    )
    config = TrainConfig(
        dataset=dataset, shape=shape, unnorm_key="column", steps=300, batch_size=32, learning_rate=3e-3, warmup_steps=10
    )
    result = train(config, tmp_path)
    assert result["auxiliary_loss"] < 0.2  # a reading that ignores the picture stays at 1, the variance
    policy = rlrc.load(tmp_path / "checkpoint")
    assert list(policy.norm_stats or {}) == ["column"]
    images = np.zeros((2, 32, 32, 3), np.uint8)
    images[[0, 1], :, [2, 29]] = 255
    actions = policy.act(images, ["put column in the middle"] * 2)
    assert actions[0, 0] > 0.2 and actions[1, 0] < -0.2
    assert (np.sign(actions[:, 6]) == [-1, 1]).all()


def test_state_regression_leaves_out_what_never_moves() -> None:
    states = torch.stack([torch.arange(8.0), torch.full((8,), 3.0)], dim=1)
    regression = StateRegression(states, num_patches=2, hidden_size=3, weight=2.0)
    assert regression.head.out_features == 1
    torch.nn.init.zeros_(regression.head.weight)
    torch.nn.init.zeros_(regression.head.bias)
    frames = torch.arange(8)
    expected = 2.0 * ((states[:, 0] - states[:, 0].mean()) / states[:, 0].std()).square().mean()
    torch.testing.assert_close(regression(torch.randn(8, 2, 3), frames), expected)
