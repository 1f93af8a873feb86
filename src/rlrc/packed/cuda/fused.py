"""What a decoder layer needs on a GPU besides products, in a launch each: norm, rotary positions and cache, gated unit.

For one token they are next to no arithmetic, so what counts is the number of launches: as torch operations the
first two take many. All compute in float32 and round where transformers' Llama rounds, or less often. None reads back
from the GPU, so all can be captured in a CUDA graph.
"""

# The kernels' arguments have the types of Triton's language, which Python's checker does not know.
# mypy: allow-untyped-defs

import torch
import triton
import triton.language as tl

LARGEST_ROW = 2**14
"""Most numbers in a row that is normalised: 16 a thread in 32 warps, all in registers."""

UNIT_BLOCK = 1024
"""Numbers that one program of `gated_kernel` takes: eight a thread in four warps, so 16 bytes in bfloat16."""


def rms_norm(x: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
    """Scale rows x (..., width) to a mean square of 1 and multiply them by weight (width), as LlamaRMSNorm does.

    The scaled row is rounded to x's dtype before it is multiplied (Zhang and Sennrich, 2019, arXiv:1910.07467, for the
    formula).

    Returns:
        (..., width), in the dtype that x and weight have together.

    Raises:
        ValueError: the width is not the weight's, or more than LARGEST_ROW.
    """
    return _norm(x, None, weight, epsilon)[1]


def add_and_norm(
    x: torch.Tensor, branch: torch.Tensor, weight: torch.Tensor, epsilon: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return x + branch, rounded to their dtype, and `rms_norm` of it, in one launch.

    Raises:
        ValueError: as `rms_norm`, or x and branch differ in shape or dtype.
    """
    if x.shape != branch.shape or x.dtype != branch.dtype:
        raise ValueError(f"x {tuple(x.shape)} {x.dtype} and branch {tuple(branch.shape)} {branch.dtype} must be alike")
    return _norm(x, branch.contiguous(), weight, epsilon)


def _norm(
    x: torch.Tensor, branch: torch.Tensor | None, weight: torch.Tensor, epsilon: float
) -> tuple[torch.Tensor, torch.Tensor]:
    width = x.shape[-1]
    if width != len(weight) or width > LARGEST_ROW:
        raise ValueError(
            f"rows must have the {len(weight)} numbers of the weight and at most {LARGEST_ROW}, not {width}"
        )
    x = x.contiguous()
    total = x if branch is None else torch.empty_like(x)
    y = torch.empty(x.shape, dtype=torch.promote_types(x.dtype, weight.dtype), device=x.device)
    block = triton.next_power_of_2(width)
    if y.numel():
        warps = min(16, max(1, block // 256))
        norm_kernel[(y.numel() // width,)](x, branch, total, weight, y, width, epsilon, BLOCK=block, num_warps=warps)
    return total, y


@triton.jit
def norm_kernel(x, branch, total, weight, y, width, epsilon, BLOCK: tl.constexpr):
    """Normalise one row, after a branch is added where there is one; the sum is kept in `total`."""
    column = tl.arange(0, BLOCK)
    there = column < width
    place = tl.program_id(0).to(tl.int64) * width + column
    numbers = tl.load(x + place, mask=there, other=0).to(tl.float32)
    if branch is not None:
        numbers += tl.load(branch + place, mask=there, other=0).to(tl.float32)
        rounded = numbers.to(x.dtype.element_ty)
        tl.store(total + place, rounded, mask=there)
        numbers = rounded.to(tl.float32)
    mean_square = tl.sum(numbers * numbers, 0) / width
    scaled = (numbers * tl.rsqrt(mean_square + epsilon)).to(x.dtype.element_ty).to(tl.float32)
    result = scaled * tl.load(weight + column, mask=there, other=0).to(tl.float32)
    tl.store(y + place, result.to(y.dtype.element_ty), mask=there)


def gated_unit(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """Return silu(gate) * up for two tensors of one shape and dtype (Shazeer, 2020, arXiv:2002.05202: SwiGLU).

    Raises:
        ValueError: shapes or dtypes differ.
    """
    if gate.shape != up.shape or gate.dtype != up.dtype:
        raise ValueError(f"gate {tuple(gate.shape)} {gate.dtype} and up {tuple(up.shape)} {up.dtype} must be alike")
    gate, up = gate.contiguous(), up.contiguous()
    y = torch.empty_like(gate)
    if y.numel():
        gated_kernel[(triton.cdiv(y.numel(), UNIT_BLOCK),)](gate, up, y, y.numel(), BLOCK=UNIT_BLOCK, num_warps=4)
    return y


@triton.jit
def gated_kernel(gate, up, y, count, BLOCK: tl.constexpr):
    """Compute BLOCK numbers; silu is rounded to the dtype before the product, as two torch operations round it."""
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    there = place < count
    kind = y.dtype.element_ty
    number = tl.load(gate + place, mask=there, other=0).to(tl.float32)
    opened = (number / (1 + tl.exp(-number))).to(kind).to(tl.float32)
    result = opened * tl.load(up + place, mask=there, other=0).to(tl.float32)
    tl.store(y + place, result.to(kind), mask=there)


def rotate_and_store(
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    positions: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    slot: torch.Tensor,
) -> torch.Tensor:
    """Rotate queries and keys by their positions, and write keys and values into the cache, in one launch.

    Each half-pair (a, b) of a head becomes (a cos - b sin, b cos + a sin), a from the first half of the head and b from
    the second: transformers' `apply_rotary_pos_emb` (Su et al., 2021, arXiv:2104.09864), rounded once.

    Args:
        queries: (B, T, heads * D), as the projection gives them; D is the last size of the caches.
        keys, values: (B, T, kv_heads * D).
        cos, sin: (P, D), the rows of all positions that there may be.
        positions: int64 (B, T), rows of `cos` and `sin`. They are read on the GPU.
        key_cache, value_cache: (B, kv_heads, capacity, D), contiguous, changed in place.
        slot: one int64 on the GPU, the place in the caches of the first of the T positions. What would lie behind
            the end of the caches is not written; the caller sees to it that there is nothing.

    Returns:
        The rotated queries (B, heads, T, D).

    Raises:
        ValueError: sizes do not fit each other, or a cache is not contiguous.
    """
    batch, kv_heads, capacity, size = key_cache.shape
    length, heads = queries.shape[1], queries.shape[2] // size
    expected = (batch, length, kv_heads * size)
    if keys.shape != expected or values.shape != expected or queries.shape != (batch, length, heads * size):
        raise ValueError(f"queries, keys and values do not fit a cache of {tuple(key_cache.shape)}")
    if value_cache.shape != key_cache.shape or not (key_cache.is_contiguous() and value_cache.is_contiguous()):
        raise ValueError("both caches must have the same shape and be contiguous")
    if cos.shape != sin.shape or cos.shape[1] != size or positions.shape != (batch, length) or size % 2:
        raise ValueError(f"cos and sin must be (P, {size}) with an even number, and positions ({batch}, {length})")
    rotated = queries.new_empty(batch, heads, length, size)
    if rotated.numel():
        rotary_kernel[(batch * length, heads + 2 * kv_heads)](
            queries.contiguous(),
            keys.contiguous(),
            values.contiguous(),
            cos.contiguous(),
            sin.contiguous(),
            positions.contiguous(),
            rotated,
            key_cache,
            value_cache,
            slot,
            length,
            capacity,
            heads,
            kv_heads,
            HALF=size // 2,
            BLOCK=triton.next_power_of_2(size // 2),
            num_warps=1,
        )
    return rotated


@triton.jit(do_not_specialize=["length"])
def rotary_kernel(
    queries,
    keys,
    values,
    cos,
    sin,
    positions,
    rotated,
    key_cache,
    value_cache,
    slot,
    length,
    capacity,
    heads,
    kv_heads,
    HALF: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One head of one position: of the queries, then of the keys, then of the values."""
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    batch, step = token // length, token % length
    place = tl.arange(0, BLOCK)
    there = place < HALF
    row = tl.load(positions + token) * (2 * HALF) + place
    kv_head = tl.where(head < heads + kv_heads, head - heads, head - heads - kv_heads)
    stored = tl.load(slot) + step
    target = ((batch * kv_heads + kv_head) * capacity + stored) * (2 * HALF) + place
    source = (token * kv_heads + kv_head) * (2 * HALF) + place
    fits = there & (stored + 0 * place < capacity)  # a comparison of vectors: Triton 3.9's interpreter asks for it
    if head < heads:
        rotate_head(
            queries + (token * heads + head) * (2 * HALF) + place,
            rotated + ((batch * heads + head) * length + step) * (2 * HALF) + place,
            cos + row,
            sin + row,
            there,
            there,
            HALF,
        )
    elif head < heads + kv_heads:
        rotate_head(keys + source, key_cache + target, cos + row, sin + row, there, fits, HALF)
    else:
        for half in tl.static_range(2):
            number = tl.load(values + source + half * HALF, mask=there)
            tl.store(value_cache + target + half * HALF, number, mask=fits)


@triton.jit
def rotate_head(source, target, cos, sin, there, wanted, HALF: tl.constexpr):
    """Read a head's two halves at `source` and `source` + HALF, and write them rotated to `target` where `wanted`."""
    first = tl.load(source, mask=there, other=0).to(tl.float32)
    second = tl.load(source + HALF, mask=there, other=0).to(tl.float32)
    cos_first = tl.load(cos, mask=there, other=0).to(tl.float32)
    cos_second = tl.load(cos + HALF, mask=there, other=0).to(tl.float32)
    sin_first = tl.load(sin, mask=there, other=0).to(tl.float32)
    sin_second = tl.load(sin + HALF, mask=there, other=0).to(tl.float32)
    kind = target.dtype.element_ty
    tl.store(target, (first * cos_first - second * sin_first).to(kind), mask=wanted)
    tl.store(target + HALF, (second * cos_second + first * sin_second).to(kind), mask=wanted)
