"""Who multiplies packed weights: the first backend that takes a kind of weight on a device.

Each says why it refuses what it does not take. The choice follows from the weight, the device and the numbers' type
alone, never from a measurement, so equal inputs give equal bits in every process of a machine.
"""

from functools import lru_cache
from typing import NamedTuple, Protocol

import torch

from rlrc.packed import cpu, reference
from rlrc.packed.layout import PackedWeight


class Backend(Protocol):
    """What multiplies packed weights: a module with these names."""

    NAME: str

    def refuses(self, bits: int, group_size: int, device: torch.device, dtype: torch.dtype) -> str | None:
        """Return why weights like these are not taken, with inputs of `dtype` on `device`; None where they are."""

    def linear(self, weight: PackedWeight, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """x (..., in) times the weight, plus a bias (out): (..., out) in x's dtype."""


class Choice(NamedTuple):
    """A backend, and why those before it refused, by their names."""

    backend: Backend
    refused: dict[str, str]


BACKENDS: tuple[Backend, ...] = (cpu, reference)


@lru_cache(maxsize=256)
def backend_for(bits: int, group_size: int, device: torch.device, dtype: torch.dtype, trained: bool = False) -> Choice:
    """Return the first backend that takes such weights. The last one takes all.

    Args:
        trained: whether a gradient has to flow back through the product.
    """
    refused: dict[str, str] = {}
    for backend in BACKENDS[:-1]:
        reason = "it has no gradient" if trained else backend.refuses(bits, group_size, device, dtype)
        if reason is None:
            return Choice(backend, refused)
        refused[backend.NAME] = reason
    return Choice(BACKENDS[-1], refused)
