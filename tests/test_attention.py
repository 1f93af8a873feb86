"""Attention of vision towers, against its formula in float64."""

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F

from rlrc import attention
from rlrc.native import build, processor

needs_kernel = pytest.mark.skipif(attention.missing() is not None, reason=f"no kernel here: {attention.missing()}")
SHAPES = [
    (1, 1, 1, 2),
    (2, 3, 36, 32),
    (1, 2, 64, 64),
    (2, 2, 100, 48),
    (1, 2, 257, 72),
    (1, 1, 261, 80),
    (1, 1, 500, 10),
]
"""(batch, heads, length, dims), with lengths and dims that fill no register."""


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def drawn(*shape: int, seed: int = 0, scale: float = 1.0) -> torch.Tensor:
    """Numbers in bfloat16 as towers have them: (batch, heads, length, dims), whose positions lie before the heads."""
    batch, heads, length, dims = shape
    found = torch.randn(batch, length, heads, dims, generator=torch.Generator().manual_seed(seed))
    return (scale * found).bfloat16().transpose(1, 2)


def formula(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    q, k, v = (x.double() for x in (q, k, v))
    return (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1) @ v


def error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found.double() - expected).norm() / expected.norm())


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("scale", [1.0, 8.0])
@torch.no_grad()
def test_bfloat16_is_as_exact_as_pytorchs(shape: tuple[int, ...], scale: float) -> None:
    """With large numbers one key takes nearly all."""
    q, k, v = (drawn(*shape, seed=seed, scale=scale) for seed in range(3))
    expected = formula(q, k, v)
    found = attention.attend(q, k, v)
    assert found.shape == shape and found.dtype == torch.bfloat16
    assert error(found, expected) <= 1.2 * error(F.scaled_dot_product_attention(q, k, v), expected) + 1e-3


@needs_kernel
@torch.no_grad()
def test_the_kernel_is_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("PyTorch was asked")

    monkeypatch.setattr(F, "scaled_dot_product_attention", refuse)
    q, k, v = (drawn(1, 2, 20, 16, seed=seed) for seed in range(3))
    attention.attend(q, k, v)
    with pytest.raises(AssertionError, match="PyTorch was asked"):
        attention.attend(q.float(), k.float(), v.float())
    with pytest.raises(AssertionError, match="PyTorch was asked"):
        attention.attend(q[..., :5], k[..., :5], v[..., :5])


@needs_kernel
@torch.no_grad()
def test_a_row_depends_on_neither_the_batch_nor_the_threads_nor_how_it_lies(threads: None) -> None:
    q, k, v = (drawn(3, 2, 45, 24, seed=seed) for seed in range(3))
    found = attention.attend(q, k, v)
    assert torch.equal(attention.attend(q[1:2], k[1:2], v[1:2]), found[1:2])
    assert torch.equal(attention.attend(*(x.contiguous() for x in (q, k, v))), found)
    fused = torch.stack([q, k, v], dim=3)  # as a product that gives all three has them
    assert torch.equal(attention.attend(*fused.unbind(3)), found)
    apart = torch.stack([q, k, v], dim=4)  # numbers of a head that are no neighbours
    assert torch.equal(attention.attend(*apart.unbind(4)), found)
    for count in (1, 3):
        torch.set_num_threads(count)
        assert torch.equal(attention.attend(q, k, v), found)


@torch.no_grad()
def test_what_is_not_a_number_stays_so() -> None:
    q, k, v = (drawn(1, 2, 40, 16, seed=seed) for seed in range(3))
    k[0, 1, 7, 3] = torch.nan
    found = attention.attend(q, k, v)
    assert found[0, 1].isnan().all() and not found[0, 0].isnan().any()
    k[0, 1, 7, 3] = 0
    v[0, 0, 39, 2] = torch.inf
    found = attention.attend(q, k, v)
    assert (found[0, 0, :, 2] == torch.inf).all() and found[0, 0, :, 3].isfinite().all()


def test_gradients_are_those_of_the_formula() -> None:
    q, k, v = (drawn(1, 2, 30, 8, seed=seed).float().requires_grad_() for seed in range(3))
    found = attention.attend(q, k, v)
    again = [x.detach().double().requires_grad_() for x in (q, k, v)]
    found.square().sum().backward()
    formula(*again).square().sum().backward()
    for ours, theirs in zip((q, k, v), again, strict=True):
        assert ours.grad is not None and theirs.grad is not None
        torch.testing.assert_close(ours.grad, theirs.grad.float(), atol=1e-5, rtol=1e-4)


@needs_kernel
@torch.no_grad()
def test_a_processor_held_to_less_has_pytorchs(monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v = (drawn(1, 2, 40, 16, seed=seed) for seed in range(3))
    monkeypatch.setenv(processor.ONEDNN, "AVX512_CORE_VNNI")
    build._load.cache_clear()
    try:
        assert "held to less" in (attention.missing() or "")
        assert torch.equal(attention.attend(q, k, v), F.scaled_dot_product_attention(q, k, v))
    finally:
        build._load.cache_clear()
