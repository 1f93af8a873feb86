"""Unstructured pruning: weights become zero and matrices keep their size, so neither memory nor time is won.

Wanda (Sun et al., arXiv 2306.11695, and its published code) scores a weight |W_ij| * ||X_j||, X the inputs of its
matrix, and compares within each output row; layer by layer, where what a pruned layer gives is what the next one is
measured on. Magnitude scores |W_ij| and compares over the whole matrix. Either may have to zero n of every m
neighbouring inputs ("2:4", which sparse matrix units can use).
"""

from abc import abstractmethod
from collections.abc import Sequence
from typing import TypeVar

import torch

from rlrc.configs.prune import Magnitude, UnstructuredConfig, Wanda
from rlrc.errors import UserError
from rlrc.policies.groups import DECODER, Block, Group, Member
from rlrc.policies.values import States
from rlrc.prune.measured import Measured
from rlrc.prune.method import Plan, PruningMethod, Source, Target, refuse_overall
from rlrc.prune.stream import Stream, inputs_of

ZeroingConfig = TypeVar("ZeroingConfig", bound=UnstructuredConfig)


class Unstructured(PruningMethod[ZeroingConfig]):
    """Base of Wanda and magnitude."""

    def check(self, groups: Sequence[Group], layers: int, target: Target) -> None:
        refuse_overall(target, self.config.kind)
        if target.ratio is not None and target.ratio >= 1:
            raise UserError(f"{self.config.kind}: a ratio of {target.ratio:g} leaves no weight; ask for less than 1")
        if self.config.pattern is not None:
            _, size = self.config.n_of_m
            for group in groups:
                inputs = [group.inputs(member) for member in group.members if group.layer not in target.protected]
                if uneven := [number for number in inputs if number % size]:
                    raise UserError(
                        f"{group}: a matrix has {uneven[0]} inputs, which cannot be cut into groups of {size}"
                    )

    def plan(self, measured: Measured, groups: Sequence[Group], layers: int, target: Target) -> Plan:
        def edit(index: int, block: Block) -> None:
            if index not in target.protected:
                self.zero(index, block, _members(groups, index), measured, target.ratio)

        return Plan(tuple(range(layers)), edit)

    def zero(
        self, index: int, block: Block, members: Sequence[Member], measured: Measured, ratio: float | None
    ) -> None:
        """Zero weights of the block, in place."""
        for member in members:
            weight = member.matrix(block).weight
            norm = measured.get(f"{index}.{member.place}")
            weight.data.masked_fill_(self.goes(weight.detach().float().abs(), norm, ratio), 0)

    def goes(self, magnitude: torch.Tensor, square_norm: torch.Tensor | None, ratio: float | None) -> torch.Tensor:
        """Bool (out, in), what becomes zero of a matrix of these absolute values.

        Args:
            square_norm: (in,), mean over samples of the squared norm of each input.
        """
        if self.config.pattern is not None:
            score = magnitude if square_norm is None else magnitude * square_norm.sqrt()
            return lowest_of_each(score, *self.config.n_of_m)
        assert ratio is not None
        return self.lowest(magnitude, square_norm, ratio)

    @abstractmethod
    def lowest(self, magnitude: torch.Tensor, square_norm: torch.Tensor | None, ratio: float) -> torch.Tensor:
        """The method's own way to find the lowest `ratio` of a matrix; as `goes`."""


class MagnitudeMethod(Unstructured[Magnitude]):
    """Magnitude: the smallest weights of each matrix become zero."""

    def measure(self, source: Source) -> Measured:
        return {}

    def lowest(self, magnitude: torch.Tensor, square_norm: torch.Tensor | None, ratio: float) -> torch.Tensor:
        # Wanda's code takes everything up to the threshold, one weight more than int(ratio * all).
        rank = int(magnitude.numel() * ratio)
        return magnitude <= magnitude.flatten().kthvalue(rank + 1).values if rank else magnitude < 0


