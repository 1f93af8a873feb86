"""Unpacking a packed weight on a GPU, all of it or the rows that are looked up, in one launch."""

# The kernels' arguments have the types of Triton's language, which Python's checker does not know.
# mypy: allow-untyped-defs

import torch
import triton
import triton.language as tl

from rlrc.packed.cuda.tiles import FUSED, as_words, read_tile
from rlrc.packed.layout import PackedWeight

TILE_ROWS = 8
"""Rows of a tile: eight words a lane, as many as keep memory busy."""

TILE_WORDS = 128
"""Words of a tile, one for each lane of four warps."""


def unpack(weight: PackedWeight, dtype: torch.dtype, ids: torch.Tensor | None) -> torch.Tensor:
    """Return the weight, or its rows at `ids` (...), as (out, in) or (..., in); see `rlrc.packed.cuda.unpack`."""
    shape = (weight.out_features,) if ids is None else tuple(ids.shape)
    unpacked = torch.empty(*shape, weight.in_features, dtype=dtype, device=weight.codes.device)
    rows = unpacked.numel() // weight.in_features
    if not rows:
        return unpacked
    words = as_words((weight,), dtype)
    unpack_kernel[(triton.cdiv(rows, TILE_ROWS), triton.cdiv(words.length, TILE_WORDS))](
        unpacked,
        words.codes[0],
        weight.scales,
        weight.zeros,
        None if ids is None else ids.contiguous(),
        weight.out_features,
        rows,
        weight.in_features,
        words.length,
        weight.scales.shape[1],
        BITS=weight.bits,
        PER_WORD=words.per_word,
        GROUP_WORDS=words.group_words,
        ROWS=TILE_ROWS,
        WORDS=TILE_WORDS,
        num_warps=4,
        **FUSED,
    )
    return unpacked


@triton.jit(do_not_specialize=["rows"])
def unpack_kernel(
    unpacked,
    codes,
    scales,
    zeros,
    ids,
    out,
    rows,
    width,
    words,
    groups,
    BITS: tl.constexpr,
    PER_WORD: tl.constexpr,
    GROUP_WORDS: tl.constexpr,
    ROWS: tl.constexpr,
    WORDS: tl.constexpr,
):
    """Unpack ROWS rows of WORDS words: those at `ids`, or where that is None those that the program's number says."""
    first_row = tl.program_id(0) * ROWS
    first = tl.program_id(1) * WORDS
    tile_row = first_row + tl.arange(0, ROWS * WORDS) // WORDS
    row = first_row + tl.arange(0, ROWS)[:, None, None]
    exists = row < rows
    if ids is not None:
        tile_row = tl.load(ids + tile_row, mask=tile_row < rows, other=0).to(tl.int32)
        source = tl.load(ids + row, mask=exists, other=0)
        exists = exists & (source >= 0) & (source < out)
    there = (tile_row >= 0) & (tile_row < out)
    tile, offset, steps = read_tile(
        codes, scales, zeros, tile_row, there, first, words, groups, (rows >> 31).to(tl.uint32), BITS, PER_WORD,
        GROUP_WORDS, ROWS, WORDS,
    )  # fmt: skip
    kind = unpacked.dtype.element_ty
    # The scale is rounded to the dtype first, as `QuantizedLinear.dequantize` does.
    weight = tl.where(exists, (tile - offset) * steps.to(kind).to(tl.float32), float("nan"))
    column = (first + tl.arange(0, WORDS)[None, :, None]) * PER_WORD + tl.arange(0, PER_WORD)[None, None]
    tl.store(unpacked + row.to(tl.int64) * width + column, weight.to(kind), mask=(row < rows) & (column < width))
