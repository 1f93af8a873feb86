"""Intervals and tests for success rates, and the interval of a mean over episodes.

Success over episodes is a binomial proportion, so it is reported with Wilson's interval. Two policies are run on the
same episodes, so they are compared as pairs: only episodes where exactly one of them succeeds carry information.
"""

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import scipy  # its parts are imported where they are first used; `scipy.stats` takes a second
from numpy.typing import ArrayLike

from rlrc.errors import UserError

FEWEST_FOR_MEDIAN = 6
"""Number of values from which the smallest and the largest bound their median with 95 %."""

MOST_EXACT_PAIRS = 10_000
"""Number of pairs up to which the power of the exact test is computed."""


class PairedDifference(NamedTuple):
    """`difference` = rate of b minus rate of a, with its interval; all are fractions in [-1, 1]."""

    difference: float
    low: float
    high: float


def wilson(successes: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a proportion (Wilson, JASA 22, 1927), without continuity correction.

    Raises:
        UserError: there are no trials.
    """
    if n == 0:
        raise UserError("a success rate needs at least one episode")
    interval = scipy.stats.binomtest(int(successes), int(n)).proportion_ci(confidence, method="wilson")
    return float(interval.low), float(interval.high)


def mcnemar(a: ArrayLike, b: ArrayLike) -> float:
    """Two-sided p-value of McNemar's exact test that a and b (n,) succeed equally often, paired episode by episode.

    Under the hypothesis each discordant pair is a fair coin (McNemar, Psychometrika 12, 1947; exact binomial form).

    Raises:
        UserError: a and b are not of the same, positive length.
    """
    only_a, only_b, _ = _discordant(a, b)
    return float(scipy.stats.binomtest(only_b, only_a + only_b).pvalue) if only_a + only_b else 1.0


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values adjusted so that all tests together err in at most the level's share of experiments.

    Holm, "A simple sequentially rejective multiple test procedure", Scandinavian Journal of Statistics 6, 1979.
    """
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda index: p_values[index])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def mcnemar_power(share_a: float, share_b: float, n: int, level: float = 0.05) -> float:
    """Probability that McNemar's exact test of n pairs finds a difference at `level`.

    Args:
        share_a: the share of pairs that only a wins; share_b: that only b wins.
    """
    discordant = np.arange(n + 1)
    largest = scipy.stats.binom.ppf(level / 2, discordant, 0.5)  # most wins of the lesser side that are still a find
    largest -= scipy.stats.binom.cdf(largest, discordant, 0.5) > level / 2
    share = share_a + share_b
    found = scipy.stats.binom.cdf(largest, discordant, share_b / share) + scipy.stats.binom.cdf(
        largest, discordant, share_a / share
    )
    return float(scipy.stats.binom.pmf(discordant, n, share) @ found)


def pairs_needed(share_a: float, share_b: float, power: float = 0.8, level: float = 0.05) -> int | None:
    """The number of pairs with which McNemar's exact test finds a difference at `level` in `power` of the experiments.

    It begins at the number for the asymptotic test (Connor, "Sample size for testing differences in proportions for
    the paired-sample design", Biometrics 43, 1987), and goes on to the first where the exact test has the power; from
    10,000 pairs on the two agree.

    Args:
        share_a: the share of pairs that only a wins; share_b: that only b wins.

    Returns:
        None where the shares are equal, since there is no difference to find.
    """
    difference, share = share_b - share_a, share_a + share_b
    if not difference:
        return None
    spread = math.sqrt(share - difference**2)
    root = float(scipy.stats.norm.isf(level / 2)) * math.sqrt(share) + float(scipy.stats.norm.isf(1 - power)) * spread
    asymptotic = math.ceil((root / difference) ** 2)
    if asymptotic > MOST_EXACT_PAIRS:
        return asymptotic
    candidates = range(asymptotic, 2 * asymptotic + 20)
    return candidates[bisect_left(candidates, power, key=lambda n: mcnemar_power(share_a, share_b, n, level))]


