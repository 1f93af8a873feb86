"""Packed weights: how 2, 3, 4 or 8 bits a weight lie in memory and on disk, and which codes a weight gets.

The weight is cut along its inputs into groups. Each group has its own scale (bfloat16) and zero point (an integer of
the weight's own width): `w = (code - zero) * scale`. With 4 bits and groups of 32 that is 4 + (16 + 4) / 32 = 4.625
bits a weight, 0.289 of bfloat16.

The codes of a row are a string of bits without gaps, the lowest bit of the first code first: a byte holds one code of 8
bits, two of 4 or four of 2, and three bytes hold eight codes of 3. The last byte of a row is filled up with zeros.

Why asymmetric with a packed integer zero point: on Gaussian, Laplace and Student-t weights it beats a symmetric code
(4.5 bits) by 0.4 to 1.3 dB of signal-to-noise ratio. A fractional 8-bit zero point (4.75 bits) would add 0.3 dB more,
but then a layer whose inputs are not a multiple of 32 easily takes more than 0.3 of the bytes. Zero weights stay
exactly zero, and a short last group is handled exactly.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F

CLIP_RATIOS = torch.linspace(1.0, 0.76, 9).tolist()
"""Ratios that are tried per group: shrinking the range a little makes all steps finer at the price of clipping the
extremes."""


class PackedWeight(NamedTuple):
    """A weight (out, in) as it is stored."""

    codes: torch.Tensor
    """uint8 (out, packed_width(in)), as `pack` lays them."""
    scales: torch.Tensor
    """bfloat16 (out, groups)."""
    zeros: torch.Tensor
    """uint8, packed as the codes are."""
    bits: int
    group_size: int
    out_features: int
    in_features: int

    def dequantize(self, dtype: torch.dtype = torch.float32, rows: slice | torch.Tensor = slice(None)) -> torch.Tensor:
        """The weight the codes stand for, (out, in) or some rows of it; exact in float32, rounded once in bfloat16."""
        scales = self.scales[rows].to(dtype)
        codes = grouped(unpack(self.codes[rows], self.bits, self.in_features), self.group_size).to(dtype)
        zeros = unpack(self.zeros[rows], self.bits, scales.shape[1]).to(dtype)
        weight = (codes - zeros[..., None]) * scales[..., None]
        return weight.flatten(1)[:, : self.in_features]


def dequantized(weight: PackedWeight, dtype: torch.dtype, rows: torch.Tensor | None = None) -> torch.Tensor:
    """Return the weight that the codes stand for, (out, in), or (..., in) for `rows` (...), which are integers."""
    if rows is None:
        return weight.dequantize(dtype)
    return weight.dequantize(dtype, rows.flatten()).unflatten(0, rows.shape)


def quantize_groups(weight: torch.Tensor, bits: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Codes, scales and zero points of groups `weight` (out, groups, group_size), float32.

    Each group's range always holds 0; of `CLIP_RATIOS` times that range the one with the least squared error is kept.

    Returns:
        codes uint8 (out, groups, group_size), scales bfloat16 (out, groups), zeros uint8 (out, groups).
    """
    top = 2**bits - 1
    low, high = weight.amin(-1, keepdim=True).clamp(max=0), weight.amax(-1, keepdim=True).clamp(min=0)
    best_error = torch.full_like(low, torch.inf)
    best_scale, best_zero = torch.ones_like(low), torch.zeros_like(low)
    for ratio in CLIP_RATIOS:
        scale = (ratio * (high - low) / top).bfloat16().float()
        scale = torch.where(scale > 0, scale, 1.0)
        zero = (-ratio * low / scale).round().clamp(0, top)
        error = ((_codes(weight, scale, zero, top) - zero) * scale - weight).square().sum(-1, keepdim=True)
        better = error < best_error
        best_error = torch.where(better, error, best_error)
        best_scale, best_zero = torch.where(better, scale, best_scale), torch.where(better, zero, best_zero)
    codes = _codes(weight, best_scale, best_zero, top).to(torch.uint8)
    return codes, best_scale.squeeze(-1).bfloat16(), best_zero.squeeze(-1).to(torch.uint8)


def _codes(weight: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor, top: int) -> torch.Tensor:
    return (weight / scale + zero).round().clamp(0, top)


def packed_width(width: int, bits: int) -> int:
    """Bytes that hold `width` codes."""
    return -(-width * bits // 8)


def pack(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """uint8 codes (rows, width) -> bytes (rows, packed_width): the code of column j has the bits from j * bits on."""
    if bits == 8:
        return codes
    size, count = _word(bits)
    words = _joined(_padded(codes, count).unflatten(1, (-1, count)), bits)
    return _cut(words, 8, size)[:, : packed_width(codes.shape[1], bits)].contiguous()


def unpack(packed: torch.Tensor, bits: int, width: int) -> torch.Tensor:
    """The inverse of `pack`: bytes (rows, packed_width) -> uint8 codes (rows, width)."""
    if bits == 8:
        return packed
    size, count = _word(bits)
    words = _joined(_padded(packed, size).unflatten(1, (-1, size)), 8)
    return _cut(words, bits, count)[:, :width]


def _word(bits: int) -> tuple[int, int]:
    """The fewest whole bytes that hold whole codes of fewer than 8 bits, and how many codes they hold."""
    size = 1 if 8 % bits == 0 else bits
    return size, 8 * size // bits


def _joined(fields: torch.Tensor, bits: int) -> torch.Tensor:
    """Numbers of `bits` bits (..., count), the lowest first, as one integer each: (...)."""
    count = fields.shape[-1]
    wide = fields if count * bits <= 8 else fields.int()
    word = wide[..., 0]
    for place in range(1, count):
        word = word | (wide[..., place] << (bits * place))
    return word


def _cut(words: torch.Tensor, bits: int, count: int) -> torch.Tensor:
    """The inverse of `_joined` for a table (rows, words): uint8 (rows, words * count)."""
    fields = [(words >> (bits * place)) & (2**bits - 1) for place in range(count)]
    return torch.stack(fields, dim=-1).flatten(1).to(torch.uint8)


def grouped(values: torch.Tensor, group_size: int) -> torch.Tensor:
    """(rows, width) -> (rows, groups, up to group_size), a short last group of several filled up with zeros."""
    group_size = min(group_size, values.shape[1])
    return _padded(values, group_size).unflatten(1, (-1, group_size))


def _padded(values: torch.Tensor, multiple: int) -> torch.Tensor:
    """(rows, width) with zeros behind, so that `multiple` divides the width; not a copy where it does already."""
    missing = -values.shape[1] % multiple
    return F.pad(values, (0, missing)) if missing else values
