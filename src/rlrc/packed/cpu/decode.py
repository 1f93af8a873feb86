"""Decoding one token at batch 1 in one call (`decode.cpp`): the weights are read once, at the speed of memory.

Layers may differ in shape, and each of their seven products has a weight in bfloat16 or a packed one. Between products
numbers are float32, so the result is closer to that of a float32 decoder than what bfloat16 modules give.
"""

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from rlrc.native.arguments import address, threads
from rlrc.packed.cpu.library import LIBRARY
from rlrc.packed.layout import PackedWeight

PRODUCTS = ("q", "k", "v", "o", "gate", "up", "down")


@dataclass(frozen=True)
class LinearWeights:
    """A linear layer: bfloat16 (out, in) or packed, and a bias float32 (out) or None."""

    weight: torch.Tensor | PackedWeight
    bias: torch.Tensor | None = None


@dataclass(frozen=True)
class LayerWeights:
    """A decoder layer of Llama: its two norms, bfloat16 (hidden), and its products."""

    attention_norm: torch.Tensor
    mlp_norm: torch.Tensor
    products: dict[str, LinearWeights]
    """Weights of the layer's products, by the names of PRODUCTS."""
    head_dim: int


class Linear(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("weight", "scales", "zeros", "bias")),
        *((name, ctypes.c_int64) for name in ("bits", "group", "n", "k")),
    )


class Layer(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("attention_norm", "mlp_norm", "keys", "values")),
        *((name, ctypes.c_int64) for name in ("heads", "key_value_heads", "head_dim")),
        *((name, Linear) for name in PRODUCTS),
    )


class Token(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("hidden", "cosine", "sine")),
        *((name, ctypes.c_int64) for name in ("width", "position", "capacity")),
        ("eps", ctypes.c_double),
    )


class TokenDecoder:
    """A decoder's layers, with the memory of one sequence's keys and values.

    Args:
        layers: their weights, which it keeps alive.
        keys: of each layer, bfloat16 (key-value heads, capacity, head_dim); written to.
        values: likewise.
        eps: of the norms.
    """

    def __init__(
        self, layers: Sequence[LayerWeights], keys: list[torch.Tensor], values: list[torch.Tensor], eps: float
    ) -> None:
        self._kept = (layers, keys, values)
        self._layers = (Layer * len(layers))(
            *(_layer(*of_layer) for of_layer in zip(layers, keys, values, strict=True))
        )
        self._capacity, self._eps = keys[0].shape[1], eps

    def advance(self, hidden: torch.Tensor, cosine: torch.Tensor, sine: torch.Tensor, position: int) -> torch.Tensor:
        """The state float32 (hidden,) that leaves the last layer, from the embedding (hidden,) of a token.

        Args:
            cosine: of the rotary position embedding, (head_dim,).
            sine: likewise.
            position: of the token among those of the sequence; keys and values before it are there.
        """
        assert position < self._capacity, "the sequence was announced to be shorter"
        hidden, cosine, sine = hidden.float().clone(), cosine.float().contiguous(), sine.float().contiguous()
        at = (address(tensor) for tensor in (hidden, cosine, sine))
        token = Token(*at, len(hidden), position, self._capacity, self._eps)
        LIBRARY.loaded().decode_token(ctypes.byref(self._layers), len(self._layers), ctypes.byref(token), threads())
        return hidden


def _layer(weights: LayerWeights, keys: torch.Tensor, values: torch.Tensor) -> Layer:
    products = {name: _linear(linear) for name, linear in weights.products.items()}
    return Layer(
        *(address(tensor) for tensor in (weights.attention_norm, weights.mlp_norm, keys, values)),
        products["q"].n // weights.head_dim,
        len(keys),
        weights.head_dim,
        **products,
    )


def _linear(linear: LinearWeights) -> Linear:
    weight, bias = linear.weight, address(linear.bias)
    if isinstance(weight, PackedWeight):
        tensors = (address(tensor) for tensor in (weight.codes, weight.scales, weight.zeros))
        return Linear(*tensors, bias, weight.bits, weight.group_size, weight.out_features, weight.in_features)
    return Linear(address(weight), None, None, bias, 16, 0, *weight.shape)
