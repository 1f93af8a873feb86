"""The choice that meets a budget and lets the loss rise least: one choice for each side, by integer programming."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp

from rlrc.fit.costs import Cost, Costs, behind
from rlrc.fit.versions import WHOLE, Choice
from rlrc.policies.groups import VISION
from rlrc.sensitivity.variants import LAYERS, TOKENS, Kind, Variant

FASTER = 1e-6
"""Rise of the loss that the whole time of the dense policy is worth, so that of equal choices the fastest is taken."""


@dataclass(frozen=True)
class Answer:
    """The chosen versions of both sides."""

    vision: Choice
    language: Choice
    rise: float
    """Sum of the rises of the loss that each of their parts causes alone."""


def solve(
    costs: Costs, rises: Mapping[Variant, float], bits: Sequence[int], most_ms: float, most_bytes: float
) -> Answer | None:
    """Find the best choice; None where no choice meets the budget.

    The rise of the loss adds up over what is chosen. With more of the same it never falls: what was measured at a
    smaller share holds at least at a larger one. All that is packed has the same number of bits, as in `quantize`.
    """
    answers = []
    levels = dict.fromkeys(choice.tokens for choice in costs.language)
    for number, tokens in itertools.product((WHOLE, *bits), levels):
        # The projector's time depends on both sides, and on nothing else of language than its tokens.
        vision = {
            choice: Cost(cost.ms + costs.projector[behind(choice, Choice(tokens=tokens))], cost.bytes)
            for choice, cost in costs.vision.items()
            if choice.bits in (WHOLE, number)
        }
        language = {
            choice: cost
            for choice, cost in costs.language.items()
            if choice.bits in (WHOLE, number) and choice.tokens == tokens
        }
        losses = [
            [rise_of(choice, part, rises) for choice in side] for side, part in ((vision, VISION), (language, LAYERS))
        ]
        found = _solve((vision, language), losses, most_ms - costs.rest_ms, most_bytes)
        if found is not None:
            answers.append(found)
    return min(answers, key=lambda each: (each.rise, costs.ms(each.vision, each.language)), default=None)


def rise_of(choice: Choice, part: str, rises: Mapping[Variant, float]) -> float:
    """The sum of the rises of one side's choices."""

    def largest(where: str, kind: Kind, counts: Callable[[float], bool]) -> float:
        """The largest of those measured at degrees that count; nothing where all are below zero."""
        measured = [
            rise for each, rise in rises.items() if (each.part, each.kind) == (where, kind) and counts(each.degree)
        ]
        return max([0.0, *measured])

    return (
        largest(part, "width", lambda degree: degree <= choice.width)
        + largest(part, "depth", lambda degree: degree <= choice.depth)
        + largest(TOKENS, "tokens", lambda degree: degree <= choice.tokens)
        + largest(part, "tower", lambda degree: degree == choice.tower)
        + largest(part, "bits", lambda degree: choice.bits <= degree)
    )


def _solve(
    sides: Sequence[Mapping[Choice, Cost]], losses: Sequence[Sequence[float]], most_ms: float, most_bytes: float
) -> Answer | None:
    """A binary variable for each choice, of which one a side is taken."""
    cost = [each for side in sides for each in side.values()]
    ms, size = np.array([each.ms for each in cost]), np.array([float(each.bytes) for each in cost])
    loss = np.array([each for side in losses for each in side])
    first = np.arange(len(cost)) < len(sides[0])
    rules = [LinearConstraint(side.astype(float), 1, 1) for side in (first, ~first)]
    rules += [
        LinearConstraint(amount / limit, ub=1)
        for amount, limit in ((ms, most_ms), (size, most_bytes))
        if np.isfinite(limit)
    ]
    if most_ms <= 0:
        return None
    objective = loss + FASTER * ms / ms.max()
    exactly = {"mip_rel_gap": 0}
    result = milp(objective, integrality=np.ones(len(cost)), bounds=Bounds(0, 1), constraints=rules, options=exactly)
    if not result.success:
        return None
    taken = [list(side)[int(np.argmax(result.x[mask]))] for side, mask in zip(sides, (first, ~first), strict=True)]
    rise = float(loss[result.x > 0.5].sum())
    return Answer(taken[0], taken[1], rise)
