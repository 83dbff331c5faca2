from __future__ import annotations

import itertools
import math
import random
from fractions import Fraction
from statistics import median

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest.analysis.inference import MIN_PAIRS, busiest_to_least, jain, ratio, unpaired
from tests.loadtest.analysis.simulation import CALM, ROUGH, USUAL, Machine, claimed, session

RATES = st.floats(1, 1e6)
PAIRS = st.lists(st.tuples(RATES, RATES), min_size=MIN_PAIRS, max_size=60)
SHARES = st.lists(st.integers(0, 10**6), min_size=1, max_size=64)


def test_the_ratio_is_the_median_over_pairs_and_pairs_cancel_drift() -> None:
    drifting = [(100.0 * level, 130.0 * level) for level in (1, 2, 4, 8, 16, 32)]
    found = ratio(drifting)
    assert found is not None
    assert found.median == pytest.approx(1.3)
    assert (found.low, found.high) == (pytest.approx(1.3), pytest.approx(1.3))
    assert found.differs


@given(pairs=PAIRS, seed=st.integers(0, 99))
def test_the_interval_is_about_the_pairs_and_not_about_their_order(pairs: list[tuple[float, float]], seed: int) -> None:
    found = ratio(pairs)
    assert found is not None
    assert found.low is not None
    assert found.high is not None
    ratios = sorted(candidate / base for base, candidate in pairs)
    assert ratios[0] <= found.low <= found.median <= found.high <= ratios[-1]
    assert found.median == median(ratios)
    random.Random(seed).shuffle(pairs)
    assert ratio(pairs) == found


@pytest.mark.parametrize("n", range(MIN_PAIRS, 41))
def test_the_interval_lies_between_the_two_sign_intervals_around_95_percent(n: int) -> None:
    """With ratios 1..n the ends are ranks; those of the sign test are the exact binomial ones."""
    found = ratio([(1.0, float(rank)) for rank in range(1, n + 1)])
    assert found is not None
    assert found.low is not None
    assert found.high is not None
    depth = math.floor(found.low)
    assert coverage(n, depth) >= Fraction(95, 100) > coverage(n, depth + 1)
    assert found.low - depth < 1
    assert found.low + found.high == pytest.approx(n + 1)


def coverage(n: int, depth: int) -> Fraction:
    """Of all ways in which n values can fall on either side of their median: how many leave it between these ranks."""
    if n <= 12:  # by counting
        sides = [sum(signs) for signs in itertools.product((0, 1), repeat=n)]
        return Fraction(sum(depth <= below <= n - depth for below in sides), len(sides))
    return Fraction(sum(math.comb(n, below) for below in range(depth, n - depth + 1)), 2**n)


def test_too_few_pairs_have_a_ratio_but_no_interval_and_never_differ() -> None:
    found = ratio([(1.0, 4.0)] * (MIN_PAIRS - 1))
    assert found is not None
    assert (found.pairs, found.median) == (MIN_PAIRS - 1, pytest.approx(4.0))
    assert found.low is found.high is found.reach is found.spread is None
    assert not found.differs


UP, DOWN = [(1.0, 1.1)] * 6, [(1.0, 0.9)] * 6


@pytest.mark.parametrize(
    ("again", "differs", "twice"),
    [(UP, True, True), (DOWN, False, True), ([(1.0, 1.0)] * 6, False, True), ([], True, False), (UP[:5], True, False)],
)
def test_a_difference_must_show_against_both_runs_of_the_baseline(
    again: list[tuple[float, float]], differs: bool, twice: bool
) -> None:
    """And on the same side. With too few pairs of the second run the interval alone decides, which is said."""
    found = ratio(UP, again)
    assert found is not None
    assert (found.differs, found.twice, found.median) == (differs, twice, pytest.approx(1.1))
    assert ratio([(1.0, 1.0)] * 6, UP) is not None
    assert not ratio([(1.0, 1.0)] * 6, UP).differs  # type: ignore[union-attr]


