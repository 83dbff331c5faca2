from __future__ import annotations

import random

import pytest

from loadtest.inference import MIN_PAIRS, ratio


def test_the_ratio_is_the_median_over_pairs_and_pairs_cancel_drift() -> None:
    drifting = [(100.0 * level, 130.0 * level) for level in (1, 2, 4, 8, 16, 32)]
    found = ratio(drifting)
    assert found is not None
    assert found.median == pytest.approx(1.3)
    assert (found.low, found.high) == (pytest.approx(1.3), pytest.approx(1.3))
    assert found.differs(floor=1.2)
    assert not found.differs(floor=1.31)


def test_the_same_pairs_always_give_the_same_interval() -> None:
    chance = random.Random(3)
    pairs = [(chance.uniform(90, 110), chance.uniform(90, 110)) for _ in range(9)]
    assert ratio(pairs) == ratio(list(pairs))


def test_too_few_pairs_have_a_ratio_but_no_interval_and_never_differ() -> None:
    found = ratio([(1.0, 4.0)] * (MIN_PAIRS - 1))
    assert found is not None
    assert (found.pairs, found.median, found.low, found.reach) == (MIN_PAIRS - 1, pytest.approx(4.0), None, None)
    assert not found.differs(None)


def test_pairs_without_a_figure_do_not_count() -> None:
    assert ratio([]) is None
    assert ratio([(0.0, 3.0), (3.0, 0.0)]) is None


def test_the_reach_is_the_further_end_in_either_direction() -> None:
    found = ratio([(100, 80), (100, 80), (100, 80), (100, 105), (100, 105), (100, 105)])
    assert found is not None
    assert (found.low, found.high, found.reach) == (pytest.approx(0.8), pytest.approx(1.05), pytest.approx(1.25))


def test_equal_servers_are_hardly_ever_told_apart_and_five_percent_is_found() -> None:
    """100 comparisons under 1 % of noise: at most 5 false claims, at most 5 misses (seeded, so always the same)."""
    chance = random.Random(11)
    false = found = 0
    for _ in range(100):
        base, again, same = ([chance.gauss(1000, 10) for _ in range(6)] for _ in range(3))
        noise = ratio(list(zip(base, again, strict=True)))
        equal = ratio(list(zip(base, same, strict=True)))
        slower = ratio([(a, b * 0.95) for a, b in zip(base, same, strict=True)])
        assert noise
        assert equal
        assert slower
        false += equal.differs(noise.reach)
        found += slower.differs(noise.reach)
    assert false <= 5
    assert found >= 95
