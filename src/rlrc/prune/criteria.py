"""Criteria: how much each head and each MLP channel matters, from weights and calibration gradients.

LLM-Pruner (Ma et al., arXiv 2305.11627, and its published code). With s the saliency of a weight matrix,

    first order   s = W g            `vectorize`: |sum of s| over a channel, `param_first`: sum of |s|
    second order  s = W F W          `param_second`: sum of |s|
    mixed         s = W g - W F W/2  `param_mix`: sum of |s|
    magnitude     s = |W|^p          `magnitude_l1`, `magnitude_l2`: sum of s

where g is the gradient of the mean loss over the calibration samples and F the mean over samples of the squared
gradient of each. The members of a group are combined channel by channel; a head's score is the sum over its channels.

LLM-Pruner itself holds the model and all its gradients, about 80 GB for 7 B parameters. Here a layer's gradients are
reduced to sums over its channels before those of the next layer are computed.
"""

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

from rlrc.configs.prune import LlmPruner, Random, ScoredUnitsConfig
from rlrc.errors import UserError
from rlrc.policies.groups import Block, Group, Member
from rlrc.policies.values import States
from rlrc.progress import track
from rlrc.prune.allocate import choose
from rlrc.prune.measured import Measured
from rlrc.prune.method import Plan, PruningMethod, Source, Target
from rlrc.prune.structured import plan_cut

REDUCTIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "sum": lambda members: members.sum(0),
    "mean": lambda members: members.mean(0),
    "max": lambda members: members.amax(0),
    "prod": lambda members: members.prod(0),
    "first": lambda members: members[0],
}


ScoredConfig = TypeVar("ScoredConfig", bound=ScoredUnitsConfig)


class ScoredUnits(PruningMethod[ScoredConfig]):
    """Every head and channel gets a score, and the best stay: what most criteria have in common."""

    def check(self, groups: Sequence[Group], layers: int, target: Target) -> None:
        self._choose({group.key: torch.zeros(group.units) for group in groups}, groups, target)

    def plan(self, measured: Measured, groups: Sequence[Group], layers: int, target: Target) -> Plan:
        return plan_cut(layers, groups, self._choose(measured, groups, target))

    def _choose(self, measured: Measured, groups: Sequence[Group], target: Target) -> list[torch.Tensor]:
        scores = [measured[group.key] for group in groups]
        return choose(
            groups, scores, target.protected, self.config.scope, target.ratio, target.overall, target.rounding
        )


class RandomMethod(ScoredUnits[Random]):
    """Random scores: what any criterion has to beat."""

    def measure(self, source: Source) -> Measured:
        generator = torch.Generator().manual_seed(source.seed)
        return {group.key: torch.rand(group.units, generator=generator, device="cpu") for group in source.groups}


PrunerConfig = TypeVar("PrunerConfig", bound=LlmPruner)


class LlmPrunerMethod(ScoredUnits[PrunerConfig]):
    """LLM-Pruner, block-wise."""

    def measure(self, source: Source) -> Measured:
        """Importance of every unit: float32 (units,) for each group.

        Raises:
            UserError: a score is NaN or infinite.
        """
        return self._gradient_scores(source) if self.config.needs_calibration else self._magnitudes(source)

    def _magnitudes(self, source: Source) -> Measured:
        power = int(self.config.importance[-1])
        measured: Measured = {}
        for index in track(range(len(source.blocks)), "importance"):
            block = source.blocks[index]
            for group in _of_layer(source, index):
                weights = {m: m.of(m.matrix(block).weight.detach()).float() for m in group.members}
                channels = {m: _sum_across(m, weight.abs().pow(power)) for m, weight in weights.items()}
                measured[group.key] = self._combine(group, channels)
        return measured

    def _gradient_scores(self, source: Source) -> Measured:
        stream = source.stream

        def visit(index: int, block: Block, states: States, upstream: States) -> tuple[Measured, States]:
            groups = _of_layer(source, index)
            sums = BlockSaliency(self.config.importance, block, groups, len(stream))
            size = None if sums.first_order else 1
            below = stream.backward(block, states, upstream, sums.members, sums.add, size)
            return {group.key: self._combine(group, sums.channel_scores(group)) for group in groups}, below

        return source.backward("importance", visit)

    def _combine(self, group: Group, channel_scores: dict[Member, torch.Tensor]) -> torch.Tensor:
        """Query heads that share a key-value head are first summed to its channels, then members are combined."""
        shape = (group.units, -1, group.channels)
        members = torch.stack([channel_scores[member].view(shape).sum(1) for member in group.members])
        score = REDUCTIONS[self.config.reduction](members).sum(1)
        if not score.isfinite().all():
            raise UserError(f"{group}: importance is NaN or infinite; the checkpoint or its calibration loss is broken")
        return score


class BlockSaliency:
    """Sums of one block's gradients over batches; only those that `importance` needs are kept."""

    def __init__(self, importance: str, block: Block, groups: Sequence[Group], samples: int) -> None:
        self.block = block
        self._importance, self._samples = importance, samples
        self.members = [member for group in groups for member in group.members]
        """A matrix may be there twice, where one group owns its rows and another its columns."""
        self._gradient: dict[Member, torch.Tensor] = {}
        self._square: dict[Member, torch.Tensor] = {}

    @property
    def first_order(self) -> bool:
        """True if the gradient of the mean loss is all that is needed, whatever batches it comes in."""
        return self._importance in ("vectorize", "param_first")

    def add(self, gradients: dict[str, torch.Tensor]) -> None:
        """Take the gradients of a batch: of one sample, unless `first_order`."""
        for member in self.members:
            gradient = member.of(gradients[member.place])
            if self._importance == "param_second":  # linear in F: each sample's squares can be summed and forgotten
                weighted = (self._weight(member) * gradient.float()).square() * self._samples
                self._add(self._square, member, _sum_across(member, weighted))
                continue
            if self._importance == "param_mix":
                # A sample's share of the mean loss is 1/N, and F is the mean over N of squared whole gradients.
                self._add(self._square, member, gradient.float().square() * self._samples)
            self._add(self._gradient, member, gradient)

    def channel_scores(self, group: Group) -> dict[Member, torch.Tensor]:
        """Sums of the saliency over each row or column that a member may lose; what they came from is forgotten."""
        return {member: self._channel_score(member) for member in group.members}

    def _channel_score(self, member: Member) -> torch.Tensor:
        if self._importance == "param_second":
            return self._square.pop(member)
        weight = self._weight(member)
        saliency = weight * self._gradient.pop(member).float()
        if self._importance == "param_mix":
            saliency -= 0.5 * weight.square() * self._square.pop(member)
        if self._importance == "vectorize":
            return _sum_across(member, saliency).abs()
        return _sum_across(member, saliency.abs())

    def _weight(self, member: Member) -> torch.Tensor:
        return member.of(member.matrix(self.block).weight.detach()).float()

    @staticmethod
    def _add(sums: dict[Member, torch.Tensor], member: Member, value: torch.Tensor) -> None:
        """Keep the first batch as it is, since it may be the only one; add up further ones in float32."""
        sums[member] = sums[member].float() + value.float() if member in sums else value


def _of_layer(source: Source, index: int) -> list[Group]:
    return [group for group in source.groups if group.layer == index]


def _sum_across(member: Member, saliency: torch.Tensor) -> torch.Tensor:
    """(out, in) -> one sum for each row (axis 0) or column (axis 1)."""
    return saliency.sum(1 - member.axis)
