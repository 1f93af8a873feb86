"""Checks of the GPU kernels; test_packed_cuda.py runs them in processes of their own, interpreted and on a GPU.

TRITON_INTERPRET=1 pytest packed_cuda_checks.py    (anywhere)
TRITON_INTERPRET=0 pytest packed_cuda_checks.py    (on an NVIDIA GPU)

The variable must be set before Triton is imported, since Triton's own functions are wrapped then, and some other test's
import may have imported it already.

The interpreter multiplies bfloat16 matrices wrongly and cuts bfloat16 off where a GPU rounds it. So products of many
rows are checked in float16 and float32, and bfloat16 results may be one step away.
"""

import copy
import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers.models.llama.modeling_llama import LlamaRMSNorm, apply_rotary_pos_emb
from triton.runtime import interpreter

from rlrc.packed import cuda
from rlrc.packed.cuda import fused, products
from rlrc.packed.layers import LARGEST_GROUP, QuantizedLinear
from rlrc.policies.parts.decoding import Decoding
from rlrc.policies.parts.fused_decoding import FusedDecoding, is_fusible
from rlrc.quantize import linear_names, quantize_linears

SHAPES = [(64, 8), (100, 5), (37, 6), (1104, 3)]
"""(in, out): multiples of every block, of none, and widths that end within a byte's pair or need several tiles."""

STEP = {torch.float32: 2.0**-23, torch.float16: 2.0**-10, torch.bfloat16: 2.0**-7}
"""The distance from 1 to the next number."""

HALVES = (torch.float16, torch.bfloat16)

DEVICE = "cpu" if os.environ.get("TRITON_INTERPRET") == "1" else "cuda"

_patch = interpreter._patch_lang_tensor


def _patch_for_numpy(tensor: Any, scope: Any) -> None:
    """From NumPy 2.4 on an array of one number is no integer any more, as the interpreter of Triton 3.6 expects."""
    _patch(tensor, scope)
    scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))


interpreter._patch_lang_tensor = _patch_for_numpy


@pytest.fixture(autouse=True)
def on_the_device() -> Iterator[None]:
    with torch.device(DEVICE):
        yield


def layer(in_features: int, out_features: int, bits: int, group_size: int, seed: int = 0) -> QuantizedLinear:
    torch.manual_seed(seed)
    linear = nn.Linear(in_features, out_features)
    nn.init.normal_(linear.bias)
    packed = QuantizedLinear.from_linear(linear, bits, group_size).requires_grad_(False)
    for dtype in cuda.DTYPES:
        assert cuda.refuses(packed.packed_weight, torch.device(DEVICE), dtype) is None
    return packed


def runs_matrix(rows: int, packed: QuantizedLinear) -> bool:
    return rows <= products.MATRIX_ROWS and packed.out_features >= products.MATRIX_OUTPUTS


@pytest.fixture(autouse=True)
def few_outputs_are_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    """The matrix kernel is for many outputs, which would take the interpreter long."""
    monkeypatch.setattr(products, "MATRIX_OUTPUTS", 0)


def assert_product(y: torch.Tensor, packed: QuantizedLinear, x: torch.Tensor, bias: torch.Tensor | None) -> None:
    """Hold y against float64: the weight is exact with few rows, and else rounded to x's dtype; with many a bias is
    too."""
    rows = x.numel() // packed.in_features
    weight = packed.dequantize(torch.float32 if rows <= products.VECTOR_ROWS else x.dtype).double()
    if bias is not None and rows > products.VECTOR_ROWS and not runs_matrix(rows, packed):
        bias = bias.to(x.dtype)
    expected = F.linear(x.double(), weight, None if bias is None else bias.double())
    assert y.dtype == x.dtype and y.shape == expected.shape
    summing = 5e-7 * F.linear(x.double().abs(), weight.abs())
    rounding = STEP[x.dtype] * expected.abs()
    assert ((y.double() - expected).abs() <= summing + rounding).all()


@pytest.mark.parametrize("group_size", [32, 96, LARGEST_GROUP])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_products(shape: tuple[int, int], bits: int, group_size: int) -> None:
    packed = layer(*shape, bits, group_size)
    for rows, dtype, bias in (
        (1, torch.bfloat16, packed.bias),
        (3, torch.float32, None),
        (5, torch.float16, packed.bias.half()),
    ):
        x = torch.randn(rows, shape[0]).to(dtype)
        assert_product(cuda.linear(packed.packed_weight, x, bias), packed, x, bias)


@pytest.mark.parametrize("group_size", [16, 64, 128, 200])
@pytest.mark.parametrize("bits", [4, 8])
def test_groups(bits: int, group_size: int) -> None:
    packed = layer(200, 3, bits, group_size)
    for rows in (2, 6):
        x = torch.randn(rows, 200).half()
        assert_product(cuda.linear(packed.packed_weight, x), packed, x, None)


