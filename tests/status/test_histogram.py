"""The histogram against the plain truth: a sorted list of the same values."""

from __future__ import annotations

import json
import math
from array import array
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefork.status.histogram import ARRAY_DIGITS, BUCKETS, Histogram, array_index, estimable, highest, index, lowest

if TYPE_CHECKING:
    from collections.abc import Iterable

HOUR_NS = 3_600_000_000_000
LATENCIES = st.one_of(
    st.integers(0, 5_000),  # the exact part
    st.integers(0, HOUR_NS),
    st.integers(0, 45).flatmap(lambda bits: st.integers(max(0, 2**bits - 2), 2**bits + 2)),  # borders of octaves
)
SAMPLES = st.lists(LATENCIES, min_size=1, max_size=300)
DIGITS = st.integers(1, 5)


def histogram_of(values: Iterable[int], digits: int = 3) -> Histogram:
    made = Histogram(digits)
    for value in values:
        made.record(value)
    return made


@given(value=LATENCIES, digits=DIGITS)
def test_a_bucket_holds_its_value_and_is_no_wider_than_the_digits_say(value: int, digits: int) -> None:
    bucket = index(value, digits)
    low, high = lowest(bucket, digits), highest(bucket, digits)
    assert low <= value <= high
    assert (high - low) * 10**digits <= low
    assert index(low, digits) == index(high, digits) == bucket


@given(digits=DIGITS, bucket=st.integers(0, 100_000))
def test_buckets_follow_one_another_without_gap_or_overlap(digits: int, bucket: int) -> None:
    assert index(highest(bucket, digits) + 1, digits) == bucket + 1
    assert lowest(bucket + 1, digits) == highest(bucket, digits) + 1


@given(values=SAMPLES, digits=DIGITS, q=st.floats(0, 1))
def test_a_quantile_is_the_nearest_rank_within_the_relative_error(values: list[int], digits: int, q: float) -> None:
    exact = sorted(values)[max(1, math.ceil(round(q * len(values), 6))) - 1]
    found = histogram_of(values, digits).quantile(q)
    assert exact <= found <= exact * (1 + 10**-digits)


@given(values=SAMPLES, qs=st.lists(st.floats(0, 1)).map(sorted))
def test_several_quantiles_at_once_are_each_what_it_is_alone(values: list[int], qs: list[float]) -> None:
    made = histogram_of(values)
    assert made.quantiles(qs) == [made.quantile(q) for q in qs]


@given(values=SAMPLES)
def test_count_sum_minimum_and_maximum_are_exact(values: list[int]) -> None:
    made = histogram_of(values)
    assert (made.n, made.sum_ns, made.min_ns, made.max_ns) == (len(values), sum(values), min(values), max(values))
    assert made.mean_ns == sum(values) / len(values)
    assert made.quantile(1) == max(values)


@given(values=SAMPLES, digits=DIGITS)
def test_recording_at_once_equals_recording_one_by_one(values: list[int], digits: int) -> None:
    at_once = Histogram(digits)
    at_once.record_many(values)
    assert at_once == histogram_of(values, digits)


@given(parts=st.lists(st.lists(LATENCIES, max_size=50), max_size=5))
def test_merging_equals_recording_everything(parts: list[list[int]]) -> None:
    merged = Histogram()
    for part in parts:
        merged.merge(histogram_of(part))
    assert merged == histogram_of([value for part in parts for value in part])


@given(values=st.lists(LATENCIES, max_size=100), digits=DIGITS)
def test_json_returns_the_same_histogram(values: list[int], digits: int) -> None:
    made = histogram_of(values, digits)
    assert Histogram.from_json(json.loads(json.dumps(made.to_json()))) == made


@given(values=st.lists(LATENCIES.filter(lambda value: value <= HOUR_NS), min_size=1, max_size=300))
def test_the_flat_array_gives_the_same_quantiles_to_two_digits(values: list[int]) -> None:
    cells = [0] * BUCKETS
    for value in values:
        cells[array_index(value)] += 1
    made = Histogram.from_array(cells, max_ns=max(values))
    assert made.n == len(values)
    assert Histogram.from_array(memoryview(array("q", cells)), max_ns=max(values)) == made, "as the scoreboard has it"
    for q in (0.0, 0.5, 0.9, 0.99, 1.0):
        exact = sorted(values)[max(1, math.ceil(round(q * len(values), 6))) - 1]
        if exact < 1024:  # all of these share the first cell
            assert made.quantile(q) <= 1023
        else:
            assert exact <= made.quantile(q) <= exact * 1.01
    assert sum(values) * 0.99 - 1024 * len(values) <= made.sum_ns <= sum(values) * 1.01 + 1024 * len(values)