@pytest.mark.parametrize(("n", "m"), [(3, 4), (4, 4), (5, 7), (6, 6), (2, 9)])
def test_the_unpaired_interval_is_that_of_mann_and_whitney(n: int, m: int) -> None:
    """By counting all ways in which n and m values can be in order."""
    before, after = [2.0**power for power in range(n)], [3.0 * 5.0**power for power in range(m)]
    found = unpaired(before, after)
    assert found is not None
    quotients = sorted(late / early for early in before for late in after)
    ranks = [
        sum(a > b for a in chosen for b in set(range(n + m)) - set(chosen))
        for chosen in itertools.combinations(range(n + m), m)
    ]
    deepest = max((d for d in range(n * m) if 2 * sum(u < d for u in ranks) <= 0.05 * len(ranks)), default=0)
    ends = (quotients[deepest - 1], quotients[-deepest]) if deepest else (None, None)
    assert (found.low, found.high) == ends
    assert found.median == pytest.approx(median(quotients))
    assert found.pairs == min(n, m)
    assert unpaired([], after) is None
    assert unpaired([0.0] * 30 + before, [*after, 0.0]) == found  # what is not known does not count


def test_pairs_without_a_figure_do_not_count() -> None:
    assert ratio([]) is None
    assert ratio([(0.0, 3.0), (3.0, 0.0)]) is None


def test_reach_and_spread() -> None:
    found = ratio([(100, 80), (100, 80), (100, 80), (100, 105), (100, 105), (100, 105)])
    assert found is not None
    assert (found.low, found.high, found.median) == (pytest.approx(0.8), pytest.approx(1.05), pytest.approx(0.925))
    assert found.reach == pytest.approx(1.25)  # the further end in either direction
    assert found.spread == pytest.approx(0.125 / 0.925)


@pytest.mark.parametrize("machine", [CALM, USUAL, ROUGH], ids=["calm", "usual", "rough"])
@pytest.mark.parametrize("cycles", [6, 8, 12])
def test_equal_servers_are_hardly_ever_told_apart(machine: Machine, cycles: int) -> None:
    """1,000 simulated sessions each, seeded: asked twice about 1 in 100 at most, asked once about 5."""
    chance = random.Random(1935 + cycles)
    sessions = [session(chance, machine, cycles) for _ in range(1000)]
    assert sum(claimed(compared, again) for compared, again, _ in sessions) <= 12
    assert sum(claimed(compared) for compared, _, _ in sessions) <= 70


@pytest.mark.parametrize(
    ("machine", "cycles", "least"),
    [
        (CALM, 6, 98),
        (CALM, 12, 100),
        (USUAL, 6, 35),
        (USUAL, 12, 80),
        (USUAL, 20, 95),
        (ROUGH, 12, 60),
        (ROUGH, 20, 85),
    ],
)
def test_a_server_slowed_by_5_percent_is_found(machine: Machine, cycles: int, least: int) -> None:
    """So many times of 100; where it is too seldom, more cycles help (--until)."""
    chance = random.Random(cycles)
    sessions = [session(chance, machine, cycles, slowdown=0.05) for _ in range(500)]
    assert sum(claimed(compared, again) for compared, again, _ in sessions) / 5 >= least


@given(shares=SHARES, factor=st.integers(1, 100))
def test_jain_is_1_for_equal_shares_and_knows_no_unit(shares: list[int], factor: int) -> None:
    found = jain(shares)
    if not any(shares):
        assert found is None
        return
    assert found is not None
    assert 1 / len(shares) <= found * (1 + 1e-9)
    assert found <= 1 + 1e-9
    assert jain([share * factor for share in shares]) == pytest.approx(found)
    assert jain([factor] * len(shares)) == pytest.approx(1)


def test_shares_that_are_not_fair() -> None:
    assert jain([8, 0, 0, 0]) == pytest.approx(0.25)
    assert jain([3, 1]) == pytest.approx(0.8)
    assert jain([]) is None
    assert [busiest_to_least(shares) for shares in ([3, 1, 2], [5], [5, 0], [0, 0], [])] == [3, 1, math.inf, None, None]
