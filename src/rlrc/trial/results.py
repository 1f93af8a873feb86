"""What the trials show: success rates with intervals, paired tests, and how many more trials a question needs."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import combinations
from statistics import median
from typing import Any

from rlrc.episodes import Comparison, Rate
from rlrc.report.summary import format_comparison
from rlrc.stats import holm, pairs_needed
from rlrc.tables import human_seconds
from rlrc.trial.plan import Plan
from rlrc.trial.records import Look, Records

LEVEL, POWER = 0.05, 0.8
"""Level of the tests, and the probability with which a planned experiment finds the difference."""

Table = tuple[list[str], list[list[str]]]


@dataclass(frozen=True)
class PolicyResult:
    """This is what one policy did."""

    name: str
    rate: Rate | None
    """Success of the trials that count; None where there are none."""
    void: int
    """Attempts that do not count."""
    seconds: float | None
    """Median duration of the trials that count."""


@dataclass(frozen=True)
class Pair:
    """Two policies compared over the blocks in which both have a trial that counts."""

    first: str
    second: str
    only_first: int
    """Number of blocks in which the first policy alone succeeded."""
    only_second: int
    comparison: Comparison
    """The second policy's success minus the first one's."""
    p_adjusted: float
    """The p-value after Holm's correction for the number of pairs."""
    blocks_needed: int | None
    """Number of blocks with which the difference, if it is as large as it was seen, is found with a probability of
    80 %; None where no difference was seen."""

    @property
    def is_found(self) -> bool:
        """Whether the test tells the two apart."""
        return self.p_adjusted < LEVEL

    @property
    def told_needed(self) -> str:
        """Return how many more trials the question needs."""
        if self.is_found:
            return "none, the difference is found"
        if self.blocks_needed is None:
            return "unknown, no difference was seen"
        return f"about {max(self.blocks_needed - self.comparison.n, 1):,} more of each policy"


@dataclass(frozen=True)
class Results:
    """Everything that is told at the end, or at a look before it."""

    plan: Plan
    finished: bool
    counted: int
    policies: list[PolicyResult]
    pairs: list[Pair]
    looks: list[Look]
    trials: list[dict[str, Any]]
    """Every attempt with its scene, its block and its policy, in the order in which they were played."""

    def to_json(self) -> dict[str, Any]:
        return {
            "finished": self.finished,
            "trials": len(self.plan.trials),
            "counted": self.counted,
            "seed": self.plan.seed,
            "looks": [look.model_dump() for look in self.looks],
            "policies": [asdict(policy) for policy in self.policies],
            "pairs": [asdict(pair) for pair in self.pairs],
            "attempts": self.trials,
        }


def evaluate(plan: Plan, records: Records) -> Results:
    """Count and compare what there is."""
    played = [
        {**plan.trials[attempt.trial].model_dump(), **attempt.model_dump(exclude={"trial"})}
        for attempt in records.attempts
    ]
    pairs = list(_pairs(plan, records))
    adjusted = holm([comparison.p for *_, comparison in pairs])
    return Results(
        plan=plan,
        finished=records.due() is None,
        counted=records.counted,
        policies=[_policy(name, played) for name in plan.policies],
        pairs=[_pair(*pair, p, len(pairs)) for pair, p in zip(pairs, adjusted, strict=True)],
        looks=records.looks,
        trials=played,
    )


def policy_table(results: Results) -> Table:
    """The success of every policy."""
    head = ["policy", "success", "trials", "void", "median time"]
    body = [
        [
            policy.name,
            "" if policy.rate is None else str(policy.rate),
            "0" if policy.rate is None else f"{policy.rate.successes} of {policy.rate.n}",
            str(policy.void),
            "" if policy.seconds is None else human_seconds(policy.seconds),
        ]
        for policy in results.policies
    ]
    return head, body


def pair_table(results: Results) -> Table:
    """Every two policies, compared block by block."""
    head = ["compared", "difference in points", "blocks", "only one succeeded", "more trials needed"]
    several = len(results.pairs) > 1
    if several:
        head.insert(2, "p of Holm")
    body = []
    for pair in results.pairs:
        only = f"{pair.first} {pair.only_first}, {pair.second} {pair.only_second}"
        cells = [f"{pair.second} - {pair.first}", format_comparison(pair.comparison)]
        cells += [f"{pair.p_adjusted:.3f}"] if several else []
        body.append([*cells, str(pair.comparison.n), only, pair.told_needed])
    return head, body


def _policy(name: str, played: list[dict[str, Any]]) -> PolicyResult:
    own = [attempt for attempt in played if attempt["policy"] == name]
    counted = [attempt for attempt in own if attempt["outcome"] != "void"]
    successes = sum(attempt["outcome"] == "success" for attempt in counted)
    return PolicyResult(
        name,
        Rate.of(successes, len(counted)) if counted else None,
        len(own) - len(counted),
        median(attempt["seconds"] for attempt in counted) if counted else None,
    )


def _pairs(plan: Plan, records: Records) -> Iterator[tuple[str, str, int, int, Comparison]]:
    """Each two policies that have a block in common, with how often only one of them succeeded."""
    by_block: dict[int, dict[str, bool]] = {}
    for number, trial in enumerate(plan.trials):
        if (outcome := records.outcome(number)) is not None:
            by_block.setdefault(trial.block, {})[trial.policy] = outcome
    for first, second in combinations(plan.policies, 2):
        both = [(block[first], block[second]) for block in by_block.values() if first in block and second in block]
        if both:
            a, b = zip(*both, strict=True)
            only_first, only_second = both.count((True, False)), both.count((False, True))
            yield first, second, only_first, only_second, Comparison.of(b, a)


def _pair(
    first: str, second: str, only_first: int, only_second: int, comparison: Comparison, p: float, pairs: int
) -> Pair:
    n = comparison.n
    # The strictest level of Holm's procedure, as no experiment yet knows the rank of its p-values.
    needed = pairs_needed(only_first / n, only_second / n, POWER, LEVEL / pairs)
    return Pair(first, second, only_first, only_second, comparison, p, needed)
