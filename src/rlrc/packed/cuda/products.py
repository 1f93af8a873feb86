"""Products with packed weights on a GPU: three ways, and the rule that chooses between them and their sizes.

Few rows are limited by how fast weights are read (`vector_kernel`), and with some more the tensor cores do the same
work with fewer instructions (`matrix_kernel`). Many rows are limited by how fast numbers are multiplied, which nobody
does faster than the GPU maker's own library: for them the weight is unpacked into memory of its own, and PyTorch
multiplies. Both kernels add in float32 and in an order that is fixed when they are compiled: there are no atomic
additions, and a program computes its outputs over all inputs alone. Splitting the inputs among programs would need a
second launch, which takes as long as reading a weight of 8 MB on a fast GPU (about 2 microseconds).

Which kernel runs, and its sizes, follow from the numbers of rows, outputs and inputs and from dtypes alone. Nothing is
measured. So equal inputs give equal bits, and a row's result depends on the others only through their number.
"""

# The kernels' arguments have the types of Triton's language, which Python's checker does not know.
# mypy: allow-untyped-defs

from typing import NamedTuple

import torch
import torch.nn.functional as F
import triton
import triton.language as tl

from rlrc.packed.cuda.tiles import FUSED, as_words, read_tile
from rlrc.packed.cuda.unpacking import unpack
from rlrc.packed.layout import PackedWeight

VECTOR_ROWS = 4
"""Most rows that the `vector` kernel multiplies.

It takes about 6 instructions a weight and 1 more for each row. An H100 has time for 5 instructions a weight while it
reads 4-bit weights from memory, a Jetson Orin for 7. From 5 rows on the tensor cores, which take 8 rows as quickly as
one, need fewer. The counts are those of the compiled code; no GPU has measured where the two cross.
"""

PROGRAMS = 512
"""Programs that the `vector` kernel has at least, where there are enough outputs: two to four on each multiprocessor of
the largest GPUs, since a multiprocessor with little to wait for cannot keep memory busy."""

MATRIX_ROWS, MATRIX_OUTPUTS = 16, 4096
"""Most rows that the `matrix` kernel multiplies, and fewest outputs; with more rows, or fewer outputs for its programs,
unpacking first is faster. Both were measured on an H200 (results/gpu/products.json).
"""

LANES = 32
"""Threads in a warp."""


class Sizes(NamedTuple):
    """This is how much one program takes on."""

    outputs: int
    rows: int
    words: int
    warps: int
    stages: int = 1
    """Tiles that are on their way at once."""


def vector_sizes(rows: int, outputs: int, words: int) -> Sizes:
    """Return the sizes of the `vector` kernel: each lane has one word of every output at once.

    Eight outputs share one reading of the activations. With four rows their sums would need more than half of the
    registers, and too few warps would be left to wait for memory; so then there are four.
    """
    tile_rows = triton.next_power_of_2(rows)
    warps = min(4, triton.cdiv(triton.next_power_of_2(words), LANES))
    per_program = 4 if tile_rows == 4 else 8
    while per_program > 2 and triton.cdiv(outputs, per_program) < PROGRAMS:
        per_program //= 2
    return Sizes(per_program, tile_rows, warps * LANES, warps)