class WandaMethod(Unstructured[Wanda]):
    """Wanda: weights by their magnitude times the norm of their inputs."""

    def measure(self, source: Source) -> Measured:
        """Measure by layer and matrix the mean over samples of the squared norm of each input (in,)."""
        stream, target = source.stream, source.target

        def visit(index: int, block: Block, states: States) -> tuple[Measured, States]:
            if index in target.protected:
                return {}, stream.step(block, states)
            members = _members(source.groups, index)
            norms = {member: SquareNorm(self._there(stream, member)) for member in members}
            with inputs_of(block, {member: norm.add for member, norm in norms.items()}):
                stream.step(block, states)
            measured = {f"{index}.{member.place}": norm.mean for member, norm in norms.items()}
            self.zero(index, block, members, measured, target.ratio)
            return measured, stream.step(block, states)  # the next layer is measured behind what this one has become

        return source.forward("input norms", visit)

    def _there(self, stream: Stream, member: Member) -> torch.Tensor:
        """Bool (N, T), the positions that enter a matrix; one that has keys and values of the language model as its
        inputs has positions of that."""
        stack = DECODER if member.reads_decoder else member.stack
        return stream.calibration.there[stack]

    def lowest(self, magnitude: torch.Tensor, square_norm: torch.Tensor | None, ratio: float) -> torch.Tensor:
        assert square_norm is not None
        score = magnitude * square_norm.sqrt()
        if self.config.mass:
            return _lowest_mass(score, ratio)
        return lowest_of_rows(score, int(score.shape[1] * ratio))


def lowest_of_rows(score: torch.Tensor, count: int) -> torch.Tensor:
    """Bool (out, in): the `count` lowest of each row, of equal ones the first; as a stable sort finds them, but without
    the time and the memory that sorting takes."""
    if count == 0:
        return torch.zeros_like(score, dtype=torch.bool)
    threshold = score.kthvalue(count, dim=1, keepdim=True).values
    lowest, level = score < threshold, score == threshold
    spare = count - lowest.sum(dim=1, keepdim=True)
    crowded = (level.sum(dim=1, keepdim=True) > spare).squeeze(1)
    level[crowded] &= level[crowded].cumsum(dim=1) <= spare[crowded]
    return lowest | level


def lowest_of_each(score: torch.Tensor, n: int, m: int) -> torch.Tensor:
    """Bool (out, in): the n lowest of every m neighbouring inputs of each row; m divides the inputs."""
    blocks = score.unflatten(1, (-1, m))
    lowest = blocks.topk(n, dim=2, largest=False).indices
    return torch.zeros_like(blocks, dtype=torch.bool).scatter_(2, lowest, True).flatten(1)


def _lowest_mass(score: torch.Tensor, ratio: float) -> torch.Tensor:
    """Bool (out, in): of each row the lowest scores that make up the share alpha of its sum.

    Alpha is bisected, with the published code's start and stops, until `ratio` of the matrix goes.
    """
    ordered = score.sort(dim=1, stable=True).values
    running, total = ordered.cumsum(dim=1), score.sum(dim=1, keepdim=True)

    def goes(alpha: float) -> torch.Tensor:
        count = (running <= total * alpha).sum(dim=1, keepdim=True)
        return (score <= ordered.gather(1, (count - 1).clamp(min=0))) & (count > 0)

    low, alpha, high = 0.0, 0.4, 0.8
    mask = goes(alpha)
    while abs(float(mask.float().mean()) - ratio) > 0.001 and high - low >= 0.001:
        if float(mask.float().mean()) > ratio:
            alpha, high = (alpha + low) / 2, alpha
        else:
            alpha, low = (alpha + high) / 2, alpha
        mask = goes(alpha)
    return mask


class SquareNorm:
    """Mean over samples of the squared norm of each input of a matrix (width,). Padding is left out."""

    def __init__(self, mask: torch.Tensor) -> None:
        self._mask = mask
        self._seen = 0
        self.mean = torch.zeros(())

    def add(self, inputs: torch.Tensor) -> None:
        """Inputs (n, T, width) of the next samples."""
        here = self._mask[self._seen : self._seen + len(inputs), :, None]
        self.mean = self.mean + (inputs.float().square() * here).sum(dim=(0, 1)) / len(self._mask)
        self._seen += len(inputs)


def _members(groups: Sequence[Group], index: int) -> list[Member]:
    """The matrices of a block, each once."""
    members = {member.place: member for group in groups if group.layer == index for member in group.members}
    return list(members.values())
