"""GPTQ: what follows from its definition, and that it serves its purpose on a policy."""

from pathlib import Path

import pytest
import torch
from toy_demonstrations import toy_demonstrations

from rlrc.errors import UserError
from rlrc.packed.layout import quantize_groups
from rlrc.quantize import QuantizeConfig, quantize
from rlrc.quantize.gptq import quantize_compensating


def restored(codes: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor, group_size: int) -> torch.Tensor:
    groups = torch.arange(codes.shape[1]) // group_size
    return (codes.float() - zeros.float()[:, groups]) * scales.float()[:, groups]


def loss(weight: torch.Tensor, approximation: torch.Tensor, moments: torch.Tensor) -> float:
    """E |(W - Q) x|^2, up to a factor."""
    error = weight - approximation
    return float((error @ moments * error).sum())


def test_independent_inputs_leave_nothing_to_make_up_for() -> None:
    torch.manual_seed(0)
    weight, moments = torch.randn(7, 96), torch.diag(torch.rand(96) + 0.1)
    codes, scales, zeros = quantize_compensating(weight, moments, 4, 32)
    nearest = quantize_groups(weight.unflatten(1, (3, 32)), 4)
    assert torch.equal(codes, nearest[0].flatten(1))
    assert torch.equal(scales, nearest[1]) and torch.equal(zeros, nearest[2])


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_correlated_inputs_lose_less_than_with_the_nearest_codes(bits: int) -> None:
    torch.manual_seed(0)
    weight, inputs = torch.randn(40, 100), torch.randn(500, 12) @ torch.randn(12, 100) + 0.3 * torch.randn(500, 100)
    moments = inputs.T @ inputs / 500
    compensated = restored(*quantize_compensating(weight, moments, bits, 32), 32)
    padded = torch.nn.functional.pad(weight, (0, 28)).unflatten(1, (4, 32))
    codes, scales, zeros = quantize_groups(padded, bits)
    nearest = restored(codes.flatten(1)[:, :100], scales, zeros, 32)
    assert loss(weight, compensated, moments) < 0.5 * loss(weight, nearest, moments)


def test_the_last_weight_makes_up_for_the_first() -> None:
    """With two inputs the least squares are known: w2 moves by error * H12 / H22 before it is rounded."""
    weight, moments = torch.tensor([[0.52, 0.31]]), torch.tensor([[1.0, 0.8], [0.8, 2.0]])
    codes, scales, zeros = quantize_compensating(weight, moments, 4, 2)
    first, second = restored(codes, scales, zeros, 2)[0]
    damped = moments + 0.01 * 1.5 * torch.eye(2)
    moved = weight[0, 1] + (weight[0, 0] - first) * damped[0, 1] / damped[1, 1]
    assert abs(second - moved) <= abs(float(scales[0, 0])) / 2 + 1e-6


@pytest.fixture
def dataset(monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("rlrc.quantize.Demonstrations.of", lambda config: toy_demonstrations())
    return Path("toy")


def test_a_policy_changes_fewer_actions(tiny_checkpoint: Path, dataset: Path, tmp_path: Path) -> None:
    results = {
        rounding: quantize(
            QuantizeConfig(
                policy=tiny_checkpoint, rounding=rounding, dataset=dataset, samples=12, parts=("decoder", "projector")
            ),
            tmp_path / rounding,
        )
        for rounding in ("nearest", "gptq")
    }
    for result in results.values():
        assert result["actions"]["tokens"] == 7 * 12
    assert results["gptq"]["actions"]["bins"] < results["nearest"]["actions"]["bins"]
    assert results["gptq"]["replaced"] == results["nearest"]["replaced"]


def test_it_needs_demonstrations(tiny_checkpoint: Path, dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="needs a dataset"):
        QuantizeConfig(policy=tiny_checkpoint, rounding="gptq")
    config = QuantizeConfig(policy=tiny_checkpoint, rounding="gptq", dataset=dataset, samples=10**5)
    with pytest.raises(UserError, match="100000 samples and 100000 others asked for"):
        quantize(config, tmp_path / "out")


def test_frames_that_are_held_out_are_others() -> None:
    demonstrations = toy_demonstrations()
    half = len(demonstrations) // 2
    drawn, held_out = (demonstrations.draw(half, 3, held) for held in (False, True))
    assert len(set(drawn) | set(held_out)) == 2 * half
    with pytest.raises(UserError, match=f"{half + 1} samples and {half + 1} others asked for"):
        demonstrations.draw(half + 1, 3, held_out=True)
