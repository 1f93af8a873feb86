"""Depth removal: whole decoder layers go.

By default those go that change their input least: their block influence (ShortGPT, Men et al., arXiv 2403.03853) is
1 - mean cosine between what enters a layer and what leaves it. Or all go but an explicit list, such as {0, 31} of
OpenVLA-OFT's 32 (Drop-then-recover, arXiv 2606.27755). Where an action expert has a layer of the same number, that goes
with it, and the influence is the mean of both.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from rlrc.configs.prune import Depth
from rlrc.errors import UserError
from rlrc.policies.groups import Block, Group
from rlrc.policies.values import States
from rlrc.prune.measured import Measured
from rlrc.prune.method import Plan, PruningMethod, Source, Target, refuse_overall


class DepthMethod(PruningMethod[Depth]):
    """Depth removal: whole layers by their influence, or all but a list."""

    def check(self, groups: Sequence[Group], layers: int, target: Target) -> None:
        refuse_overall(target, self.config.kind)
        for index in self.config.keep:
            if not -layers <= index < layers:
                raise UserError(f"keep: there is no decoder layer {index}, they are numbered 0 to {layers - 1}")
        if not self.config.keep:
            self._count(layers, target)
        elif gone := target.protected - {index % layers for index in self.config.keep}:
            raise UserError(f"protect: layer {min(gone)} is not among the layers that keep names; name it there too")

    def measure(self, source: Source) -> Measured:
        """Influence of each layer; nothing where a list says what stays."""
        if self.config.keep:
            return {}
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
            influence = torch.stack([measured[str(index)] for index in range(layers)])
            influence[list(target.protected)] = torch.inf
            stay = set(influence.argsort(stable=True)[self._count(layers, target) :].tolist())
        kept = tuple(sorted(stay))
        return Plan(kept, _unchanged, kept={"layers": list(kept)})

    def _count(self, layers: int, target: Target) -> int:
        """Return the number of layers that go."""
        assert target.ratio is not None
        count = int(layers * target.ratio + 1e-9)
        free = layers - len(target.protected)
        if count >= layers or count > free:
            most = min(free, layers - 1)
            raise UserError(
                f"depth: a ratio of {target.ratio:g} takes {count} of {layers} layers; {most} is the most that can go"
            )
        return count


def _unchanged(index: int, block: Block) -> None:
    """Leave a block as it is, as all that stay are."""
