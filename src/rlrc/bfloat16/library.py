"""The compiled library, and what it takes."""

from ctypes import c_float, c_int, c_int64, c_void_p
from pathlib import Path

import torch

from rlrc.native import processor
from rlrc.native.build import Native

HERE = Path(__file__).parent
AVX512 = processor.Level(
    "avx512bf16",
    "x86_64",
    frozenset({"avx512f", "avx512bw", "avx512vl", "avx512_bf16"}),
    ("-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512bf16"),
)


def level() -> processor.Level | str:
    """Return the instructions for which it is compiled, or why it cannot be.

    It stands in for PyTorch, so it keeps to what PyTorch is held to.
    """
    has = processor.machine() == AVX512.machine and processor.features() >= AVX512.needed
    if has and processor.multiplies_bfloat16():
        return AVX512
    return "the processor has no AVX-512 for bfloat16, or is held to less"


LIBRARY = Native(
    name="bfloat16",
    sources=(HERE / "attention.cpp", HERE / "gelu.cpp"),
    headers=(HERE / "exponential.h",),
    level=level,
    functions={
        "attention": (c_void_p, c_void_p, c_void_p, c_void_p, *[c_int64] * 4, c_int64 * 9, c_float, c_int),
        "gelu_tanh": (c_void_p, c_void_p, c_int64, c_int),
    },
)
missing = LIBRARY.missing


def takes(*tensors: torch.Tensor) -> bool:
    """Return whether the library computes with these: in bfloat16 on the CPU, and nobody wants a gradient."""
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
        return False
    plain = all(tensor.device.type == "cpu" and tensor.dtype == torch.bfloat16 for tensor in tensors)
    return plain and missing() is None
