"""Layers whose weight is stored in 4 or 8 bits: real packed bytes on disk and in memory, on any device.

On x86 processors the packed bytes are multiplied as they are (`rlrc.kernels`), with activations rounded to 8 bits; see
there for what is needed. Elsewhere the weight is unpacked at every call.

The weight is cut along its inputs into groups. Each group has its own scale (bfloat16) and zero point (an integer of
the weight's own width): `w = (code - zero) * scale`. With 4 bits and groups of 32 that is 4 + (16 + 4) / 32 = 4.625
bits a weight, 0.289 of bfloat16.

Why asymmetric with a packed integer zero point: on Gaussian, Laplace and Student-t weights it beats a symmetric code
(4.5 bits) by 0.4 to 1.3 dB of signal-to-noise ratio. A fractional 8-bit zero point (4.75 bits) would add 0.3 dB more,
but then a layer whose inputs are not a multiple of 32 easily takes more than 0.3 of the bytes. Zero weights stay
exactly zero, and a short last group is handled exactly.
"""

from collections.abc import Callable, Iterable
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import nn

from rlrc import kernels
from rlrc.errors import UserError, shorten
from rlrc.kernels import PackedWeight

CLIP_RATIOS = torch.linspace(1.0, 0.76, 9).tolist()
"""Ratios that are tried per group: shrinking the range a little makes all steps finer at the price of clipping the
extremes."""

CHUNK = 2**16
"""Weights quantized at once: the search reads them many times, so they should fit in the processor's cache."""

LARGEST_GROUP = 2**20
"""Largest size of a group. No layer has as many inputs, so one group then is the whole row."""

PACKABLE = (nn.Linear, nn.Conv2d, nn.Embedding)
Packable = nn.Linear | nn.Conv2d | nn.Embedding
"""Kinds of layers whose weight can be packed."""


