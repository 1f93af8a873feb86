"""One vision tower in place of two whose features are joined by channel: the other one goes, and its mean stays.

What reads the joined features is a linear layer, W [a, b] + c for the features a and b of both towers. With b at its
mean it computes W_a a + (c + W_b mean(b)), so the columns of b go and the bias takes up what they gave on average, as
FLAP's bias compensation (An et al., arXiv 2312.11983) does for single inputs.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class JoinedTowers:
    """Two vision towers whose features stand side by side, (pictures, tokens, sum of widths), before a linear layer.
    Where one token has several patches, these follow each other, each with the features of both."""

    prefixes: tuple[str, str]
    """Dotted names of the towers, in the order in which their features are joined."""
    widths: tuple[int, int]
    """Widths of their features."""
    patches: int
    """Patches whose features one token has."""
    reader: str
    """Dotted name of the linear layer, which has a bias."""
    alone: Callable[[int], Any]
    """Makes the policy with the tower of a number alone, whose parameters have shapes and no memory yet."""

    def columns(self, number: int) -> torch.Tensor:
        """The inputs of the reader that are the features of a tower, as indices."""
        first = (0, self.widths[0])[number]
        inputs = torch.arange(self.patches * sum(self.widths), device="cpu").view(self.patches, -1)
        return inputs[:, first : first + self.widths[number]].flatten()


@dataclass(frozen=True)
class OneTower:
    """One of two joined towers, which stays alone and takes the place of the first."""

    of: JoinedTowers
    number: int
    mean: torch.Tensor | None = None
    """Mean features of the other tower (width,), for which the reader's bias makes up; None leaves nothing of them."""

    def outline(self) -> Any:
        """The policy with this tower alone, without its weights."""
        return self.of.alone(self.number)

    def tensors(self, names: Iterable[str], read: Callable[[str], torch.Tensor]) -> Iterator[tuple[str, torch.Tensor]]:
        """The tensors that stay of a policy with both towers, under their new names.

        Args:
            names: those of the policy with both towers.
            read: gives the tensor of such a name.
        """
        gone, kept, first = (f"{self.of.prefixes[number]}." for number in (1 - self.number, self.number, 0))
        weight, bias = f"{self.of.reader}.weight", f"{self.of.reader}.bias"
        for name in names:
            if name.startswith(gone):
                continue
            if name == weight:
                yield name, read(weight)[:, self.of.columns(self.number)]
            elif name == bias and self.mean is not None:
                yield name, self._compensated(read(weight), read(bias), self.mean)
            else:
                yield first + name.removeprefix(kept) if name.startswith(kept) else name, read(name)

    def _compensated(self, weight: torch.Tensor, bias: torch.Tensor, mean: torch.Tensor) -> torch.Tensor:
        lost = weight[:, self.of.columns(1 - self.number)].float() @ mean.to(weight.device, torch.float32)
        return (bias.float() + lost).to(bias.dtype)
