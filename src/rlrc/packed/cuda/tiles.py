"""What all kernels over packed weights share: in what words codes are read, and how a tile of them becomes numbers.

A row of codes is read in words. A word holds as many codes as a lane reads activations at once: 16 bytes, that is 8 in
bfloat16 or float16 and 4 in float32. So the lane that loads some activations also loads the codes that belong to them,
and nothing has to be exchanged between lanes. A word of 8 codes has 4 bytes for 4 bits and 8 bytes for 8 bits.
"""

# The kernels' arguments have the types of Triton's language, which Python's checker does not know.
# mypy: allow-untyped-defs

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from rlrc.packed.layout import PackedWeight

ONE_GROUP = 2**20
"""The group size that stands for one group per row. It is the largest that there is."""

FUSED = {"enable_fp_fusion": True}
"""A product and a sum may become one instruction. Triton 3.10 and later no longer do that by themselves."""


class Words(NamedTuple):
    """The codes of weights (out, in), as words."""

    codes: tuple[torch.Tensor, ...]
    """Integers (out, words), one tensor a weight."""
    per_word: int
    """Codes in a word."""
    group_words: int
    """Words in a group."""

    @property
    def length(self) -> int:
        """Words in a row."""
        return self.codes[0].shape[1]


def as_words(weights: tuple[PackedWeight, ...], dtype: torch.dtype) -> Words:
    """See the stored bytes of weights of equal width, bits and group size as words, without a copy.

    Rows whose bytes are not a whole number of words, or that do not start at a multiple of a word's size, are read byte
    by byte.

    Args:
        dtype: of the numbers that meet the codes; 16 bytes of them belong to one word.
    """
    first = weights[0]
    per_word = 16 // dtype.itemsize
    size = per_word * first.bits // 8
    aligned = first.codes.shape[1] % size == 0 and all(weight.codes.data_ptr() % size == 0 for weight in weights)
    if not aligned:
        per_word, size = 8 // first.bits, 1
    kind = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[size]
    group = ONE_GROUP if first.group_size >= first.in_features else first.group_size
    return Words(tuple(weight.codes.view(kind) for weight in weights), per_word, group // per_word)


@triton.jit
def raised(codes, shifts, zero, BITS: tl.constexpr):
    """Return 2**BITS + the code that stands `shifts` bits from the right in `codes`, exactly, in float32.

    The code is put into the highest bits of the mantissa of a float with the exponent BITS. Shifting, masking and
    setting the exponent are two instructions; converting integers to floats takes one that most GPUs carry out at a
    quarter of the rate or less (CUDA C++ programming guide, "Throughput of Native Arithmetic Instructions").

    `zero` is an integer zero that the compiler does not know. Without it the exponent is a constant, and an instruction
    has room for one constant only, here the mask, so that masking and setting the exponent become two.
    """
    exponent = ((127 + BITS) << 23) + zero
    mantissa = ((codes >> shifts) & (2**BITS - 1)).to(tl.uint32) << (23 - BITS)
    return (mantissa | exponent).to(tl.float32, bitcast=True)


@triton.jit
def read_tile(
    codes,
    scales,
    zeros,
    rows,
    there,
    first,
    words,
    groups,
    zero,
    BITS: tl.constexpr,
    PER_WORD: tl.constexpr,
    GROUP_WORDS: tl.constexpr,
    ROWS: tl.constexpr,
    WORDS: tl.constexpr,
):
    """Read WORDS words from the word `first` on, of ROWS rows; what lies outside the weight has the scale 0.

    The tile is loaded as one long vector, with a hint that hides that words follow each other. So each lane loads
    single words, and codes, scales and zero points have one layout, the one of the activations. A tile with two
    dimensions is loaded four words a lane, and then its words, scales and zero points each travel through shared
    memory.

    Args:
        rows: int32 (ROWS * WORDS), the row of the weight that each word of the tile is in.
        there: whether that row exists, likewise.
        zero: see `raised`.

    Returns:
        float32: 2**BITS + codes (ROWS, WORDS, PER_WORD); 2**BITS + zero points and scales (ROWS, WORDS, 1).
    """
    column = first + tl.arange(0, ROWS * WORDS) % WORDS
    there = there & (column < words)
    word = tl.load(codes + tl.max_contiguous(rows * words + column, 1), mask=there, other=0)
    group = column // GROUP_WORDS
    scale = tl.load(scales + (rows * groups + group), mask=there, other=0).to(tl.float32)
    per_byte: tl.constexpr = 8 // BITS
    zero_width = (groups + per_byte - 1) // per_byte
    zero_point = tl.load(zeros + (rows * zero_width + group // per_byte), mask=there, other=0).to(tl.int32)
    offset = raised(zero_point, group % per_byte * BITS, zero, BITS)
    if PER_WORD * BITS < 64:
        word = word.to(tl.int32)  # as wide as a register; copies of the sign stay outside the mask of `raised`
    shifts = (tl.arange(0, PER_WORD) * BITS).to(word.dtype)
    code = raised(word.reshape(ROWS, WORDS, 1), shifts[None, None], zero, BITS)
    return code, offset.reshape(ROWS, WORDS, 1), scale.reshape(ROWS, WORDS, 1)
