"""Depth removal: whole decoder layers go.

By default those go that change their input least: their block influence (ShortGPT, Men et al., arXiv 2403.03853) is
1 - mean cosine between what enters a layer and what leaves it. Or those go that matter least to the loss of the
demonstrated actions: a virtual gate g = 1 stands before what a layer adds, x + g (f(x) - x), and the layer's score is
the mean over samples of |d loss / d g|, from one backward pass (after GateProbe in Drop-Then-Recovery, arXiv
2606.27755). Or all go but an explicit list, such as {0, 31} of OpenVLA-OFT's 32, as there. Where an action expert has a
layer of the same number, that goes with it; the influence is the mean of both, and one gate stands before both.
"""

from collections import Counter
from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F

from rlrc.configs.prune import Depth
from rlrc.errors import Impossible, UserError
from rlrc.policies.groups import Block, Group
from rlrc.policies.values import States
from rlrc.prune.measured import Measured
from rlrc.prune.method import Plan, PruningMethod, Source, Target, refuse_overall, unchanged


class DepthMethod(PruningMethod[Depth]):
    """Depth removal: whole layers by their influence, or all but a list."""

    def check(self, groups: Sequence[Group], layers: int, target: Target) -> None:
        refuse_overall(target, self.config.kind)
        for index in self.config.keep:
            if not -layers <= index < layers:
                raise UserError(f"keep: there is no layer {index}, they are numbered 0 to {layers - 1}")
        if not self.config.keep:
            self._count(groups, layers, target)
        elif gone := target.protected - {index % layers for index in self.config.keep}:
            raise UserError(f"protect: layer {min(gone)} is not among the layers that keep names; name it there too")

    def measure(self, source: Source) -> Measured:
        """Score of each layer; nothing where a list says what stays."""
        if self.config.keep:
            return {}
        return self._influences(source) if self.config.rank == "influence" else _gates(source)

    def _influences(self, source: Source) -> Measured:
        stream = source.stream
        there = stream.calibration.there

        def visit(index: int, block: Block, states: States) -> tuple[Measured, States]:
            after = stream.step(block, states)
            cosines = [
                F.cosine_similarity(hidden[there[stack]].float(), after[stack][there[stack]].float(), dim=-1).mean()
                for stack, hidden in states.items()
            ]
            return {str(index): 1 - torch.stack(cosines).mean()}, after

        return source.forward("influence", visit)

    def plan(self, measured: Measured, groups: Sequence[Group], layers: int, target: Target) -> Plan:
        if self.config.keep:
            stay = {index % layers for index in self.config.keep}
        else:
            scores = torch.stack([measured[str(index)] for index in range(layers)])
            free = self._free(groups, layers, target, scores.argsort(stable=True).tolist())
            stay = set(range(layers)) - set(free[: self._count(groups, layers, target)])
        kept = tuple(sorted(stay))
        return Plan(kept, unchanged, kept={"layers": list(kept)})

    def _count(self, groups: Sequence[Group], layers: int, target: Target) -> int:
        """Return the number of layers that go."""
        assert target.ratio is not None
        count = int(layers * target.ratio + 1e-9)
        if not count:
            raise Impossible(f"depth: a ratio of {target.ratio:g} takes none of {layers} layers")
        most = len(self._free(groups, layers, target, range(layers)))
        if count > most:
            raise Impossible(
                f"depth: a ratio of {target.ratio:g} takes {count} of {layers} layers; {most} is the most that can go"
            )
        return count

    def _free(self, groups: Sequence[Group], layers: int, target: Target, order: Iterable[int]) -> list[int]:
        """Those layers, in this order, that may go: none that is protected, and of no stack the last one that stays."""
        stacks = {index: {group.stack for group in groups if group.layer == index} for index in range(layers)}
        left = Counter(stack for those in stacks.values() for stack in those)
        free = []
        for index in order:
            if index not in target.protected and all(left[stack] > 1 for stack in stacks[index]):
                free.append(index)
                left.subtract(stacks[index])
        return free


def _gates(source: Source) -> Measured:
    stream = source.stream

    def visit(index: int, block: Block, states: States, upstream: States) -> tuple[Measured, States]:
        after = stream.step(block, states)
        pushes = [(upstream[stack].float() * (after[stack] - hidden)).sum((1, 2)) for stack, hidden in states.items()]
        slopes = torch.stack(pushes).sum(0)
        below = stream.backward(block, states, upstream)
        # `upstream` is of the mean loss: a sample's share of it is 1/N of its own slope.
        return {str(index): slopes.abs().sum()}, below

    return source.backward("gates", visit)
