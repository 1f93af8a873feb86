"""Who multiplies packed weights: the first backend that takes a kind of weight on a device.

Each says why it refuses what it does not take. The choice follows from the weight, the device and the numbers' type
alone, never from a measurement, so equal inputs give equal bits in every process of a machine.
"""

from typing import NamedTuple, Protocol

import torch

from rlrc.packed import cpu, cuda, reference
from rlrc.packed.layout import PackedWeight


class Backend(Protocol):
    """A backend multiplies packed weights. It is a module with these names."""

    NAME: str

    def refuses(self, weight: PackedWeight, device: torch.device, dtype: torch.dtype) -> str | None:
        """Return why a weight is not taken, with inputs of `dtype` on `device`; None where it is."""

    def linear(self, weight: PackedWeight, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """x (..., in) times the weight, plus a bias (out): (..., out) in x's dtype."""

    def unpack(self, weight: PackedWeight, dtype: torch.dtype, rows: torch.Tensor | None = None) -> torch.Tensor:
        """The weight that the codes stand for, (out, in), or (..., in) for `rows` (...), which are integers."""


class Choice(NamedTuple):
    """A backend, and why those before it refused, by their names."""

    backend: Backend
    refused: dict[str, str]


BACKENDS: tuple[Backend, ...] = (cpu, cuda, reference)


def backend_for(weight: PackedWeight, device: torch.device, dtype: torch.dtype, trained: bool = False) -> Choice:
    """Return the first backend that takes the weight. The last one takes all.

    Args:
        trained: whether a gradient has to flow back through the product.
    """
    refused: dict[str, str] = {}
    for backend in BACKENDS[:-1]:
        reason = "it has no gradient" if trained else backend.refuses(weight, device, dtype)
        if reason is None:
            return Choice(backend, refused)
        refused[backend.NAME] = reason
    return Choice(BACKENDS[-1], refused)
