"""FLAP (An et al., arXiv 2312.11983, and its published code): what fluctuates little is replaced by its mean.

Measured are the inputs X of o_proj and down_proj. With `fluctuation` the running sum of squared deviations from the
running mean, as the published code updates it sample by sample (its mean is already the new one, and the first sample
adds nothing), a channel's metric is

    IFV    fluctuation_j
    WIFV   fluctuation_j * ||W_:j||^2
    WIFN   mean over i of |W_ij| * ||X_j||

and that of o_proj is squared. AL-AM standardises the metrics of each layer and ranks all heads and channels together,
where a head costs as much as the channels that its parameters would make. UL-UM keeps the best of each layer. What the
lost inputs added on average becomes a bias.
"""

from collections.abc import Sequence

import torch

from rlrc.configs.prune import Flap
from rlrc.errors import Impossible
from rlrc.policies.groups import Block, Group
from rlrc.policies.values import States
from rlrc.progress import say
from rlrc.prune.allocate import share_of_free
from rlrc.prune.measured import Measured
from rlrc.prune.method import Plan, PruningMethod, Source, Target
from rlrc.prune.stream import inputs_of
from rlrc.prune.structured import Means, plan_cut


class FlapMethod(PruningMethod[Flap]):
    """FLAP: fluctuation-based, with bias compensation."""

    def check(self, groups: Sequence[Group], layers: int, target: Target) -> None:
        _ratio([group for group in groups if group.layer not in target.protected], groups, target)
        for group in groups:
            if [member.axis for member in group.members].count(1) != 1 or not group.members[-1].is_output:
                raise Impossible(
                    f"{group}: FLAP looks at one output matrix a unit, and this one has others; choose another method"
                )

    def measure(self, source: Source) -> Measured:
        """Measure by layer and kind of unit `mean` and `metric` of the inputs of o_proj or down_proj, each (width,)."""
        stream = source.stream

        def visit(index: int, block: Block, states: States) -> tuple[Measured, States]:
            outputs = {group.members[-1]: group for group in source.groups if group.layer == index}
            sums = {output: RunningSums(stream.calibration.there[output.stack]) for output in outputs}
            with inputs_of(block, {output: running.add for output, running in sums.items()}):
                states = stream.step(block, states)
            measured = {}
            for output, group in outputs.items():
                weight = output.matrix(block).weight.detach().float()
                measured[f"{group.key}.mean"] = sums[output].mean
                measured[f"{group.key}.metric"] = self._metric(weight, sums[output])
            return measured, states

        return source.forward("fluctuation", visit)

    def plan(self, measured: Measured, groups: Sequence[Group], layers: int, target: Target) -> Plan:
        free = [group for group in groups if group.layer not in target.protected]
        ratio = _ratio(free, groups, target)
        rank = _rank_everything if self.config.structure == "AL-AM" else _rank_each
        chosen = dict(zip(free, rank(free, measured, ratio), strict=True))
        kept = []
        for group in groups:
            if group not in chosen:
                kept.append(torch.arange(group.units))
                continue
            units = chosen[group]
            if not len(units):
                best = _unit_metric(group, measured).argmax()
                say(f"{group}: none would stay; the best one does")
                units = best[None]
            wanted = target.rounding(group, len(units))
            if wanted not in (0, len(units)):
                units = _unit_metric(group, measured).argsort(descending=True)[:wanted].sort().values
            kept.append(units)
        means: Means | None = None
        if self.config.bias_compensation:
            means = {group.key: measured[f"{group.key}.mean"] for group in groups}
        return plan_cut(layers, groups, kept, means)

    def _metric(self, weight: torch.Tensor, sums: "RunningSums") -> torch.Tensor:
        if self.config.metric == "WIFN":
            return (weight.abs() * sums.square.sqrt()).mean(dim=0)
        return sums.fluctuation * weight.square().sum(dim=0) if self.config.metric == "WIFV" else sums.fluctuation


class RunningSums:
    """Statistics of a matrix's inputs over samples, updated in the published code's order; padding is left out."""

    def __init__(self, mask: torch.Tensor) -> None:
        self._mask = mask
        self.count = 0
        self.mean = torch.zeros(())
        self.fluctuation = torch.zeros(())
        self.square = torch.zeros(())

    def add(self, inputs: torch.Tensor) -> None:
        """Inputs (n, T, width) of the next samples."""
        for sample in inputs:
            n = self.count
            tokens = sample[self._mask[n]].float()
            self.mean = self.mean * (n / (n + 1)) + tokens.mean(dim=0) / (n + 1)
            self.square = self.square * (n / (n + 1)) + tokens.square().sum(dim=0) / (n + 1)
            added = (tokens - self.mean).square().sum(dim=0) / (n + 1)
            self.fluctuation = self.fluctuation * ((n - 1) / n) + added if n else torch.zeros_like(added)
            self.count += 1


def _ratio(free: Sequence[Group], groups: Sequence[Group], target: Target) -> float:
    ratio = target.ratio
    if target.overall is not None:
        ratio = share_of_free(target.overall, groups, free)
    assert ratio is not None
    if ratio >= 1:
        raise Impossible(f"FLAP: a ratio of {ratio:g} leaves nothing; ask for less than 1")
    return ratio


def _channel_metric(group: Group, measured: Measured) -> torch.Tensor:
    metric = measured[f"{group.key}.metric"]
    return metric.square() if group.kind == "heads" else metric


def _unit_metric(group: Group, measured: Measured) -> torch.Tensor:
    return _channel_metric(group, measured).view(group.units, -1).sum(dim=1)


def _rank_everything(groups: Sequence[Group], measured: Measured, ratio: float) -> list[torch.Tensor]:
    """AL-AM: metrics are standardised within each layer, and all units of all layers share one threshold."""
    scores = []
    for group in groups:
        metric = _channel_metric(group, measured)
        spread = metric.std(correction=min(1, len(metric) - 1))
        standardised = (metric - metric.mean()) / spread if spread > 0 else torch.zeros_like(metric)
        scores.append(standardised.view(group.units, -1).mean(dim=1))
    pool, order = torch.cat(scores).sort(descending=True)
    cost = torch.cat([torch.full((group.units,), _cost(group, groups)) for group in groups])[order]
    running = cost.cumsum(0).double()
    threshold = pool[(running - running[-1] * (1 - ratio)).abs().argmin()] if ratio else -torch.inf
    return [(score > threshold).nonzero().flatten() for score in scores]


def _cost(group: Group, groups: Sequence[Group]) -> int:
    """Cost of a unit in MLP channels; the published code drops the fraction of a head's (512/3 becomes 170). Where
    channels have several sizes, as those of two stacks, it is the unit's parameters."""
    channels = {other.unit_parameters for other in groups if other.kind == "channels"}
    return group.unit_parameters if len(channels) > 1 else group.unit_parameters // min(channels)


def _rank_each(groups: Sequence[Group], measured: Measured, ratio: float) -> list[torch.Tensor]:
    """UL-UM: in each layer stays what is not below the unit at the place `ratio` of the ranking."""
    kept = []
    for group in groups:
        score = _unit_metric(group, measured)
        kept.append((score >= score.sort().values[int(ratio * group.units)]).nonzero().flatten())
    return kept