def test_the_flat_array_covers_a_microsecond_to_an_hour_and_catches_the_rest() -> None:
    assert array_index(0) == array_index(1023) == 0
    assert array_index(1024) == 1
    assert array_index(HOUR_NS) < BUCKETS - 1
    assert array_index(2**42) == array_index(2**60) == BUCKETS - 1


def test_a_flat_array_keeps_what_was_counted_beside_it() -> None:
    cells = [0] * BUCKETS
    cells[array_index(5_000_000)] += 2
    exact = Histogram.from_array(cells, sum_ns=10_000_001, max_ns=5_000_001)
    assert (exact.n, exact.sum_ns, exact.max_ns) == (2, 10_000_001, 5_000_001)
    torn = Histogram.from_array(cells, max_ns=9_000_000)  # the maximum of a sample whose cell is not counted yet
    assert torn.max_ns == highest(index(5_000_000, ARRAY_DIGITS), ARRAY_DIGITS)
    assert Histogram.from_array([0] * BUCKETS) == Histogram(ARRAY_DIGITS)
    assert Histogram.from_json(torn.to_json()) == torn


@pytest.mark.parametrize(("q", "least"), [(0.5, 6), (0.9, 36), (0.99, 368), (0.999, 3688), (0.9999, 36887)])
def test_a_percentile_needs_enough_samples(q: float, least: int) -> None:
    assert estimable(q, least)
    assert not estimable(q, least - 1)
    assert estimable(1 - q, least + 1)
    all_below = q ** (least - 1)  # the chance that no sample of the largest set that is refused bounds the quantile
    assert all_below > 0.025 >= all_below * q


def test_an_empty_histogram_answers_zero() -> None:
    empty = Histogram()
    empty.record_many([])
    assert (empty.n, empty.mean_ns, empty.quantile(0.99), empty.max_ns) == (0, 0.0, 0, 0)
    assert Histogram.from_json(empty.to_json()) == empty


@pytest.mark.parametrize("digits", [0, 6, -1])
def test_digits_out_of_range_are_refused(digits: int) -> None:
    with pytest.raises(ValueError, match="digits"):
        Histogram(digits)


def test_what_is_no_latency_is_refused_and_changes_nothing() -> None:
    made = Histogram()
    with pytest.raises(ValueError, match="-1"):
        made.record(-1)
    with pytest.raises(ValueError, match="0 times"):
        made.record(1, 0)
    with pytest.raises(ValueError, match="-7"):
        made.record_many([3, -7])
    with pytest.raises(ValueError, match="between 0 and 1"):
        made.quantile(99)
    with pytest.raises(ValueError, match="digits"):
        made.merge(Histogram(2))
    assert made == Histogram()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"digits": 9}, "digits"),
        ({"digits": None}, "digits"),
        ({"buckets": {"1": 1}}, "not a list"),
        ({"buckets": [[7]]}, "pair"),
        ({"buckets": [[7, 0]]}, "pair"),
        ({"buckets": [[7, 1], [7, 1]]}, "pair"),
        ({"n": 3}, "n is 3"),
        ({"n": True}, "'n'"),
        ({"sum_ns": "9"}, "sum_ns"),
        ({"max_ns": 1_000_000}, "min_ns and max_ns"),
    ],
)
def test_a_damaged_document_is_refused_with_its_flaw(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Histogram.from_json(histogram_of([7, 9]).to_json() | change)


@given(st.lists(st.integers(0, 1 << 42), max_size=50), st.lists(st.integers(0, 1 << 42), max_size=8))
def test_how_many_do_not_exceed_a_limit(values: list[int], limits: list[int]) -> None:
    made = Histogram(3)
    made.record_many(values)
    limits.sort()
    for limit, found in zip(limits, made.at_most(limits), strict=True):
        assert sum(value < limit * 0.999 for value in values) <= found <= sum(value <= limit for value in values)
