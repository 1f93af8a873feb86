"""Attention of every position to every other one, as vision towers have it."""

from ctypes import c_float, c_int, c_int64, c_void_p
from pathlib import Path

import torch
import torch.nn.functional as F

from rlrc.native import processor
from rlrc.native.arguments import threads
from rlrc.native.build import Native

HERE = Path(__file__).parent


AVX512 = processor.Level(
    "avx512bf16",
    "x86_64",
    frozenset({"avx512f", "avx512bw", "avx512vl", "avx512_bf16"}),
    ("-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512bf16"),
)


def level() -> processor.Level | str:
    """Return the instructions for which the kernel is compiled, or why it cannot be.

    It stands in for a product of PyTorch's, so it keeps to what PyTorch is held to.
    """
    has = processor.machine() == AVX512.machine and processor.features() >= AVX512.needed
    if has and processor.multiplies_bfloat16():
        return AVX512
    return "the processor has no AVX-512 for bfloat16, or is held to less"


LIBRARY = Native(
    name="attention",
    sources=(HERE / "attention.cpp",),
    headers=(),
    level=level,
    functions={"attention": (c_void_p, c_void_p, c_void_p, c_void_p, *[c_int64] * 4, c_int64 * 9, c_float, c_int)},
)
missing = LIBRARY.missing


def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """What each position reads of all others; all (B, heads, T, head_dim).

    In bfloat16, on processors with instructions for it and where no gradient is wanted, a kernel of ours computes it in
    half the time that PyTorch's takes (`docs/journal/speed.md`). Its error is the same: both round the weights of the
    values to bfloat16 and nothing else before the result.
    """
    learns = torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad)
    if q.device.type != "cpu":
        return F.scaled_dot_product_attention(q, k, v)
    if learns:
        # The backward pass of the fused CPU kernel takes several times as long as the three plain operations.
        return ((q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)).softmax(dim=-1) @ v
    if q.dtype != torch.bfloat16 or q.shape[-1] % 2 or missing() is not None:
        return F.scaled_dot_product_attention(q, k, v)
    return _native(q, k, v)


def _native(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    batch, heads, length, dims = q.shape
    q, k, v = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k, v))
    out = q.new_empty(batch, length, heads, dims)
    strides = (c_int64 * 9)(*(stride for x in (q, k, v) for stride in x.stride()[:3]))
    pointers = (x.data_ptr() for x in (q, k, v, out))
    LIBRARY.loaded().attention(*pointers, batch, heads, length, dims, strides, dims**-0.5, threads())
    return out.transpose(1, 2)
