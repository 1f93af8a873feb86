"""Layers whose weight is stored in 2, 3, 4 or 8 bits: real packed bytes on disk and in memory, on any device.

`layout.py` says how the bytes lie, `backend.py` who multiplies them.
"""

from collections.abc import Callable, Iterable
from typing import Any, Self, get_args

import torch
import torch.nn.functional as F
from torch import nn

from rlrc.config import Bits
from rlrc.errors import UserError, shorten
from rlrc.packed.backend import BACKENDS, Choice, backend_for
from rlrc.packed.layout import PackedWeight, grouped, pack, packed_width, quantize_groups
from rlrc.packed.reference import multiplied_in

CHUNK = 2**16
"""Weights quantized at once: the search reads them many times, so they should fit in the processor's cache."""

LARGEST_GROUP = 2**20
"""Largest size of a group. No layer has as many inputs, so one group then is the whole row."""

PACKABLE = (nn.Linear, nn.Conv2d, nn.Embedding)
Packable = nn.Linear | nn.Conv2d | nn.Embedding
"""Kinds of layers whose weight can be packed."""


class QuantizedLinear(nn.Module):
    """`nn.Linear` with a packed weight. Built empty (also on the meta device) for loading, or by `from_linear`.

    Buffers: `codes` uint8 (out, packed_width(in)), as `layout.pack` lays them; `scales` bfloat16 (out, groups); `zeros`
    uint8, packed as the codes are. A bias stays a parameter.

    Raises:
        UserError: `bits` is not 2, 3, 4 or 8, or `group_size` is no whole number from 1 to LARGEST_GROUP.
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
        if type(bits) is not int or bits not in get_args(Bits):
            raise UserError(f"quantization takes 2, 3, 4 or 8 bits, not {shorten(repr(bits))}")
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
            codes, scales, zeros = quantize_groups(grouped(weight[here].float(), self.group_size), self.bits)
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
        return self.packed_weight.dequantize(dtype, rows)

    def dense(self, dtype: torch.dtype = torch.float32) -> Packable:
        """The dense layer that this one stands for, with the numbers that the codes mean and this one's own bias."""
        layer = self._empty_dense()
        layer.weight = nn.Parameter(self.dequantize(dtype).contiguous().view_as(layer.weight))
        if self.bias is not None:
            layer.bias = self.bias
        return layer.train(self.training)

    def _empty_dense(self) -> Packable:
        return nn.Linear(self.in_features, self.out_features, bias=False, device="meta")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x (..., in) -> (..., out) in x's dtype."""
        trained = torch.is_grad_enabled() and x.requires_grad
        weight = self.packed_weight
        return backend_for(weight, x.device, x.dtype, trained).backend.linear(weight, x, self.bias)

    def unpacked(self, dtype: torch.dtype, rows: torch.Tensor | None = None) -> torch.Tensor:
        """The weight as numbers, by the fastest way there is where it lies: (out, in), or (..., in) for some rows."""
        weight = self.packed_weight
        return backend_for(weight, self.codes.device, dtype).backend.unpack(weight, dtype, rows)

    @property
    def packed_weight(self) -> PackedWeight:
        """The weight as it is stored."""
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

    def _empty_dense(self) -> Packable:
        (channels, height, width), placing = self.geometry
        inputs = channels * placing["groups"]
        return nn.Conv2d(inputs, self.out_features, (height, width), bias=False, device="meta", **placing)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x (B, in, H, W) -> (B, out, H', W') in x's dtype."""
        kernel, placing = self.geometry
        dtype = multiplied_in(x)
        bias = None if self.bias is None else self.bias.to(dtype)
        return F.conv2d(x.to(dtype), self.unpacked(dtype).unflatten(1, kernel), bias, **placing).to(x.dtype)


class QuantizedEmbedding(QuantizedLinear):
    """`nn.Embedding` with a packed weight, of which the rows that are looked up are unpacked."""

    @classmethod
    def empty_like(cls, embedding: nn.Embedding, bits: int, group_size: int) -> Self:  # type: ignore[override]
        """A layer of `embedding`'s shape and device whose weight is still to be filled in."""
        weight = embedding.weight
        shape = (embedding.embedding_dim, embedding.num_embeddings)
        return cls(*shape, bits, group_size, False, weight.device, weight.dtype).train(embedding.training)

    def _empty_dense(self) -> Packable:
        return nn.Embedding(self.out_features, self.in_features, device="meta")

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """ids (...) -> embeddings (..., width) in bfloat16, the dtype of the scales."""
        return self.unpacked(self.scales.dtype, ids)


KINDS = {QuantizedLinear: "linear", QuantizedConv2d: "convolution", QuantizedEmbedding: "embedding"}


def empty_packed(layer: Packable, bits: int, group_size: int) -> QuantizedLinear:
    """The packed layer that can take `layer`'s place, its weight still to be filled in."""
    if isinstance(layer, nn.Conv2d):
        return QuantizedConv2d.empty_like(layer, bits, group_size)
    if isinstance(layer, nn.Embedding):
        return QuantizedEmbedding.empty_like(layer, bits, group_size)
    return QuantizedLinear.empty_like(layer, bits, group_size)


def shrinks(layer: Packable, bits: int, group_size: int) -> bool:
    """Return whether the packed weight of a layer, which may have no memory, takes fewer bytes than one in bf16."""
    return empty_packed(layer, bits, group_size).nbytes < 2 * layer.weight.numel()


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


def who_multiplies(model: nn.Module, device: torch.device, dtype: torch.dtype) -> list[dict[str, Any]]:
    """Return the kinds of packed layers in `model`, JSON-able: how many there are, the backend that multiplies their
    inputs of `dtype` on `device`, and why those before it refused, by their names. Convolutions and embeddings are
    unpacked, whatever there is."""
    found: list[dict[str, Any]] = []
    for module in model.modules():
        if not isinstance(module, QuantizedLinear):
            continue
        kind = KINDS[type(module)]
        choice = backend_for(module.packed_weight, device, dtype) if kind == "linear" else Choice(BACKENDS[-1], {})
        described = {"kind": kind, "bits": module.bits, "group_size": module.group_size}
        described |= {"backend": choice.backend.NAME, "refused": choice.refused}
        known = next((row for row in found if row.items() >= described.items()), None)
        if known is None:
            found.append({"layers": 1, **described})
        else:
            known["layers"] += 1
    return found


def count_parameters(model: nn.Module) -> int:
    """Parameters of `model`; a packed weight counts as the numbers it stands for."""
    packed = (module for module in model.modules() if isinstance(module, QuantizedLinear))
    dense = sum(parameter.numel() for parameter in model.parameters())
    return dense + sum(layer.in_features * layer.out_features for layer in packed)
