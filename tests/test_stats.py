"""Intervals and tests against published tables, defining equations and enumeration."""

import itertools
import math

import numpy as np
import pytest
from scipy.optimize import minimize_scalar

from rlrc.errors import UserError
from rlrc.stats import (
    holm,
    mcnemar,
    mcnemar_power,
    median_interval,
    paired_difference,
    paired_lower_bound,
    pairs_needed,
    wilson,
)


def outcomes(both: int, only_a: int, only_b: int, neither: int) -> tuple[np.ndarray, np.ndarray]:
    counts = [both, only_a, only_b, neither]
    return np.repeat([True, True, False, False], counts), np.repeat([True, False, True, False], counts)


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_as_published(successes: int, n: int, low: float, high: float) -> None:
    """Newcombe, Statistics in Medicine 17 (1998) 857, table I, method 3."""
    assert wilson(successes, n) == pytest.approx((low, high), abs=5e-5)


def test_wilson_narrows_with_less_confidence() -> None:
    assert wilson(30, 100, 0.5)[0] > wilson(30, 100, 0.95)[0]


def test_mcnemar_by_enumeration() -> None:
    """Every way in which the discordant pairs could have fallen, those no likelier than what was seen added up."""
    only_a, only_b = 3, 9
    falls = [sum(fall) for fall in itertools.product([0, 1], repeat=only_a + only_b)]
    times = {wins: falls.count(wins) for wins in set(falls)}
    expected = sum(number for number in times.values() if number <= times[only_b]) / len(falls)
    assert mcnemar(*outcomes(20, only_a, only_b, 7)) == pytest.approx(expected)


def test_mcnemar_as_published() -> None:
    """Bentur et al. 2009, in Fagerland, Lydersen & Laake, BMC Med. Res. Methodol. 13:91 (2013): exact, p = 0.0703."""
    assert mcnemar(*outcomes(1, 1, 7, 12)) == pytest.approx(0.0703, abs=5e-5)


def test_mcnemar_without_discordant_pairs_tells_nothing() -> None:
    assert mcnemar(*outcomes(5, 0, 0, 5)) == 1.0


def test_paired_difference_as_published() -> None:
    """The same data: Tango's interval is 0.026 to 0.517 (Fagerland et al., Statistics in Medicine 33 (2014) 2850)."""
    assert paired_difference(*outcomes(1, 1, 7, 12)) == pytest.approx((6 / 21, 0.026, 0.517), abs=5e-4)


@pytest.mark.parametrize("table", [(40, 3, 11, 46), (90, 1, 0, 9), (3, 12, 2, 3), (0, 5, 1, 0)])
def test_paired_difference_inverts_the_score_test(table: tuple[int, int, int, int]) -> None:
    """At both ends the score statistic is z, with the nuisance parameter found by maximising the likelihood."""
    _, only_a, only_b, _ = table
    n = sum(table)
    interval = paired_difference(*outcomes(*table))
    for delta in interval[1:]:
        if abs(delta) == 1:
            continue

        def unlikelihood(p: float, delta: float = delta) -> float:
            counts = [only_a, only_b, n - only_a - only_b]
            rates = [p, p + delta, 1 - 2 * p - delta]
            return -sum(count * math.log(max(rate, 1e-300)) for count, rate in zip(counts, rates, strict=True))

        bounds = (max(0.0, -delta), (1 - delta) / 2)
        p = minimize_scalar(unlikelihood, bounds=bounds, method="bounded", options={"xatol": 1e-12}).x
        score = (only_b - only_a - n * delta) / math.sqrt(n * (2 * p + delta - delta**2))
        assert abs(score) == pytest.approx(1.959964, abs=2e-3)


def test_paired_difference_without_discordant_pairs() -> None:
    """The score equation then has a closed form, +-z^2 / (n + z^2), where Wald's interval would have no width."""
    difference, low, high = paired_difference(*outcomes(50, 0, 0, 14))
    z2 = 1.959964**2
    assert (difference, low, high) == pytest.approx((0, -z2 / (64 + z2), z2 / (64 + z2)), abs=1e-6)


def test_paired_difference_is_antisymmetric_and_bounded() -> None:
    a, b = outcomes(4, 0, 9, 1)
    difference, low, high = paired_difference(a, b)
    assert paired_difference(b, a) == pytest.approx((-difference, -high, -low))
    assert paired_difference(*outcomes(0, 0, 6, 0)).high == 1.0


def test_one_sided_bound_is_the_end_of_the_wider_interval() -> None:
    a, b = outcomes(40, 3, 5, 16)
    assert paired_lower_bound(a, b, 0.95) == paired_difference(a, b, 0.90).low > paired_difference(a, b, 0.95).low


