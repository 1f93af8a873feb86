"""One vision tower in place of two: the other one goes as a whole, and its mean features stay as a bias.

The mean is over the patches of all calibration frames' pictures, as the layer that reads both towers' features sees
them (`policies/parts/towers.py`): behind pooling or merging of tokens where there is any. A policy that merges tokens
compares from then on what the tower that stays sees of them.
"""

from collections.abc import Sequence

import torch

from rlrc.configs.prune import Tower
from rlrc.policies.groups import Group
from rlrc.policies.parts.towers import OneTower
from rlrc.prune.measured import Measured
from rlrc.prune.method import Plan, PruningMethod, Source, Target, unchanged


class TowerMethod(PruningMethod[Tower]):
    """One vision tower in place of two."""

    def announcement(self, groups: Sequence[Group], target: Target) -> str:
        assert target.towers is not None
        kept = self.config.keep
        stays, goes = (f"{target.towers.prefixes[n]} ({target.towers.widths[n]:,} features)" for n in (kept, 1 - kept))
        return f"{stays} stays, {goes} goes"

    def measure(self, source: Source) -> Measured:
        """Measure `mean`, the mean features (width,) of the tower that goes; nothing where nothing is to stay of it."""
        if not self.config.bias_compensation:
            return {}
        frames, towers = source.frames, source.target.towers
        assert frames is not None and towers is not None
        columns, sums = towers.columns(1 - self.config.keep), []
        counts: list[int] = []

        def see(module: torch.nn.Module, args: tuple[torch.Tensor]) -> None:
            features = args[0][..., columns].flatten(0, -2)
            sums.append(features.double().sum(0))
            counts.append(len(features))

        handle = frames.policy.model.get_submodule(towers.reader).register_forward_pre_hook(see)
        try:
            frames.embed(frames.observation)
        finally:
            handle.remove()
        return {"mean": (torch.stack(sums).sum(0) / sum(counts)).float()}

    def plan(self, measured: Measured, groups: Sequence[Group], layers: int, target: Target) -> Plan:
        assert target.towers is not None
        tower = OneTower(target.towers, self.config.keep, measured.get("mean"))
        return Plan(tuple(range(layers)), unchanged, kept={"tower": self.config.keep}, tower=tower)
