"""The decoder at work on an NVIDIA GPU, in a third of the kernels.

For one token a kernel does next to nothing, so what counts is how many there are. Norm, rotary positions with the
cache, and the gated unit are a kernel each in the place of about twenty of PyTorch's, and packed matrices that read the
same numbers are multiplied in one (`packed/cuda`). tests/test_graphs.py counts.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers import LlamaModel
from transformers.activations import SiLUActivation

from rlrc.packed import cuda
from rlrc.packed.layers import QuantizedLinear
from rlrc.policies.parts.decoding import Decoding, heads


def begin_decoding(
    decoder: LlamaModel, mask: torch.Tensor | None, positions: torch.Tensor, capacity: int, gone: int
) -> Decoding:
    """A `Decoding` with the fewest kernels that there are for the decoder where it lies; see `FusedDecoding`."""
    if is_fusible(decoder):
        return FusedDecoding(decoder, mask, positions, capacity, gone)
    return Decoding(decoder, mask, positions, capacity)


def is_fusible(decoder: LlamaModel) -> bool:
    """Return whether the kernels compute what the decoder's layers compute, on its device. Under autocast they do not:
    its layers give other dtypes than they take, and the kernels want one."""
    layers: Any = decoder.layers
    weight = decoder.norm.weight
    return (
        weight.dtype in cuda.DTYPES
        and not torch.is_autocast_enabled("cuda")
        and cuda.missing(weight.device) is None
        and all(isinstance(layer.mlp.act_fn, SiLUActivation) and layer.self_attn.head_dim % 2 == 0 for layer in layers)
    )


class FusedDecoding(Decoding):
    """Sequences on their way through the decoder, in few kernels; see `Decoding`.

    Args:
        gone: largest number by which a position id exceeds the place of its token, since tokens of pictures are gone.
    """

    def __init__(
        self, decoder: LlamaModel, mask: torch.Tensor | None, positions: torch.Tensor, capacity: int, gone: int = 0
    ) -> None:
        super().__init__(decoder, mask, positions, capacity)
        self._ids = torch.arange(capacity + gone, device=positions.device)
        """Position ids, of which the first `capacity` are also the places in the cache."""

    def _rotary(self, embeddings: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return cosines and sines (ids, head_dim) of all positions that there may be, the same for each call."""
        if self._length == embeddings.shape[1]:
            cos, sin = self._decoder.rotary_emb(embeddings, position_ids=self._ids[None])
            self._table = cos[0], sin[0]
        return self._table

    def _pass(
        self,
        index: int,
        hidden: torch.Tensor,
        rotary: tuple[torch.Tensor, torch.Tensor],
        start: int,
        only_last: bool,
    ) -> torch.Tensor:
        from rlrc.packed.cuda import fused

        layer: Any = self._decoder.layers[index]
        attention, mlp, norms = layer.self_attn, layer.mlp, (layer.input_layernorm, layer.post_attention_layernorm)
        entering = fused.rms_norm(hidden, norms[0].weight, norms[0].variance_epsilon)
        queries, keys, values = products((attention.q_proj, attention.k_proj, attention.v_proj), entering)
        if start == 0:
            self._take_memory(heads(keys, attention.head_dim), heads(values, attention.head_dim))
        cache = self._keys[index], self._values[index]
        slot = self._ids[start : start + 1]
        queries = fused.rotate_and_store(queries, keys, values, *rotary, self._positions, *cache, slot)
        if only_last:
            queries, hidden = queries[:, :, -1:], hidden[:, -1:]
        attended = self._attend(index, queries, *(memory[:, :, : self._length] for memory in cache))
        branch = attention.o_proj(attended.transpose(1, 2).flatten(2))
        hidden, entering = fused.add_and_norm(hidden, branch, norms[1].weight, norms[1].variance_epsilon)
        return hidden + mlp.down_proj(fused.gated_unit(*products((mlp.gate_proj, mlp.up_proj), entering)))

    def _norm(self, hidden: torch.Tensor) -> torch.Tensor:
        from rlrc.packed.cuda import fused

        return fused.rms_norm(hidden, self._decoder.norm.weight, self._decoder.norm.variance_epsilon)


def products(linears: Sequence[nn.Module], x: torch.Tensor) -> list[torch.Tensor]:
    """Multiply x (B, T, in) by several layers' weights, in one kernel where these are packed alike and rows are few."""
    packed = [linear for linear in linears if isinstance(linear, QuantizedLinear)]
    weights = tuple(linear.packed_weight for linear in packed)
    biases: list[Any] = [linear.bias for linear in packed]
    alike = len(weights) == len(linears) and len({(weight.bits, weight.group_size) for weight in weights}) == 1
    all_or_none = len({bias is None for bias in biases}) == 1
    if alike and all_or_none and all(cuda.refuses(weight, x.device, x.dtype) is None for weight in weights):
        return cuda.joined(weights, x, None if biases[0] is None else tuple(biases))
    return [linear(x) for linear in linears]