def paired_difference(a: ArrayLike, b: ArrayLike, confidence: float = 0.95) -> PairedDifference:
    """Success rate of b minus that of a, both (n,) bool over the same episodes, with Tango's score interval.

    Tango, "Equivalence test and confidence interval for the difference in proportions for the paired-sample design",
    Statistics in Medicine 17, 1998. Unlike Wald's it keeps its coverage with few or no discordant pairs.

    Raises:
        UserError: a and b are not of the same, positive length.
    """
    only_a, only_b, n = _discordant(a, b)
    z = float(scipy.stats.norm.ppf((1 + confidence) / 2))
    difference = (only_b - only_a) / n

    def excess(delta: float, sign: int) -> float:
        return sign * _tango_score(only_a, only_b, n, delta) - z

    edge = 1 - 1e-12  # at +-1 itself the score divides by zero
    low = scipy.optimize.brentq(excess, -edge, difference, args=(1,)) if excess(-edge, 1) > 0 else -1.0
    high = scipy.optimize.brentq(excess, difference, edge, args=(-1,)) if excess(edge, -1) > 0 else 1.0
    return PairedDifference(difference, low, high)


def paired_lower_bound(a: ArrayLike, b: ArrayLike, confidence: float = 0.95) -> float:
    """One-sided lower bound of b's rate minus a's: b loses less than this much (non-inferiority) at `confidence`."""
    return paired_difference(a, b, 2 * confidence - 1).low


@dataclass(frozen=True)
class ClusterMean:
    """A mean with its 95 % interval, which is None where there is a single cluster."""

    mean: float
    low: float | None
    high: float | None


def cluster_mean(values: ArrayLike, clusters: ArrayLike, seed: int = 0, draws: int = 2000) -> ClusterMean:
    """The mean of values (n,) with its percentile interval by the bootstrap over clusters (n,), such as episodes.

    Whole clusters are drawn with replacement, since what lies within one is no independent evidence (Davison and
    Hinkley, Bootstrap Methods and their Application, 1997, section 3.8). A draw's mean is over its values.

    Raises:
        UserError: there are no values.
    """
    values = np.asarray(values, np.float64)
    names, number = np.unique(np.asarray(clusters), return_inverse=True)
    if not len(values):
        raise UserError("a mean needs at least one value")
    sums, counts = np.bincount(number, values), np.bincount(number)
    mean = float(values.mean())
    if len(names) == 1:
        return ClusterMean(mean, None, None)
    drawn = np.random.default_rng(seed).multinomial(len(names), np.full(len(names), 1 / len(names)), draws)
    low, high = np.quantile((drawn @ sums) / (drawn @ counts), [0.025, 0.975])
    return ClusterMean(mean, float(low), float(high))


def median_interval(values: Sequence[float]) -> list[float]:
    """The 95 % interval of the median of values (n,), [low, high], whatever their distribution.

    Its bounds are the values at equal ranks from both ends, the closest for which the median lies outside of either
    with a probability of at most 2.5 % (order statistics: Conover, Practical Nonparametric Statistics, 1999, section
    3.2). The bootstrap's percentiles are too close where values are few: with seven they cover 87.5 %.

    Raises:
        UserError: there are fewer than FEWEST_FOR_MEDIAN values, of which no two bound the median that surely.
    """
    if len(values) < FEWEST_FOR_MEDIAN:
        raise UserError(f"the interval of a median needs {FEWEST_FOR_MEDIAN} values or more, not {len(values)}")
    outside = int(scipy.stats.binom.ppf(0.025, len(values), 0.5)) - 1
    ordered = sorted(values)
    return [ordered[outside], ordered[-1 - outside]]


def _discordant(a: ArrayLike, b: ArrayLike) -> tuple[int, int, int]:
    """Return how many pairs only a wins, how many only b wins, and how many pairs there are."""
    a, b = np.asarray(a, bool), np.asarray(b, bool)
    if a.shape != b.shape or a.ndim != 1 or a.size == 0:
        raise UserError(f"paired comparison needs the same episodes on both sides, got shapes {a.shape} and {b.shape}")
    return int((a & ~b).sum()), int((~a & b).sum()), a.size


def _tango_score(only_a: int, only_b: int, n: int, delta: float) -> float:
    """Standardised distance of the observed difference from `delta`, at the nuisance parameter's restricted MLE."""
    linear = -only_a - only_b + (2 * n - only_b + only_a) * delta
    constant = -only_a * delta * (1 - delta)
    q = (math.sqrt(max(linear**2 - 8 * n * constant, 0.0)) - linear) / (4 * n)
    variance = n * (2 * q + delta * (1 - delta))
    distance = only_b - only_a - n * delta
    return distance / math.sqrt(variance) if variance > 0 else math.copysign(math.inf, distance) if distance else 0.0
