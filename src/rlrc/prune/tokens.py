"""Fewer tokens of each picture, so that the language model reads less (`policies/parts/tokens.py`)."""

import math
from collections.abc import Sequence

from rlrc.configs.prune import Tokens
from rlrc.errors import Impossible
from rlrc.policies.groups import Group
from rlrc.policies.parts.schema import IN_WINDOWS, windows_make
from rlrc.policies.parts.tokens import TokenReduction
from rlrc.prune.measured import Measured
from rlrc.prune.method import Plan, PruningMethod, Source, Target, refuse_overall, unchanged


class TokensMethod(PruningMethod[Tokens]):
    """Fewer tokens of each picture."""

    def announcement(self, groups: Sequence[Group], target: Target) -> str:
        return f"a picture becomes {target.tokens} tokens"

    def check(self, groups: Sequence[Group], layers: int, target: Target) -> None:
        refuse_overall(target, self.config.kind)

    def measure(self, source: Source) -> Measured:
        return {}

    def plan(self, measured: Measured, groups: Sequence[Group], layers: int, target: Target) -> Plan:
        assert target.ratio is not None
        count = self._count(target.tokens, target.ratio)
        kept = {"tokens_before": target.tokens, "tokens": count}
        return Plan(tuple(range(layers)), unchanged, kept=kept, tokens=TokenReduction(self.config.by, count))

    def _count(self, tokens: int, ratio: float) -> int:
        """Return how many of a picture's tokens stay.

        Raises:
            UserError: none or all do, or no windows make as many.
        """
        count = round(tokens * (1 - ratio))
        if not 0 < count < tokens:
            raise Impossible(f"tokens: a ratio of {ratio:g} {'takes' if count else 'leaves'} none of {tokens}")
        if self.config.by not in IN_WINDOWS or windows_make(tokens, count):
            return count
        side = math.isqrt(tokens)
        if side**2 != tokens:
            raise Impossible(f"tokens: {tokens} tokens are no square, which windows need; merge or select them instead")
        ratios = ", ".join(f"{1 - 1 / by**2:.4g}" for by in range(2, side + 1) if side % by == 0)
        raise Impossible(f"tokens: windows of {side} x {side} tokens take a ratio of {ratios}, and not {ratio:g}")
