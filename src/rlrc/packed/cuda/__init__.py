"""Packed weights on NVIDIA GPUs: Triton kernels that read the stored bytes as they are (compute capability 8.0 or more:
Ampere to Hopper, Jetson Orin and Thor).

`products.py` multiplies, `unpacking.py` unpacks, `fused.py` does what a decoder layer needs besides. Activations stay
in their dtype (W4A16, W8A16). Kernels have no gradient. They are compiled when they are first needed, which takes
seconds each and has to be over before a CUDA graph is captured.

`refuses` says why a weight cannot be multiplied; nothing else here may be called then. Triton is imported when the
first kernel is needed, so the core installs and runs without it.
"""

import functools
import importlib.util
import os

import torch

from rlrc.packed.layout import PackedWeight

NAME = "cuda"

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
"""Dtypes of activations and results."""

LEAST_CAPABILITY = (8, 0)
"""The first GPUs with tensor cores for bfloat16."""

KERNEL_BITS = (4, 8)
"""Numbers of bits that the kernels read."""

GROUP_MULTIPLE = 16
"""Groups must be multiples of this many columns, unless a row is one group. A lane reads up to 16 codes at once, which
then have one scale."""

LARGEST_WEIGHT = 2**31
"""Bytes of codes from which on their places no longer fit into 32 bits."""


def refuses(weight: PackedWeight, device: torch.device, dtype: torch.dtype) -> str | None:
    """Return why these kernels cannot multiply `weight` on `device` by activations of `dtype`; None where they can."""
    if dtype not in DTYPES:
        return f"they read bfloat16, float16 and float32, not {dtype}"
    if weight.bits not in KERNEL_BITS:
        return f"they multiply 4 and 8 bits, not {weight.bits}"
    if weight.group_size < weight.in_features and weight.group_size % GROUP_MULTIPLE:
        return f"they need groups of a multiple of {GROUP_MULTIPLE} weights, not of {weight.group_size}"
    if weight.codes.numel() >= LARGEST_WEIGHT:
        return f"they take weights of less than {LARGEST_WEIGHT:,} bytes, not of {weight.codes.numel():,}"
    return missing(device)


@functools.cache
def missing(device: torch.device) -> str | None:
    """Return why there are no kernels for `device`."""
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed"
    if os.environ.get("TRITON_INTERPRET") == "1":  # Triton's interpreter runs them anywhere, slowly, for tests
        return None
    if device.type != "cuda" or torch.version.cuda is None:
        return "they are for NVIDIA GPUs"
    capability = torch.cuda.get_device_capability(device)
    if capability < LEAST_CAPABILITY:
        return f"they need compute capability 8.0 or more, and this GPU has {capability[0]}.{capability[1]}"
    return None


def linear(weight: PackedWeight, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """Multiply x (..., in) by the weight and add a bias (out) of a float dtype: (..., out) in x's dtype.

    Sums are float32 and rounded once at the end. Up to `products.VECTOR_ROWS` rows the weight is not rounded; with more
    it is rounded to x's dtype, and with more than `products.MATRIX_ROWS` a bias is too.
    """
    return joined((weight,), x, None if bias is None else (bias,))[0]


def joined(
    weights: tuple[PackedWeight, ...], x: torch.Tensor, biases: tuple[torch.Tensor, ...] | None = None
) -> list[torch.Tensor]:
    """Multiply x (..., in) by several weights, such as those of queries, keys and values; few rows take one launch.

    A result can differ in its last bits from the one of `linear`, since sizes follow from all outputs together.

    Args:
        weights: one or more with equal inputs, bits and group size; each stays in its own tensors.
        biases: one (out) a weight, or None.

    Returns:
        A tensor (..., out) a weight, in x's dtype.

    Raises:
        ValueError: the weights do not go together, or x or the biases do not fit them.
    """
    from rlrc.packed.cuda import products

    if len({(weight.bits, weight.group_size, weight.in_features) for weight in weights}) != 1:
        raise ValueError("joined weights must have the same inputs, bits and group size")
    if x.shape[-1] != weights[0].in_features:
        raise ValueError(f"x has {x.shape[-1]} columns, and the weight {weights[0].in_features} inputs")
    if biases is not None and [len(bias) for bias in biases] != [weight.out_features for weight in weights]:
        raise ValueError("there must be one bias for each output of each weight")
    return products.product(weights, x, biases)


def unpack(weight: PackedWeight, dtype: torch.dtype, rows: torch.Tensor | None = None) -> torch.Tensor:
    """Return the weight that the codes stand for, the same numbers as `QuantizedLinear.dequantize`.

    Args:
        dtype: of the result, bfloat16, float16 or float32.
        rows: int64 or int32 (...), the rows that are wanted, on the weight's device; None for all. Rows that do not
            exist become NaN, since a GPU cannot raise an error without being waited for.

    Returns:
        (out, in), or (..., in) for `rows`.
    """
    from rlrc.packed.cuda import unpacking

    return unpacking.unpack(weight, dtype, rows)