def matrix_sizes(per_word: int, dtype: torch.dtype) -> Sizes:
    """Return the sizes of the `matrix` kernel.

    Memory is the limit: few outputs a program make many programs, and 128 inputs at once keep more bytes on their way.
    Weights are the left factor, because tensor cores of compute capability 9.0 take that one from registers, where the
    codes are unpacked. Float32 is multiplied without tensor cores, so as to stay exact, and needs smaller tiles for its
    registers.
    """
    if dtype == torch.float32:
        return Sizes(32, MATRIX_ROWS, 32 // per_word, 4, 2)
    return Sizes(32, MATRIX_ROWS, 128 // per_word, 4, 4)


def product(
    weights: tuple[PackedWeight, ...], x: torch.Tensor, biases: tuple[torch.Tensor, ...] | None
) -> list[torch.Tensor]:
    """Multiply x (..., in) by weights (out, in) of equal width, bits and group size; few rows take one launch.

    Args:
        biases: one (out) of a float dtype for each weight, or None.

    Returns:
        One contiguous tensor (..., out) a weight, in x's dtype.
    """
    width = weights[0].in_features
    flat = x.reshape(-1, width)
    outs = [weight.out_features for weight in weights]
    if len(flat) > (MATRIX_ROWS if sum(outs) >= MATRIX_OUTPUTS else VECTOR_ROWS):
        added = [None] * len(weights) if biases is None else [bias.to(x.dtype) for bias in biases]
        return [F.linear(x, unpack(weight, x.dtype, None), bias) for weight, bias in zip(weights, added, strict=True)]
    if width > 1 and flat.stride(1) != 1:
        flat = flat.contiguous()
    rows = len(flat)
    y = x.new_empty(rows * sum(outs))
    if rows and y.numel():
        _launch(weights, flat, biases, y)
    parts = y.split([rows * out for out in outs])
    return [part.view(*x.shape[:-1], out) for part, out in zip(parts, outs, strict=True)]


def _launch(
    weights: tuple[PackedWeight, ...], x: torch.Tensor, biases: tuple[torch.Tensor, ...] | None, y: torch.Tensor
) -> None:
    words = as_words(weights, x.dtype)
    rows, outs = len(x), tuple(weight.out_features for weight in weights)
    if rows <= VECTOR_ROWS:
        kernel, sizes = vector_kernel, vector_sizes(rows, sum(outs), words.length)
    else:
        kernel, sizes = matrix_kernel, matrix_sizes(words.per_word, x.dtype)
    blocks = sum(triton.cdiv(out, sizes.outputs) for out in outs)
    kernel[(blocks, triton.cdiv(rows, sizes.rows))](
        x,
        y,
        words.codes,
        tuple(weight.scales for weight in weights),
        tuple(weight.zeros for weight in weights),
        biases,
        outs,
        rows,
        x.stride(0),
        weights[0].in_features,
        words.length,
        weights[0].scales.shape[1],
        BITS=weights[0].bits,
        PER_WORD=words.per_word,
        GROUP_WORDS=words.group_words,
        OUT=sizes.outputs,
        ROWS=sizes.rows,
        WORDS=sizes.words,
        num_warps=sizes.warps,
        num_stages=sizes.stages,
        **FUSED,
    )


@triton.jit
def whose(outs, rows, OUT: tl.constexpr):
    """Find which weight this program is for, its first output there, and where the weight's results begin in y."""
    program = tl.program_id(0)
    index, block, start, first_program, first_result = 0, program, 0, 0, 0
    for later in tl.static_range(1, len(outs)):
        first_program += tl.cdiv(outs[later - 1], OUT)
        first_result += outs[later - 1] * rows
        if program >= first_program:
            index, block, start = later, program - first_program, first_result
    return index, block * OUT, start


@triton.jit
def pick(items, index):
    """Return items[index] for an index that is known only on the GPU."""
    item = items[0]
    for later in tl.static_range(1, len(items)):
        if index == later:
            item = items[later]
    return item


@triton.jit
def write(y, result, biases, index, row, rows, first_out, out, OUT: tl.constexpr):
    """Add the bias of the weight with this index, if there is one, and store the result (ROWS, OUT) rounded."""
    output = first_out + tl.arange(0, OUT)[None]
    there = output < out
    if biases is not None:
        result += tl.load(pick(biases, index) + output, mask=there, other=0).to(tl.float32)
    tl.store(y + row * out + output, result.to(y.dtype.element_ty), mask=there & (row < rows))


@triton.jit(do_not_specialize=["rows"])
def vector_kernel(
    x,
    y,
    codes,
    scales,
    zeros,
    biases,
    outs,
    rows,
    x_stride,
    width,
    words,
    groups,
    BITS: tl.constexpr,
    PER_WORD: tl.constexpr,
    GROUP_WORDS: tl.constexpr,
    OUT: tl.constexpr,
    ROWS: tl.constexpr,
    WORDS: tl.constexpr,
):
    """Multiply up to ROWS rows by OUT outputs, a lane taking one word of every output at once.

    With u the raised codes and o the raised zero point of a word, its part of the result is
    sum((u - o) * x) * scale = (sum(u * x) - o * sum(x)) * scale. So subtracting and scaling are done once a word, not
    once a weight. All of it is exact but for the sums, whose error is up to ten times the one of summing w * x: u is up
    to 31 (511) where the code minus the zero point is 3 (50) on the average.
    """
    index, first_out, start = whose(outs, rows, OUT)
    code, scale, zero_point, out = pick(codes, index), pick(scales, index), pick(zeros, index), pick(outs, index)
    row = tl.arange(0, ROWS)[:, None]
    tile_row = first_out + tl.arange(0, OUT * WORDS) // WORDS
    inner = tl.arange(0, WORDS * PER_WORD)[None]
    zero = (rows >> 31).to(tl.uint32)
    sums = tl.zeros((ROWS, OUT, WORDS), tl.float32)
    for first in range(0, words, WORDS):
        column = first * PER_WORD + inner
        numbers = tl.load(x + row * x_stride + column, mask=(row < rows) & (column < width), other=0).to(tl.float32)
        numbers = numbers.reshape(ROWS, 1, WORDS, PER_WORD)
        tile, offset, steps = read_tile(
            code, scale, zero_point, tile_row, tile_row < out, first, words, groups, zero, BITS, PER_WORD, GROUP_WORDS,
            OUT, WORDS,
        )  # fmt: skip
        products = tl.sum(tile.reshape(1, OUT, WORDS, PER_WORD) * numbers, 3)
        totals = tl.sum(numbers, 3)
        sums += (products - offset.reshape(1, OUT, WORDS) * totals) * steps.reshape(1, OUT, WORDS)
    write(y + start, tl.sum(sums, 2), biases, index, row, rows, first_out, out, OUT)


@triton.jit(do_not_specialize=["rows"])
def matrix_kernel(
    x,
    y,
    codes,
    scales,
    zeros,
    biases,
    outs,
    rows,
    x_stride,
    width,
    words,
    groups,
    BITS: tl.constexpr,
    PER_WORD: tl.constexpr,
    GROUP_WORDS: tl.constexpr,
    OUT: tl.constexpr,
    ROWS: tl.constexpr,
    WORDS: tl.constexpr,
):
    """Multiply ROWS rows by OUT outputs; the weight is rounded to x's dtype once, and float32 is not rounded at all."""
    index, first_out, start = whose(outs, rows, OUT)
    code, scale, zero_point, out = pick(codes, index), pick(scales, index), pick(zeros, index), pick(outs, index)
    row = tl.program_id(1).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    tile_row = first_out + tl.arange(0, OUT * WORDS) // WORDS
    inner = tl.arange(0, WORDS * PER_WORD)[None]
    zero = (rows >> 31).to(tl.uint32)
    sums = tl.zeros((OUT, ROWS), tl.float32)
    for first in range(0, words, WORDS):
        column = first * PER_WORD + inner
        numbers = tl.load(x + row * x_stride + column, mask=(row < rows) & (column < width), other=0)
        tile, offset, steps = read_tile(
            code, scale, zero_point, tile_row, tile_row < out, first, words, groups, zero, BITS, PER_WORD, GROUP_WORDS,
            OUT, WORDS,
        )  # fmt: skip
        weight = ((tile - offset) * steps).reshape(OUT, WORDS * PER_WORD).to(x.dtype.element_ty)
        sums = tl.dot(weight, tl.trans(numbers), sums, input_precision="ieee")
    write(y + start, tl.trans(sums), biases, index, row, rows, first_out, out, OUT)
