"""Attention of every position to every other one, as vision towers have it."""

from ctypes import c_int64

import torch
import torch.nn.functional as F

from rlrc.bfloat16.library import LIBRARY, takes
from rlrc.native.arguments import threads


def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """What each position reads of all others; all (B, heads, T, head_dim).

    The error of our kernel in bfloat16 is that of PyTorch's: both round what multiplies the values to bfloat16, and
    nothing else before the result (`docs/journal/speed.md`).
    """
    if q.device.type == "cpu" and q.requires_grad and torch.is_grad_enabled():
        # The backward pass of the fused CPU kernel takes several times as long as the three plain operations.
        return ((q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)).softmax(dim=-1) @ v
    if q.shape[-1] % 2 or not q.shape == k.shape == v.shape or not takes(q, k, v):
        return F.scaled_dot_product_attention(q, k, v)
    return _native(q, k, v)


def _native(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    batch, heads, length, dims = q.shape
    q, k, v = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k, v))
    out = q.new_empty(batch, length, heads, dims)
    strides = (c_int64 * 9)(*(stride for x in (q, k, v) for stride in x.stride()[:3]))
    pointers = (x.data_ptr() for x in (q, k, v, out))
    LIBRARY.loaded().attention(*pointers, batch, heads, length, dims, strides, dims**-0.5, threads())
    return out.transpose(1, 2)
