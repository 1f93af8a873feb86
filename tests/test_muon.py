"""Muon against torch's own, which orthogonalises in bf16, and against singular values."""

import pytest
import torch
from torch import nn

from rlrc.recover.muon import Muon, orthogonal

SHAPES = ((24, 24), (24, 24), (40, 16), (16, 40), (7, 24))


def parameters() -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(0.1 * torch.randn(shape, generator=generator)) for shape in SHAPES]


def test_it_takes_the_steps_of_torchs_muon() -> None:
    ours, theirs = parameters(), parameters()
    options = {"lr": 0.02, "weight_decay": 0.1}
    optimizers = (Muon(ours, **options), torch.optim.Muon(theirs, adjust_lr_fn="match_rms_adamw", **options))
    generator = torch.Generator().manual_seed(1)
    for step in range(5):
        for one, other in zip(ours, theirs, strict=True):
            gradient = torch.randn(one.shape, generator=generator)
            one.grad, other.grad = (gradient.clone(), gradient.clone()) if step or one.shape[0] != 7 else (None, None)
        for optimizer in optimizers:
            optimizer.step()
    for start, one, other in zip(parameters(), ours, theirs, strict=True):
        moved = (other - start).norm()
        assert moved > 0.1
        assert (one - other).norm() < 0.01 * moved


@pytest.mark.parametrize("shape", SHAPES)
def test_singular_values_come_near_one(shape: tuple[int, int]) -> None:
    matrices = torch.randn(3, *shape, generator=torch.Generator().manual_seed(2))
    values = torch.linalg.svdvals(orthogonal(matrices, (3.4445, -4.775, 2.0315), 5, 1e-7))
    assert values.min() > 0.5 and values.max() < 1.3


def test_a_gradient_of_zeros_moves_nothing_but_the_decay() -> None:
    weight = nn.Parameter(torch.ones(8, 8))
    weight.grad = torch.zeros(8, 8)
    Muon([weight], lr=0.1, weight_decay=0.5).step()
    torch.testing.assert_close(weight.detach(), torch.full((8, 8), 0.95))
