"""GELU by its approximation with tanh (Hendrycks and Gimpel, arXiv 1606.08415), as SigLIP has it."""

import torch
import torch.nn.functional as F

from rlrc.bfloat16.library import LIBRARY, takes
from rlrc.native.arguments import address, threads


def gelu_tanh(x: torch.Tensor) -> torch.Tensor:
    """Return 0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) of each number of x, in any shape."""
    if not (x.is_contiguous() and takes(x)):
        return F.gelu(x, approximate="tanh")
    out = torch.empty_like(x)
    LIBRARY.loaded().gelu_tanh(address(x), address(out), x.numel(), threads())
    return out
