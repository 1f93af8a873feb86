"""The decoder at work: a prompt is read once, then one token after the other is added.

The arithmetic is that of transformers' Llama, whose modules do it, without what generation in general needs: keys and
values are written to memory that was taken at the start; where no row is padded there is no mask; and of the last layer
only the last position is computed, since nothing reads the others. In a pruned policy whose last layer stays whole that
layer alone is a fifth of the prompt's work.

A single sequence in bfloat16 on a processor for which there are kernels has its tokens decoded by those
(`packed/cpu/decode.py`): a token is then bound by how fast memory can be read. Other sequences go through the modules.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import LlamaModel
from transformers.activations import SiLUActivation
from transformers.models.llama.modeling_llama import rotate_half

from rlrc.packed import cpu
from rlrc.packed.cpu.decode import PRODUCTS, LayerWeights, LinearWeights, TokenDecoder
from rlrc.packed.layers import QuantizedLinear
from rlrc.policies.wide import WideLinear


class Decoding:
    """Sequences on their way through the decoder.

    Args:
        mask: (B, T), 0 where the prompt is padded; what is added later never is. None where nothing is padded.
        positions: (B, T) of the prompt.
        capacity: positions that each sequence will have at the end.
    """

    def __init__(self, decoder: LlamaModel, mask: torch.Tensor | None, positions: torch.Tensor, capacity: int) -> None:
        self._decoder = decoder
        self._prompt_length, self._length = positions.shape[1], 0
        self._visible = None if mask is None else F.pad(mask.bool(), (0, capacity - self._prompt_length), value=True)
        self._positions = positions
        self._capacity = capacity
        self._keys: list[torch.Tensor] = []
        self._values: list[torch.Tensor] = []
        self._seen: torch.Tensor | None = None
        self._by_token: TokenDecoder | None = None

    def advance(self, embeddings: torch.Tensor) -> torch.Tensor:
        """Read what comes next, (B, T, hidden), and return the final state of its last position (B, hidden)."""
        start, self._length = self._length, self._length + embeddings.shape[1]
        if start:
            self._positions = self._positions[:, -1:] + 1
            assert embeddings.shape[1] == 1, "after the prompt tokens come one by one"
            if start == self._prompt_length:
                self._by_token = self._token_decoder(embeddings)
            if self._by_token is not None:
                return self._advance_one(self._by_token, embeddings)
        self._seen = self._mask(embeddings.shape[1])
        rotary = self._rotary(embeddings)
        hidden, last = embeddings, len(self._decoder.layers) - 1
        for index in range(last + 1):
            hidden = self._pass(index, hidden, rotary, start, only_last=index == last)
        return self._norm(hidden[:, -1])

    def _rotary(self, embeddings: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self._decoder.rotary_emb(embeddings, position_ids=self._positions)

    def _norm(self, hidden: torch.Tensor) -> torch.Tensor:
        return self._decoder.norm(hidden)

    def _token_decoder(self, embeddings: torch.Tensor) -> TokenDecoder | None:
        """The kernel that adds tokens to this sequence; None where modules have to."""
        one = len(embeddings) == 1 and self._visible is None
        if not one or embeddings.device.type != "cpu" or embeddings.dtype != torch.bfloat16 or cpu.missing():
            return None
        layers = [_layer_weights(layer) for layer in self._decoder.layers]
        known = [layer for layer in layers if layer is not None]
        if len(known) < len(layers):
            return None
        keys, values = ([tensor[0] for tensor in tensors] for tensors in (self._keys, self._values))
        return TokenDecoder(known, keys, values, self._decoder.config.rms_norm_eps)

    def _advance_one(self, decoder: TokenDecoder, embedding: torch.Tensor) -> torch.Tensor:
        cosine, sine = self._decoder.rotary_emb(embedding.float(), position_ids=self._positions)
        hidden = decoder.advance(embedding[0, 0], cosine[0, 0], sine[0, 0], self._length - 1)
        return self._norm(hidden.to(embedding.dtype))[None]

    def _pass(
        self,
        index: int,
        hidden: torch.Tensor,
        rotary: tuple[torch.Tensor, torch.Tensor],
        start: int,
        only_last: bool,
    ) -> torch.Tensor:
        layer: Any = self._decoder.layers[index]
        attention = layer.self_attn
        entering = layer.input_layernorm(hidden)
        keys = rotate(heads(attention.k_proj(entering), attention.head_dim), *rotary)
        values = heads(attention.v_proj(entering), attention.head_dim)
        keys, values = self._remember(index, keys, values, start)
        if only_last:
            hidden, entering, rotary = hidden[:, -1:], entering[:, -1:], (rotary[0][:, -1:], rotary[1][:, -1:])
        queries = rotate(heads(attention.q_proj(entering), attention.head_dim), *rotary)
        attended = self._attend(index, queries, keys, values)
        hidden = hidden + attention.o_proj(attended.transpose(1, 2).flatten(2))
        return hidden + layer.mlp(layer.post_attention_layernorm(hidden))

    def _attend(self, index: int, queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        """Return the attention of the queries (B, heads, T, head_dim) of layer `index` to all keys and values so
        far."""
        seen = None if self._seen is None else self._seen[:, :, -queries.shape[2] :]
        return F.scaled_dot_product_attention(
            queries,
            keys,
            values,
            attn_mask=seen,
            is_causal=seen is None and queries.shape[2] > 1,
            enable_gqa=queries.shape[1] != keys.shape[1],
        )

    def _remember(
        self, index: int, keys: torch.Tensor, values: torch.Tensor, start: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Put the new keys and values (B, heads, T, head_dim) behind those of the layer; returns all of them."""
        if start == 0:
            self._take_memory(keys, values)
        new = slice(start, self._length)
        self._keys[index][:, :, new], self._values[index][:, :, new] = keys, values
        return self._keys[index][:, :, : self._length], self._values[index][:, :, : self._length]

    def _take_memory(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Reserve memory for one more layer, whose keys and values have these heads."""
        for new, tensors in ((keys, self._keys), (values, self._values)):
            tensors.append(new.new_empty((*new.shape[:2], self._capacity, new.shape[3])))

    def _mask(self, queries: int) -> torch.Tensor | None:
        """Return a mask (B, 1, queries, T) of the positions so far that each of the last `queries` sees; None without
        padding: all up to itself."""
        if self._visible is None:
            return None
        ones = torch.ones(queries, self._length, dtype=torch.bool, device=self._visible.device)
        causal = ones.tril(self._length - queries)
        return causal & self._visible[:, None, None, : self._length]


def heads(projected: torch.Tensor, head_dim: int) -> torch.Tensor:
    """(B, T, heads * head_dim) -> (B, heads, T, head_dim)."""
    return projected.unflatten(2, (-1, head_dim)).transpose(1, 2)


def rotate(heads: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotary position embedding of queries or keys (B, heads, T, head_dim)."""
    return heads * cos[:, None] + rotate_half(heads) * sin[:, None]


def _layer_weights(layer: Any) -> LayerWeights | None:
    """The layer as the kernel takes it; None if something about it is not what the kernel computes."""
    attention, mlp = layer.self_attn, layer.mlp
    projections = (*(getattr(attention, f"{name}_proj") for name in "qkvo"), mlp.gate_proj, mlp.up_proj, mlp.down_proj)
    linears = [_linear_weights(linear) for linear in projections]
    products = {name: linear for name, linear in zip(PRODUCTS, linears, strict=True) if linear is not None}
    norms = layer.input_layernorm.weight, layer.post_attention_layernorm.weight
    plain = isinstance(mlp.act_fn, SiLUActivation) and all(norm.dtype == torch.bfloat16 for norm in norms)
    return LayerWeights(*norms, products, attention.head_dim) if plain and len(products) == len(PRODUCTS) else None


def _linear_weights(linear: nn.Module) -> LinearWeights | None:
    weight: Any = None
    if isinstance(linear, QuantizedLinear):
        packed = linear.packed_weight
        weight = packed if cpu.refuses(packed, packed.codes.device, torch.bfloat16) is None else None
    elif isinstance(linear, nn.Linear) and type(linear) in (nn.Linear, WideLinear):
        plain = linear.weight.dtype == torch.bfloat16 and linear.weight.is_contiguous()
        weight = linear.weight if plain else None
    if weight is None:
        return None
    bias: Any = linear.bias
    return LinearWeights(weight, None if bias is None else bias.detach().float())
