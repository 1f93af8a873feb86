"""Code of our own for the CPU: products with packed weights (`packed.cpp`), and decoding one token (`decode.cpp`).

It is compiled when it is first needed (`build.py`). `missing()` says why it cannot be had: another processor than x86
with AVX-512 VNNI, or no C++ compiler. Packed layers then unpack their weight at every call, which is correct and slow.

Two kernels multiply, and they round differently. Which of them it is follows from the number of rows alone, never from
a measurement, and neither depends on the number of threads. So equal inputs give equal bits in every process of a
machine, and a row's result does not depend on the other rows, only on how many there are.
"""

from typing import NamedTuple

import torch

from rlrc.kernels.build import library, missing, processor

__all__ = [
    "BLOCK",
    "MATRIX_ROWS",
    "PackedWeight",
    "address",
    "description",
    "library",
    "missing",
    "processor",
    "product",
    "threads",
]

BLOCK = 32
"""Groups must be multiples of this many columns."""

MATRIX_ROWS = 24
"""Least number of rows that the `matrix` kernel multiplies; below it the `vector` kernel does.

Few rows are limited by how fast weights are read, many by how fast numbers are multiplied. For weights of 2048 x 2048
and two threads both kernels take equally long at 15 to 20 rows on Zen 4 and at about 40 on Cascade Lake (256 x 256: at
7 and 12), and at 24 rows of the large ones neither processor would gain more than a factor of 1.8 by the other kernel.
Restoring the weight for PyTorch's bf16 product was nowhere the fastest: 1.7 times as long as the `matrix` kernel on
Zen 4, which multiplies bf16 in hardware, and 2.5 to 6 times on Cascade Lake, which does not. No processor with AMX was
measured.
"""


class PackedWeight(NamedTuple):
    """A weight (out, in) as `policies/parts/linear.py` stores it."""

    codes: torch.Tensor
    """uint8 (out, in / 2), the even column in the low nibble, or (out, in) for 8 bits."""
    scales: torch.Tensor
    """bfloat16 (out, groups)."""
    zeros: torch.Tensor
    """uint8, packed as the codes are."""
    bits: int
    group_size: int
    out_features: int
    in_features: int


def product(
    weight: PackedWeight, x: torch.Tensor, bias: torch.Tensor | None, matrix: bool | None = None
) -> torch.Tensor:
    """x (..., in) in bfloat16 or float32 times the weight, plus a float32 bias: (..., out) in x's dtype.

    Activations are rounded to 8 bits, each row with a scale of its own.

    Args:
        matrix: whether the `matrix` kernel multiplies or the `vector` kernel; None goes by MATRIX_ROWS.
    """
    x = x.contiguous()
    y = x.new_empty(*x.shape[:-1], weight.out_features)
    rows = x.numel() // weight.in_features
    if matrix is None:
        matrix = rows >= MATRIX_ROWS
    tensors = (weight.codes, weight.scales, weight.zeros)
    shape = (weight.bits, weight.group_size, weight.out_features, weight.in_features)
    bf16 = int(x.dtype == torch.bfloat16)
    library().packed_product(
        *map(address, tensors), *shape, int(matrix), bf16, address(x), rows, address(bias), address(y), threads()
    )
    return y


def description() -> dict[str, str | int]:
    """Return a description of what multiplies packed weights on this machine, as `bench.json` records it."""
    reason = missing()
    return {"missing": reason} if reason else {"vector_from_rows": 1, "matrix_from_rows": MATRIX_ROWS}


def address(tensor: torch.Tensor | None) -> int | None:
    """Return the address of the numbers of a tensor on the CPU; the caller keeps it alive."""
    assert tensor is None or (tensor.is_contiguous() and tensor.device.type == "cpu")
    return None if tensor is None else tensor.data_ptr()


def threads() -> int:
    """Return the number of threads that the kernels use: as many as PyTorch."""
    return torch.get_num_threads()
