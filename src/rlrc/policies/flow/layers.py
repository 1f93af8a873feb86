"""Layers of language models and action experts that share one attention, with any number of heads and channels.

Names are those of transformers' Gemma and Llama. Keys and values of a language model's layer are all that an expert
reads of it, so the last layer of a language model has nothing else.
"""

import torch
import torch.nn.functional as F
from torch import nn
from transformers.activations import ACT2FN
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm, rotate_half

ROTARY_BASE = 10_000
"""Of all three families, whatever a config says (SmolVLM's says 100000)."""

Rotary = tuple[torch.Tensor, torch.Tensor]
"""Cosines and sines (N, 1, T, head_dim)."""
Memory = tuple[torch.Tensor, torch.Tensor]
"""Keys, rotated, and values of one layer, each (N, key-value heads, T, head_dim)."""


class AdaRMSNorm(nn.Module):
    """RMSNorm whose scale, shift and gate a condition gives: pi0.5's way to tell its expert the time."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.dense = nn.Linear(width, 3 * width)

    def forward(self, x: torch.Tensor, condition: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """x (N, T, width) normed, and the gate (N, 1, width) of what is computed from it."""
        scale, shift, gate = self.dense(condition)[:, None].chunk(3, dim=-1)
        wide = x.float()
        normed = wide * torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + self.eps)
        return (normed * (1 + scale.float()) + shift.float()).to(x.dtype), gate


NORMS: dict[str, type[nn.Module]] = {"gemma": GemmaRMSNorm, "llama": LlamaRMSNorm, "adaptive": AdaRMSNorm}


def normed(
    norm: nn.Module, x: torch.Tensor, condition: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Apply a norm to x; returns the result, and a gate where the norm has one."""
    return norm(x, condition) if isinstance(norm, AdaRMSNorm) else (norm(x), None)


class Attention(nn.Module):
    """Projections of an attention, and the attention itself.

    Args:
        root: config of the whole model, which names the kernel of attention.
        shape: of this layer.
        reads: False where nothing is asked of its queries, which then are not there.
        memory_width: of the keys and values of another stack that it reads instead of its own; 0 of its own.
    """

    def __init__(self, root: object, shape: object, reads: bool = True, memory_width: int = 0) -> None:
        super().__init__()
        self.config = root
        width, self.head_dim = shape.hidden_size, shape.head_dim  # type: ignore[attr-defined]
        shared = shape.num_key_value_heads * self.head_dim  # type: ignore[attr-defined]
        self.k_proj = nn.Linear(memory_width or width, shared, bias=False)
        self.v_proj = nn.Linear(memory_width or width, shared, bias=False)
        if reads:
            queries = shape.num_attention_heads * self.head_dim  # type: ignore[attr-defined]
            self.q_proj = nn.Linear(width, queries, bias=False)
            self.o_proj = nn.Linear(queries, width, bias=False)

    def memory(self, x: torch.Tensor, rotary: Rotary) -> Memory:
        """Keys and values of x (N, T, width)."""
        return rotated(self._heads(self.k_proj(x)), rotary), self._heads(self.v_proj(x))

    def memory_of(self, memory: Memory) -> Memory:
        """Keys and values that are made of those of another stack; the keys are rotated as they are."""
        keys, values = (tensor.transpose(1, 2).flatten(2) for tensor in memory)
        return self._heads(self.k_proj(keys)), self._heads(self.v_proj(values))

    def forward(self, x: torch.Tensor, memory: Memory, rotary: Rotary, seen: torch.Tensor | None) -> torch.Tensor:
        """What positions x (N, T, width) read from a memory of M positions.

        Args:
            seen: bool (N or 1, 1, T, M); None where every position sees all.
        """
        queries = rotated(self._heads(self.q_proj(x)), rotary)
        eager = self.config._attn_implementation == "eager"  # type: ignore[attr-defined]
        read = (_attend_plainly if eager else _attend)(queries, *memory, seen)
        return self.o_proj(read.transpose(1, 2).flatten(2))

    def _heads(self, projected: torch.Tensor) -> torch.Tensor:
        return projected.unflatten(2, (-1, self.head_dim)).transpose(1, 2)


def _attend(queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, seen: torch.Tensor | None) -> torch.Tensor:
    shared = queries.shape[1] != keys.shape[1]
    return F.scaled_dot_product_attention(queries, keys, values, attn_mask=seen, enable_gqa=shared)


def _attend_plainly(
    queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, seen: torch.Tensor | None
) -> torch.Tensor:
    times = queries.shape[1] // keys.shape[1]
    keys, values = (tensor.repeat_interleave(times, dim=1) for tensor in (keys, values))
    scores = (queries * queries.shape[-1] ** -0.5) @ keys.transpose(-2, -1)
    if seen is not None:
        scores = scores.masked_fill(~seen, torch.finfo(scores.dtype).min)
    return scores.softmax(dim=-1, dtype=torch.float32).to(values.dtype) @ values


class GatedMLP(nn.Module):
    """down(act(gate(x)) * up(x))."""

    def __init__(self, shape: object) -> None:
        super().__init__()
        width, self.intermediate_size = shape.hidden_size, shape.intermediate_size  # type: ignore[attr-defined]
        self.gate_proj = nn.Linear(width, self.intermediate_size, bias=False)
        self.up_proj = nn.Linear(width, self.intermediate_size, bias=False)
        self.down_proj = nn.Linear(self.intermediate_size, width, bias=False)
        self.act_fn = ACT2FN[shape.hidden_act]  # type: ignore[attr-defined]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    """One layer of a language model or of an expert.

    Args:
        root: see `Attention`.
        shape: config of this layer.
        norm: kind of its norms, of NORMS.
        reads: see `Attention`; a layer that does not has no MLP either.
        memory_width: see `Attention`.
    """

    def __init__(self, root: object, shape: object, norm: str, reads: bool = True, memory_width: int = 0) -> None:
        super().__init__()
        width, eps = shape.hidden_size, shape.rms_norm_eps  # type: ignore[attr-defined]
        self.reads, self.crosses = reads, memory_width > 0
        self.input_layernorm = NORMS[norm](width, eps)
        self.self_attn = Attention(root, shape, reads, memory_width)
        if reads:
            self.post_attention_layernorm = NORMS[norm](width, eps)
            self.mlp = GatedMLP(shape)

    def finish(
        self,
        hidden: torch.Tensor,
        attended: torch.Tensor,
        gate: torch.Tensor | None,
        condition: torch.Tensor | None,
    ) -> torch.Tensor:
        """What leaves the layer, given what entered it and what its attention made of that."""
        hidden = hidden + (attended if gate is None else attended * gate)
        entering, gate = normed(self.post_attention_layernorm, hidden, condition)
        made = self.mlp(entering)
        return hidden + (made if gate is None else made * gate)


def rotary_of(positions: torch.Tensor, head_dim: int, dtype: torch.dtype) -> Rotary:
    """Rotary position embedding (Su et al., arXiv 2104.09864) of positions (N, T)."""
    steps = torch.arange(0, head_dim, 2, device=positions.device).float() / head_dim
    angles = positions[..., None].float() / ROTARY_BASE**steps
    angles = torch.cat([angles, angles], dim=-1)[:, None]
    return angles.cos().to(dtype), angles.sin().to(dtype)


def rotated(heads: torch.Tensor, rotary: Rotary) -> torch.Tensor:
    """Queries or keys (N, heads, T, head_dim) with their positions."""
    return heads * rotary[0] + rotate_half(heads) * rotary[1]
