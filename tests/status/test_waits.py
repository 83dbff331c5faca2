"""How long connections waited: counts by power of two, and what is told from them."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from prefork.status.document import errors_by_kind
from prefork.status.histogram import highest_ms, quantile_ms, summary
from prefork.status.scoreboard import COUNTERS, QUEUE_BUCKETS, queue_bucket


@given(waited_ms=st.integers(0, 1 << 40))
def test_a_bucket_holds_what_is_beyond_the_one_before(waited_ms: int) -> None:
    bucket = queue_bucket(waited_ms)
    assert 0 <= bucket < QUEUE_BUCKETS
    if bucket:
        assert waited_ms > highest_ms(bucket - 1)
    if bucket < QUEUE_BUCKETS - 1:
        assert waited_ms <= highest_ms(bucket)


@given(waits=st.lists(st.integers(0, 10_000), min_size=368, max_size=500))
def test_a_quantile_is_its_buckets_longest(waits: list[int]) -> None:
    counts = [0] * QUEUE_BUCKETS
    for waited_ms in waits:
        counts[queue_bucket(waited_ms)] += 1
    for q in (0.5, 0.99):
        rank = -(-len(waits) * q // 1)
        exact = sorted(waits)[int(rank) - 1]
        assert quantile_ms(counts, q) == highest_ms(queue_bucket(exact))


def test_too_few_say_nothing() -> None:
    assert summary([0] * QUEUE_BUCKETS) == {"n": 0, "p50_ms": None, "p99_ms": None}
    assert summary([6, *[0] * (QUEUE_BUCKETS - 1)]) == {"n": 6, "p50_ms": 0, "p99_ms": None}


@given(st.fixed_dictionaries({name: st.integers(0, 100) for name in COUNTERS}))
def test_no_failure_is_of_two_kinds(counters: dict[str, int]) -> None:
    counters["errors"] += counters["aborted"]
    found = errors_by_kind(counters)
    failures = ("errors", "idle_closed", "too_long", "client_gone", "refused", "timed_out")
    assert sum(found.values()) == sum(counters[name] for name in failures)
    assert min(found.values()) >= 0