@pytest.mark.parametrize("matrix_outputs", [0, 36])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_numbers_of_rows(dtype: torch.dtype, matrix_outputs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """From 5 rows on, or 17, the weight is unpacked: where there are fewer outputs, or not."""
    monkeypatch.setattr(products, "MATRIX_OUTPUTS", matrix_outputs)
    packed = layer(72, 35, 4, 32)
    for rows in (8, 17, 33, 130):
        x = torch.randn(rows, 72).to(dtype)
        assert_product(cuda.linear(packed.packed_weight, x, packed.bias), packed, x, packed.bias)


def test_many_outputs_in_a_program(monkeypatch: pytest.MonkeyPatch) -> None:
    """The sizes of large layers: eight and four outputs a program instead of two."""
    packed = layer(72, 11, 4, 32)
    expected = {rows: products.vector_sizes(rows, 2**20, 9).outputs for rows in (1, 2, 4)}
    assert expected == {1: 8, 2: 8, 4: 4} and products.vector_sizes(1, 11, 9).outputs == 2
    monkeypatch.setattr(products, "PROGRAMS", 1)
    for rows in expected:
        x = torch.randn(rows, 72).half()
        assert_product(cuda.linear(packed.packed_weight, x, packed.bias), packed, x, packed.bias)


def test_large_inputs_leave_the_result_exact() -> None:
    """One input of 10,000 among normal ones, as after a language model's first layers."""
    packed = layer(256, 16, 4, 32)
    x = torch.randn(1, 256)
    x[0, 7] = 1e4
    exact = x.double() @ packed.dequantize().double().T
    y = cuda.linear(packed.packed_weight, x)
    assert (y.double() - exact).norm() < 1e-5 * exact.norm()


def test_shapes_of_x() -> None:
    packed = layer(64, 4, 4, 32)
    weight = packed.packed_weight
    x = torch.randn(2, 3, 64).half()
    flat = cuda.linear(weight, x.flatten(0, 1))
    assert torch.equal(cuda.linear(weight, x), flat.unflatten(0, (2, 3)))
    assert torch.equal(cuda.linear(weight, x[0, 0]), cuda.linear(weight, x[0, :1])[0])
    assert cuda.linear(weight, x[:0]).shape == (0, 3, 4)
    for view in (x[:, -1], x.mT.contiguous().mT[:, 1], torch.cat((x, x), -1)[:, 0, ::2]):
        assert not view.is_contiguous()
        assert torch.equal(cuda.linear(weight, view), cuda.linear(weight, view.contiguous()))


@pytest.mark.parametrize("rows", [4, 20])
def test_rows_do_not_touch_each_other(rows: int) -> None:
    """Equal calls give equal bits, zeros stay zeros, a NaN spoils its own row alone, order does not matter."""
    packed = layer(100, 5, 4, 32)
    x = torch.randn(rows, 100).half()
    y = cuda.linear(packed.packed_weight, x)
    assert torch.equal(y, cuda.linear(packed.packed_weight, x))
    assert torch.equal(y.flip(0), cuda.linear(packed.packed_weight, x.flip(0)))
    other = x.clone()
    other[1], other[2, 5], other[3] = 0, torch.nan, 1e3
    spoilt = cuda.linear(packed.packed_weight, other)
    assert torch.equal(spoilt[1], torch.zeros(5).half()) and spoilt[2].isnan().all()
    assert torch.equal(spoilt[0], y[0]) and torch.equal(spoilt[4:], y[4:])


@pytest.mark.parametrize(("rows", "outs"), [(2, (5, 2, 3)), (7, (37, 5, 12))])
def test_joined_products_are_those_of_each(rows: int, outs: tuple[int, ...]) -> None:
    layers = [layer(100, out, 4, 32, seed=out) for out in outs]
    x = torch.randn(rows, 100).half()
    for some in (layers, layers[1:], layers[:1]):
        for biases in (None, tuple(packed.bias for packed in some)):
            results = cuda.joined(tuple(packed.packed_weight for packed in some), x, biases)
            for index, (y, packed) in enumerate(zip(results, some, strict=True)):
                assert y.is_contiguous()
                assert_product(y, packed, x, None if biases is None else biases[index])
    with pytest.raises(ValueError, match="same inputs"):
        cuda.joined((layers[0].packed_weight, layer(100, 4, 8, 32).packed_weight), x)


@pytest.mark.parametrize("group_size", [32, 96, LARGEST_GROUP])
@pytest.mark.parametrize("bits", [4, 8])
def test_unpacked_weights_are_those_of_dequantize(bits: int, group_size: int) -> None:
    for shape in SHAPES[1:]:
        packed = layer(*shape, bits, group_size)
        ids = torch.randint(shape[1], (2, 3))
        for dtype in cuda.DTYPES:
            whole, expected = cuda.unpack(packed.packed_weight, dtype), packed.dequantize(dtype)
            assert whole.dtype == dtype
            if shape[0] < 1000:
                assert torch.equal(cuda.unpack(packed.packed_weight, dtype, ids), whole[ids])
            if dtype == torch.bfloat16:
                assert ((whole.float() - expected.float()).abs() <= STEP[dtype] * expected.float().abs()).all()
            else:
                assert torch.equal(whole, expected)


def test_rows_that_do_not_exist_are_nan() -> None:
    packed = layer(64, 40, 4, 32)
    rows = cuda.unpack(packed.packed_weight, torch.float32, torch.tensor([0, -1, 39, 40, 2**40]))
    assert rows.isnan().all(-1).tolist() == [False, True, False, True, True]
    assert not rows[[0, 2]].isnan().any()
    assert cuda.unpack(packed.packed_weight, torch.float32, torch.zeros(0, 3, dtype=torch.int64)).shape == (0, 3, 64)


@pytest.mark.parametrize("width", [1, 40, 300])
def test_norm(width: int) -> None:
    reference = LlamaRMSNorm(width, 1e-5).requires_grad_(False)
    nn.init.normal_(reference.weight)
    for dtype in cuda.DTYPES:
        x = torch.randn(2, 3, width).to(dtype)
        for weight in {dtype, torch.float32}:
            expected = reference.to(weight)(x)
            y = fused.rms_norm(x, reference.weight, 1e-5)
            assert y.dtype == expected.dtype
            torch.testing.assert_close(y, expected, rtol=4 * STEP[dtype], atol=1e-6)
            branch = torch.randn(2, 3, width).to(dtype)
            total, y = fused.add_and_norm(x, branch, reference.weight, 1e-5)
            # Where the interpreter cuts a bfloat16 sum off, it is a step away, and so is what is computed from it.
            torch.testing.assert_close(total, x + branch, rtol=STEP[dtype], atol=0)
            torch.testing.assert_close(y, reference(total), rtol=4 * STEP[dtype], atol=1e-6)
    with pytest.raises(ValueError, match="must be alike"):
        fused.add_and_norm(x, branch[:1], reference.weight, 1e-5)
    with pytest.raises(ValueError, match="numbers of the weight"):
        fused.rms_norm(torch.randn(2, width + 1), reference.weight, 1e-5)


def test_gated_unit() -> None:
    for dtype in cuda.DTYPES:
        gate, up = (5 * torch.randn(3, 700).to(dtype) for _ in range(2))
        gate[0, :2] = torch.tensor([-200, 200])
        torch.testing.assert_close(fused.gated_unit(gate, up), F.silu(gate) * up, rtol=4 * STEP[dtype], atol=1e-6)
    with pytest.raises(ValueError, match="must be alike"):
        fused.gated_unit(gate, up[1:])


@pytest.mark.parametrize(("heads", "kv_heads", "size"), [(4, 2, 16), (3, 3, 20)])
def test_rotary(heads: int, kv_heads: int, size: int) -> None:
    """Two sequences of three positions from place 2 on, in caches that have room for one position less than that."""
    angles = torch.randn(50, size)  # a model's repeat in both halves, which would hide that one is read for the other
    positions = torch.tensor([[4, 5, 6], [20, 21, 49]])
    for dtype in cuda.DTYPES:
        cos, sin = angles.cos().to(dtype), angles.sin().to(dtype)
        q, k, v = (torch.randn(2, 3, count * size).to(dtype) for count in (heads, kv_heads, kv_heads))
        caches = [torch.randn(2, kv_heads, 4, size).to(dtype) for _ in range(2)]
        before = [cache.clone() for cache in caches]
        rotated = fused.rotate_and_store(q, k, v, cos, sin, positions, *caches, torch.tensor([2]))
        q, k, v = (tensor.unflatten(2, (-1, size)).transpose(1, 2) for tensor in (q, k, v))
        queries, keys = apply_rotary_pos_emb(q.float(), k.float(), cos.float()[positions], sin.float()[positions])
        tolerance = {"rtol": STEP[dtype], "atol": 1e-6}
        torch.testing.assert_close(rotated.float(), queries, **tolerance)
        torch.testing.assert_close(caches[0][:, :, 2:].float(), keys[:, :, :2], **tolerance)
        assert torch.equal(caches[1][:, :, 2:], v[:, :, :2])
        assert all(torch.equal(now[:, :, :2], old[:, :, :2]) for now, old in zip(caches, before, strict=True))


@pytest.mark.parametrize("packing", ["dense", "packed"])
@torch.no_grad()
def test_fused_decoding(packing: str, grouped_policy: Any) -> None:
    """Actions as the modules of the decoder compute them, with padding and without, with heads in groups."""
    model, images = copy.deepcopy(grouped_policy.model).to(DEVICE), np.zeros((2, 96, 96, 3), np.uint8)
    if packing == "packed":
        quantize_linears(model, linear_names(grouped_policy, ["decoder"]), 4, 32)
    assert is_fusible(model.language_model.model)
    for rows in (1, 2):
        instructions = ["put carrot on plate", "put red cube on plate"][:rows]
        with torch.device("cpu"):
            inputs = grouped_policy.prepare(grouped_policy.observation(images[:rows], instructions)).to(DEVICE)
        assert (inputs.attention_mask is None) == (rows == 1)
        ours = model.sample_actions(inputs, decode=FusedDecoding)
        theirs = model.sample_actions(inputs, decode=lambda *places: Decoding(*places[:-1]))
        assert torch.equal(ours[0], theirs[0])
        torch.testing.assert_close(ours[1], theirs[1], rtol=1e-3, atol=1e-5)