@pytest.mark.parametrize("p_values", [[0.01, 0.02, 0.03, 0.04, 0.05], [0.04, 0.001, 0.9], [0.5], [], [0.02, 0.02]])
def test_holm_is_the_closed_test_of_bonferronis(p_values: list[float]) -> None:
    """A hypothesis falls where every set that it is in falls: the largest of size times least p over all such sets."""
    numbers = range(len(p_values))
    sets = [chosen for size in numbers for chosen in itertools.combinations(numbers, size + 1)]
    expected = [
        max(min(1.0, len(chosen) * min(p_values[i] for i in chosen)) for chosen in sets if index in chosen)
        for index in numbers
    ]
    assert holm(p_values) == pytest.approx(expected)


@pytest.mark.parametrize(("share_a", "share_b", "n"), [(0.1, 0.4, 17), (0.0, 0.5, 12), (0.3, 0.3, 20), (0.9, 0.1, 9)])
def test_power_by_enumeration(share_a: float, share_b: float, n: int) -> None:
    """Every table that n pairs can give, with its multinomial probability, through the test itself."""
    expected = 0.0
    for only_a in range(n + 1):
        for only_b in range(n + 1 - only_a):
            rest = n - only_a - only_b
            if mcnemar(*outcomes(0, only_a, only_b, rest)) <= 0.05:
                ways = math.comb(n, only_a) * math.comb(n - only_a, only_b)
                expected += ways * share_a**only_a * share_b**only_b * max(0, 1 - share_a - share_b) ** rest
    assert mcnemar_power(share_a, share_b, n) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(
    ("share_a", "share_b", "level"),
    [
        (0.05, 0.25, 0.05),
        (0.3, 0.1, 0.05),
        (0.05, 0.25, 0.05 / 3),
        (0.0, 0.2, 0.05),
        (0.0, 1.0, 0.05),
        (0.2, 0.8, 0.05),
    ],
)
def test_pairs_needed_have_the_power_in_simulated_experiments(share_a: float, share_b: float, level: float) -> None:
    """Drawn pair by pair; Connor's number, written out here, is a little below, since its test is not exact."""
    n = pairs_needed(share_a, share_b, 0.8, level)
    assert n is not None
    draws = np.random.default_rng(0).multinomial(n, [share_a, share_b, max(0, 1 - share_a - share_b)], 4000)
    tables, counts = np.unique(draws, axis=0, return_counts=True)
    found = [mcnemar(*outcomes(0, *table)) <= level for table in tables.tolist()]
    assert float(counts @ found) / 4000 > 0.78
    assert mcnemar_power(share_a, share_b, n, level) >= 0.8 > mcnemar_power(share_a, share_b, n - 1, level)
    z, share, difference = {0.05: 1.959964, 0.05 / 3: 2.393980}[level], share_a + share_b, share_b - share_a
    connor = ((z * math.sqrt(share) + 0.841621 * math.sqrt(share - difference**2)) / difference) ** 2
    assert connor <= n < 1.35 * connor + 3


def test_pairs_needed_at_the_ends() -> None:
    assert pairs_needed(0.2, 0.2) is None and pairs_needed(0.0, 0.0) is None
    assert pairs_needed(0.1, 0.3) == pairs_needed(0.3, 0.1)
    large = pairs_needed(0.2, 0.21)
    assert large == pytest.approx(((1.959964 * math.sqrt(0.41) + 0.841621 * math.sqrt(0.4099)) / 0.01) ** 2, abs=2)
    for a, b in itertools.product(np.linspace(0, 0.5, 6), repeat=2):
        assert a == b or pairs_needed(float(a), float(b)) is not None


@pytest.mark.parametrize("n", range(6, 40))
def test_the_interval_of_a_median_is_the_closest_that_covers_it(n: int) -> None:
    low, high = median_interval([(7 * number) % n if math.gcd(7, n) == 1 else number for number in range(n)])
    assert low + high == n - 1  # as many values lie below as above

    def missed(outside: int) -> float:
        """The probability that one side of the median has as few of n values, or fewer."""
        return sum(math.comb(n, below) for below in range(outside + 1)) / 2**n

    assert missed(int(low)) <= 0.025 < missed(int(low) + 1)


def test_the_interval_of_a_median_as_published() -> None:
    assert median_interval(range(1, 16)) == [4, 12]  # 96.5 %, as in tables of order statistics


def test_bad_input_is_refused() -> None:
    with pytest.raises(UserError, match="6 values or more, not 5"):
        median_interval([1.0] * 5)
    with pytest.raises(UserError, match="at least one"):
        wilson(0, 0)
    with pytest.raises(UserError, match="same episodes"):
        mcnemar([True, False], [True])
    with pytest.raises(UserError, match="same episodes"):
        paired_difference([], [])
