"""Random numbers for a batch, whose rows may each have a generator of their own."""

from collections.abc import Callable, Sequence

import torch

from rlrc.errors import UserError
from rlrc.policies.values import Generators


def draw(
    kind: Callable[..., torch.Tensor], shape: Sequence[int], generator: Generators, device: torch.device | str
) -> torch.Tensor:
    """Numbers of a shape (B, ...); with a generator a row, a row's numbers depend on its own alone.

    Args:
        kind: `torch.rand` or `torch.randn`.
    """
    if isinstance(generator, Sequence):
        return torch.cat([kind(1, *shape[1:], generator=row, device=device) for row in generator])
    return kind(*shape, generator=generator, device=device)


def require_generators(generator: Generators, rows: int) -> None:
    """
    Raises:
        UserError: there are not as many generators as rows.
    """
    if isinstance(generator, Sequence) and len(generator) != rows:
        raise UserError(f"{rows} rows came with {len(generator)} generators; give one to each")
