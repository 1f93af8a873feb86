"""Attention and GELU of vision towers, against their formulas in float64."""

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F

from rlrc.bfloat16 import library
from rlrc.bfloat16.attention import attend
from rlrc.bfloat16.gelu import gelu_tanh
from rlrc.native import build, processor

needs_kernel = pytest.mark.skipif(library.missing() is not None, reason=f"no kernel here: {library.missing()}")
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
    found = attend(q, k, v)
    assert found.shape == shape and found.dtype == torch.bfloat16
    assert error(found, expected) <= 1.2 * error(F.scaled_dot_product_attention(q, k, v), expected) + 1e-3


@needs_kernel
@torch.no_grad()
def test_the_kernel_is_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("PyTorch was asked")

    monkeypatch.setattr(F, "scaled_dot_product_attention", refuse)
    q, k, v = (drawn(1, 2, 20, 16, seed=seed) for seed in range(3))
    attend(q, k, v)
    with pytest.raises(AssertionError, match="PyTorch was asked"):
        attend(q.float(), k.float(), v.float())
    with pytest.raises(AssertionError, match="PyTorch was asked"):
        attend(q[..., :5], k[..., :5], v[..., :5])
    with pytest.raises(AssertionError, match="PyTorch was asked"):
        attend(q[:, :, :3], k, v)


@needs_kernel
@torch.no_grad()
def test_a_row_depends_on_neither_the_batch_nor_the_threads_nor_how_it_lies(threads: None) -> None:
    q, k, v = (drawn(3, 2, 45, 24, seed=seed) for seed in range(3))
    found = attend(q, k, v)
    assert torch.equal(attend(q[1:2], k[1:2], v[1:2]), found[1:2])
    assert torch.equal(attend(*(x.contiguous() for x in (q, k, v))), found)
    fused = torch.stack([q, k, v], dim=3)  # as a product that gives all three has them
    assert torch.equal(attend(*fused.unbind(3)), found)
    apart = torch.stack([q, k, v], dim=4)  # numbers of a head that are no neighbours
    assert torch.equal(attend(*apart.unbind(4)), found)
    for count in (1, 3):
        torch.set_num_threads(count)
        assert torch.equal(attend(q, k, v), found)


@torch.no_grad()
def test_what_is_not_a_number_stays_so() -> None:
    q, k, v = (drawn(1, 2, 40, 16, seed=seed) for seed in range(3))
    k[0, 1, 7, 3] = torch.nan
    found = attend(q, k, v)
    assert found[0, 1].isnan().all() and not found[0, 0].isnan().any()
    k[0, 1, 7, 3] = 0
    v[0, 0, 39, 2] = torch.inf
    found = attend(q, k, v)
    assert (found[0, 0, :, 2] == torch.inf).all() and found[0, 0, :, 3].isfinite().all()


def test_gradients_are_those_of_the_formula() -> None:
    q, k, v = (drawn(1, 2, 30, 8, seed=seed).float().requires_grad_() for seed in range(3))
    found = attend(q, k, v)
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
        assert "held to less" in (library.missing() or "")
        assert torch.equal(attend(q, k, v), F.scaled_dot_product_attention(q, k, v))
    finally:
        build._load.cache_clear()


@torch.no_grad()
def test_gelu_of_every_number() -> None:
    """All of bfloat16: to half a step of it, or what float32 can tell where its exponent ends."""
    x = torch.arange(2**16, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)
    x = torch.cat([x, x[:7]])  # a length that fills no register
    wide = x.double()
    expected = 0.5 * wide * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (wide + 0.044715 * wide**3)))
    found = gelu_tanh(x)
    finite = x.isfinite()
    error = (found.double() - expected)[finite].abs()
    assert (error <= expected[finite].abs() * 2**-7 + 1e-4).all()
    assert (found[x == torch.inf] == torch.inf).all() and found[x.isnan()].isnan().all()


@needs_kernel
@torch.no_grad()
def test_gelu_is_nearer_than_pytorchs() -> None:
    x = torch.randn(3, 100, 50, generator=torch.Generator().manual_seed(0)).bfloat16()
    expected = F.gelu(x.double(), approximate="tanh")
    found = gelu_tanh(x)
    assert found.shape == x.shape and found.dtype == x.dtype
    assert error(found, expected) <= error(F.gelu(x, approximate="tanh"), expected) + 1e-6
    assert torch.equal(gelu_tanh(x.mT), F.gelu(x.mT, approximate="tanh"))


def test_gelus_gradient_is_pytorchs() -> None:
    x = torch.randn(20).bfloat16().requires_grad_()
    gelu_tanh(x).sum().backward()
    again = x.detach().clone().requires_grad_()
    F.gelu(again, approximate="tanh").sum().backward()
    assert x.grad is not None and again.grad is not None and torch.equal(x.grad, again.grad)
