"""Intervals and tests against published tables, defining equations and enumeration."""

import itertools
import math

import numpy as np
import pytest
from scipy.optimize import minimize_scalar

from rlrc.errors import UserError
from rlrc.stats import mcnemar, paired_difference, paired_lower_bound, wilson


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


def test_bad_input_is_refused() -> None:
    with pytest.raises(UserError, match="at least one"):
        wilson(0, 0)
    with pytest.raises(UserError, match="same episodes"):
        mcnemar([True, False], [True])
    with pytest.raises(UserError, match="same episodes"):
        paired_difference([], [])
