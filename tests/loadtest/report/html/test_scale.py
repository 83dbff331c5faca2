from __future__ import annotations

import math

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from loadtest.report.html.charts import linear, logarithmic

VALUES = st.floats(1e-3, 1e12)


@given(high=VALUES, most=st.integers(2, 9))
@example(high=0.3, most=3)
def test_a_linear_axis_starts_at_0_and_holds_its_greatest_value_in_round_steps(high: float, most: int) -> None:
    scale = linear(high, most).between(10, 110)
    assert scale.low == 0 == scale.ticks[0]
    assert scale.high >= high * (1 - 1e-9)
    assert scale.high == pytest.approx(scale.ticks[-1])
    assert 2 <= len(scale.ticks) <= most + 1
    assert is_round(scale.ticks[1])
    assert (scale(0), scale(scale.high)) == (10, 110)


@given(low=VALUES, factor=st.floats(1, 1e9), most=st.integers(2, 9))
@example(low=1.0, factor=1.0, most=2)
def test_a_logarithmic_axis_holds_both_ends_and_marks_round_values(low: float, factor: float, most: int) -> None:
    scale = logarithmic(low, low * factor, most).between(100, 0)
    assert scale.low <= low * (1 + 1e-9)
    assert scale.high >= low * factor * (1 - 1e-9)
    assert len(scale.ticks) <= most
    assert all(is_round(tick) for tick in scale.ticks)
    assert all(scale.low * (1 - 1e-9) <= tick <= scale.high * (1 + 1e-9) for tick in scale.ticks)
    assert scale(scale.low) == pytest.approx(100)
    assert scale(scale.high) == pytest.approx(0)


@given(low=VALUES, factors=st.tuples(st.floats(1, 1e6), st.floats(1, 1e6)), log=st.booleans())
def test_a_greater_value_is_never_drawn_below_a_smaller_one(
    low: float, factors: tuple[float, float], log: bool
) -> None:
    smaller, greater = sorted(low * factor for factor in factors)
    scale = (logarithmic(low, greater, 7) if log else linear(greater, 7)).between(100, 0)
    assert scale(smaller) >= scale(greater) - 1e-9


def test_values_beyond_the_ends_are_drawn_at_the_ends() -> None:
    scale = linear(10, 5).between(0, 100)
    assert (scale(-5), scale(15)) == (0, 100)


def test_counts_are_not_cut_into_parts() -> None:
    assert linear(1, 3, least_step=1).ticks == (0, 1)
    assert linear(0, 3, least_step=1).ticks == (0, 1)
    assert linear(7, 3, least_step=1).ticks == (0, 5, 10)


def is_round(value: float) -> bool:
    return round(value / 10 ** math.floor(math.log10(value) + 1e-9), 6) in (1, 2, 5)