class QuantizedLinear(nn.Module):
    """`nn.Linear` with a packed weight. Built empty (also on the meta device) for loading, or by `from_linear`.

    Buffers: `codes` uint8 (out, in / 2) for 4 bits, two per byte with the even input in the low nibble, or (out, in)
    for 8 bits; `scales` bfloat16 (out, groups); `zeros` uint8, packed as the codes are. A bias stays a parameter.

    Raises:
        UserError: `bits` is neither 4 nor 8, or `group_size` is no whole number from 1 to LARGEST_GROUP.
    """

    codes: torch.Tensor
    scales: torch.Tensor
    zeros: torch.Tensor

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bits: int = 4,
        group_size: int = 32,
        bias: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if type(bits) is not int or bits not in (4, 8):
            raise UserError(f"quantization takes 4 or 8 bits, not {shorten(repr(bits))}")
        if type(group_size) is not int or not 1 <= group_size <= LARGEST_GROUP:
            raise UserError(
                f"quantization takes groups of 1 to {LARGEST_GROUP:,} weights, not of {shorten(repr(group_size))}"
            )
        self.in_features, self.out_features, self.bits, self.group_size = in_features, out_features, bits, group_size
        groups = -(-in_features // group_size)

        def empty(width: int, dtype: torch.dtype) -> torch.Tensor:
            return torch.zeros(out_features, width, dtype=dtype, device=device)

        self.register_buffer("codes", empty(packed_width(in_features, bits), torch.uint8))
        self.register_buffer("scales", empty(groups, torch.bfloat16))
        self.register_buffer("zeros", empty(packed_width(groups, bits), torch.uint8))
        self.bias = nn.Parameter(torch.zeros(out_features, dtype=dtype, device=device)) if bias else None

    @classmethod
    def from_linear(cls, linear: nn.Linear, bits: int = 4, group_size: int = 32) -> Self:
        """Quantize `linear`'s weight, which must be finite, on its own device."""
        return cls.empty_like(linear, bits, group_size).fill(linear)

    @classmethod
    def empty_like(cls, linear: nn.Linear, bits: int, group_size: int) -> Self:
        """A layer of `linear`'s shape, device and bias whose weight is still to be filled in."""
        weight, has_bias = linear.weight, linear.bias is not None
        shape = (linear.in_features, linear.out_features)
        return cls(*shape, bits, group_size, has_bias, weight.device, weight.dtype).train(linear.training)

    def fill(self, layer: Packable) -> Self:
        """Quantize `layer`'s weight to the nearest codes, and take over its bias."""
        weight = layer.weight.detach().flatten(1)
        rows = max(1, CHUNK // self.in_features)
        for start in range(0, self.out_features, rows):
            here = slice(start, start + rows)
            codes, scales, zeros = quantize_groups(_grouped(weight[here].float(), self.group_size), self.bits)
            self.store(here, codes.flatten(1)[:, : self.in_features], scales, zeros)
        return self.take_bias(layer)

    def store(self, rows: slice, codes: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor) -> None:
        """Pack codes uint8 (rows, in), scales (rows, groups) and zero points uint8 (rows, groups)."""
        self.codes[rows] = pack(codes, self.bits)
        self.scales[rows] = scales
        self.zeros[rows] = pack(zeros, self.bits)

    def take_bias(self, layer: Packable) -> Self:
        """Take over the bias of `layer`, if there is one."""
        if self.bias is not None:
            assert isinstance(layer.bias, torch.Tensor)
            self.bias.data.copy_(layer.bias.detach())
        return self

    def dequantize(self, dtype: torch.dtype = torch.float32, rows: slice | torch.Tensor = slice(None)) -> torch.Tensor:
        """The weight the codes stand for, (out, in) or some rows of it; exact in float32, rounded once in bfloat16."""
        scales = self.scales[rows].to(dtype)
        codes = _grouped(unpack(self.codes[rows], self.bits, self.in_features), self.group_size).to(dtype)
        zeros = unpack(self.zeros[rows], self.bits, scales.shape[1]).to(dtype)
        weight = (codes - zeros[..., None]) * scales[..., None]
        return weight.flatten(1)[:, : self.in_features]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x (..., in) -> (..., out) in x's dtype.

        Where there is no kernel for it (`reference_reason`), the weight is unpacked and used as it is.
        """
        if self.reference_reason(x) is None:
            return kernels.product(self.packed_weight, x, None if self.bias is None else self.bias.float())
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return F.linear(x, self.dequantize(x.dtype), bias)

    def reference_reason(self, x: torch.Tensor) -> str | None:
        """Return why the kernels do not take inputs like `x`; None where they do."""
        if x.device.type != "cpu":
            return "they are for the CPU"
        if x.dtype not in (torch.bfloat16, torch.float32):
            return f"they read bfloat16 and float32, not {x.dtype}"
        if self.group_size % kernels.BLOCK:
            return f"they need groups of a multiple of {kernels.BLOCK} weights, not of {self.group_size}"
        if torch.is_grad_enabled() and x.requires_grad:
            return "they have no gradient"
        return kernels.missing()

    @property
    def packed_weight(self) -> PackedWeight:
        """The weight as the kernels take it."""
        return PackedWeight(
            self.codes, self.scales, self.zeros, self.bits, self.group_size, self.out_features, self.in_features
        )

    @property
    def nbytes(self) -> int:
        """Bytes of the packed weight: codes, scales and zero points."""
        return self.codes.nbytes + self.scales.nbytes + self.zeros.nbytes

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, bits={self.bits}, "
            f"group_size={self.group_size}, bias={self.bias is not None}"
        )

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Self:
        # Casting a model (`policy.model.float()`) must not widen the scales: seen as integers they only change device.
        def keep_scales(tensor: torch.Tensor) -> torch.Tensor:
            return fn(tensor.view(torch.int16)).view(torch.bfloat16) if tensor is self.scales else fn(tensor)

        return super()._apply(keep_scales, recurse)


class QuantizedConv2d(QuantizedLinear):
    """`nn.Conv2d` with a packed weight, which is kept as the matrix (out, in * height * width) of its kernels."""

    geometry: tuple[tuple[int, ...], dict[str, Any]]
    """The shape of the kernels, and how they are placed."""

    @classmethod
    def empty_like(cls, conv: nn.Conv2d, bits: int, group_size: int) -> Self:  # type: ignore[override]
        """A layer of `conv`'s shape, device and bias whose weight is still to be filled in.

        Raises:
            UserError: the convolution pads with anything but zeros.
        """
        if conv.padding_mode != "zeros":
            raise UserError(f"a convolution that pads by '{conv.padding_mode}' cannot be packed")
        weight, has_bias = conv.weight, conv.bias is not None
        shape = (weight[0].numel(), conv.out_channels)
        packed = cls(*shape, bits, group_size, has_bias, weight.device, weight.dtype).train(conv.training)
        placing = {"stride": conv.stride, "padding": conv.padding, "dilation": conv.dilation, "groups": conv.groups}
        packed.geometry = (tuple(weight.shape[1:]), placing)
        return packed

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x (B, in, H, W) -> (B, out, H', W') in x's dtype."""
        kernel, placing = self.geometry
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return F.conv2d(x, self.dequantize(x.dtype).unflatten(1, kernel), bias, **placing)


class QuantizedEmbedding(QuantizedLinear):
    """`nn.Embedding` with a packed weight, of which the rows that are looked up are unpacked."""

    @classmethod
    def empty_like(cls, embedding: nn.Embedding, bits: int, group_size: int) -> Self:  # type: ignore[override]
        """A layer of `embedding`'s shape and device whose weight is still to be filled in."""
        weight = embedding.weight
        shape = (embedding.embedding_dim, embedding.num_embeddings)
        return cls(*shape, bits, group_size, False, weight.device, weight.dtype).train(embedding.training)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """ids (...) -> embeddings (..., width) in bfloat16, the dtype of the scales."""
        return self.dequantize(self.scales.dtype, ids.flatten()).unflatten(0, ids.shape)


def empty_packed(layer: Packable, bits: int, group_size: int) -> QuantizedLinear:
    """The packed layer that can take `layer`'s place, its weight still to be filled in."""
    if isinstance(layer, nn.Conv2d):
        return QuantizedConv2d.empty_like(layer, bits, group_size)
    if isinstance(layer, nn.Embedding):
        return QuantizedEmbedding.empty_like(layer, bits, group_size)
    return QuantizedLinear.empty_like(layer, bits, group_size)


def replace_linears(module: nn.Module, names: Iterable[str], bits: int, group_size: int) -> None:
    """Put empty packed layers in the place of those at the dotted `names`, ready for `load_state_dict`.

    Raises:
        UserError: a name is not a linear layer of `module`.
    """
    for name in names:
        module.set_submodule(name, empty_packed(get_linear(module, name), bits, group_size))


def get_linear(module: nn.Module, name: str) -> Packable:
    """The `nn.Linear` (or the convolution or embedding, which are linear as well) at dotted `name`.

    Raises:
        UserError: there is none.
    """
    try:
        found = module.get_submodule(name)
    except AttributeError:
        found = None
    if not isinstance(found, PACKABLE):
        raise UserError(f"quantization_config names '{name}', which is not a linear layer of this model")
    return found


def quantization_config(bits: int, group_size: int, modules: list[str]) -> dict[str, Any]:
    """Return what config.json stores about a policy whose layers at the dotted names `modules` are
    `QuantizedLinear`s."""
    return {"quant_method": "rlrc", "bits": bits, "group_size": group_size, "modules": modules}


def count_parameters(model: nn.Module) -> int:
    """Parameters of `model`; a packed weight counts as the numbers it stands for."""
    packed = (module for module in model.modules() if isinstance(module, QuantizedLinear))
    dense = sum(parameter.numel() for parameter in model.parameters())
    return dense + sum(layer.in_features * layer.out_features for layer in packed)


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
    """Bytes that hold `width` codes of 4 or 8 bits."""
    return width if bits == 8 else -(-width // 2)


def pack(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """uint8 codes (rows, width) -> bytes (rows, packed_width); with 4 bits the even column is the low nibble."""
    if bits == 8:
        return codes
    codes = _padded(codes, 2)
    return codes[:, 0::2] | (codes[:, 1::2] << 4)


def unpack(packed: torch.Tensor, bits: int, width: int) -> torch.Tensor:
    """The inverse of `pack`: bytes (rows, packed_width) -> uint8 codes (rows, width)."""
    if bits == 8:
        return packed
    return torch.stack((packed & 0xF, packed >> 4), dim=-1).flatten(1)[:, :width]


def _grouped(values: torch.Tensor, group_size: int) -> torch.Tensor:
    """(rows, width) -> (rows, groups, up to group_size), a short last group of several filled up with zeros."""
    group_size = min(group_size, values.shape[1])
    return _padded(values, group_size).unflatten(1, (-1, group_size))


def _padded(values: torch.Tensor, multiple: int) -> torch.Tensor:
    """(rows, width) with zeros behind, so that `multiple` divides the width; not a copy where it does already."""
    missing = -values.shape[1] % multiple
    return F.pad(values, (0, missing)) if missing else values
