"""The language model: transformers' Llama, with layers that may each have their own number of heads and MLP width.

Every layer is built from its own config (`config.per_layer_config[i]`, transformers' native sparse schema), so
attention kernels, caches and later native support for such models come for free.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import LlamaForCausalLM, LlamaModel
from transformers.models.llama.modeling_llama import (
    LlamaDecoderLayer,
    LlamaPreTrainedModel,
    LlamaRMSNorm,
    LlamaRotaryEmbedding,
)

from rlrc.policies.parts.config import DecoderConfig
from rlrc.policies.parts.decoding import heads, rotate


class HeterogeneousLlamaModel(LlamaModel):
    """`LlamaModel` whose layers follow `config.per_layer_config`; same forward, same parameter names."""

    def __init__(self, config: DecoderConfig) -> None:
        # LlamaModel's own constructor reads head counts from the global config, which a heterogeneous one refuses.
        LlamaPreTrainedModel.__init__(self, config)
        self.padding_idx = config.pad_token_id
        self.vocab_size = config.vocab_size
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, config.pad_token_id)
        self.layers = nn.ModuleList(decoder_layer(config, index) for index in range(config.num_hidden_layers))
        self.norm = LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.rotary_emb = LlamaRotaryEmbedding(config)
        self.gradient_checkpointing = False
        self.post_init()

    def read_all(
        self,
        embeddings: torch.Tensor,
        mask: torch.Tensor | None,
        positions: torch.Tensor,
        places: slice = slice(None),
    ) -> torch.Tensor:
        """The final states (B, places, hidden) of sequences in which every position sees every other.

        Args:
            embeddings: (B, T, hidden).
            mask: (B, T), 0 where there is padding, which nothing sees; None where there is none.
            positions: position ids (B, T).
            places: positions whose states are wanted. Without gradients the last layer computes no others.
        """
        visible = None
        if mask is not None:
            lowest = torch.finfo(embeddings.dtype).min
            seen = torch.where(mask.bool(), 0.0, lowest).to(embeddings.dtype)
            visible = seen[:, None, None].expand(-1, 1, mask.shape[1], -1)
        rotary = self.rotary_emb(embeddings, position_ids=positions)
        everywhere = torch.is_grad_enabled() or places == slice(None)
        layers = list(self.layers)
        hidden = embeddings
        for layer in layers if everywhere else layers[:-1]:
            # Without a mask the kernels of transformers would be causal, unless they are told.
            hidden = layer(
                hidden,
                attention_mask=visible,
                position_ids=positions,
                position_embeddings=rotary,
                is_causal=False,
            )
        if everywhere:
            return self.norm(hidden[:, places])
        return self.norm(_at_places(layers[-1], hidden, visible, rotary, places))


def _at_places(
    layer: Any,
    hidden: torch.Tensor,
    visible: torch.Tensor | None,
    rotary: tuple[torch.Tensor, torch.Tensor],
    places: slice,
) -> torch.Tensor:
    """Return what leaves a layer (B, places, hidden) at some places, which see all positions of `hidden`."""
    attention, entering = layer.self_attn, layer.input_layernorm(hidden)
    keys = rotate(heads(attention.k_proj(entering), attention.head_dim), *rotary)
    values = heads(attention.v_proj(entering), attention.head_dim)
    queries = heads(attention.q_proj(entering[:, places]), attention.head_dim)
    attended = F.scaled_dot_product_attention(
        rotate(queries, rotary[0][:, places], rotary[1][:, places]),
        keys,
        values,
        attn_mask=None if visible is None else visible[:, :, places],
        enable_gqa=queries.shape[1] != keys.shape[1],
    )
    hidden = hidden[:, places] + attention.o_proj(attended.transpose(1, 2).flatten(2))
    return hidden + layer.mlp(layer.post_attention_layernorm(hidden))


class HeterogeneousLlamaForCausalLM(LlamaForCausalLM):
    """`LlamaForCausalLM` around a `HeterogeneousLlamaModel`."""

    def __init__(self, config: DecoderConfig) -> None:
        LlamaPreTrainedModel.__init__(self, config)
        self.model = HeterogeneousLlamaModel(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()


def decoder_layer(config: DecoderConfig, index: int) -> LlamaDecoderLayer:
    """Layer `index` of the shape that `config` gives it."""
    layer = LlamaDecoderLayer(config.per_layer_config[index], index)  # type: ignore[arg-type,index]
    # Attention asks its config for the kernel alone; with the global one `set_attn_implementation` reaches it.
    layer.self_attn.config = config
    if getattr(config, "output_bias", False):
        for linear in (layer.self_attn.o_proj, layer.mlp.down_proj):
            linear.bias = nn.Parameter(torch.zeros(config.hidden_size))
    return layer


def attention_mask(there: torch.Tensor, causal: bool, dtype: torch.dtype) -> torch.Tensor:
    """Additive mask (n, 1, T, T) of bool (n, T): a position sees no padding, and where `causal` nothing behind it."""
    length = there.shape[1]
    seen = torch.ones(length, length, dtype=torch.bool, device=there.device)
    seen = (seen.tril() if causal else seen) & there[:, None, None, :]
    return torch.zeros(seen.shape, dtype=dtype, device=there.device).masked_fill_(~seen, torch.finfo(dtype).min)
