"""What an exchange counts for: the window's arithmetic, one by one and in batches, and accounts that are merged."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest.generator.account import Account, ProcessAccounts, slices_of
from loadtest.generator.link import Batch
from loadtest.generator.recorder import Recorder
from prefork.status.histogram import Histogram

SECOND_NS = 1_000_000_000

# (start, length, outcome) in ns after the first spawn; the outcome is a cause, "" for success or None for censored
EXCHANGES = st.lists(
    st.tuples(
        st.integers(0, 6 * SECOND_NS),
        st.integers(0, 3 * SECOND_NS),
        st.sampled_from(["", "", "refused", "reset", None]),
    ),
    max_size=60,
)
WARMUPS_S = st.sampled_from([0.0, 0.5, 2.0, 7.0])
FIRST_SPAWN_NS = 10**15


def replay(exchanges: list[tuple[int, int, str | None]], warmup_s: float, closes_ns: int) -> Any:
    """Let exchanges end in the order of time, with the window closing between them."""
    made = Recorder(first_spawn_ns=FIRST_SPAWN_NS, warmup_s=warmup_s)
    ends = [(start + length, 1, start, outcome) for start, length, outcome in exchanges]
    for end, is_exchange, start, outcome in sorted([*ends, (closes_ns, 0, 0, "")], key=lambda found: found[:3]):
        times = FIRST_SPAWN_NS + start, FIRST_SPAWN_NS + end
        if not is_exchange:
            made.close(FIRST_SPAWN_NS + closes_ns)
        elif outcome is None:
            made.censored(*times)
        elif outcome:
            made.failed(*times, outcome)
        else:
            made.completed(*times)
    return made.account(connections=3, cpu_s=0.5, wall_s=2.0)


@given(exchanges=EXCHANGES, warmup_s=WARMUPS_S, closes_ns=st.integers(1, 6 * SECOND_NS))
def test_latency_is_of_what_came_due_in_the_window_and_throughput_of_what_was_done_in_it(
    exchanges: list[tuple[int, int, str | None]], warmup_s: float, closes_ns: int
) -> None:
    result = replay(exchanges, warmup_s, closes_ns).to_result()
    opens_ns = round(warmup_s * SECOND_NS)
    length_ns = max(0, closes_ns - opens_ns)
    inside = [found for found in exchanges if opens_ns <= found[0] < closes_ns]
    expected = Histogram()
    expected.record_many([length for _, length, outcome in inside if outcome == ""])
    assert Histogram.from_json(result["latency"]) == expected
    assert result["completed"] == expected.n
    assert result["failures"] == Counter(outcome for _, _, outcome in inside if outcome)
    assert result["censored"] == sum(outcome is None for _, _, outcome in inside)
    assert result["window_start_ns"] == FIRST_SPAWN_NS + opens_ns
    assert result["duration_s"] == length_ns / 1e9
    overlaps = [min(start + length, closes_ns) - max(start, opens_ns) for start, length, _ in exchanges]
    ended = [outcome for start, _, outcome in exchanges if not opens_ns <= start < closes_ns and outcome is not None]
    assert result["outside"] == {"completed": ended.count(""), "failed": sum(map(bool, ended))}
    assert result["busy_s"] == sum(overlap for overlap in overlaps if overlap > 0) / 1e9
    lengths = [length for (_, length, _), overlap in zip(exchanges, overlaps, strict=True) if overlap > 0]
    assert result["longest_ns"] == max(lengths, default=0)
    well = [(start, length) for start, length, outcome in exchanges if outcome == ""]
    ends = [start + length for start, length in well if opens_ns <= start + length < closes_ns]
    assert result["ended"] == len(ends)
    failed = [start + length for start, length, outcome in exchanges if outcome]
    assert result["ended_failed"] == sum(opens_ns <= end < closes_ns for end in failed)
    parts = [
        max(0, min(start + length, closes_ns) - max(start, opens_ns)) / length
        if length
        else float(opens_ns <= start < closes_ns)
        for start, length in well
    ]
    assert result["rate_per_s"] * result["duration_s"] == pytest.approx(sum(parts))
    per_second = result["per_second"]
    assert [second["t_s"] for second in per_second] == list(range(slices_of(length_ns / 1e9)))
    assert sum(second["span_s"] for second in per_second) == pytest.approx(length_ns / 1e9)
    last = len(per_second) - 1
    for second in per_second:
        numbers = [(min((start - opens_ns) // SECOND_NS, last), outcome) for start, _, outcome in inside]
        outcomes = [outcome for number, outcome in numbers if number == second["t_s"]]
        assert second["completed"] == outcomes.count("")
        assert second["ended"] == sum(min((end - opens_ns) // SECOND_NS, last) == second["t_s"] for end in ends)
        assert second["failed"] == sum(bool(outcome) for outcome in outcomes)


@given(parts=st.lists(EXCHANGES, min_size=1, max_size=4), warmup_s=WARMUPS_S)
def test_merged_processes_equal_one_that_did_it_all(
    parts: list[list[tuple[int, int, str | None]]], warmup_s: float
) -> None:
    closes_ns = 4 * SECOND_NS
    accounts = [replay(part, warmup_s, closes_ns) for part in parts]
    sent = [Account.from_message(json.loads(json.dumps(account.to_message()))) for account in accounts]
    merged = Account.merged(sent).to_result()
    alone = replay([exchange for part in parts for exchange in part], warmup_s, closes_ns).to_result()
    for sum_of_parts in ("busy_s", "rate_per_s"):
        assert merged.pop(sum_of_parts) == pytest.approx(alone.pop(sum_of_parts))
    assert merged.pop("connections") == 3 * len(parts)
    del alone["connections"]
    assert merged == alone


def latency_of(batch: Batch) -> Histogram:
    made = Histogram()
    made.record_many([end - start for start, end in zip(batch.start_ns, batch.end_ns, strict=True)])
    return made


# (due, wait before the send, length from the send) in ns after the first spawn
WELL = st.lists(
    st.tuples(st.integers(0, 5 * SECOND_NS), st.integers(0, SECOND_NS), st.integers(0, 2 * SECOND_NS)), max_size=60
)


def in_batches(exchanges: list[tuple[int, int, int]], size: int, closes_ns: int, *, is_open: bool) -> Recorder:
    """Record exchanges in the order of their ends, `size` at once; the window closes between two batches."""
    made = Recorder(first_spawn_ns=FIRST_SPAWN_NS, warmup_s=0.5)
    ended = sorted(exchanges, key=lambda found: found[0] + found[1] * is_open + found[2])
    for first in range(0, len(ended), size):
        batch = Batch()
        for due, wait, length in ended[first : first + size]:
            sent_ns = FIRST_SPAWN_NS + due + (wait if is_open else 0)
            batch.sent_ns.append(sent_ns)
            batch.end_ns.append(sent_ns + length)
            if is_open:
                batch.due_ns.append(FIRST_SPAWN_NS + due)
                batch.offered.append((FIRST_SPAWN_NS + due, 7))
        if batch.end_ns[-1] >= FIRST_SPAWN_NS + closes_ns:
            made.close(FIRST_SPAWN_NS + closes_ns)
        made.completed_batch(batch, latency_of(batch))
    made.close(FIRST_SPAWN_NS + closes_ns)
    return made


@given(exchanges=WELL, size=st.integers(1, 30), closes_ns=st.integers(SECOND_NS, 6 * SECOND_NS))
def test_batches_record_what_one_by_one_would(exchanges: list[tuple[int, int, int]], size: int, closes_ns: int) -> None:
    alone = replay([(due, length, "") for due, _, length in exchanges], 0.5, closes_ns).to_result()
    made = in_batches(exchanges, size, closes_ns, is_open=False)
    batched = made.account(connections=3, cpu_s=0.5, wall_s=2.0).to_result()
    assert batched.pop("rate_per_s") == pytest.approx(alone.pop("rate_per_s"))
    assert batched == alone
    assert batched["arrivals"] is None


@given(exchanges=WELL, size=st.integers(1, 30), closes_ns=st.integers(SECOND_NS, 6 * SECOND_NS))
def test_in_the_open_model_latency_counts_from_when_an_exchange_was_due(
    exchanges: list[tuple[int, int, int]], size: int, closes_ns: int
) -> None:
    made = in_batches(exchanges, size, closes_ns, is_open=True)
    account = made.account(connections=3, cpu_s=0.5, wall_s=2.0)
    result = Account.from_message(json.loads(json.dumps(account.to_message()))).to_result()
    assert result == account.to_result()
    inside = [found for found in exchanges if SECOND_NS // 2 <= found[0] < closes_ns]
    corrected, service = Histogram(), Histogram()
    corrected.record_many([wait + length for _, wait, length in inside])
    service.record_many([length for _, _, length in inside])
    assert Histogram.from_json(result["latency"]) == corrected
    assert Histogram.from_json(result["service_time"]) == service
    if exchanges:
        ends = [due + wait + length for due, wait, length in exchanges]
        ended = sum(SECOND_NS // 2 <= end < closes_ns for end in ends)
        assert result["rate_per_s"] * result["duration_s"] == pytest.approx(ended)
        assert result["arrivals"]["offered"] == len(inside)
        assert result["arrivals"]["missed"] == 0
        assert Histogram.from_json(result["arrivals"]["lag"]).n == len(inside)


@pytest.mark.parametrize(
    ("began_ns", "length_ns", "inside_ns"),
    [
        (2 * SECOND_NS, 10, 10),
        (0, 10, 0),  # in the warm-up
        (SECOND_NS - 10, 30, 20),
        (3 * SECOND_NS - 10, 30, 10),  # locust holds everybody up when it begins to stop
        (4 * SECOND_NS, 10, 0),
    ],
)
def test_only_gaps_in_the_window_count(began_ns: int, length_ns: int, inside_ns: int) -> None:
    made = Recorder(first_spawn_ns=0, warmup_s=1.0)
    made.close(3 * SECOND_NS)
    made.completed_batch(Batch(gap_ns=length_ns, gap_at_ns=began_ns), Histogram())
    assert made.account(connections=1, cpu_s=0, wall_s=1).gap_ns == inside_ns


def test_arrivals_of_several_processes_are_added_up() -> None:
    parts = [in_batches([(SECOND_NS, 1, 2)] * count, 10, 2 * SECOND_NS, is_open=True) for count in (3, 4)]
    accounts = [part.account(connections=1, cpu_s=0, wall_s=1) for part in parts]
    merged = Account.merged(accounts)
    assert merged.arrivals is not None
    assert (merged.arrivals.offered, merged.arrivals.lag.n, merged.arrivals.service.n) == (7, 7, 7)


@pytest.mark.parametrize(
    ("duration_s", "seconds"), [(0.0, 0), (0.05, 1), (1.0, 1), (1.09, 1), (1.2, 2), (5.001, 5), (5.9, 6)]
)
def test_a_rest_of_some_milliseconds_is_no_second_of_its_own(duration_s: float, seconds: int) -> None:
    assert slices_of(duration_s) == seconds


def there_from(first_s: int, to_s: int) -> Account:
    """A process that began then, left then, and completed ten exchanges each second."""
    made = Recorder(first_spawn_ns=FIRST_SPAWN_NS, warmup_s=0)
    for tenth in range((to_s - first_s) * 10):
        start_ns = FIRST_SPAWN_NS + tenth * SECOND_NS // 10
        made.completed(start_ns, start_ns + 1000)
    made.close(FIRST_SPAWN_NS + (to_s - first_s) * SECOND_NS)
    account = made.account(connections=1, cpu_s=0, wall_s=to_s - first_s)
    return dataclasses.replace(account, began_s=0.7 + first_s)  # by the master's clock, 0.7 s after it gave the word


@pytest.mark.parametrize("latency_ms", [840, 900, 980])
def test_clients_in_step_have_the_rate_of_one_that_is_measured_for_ever(latency_ms: int) -> None:
    """Each of 16 does 5 or 6 whole exchanges in 5 s, and all the same number."""
    made = Recorder(first_spawn_ns=0, warmup_s=1.0, window_s=5.0)
    for number in range(8):
        for _ in range(16):
            start_ns = number * latency_ms * 1_000_000
            made.completed(start_ns, start_ns + latency_ms * 1_000_000)
    result = made.account(connections=16, cpu_s=0, wall_s=6).to_result()
    assert result["rate_per_s"] == pytest.approx(16e3 / latency_ms)
    assert result["ended"] % 16 == 0


def test_what_ends_after_the_window_is_no_throughput_of_a_rate() -> None:
    """100 exchanges come due in a second; 60 of them end in it, and 10 that came due before."""
    made = Recorder(first_spawn_ns=0, warmup_s=1.0, window_s=1.0)
    due_ns = [SECOND_NS + number * 10_000_000 for number in range(-10, 100)]
    batch = Batch(due_ns=due_ns, sent_ns=due_ns, offered=[(at_ns, 0) for at_ns in due_ns])
    batch.end_ns = [SECOND_NS + (number + 1) * 14_000_000 for number in range(110)]
    made.completed_batch(batch, latency_of(batch))
    result = made.account(connections=1, cpu_s=0, wall_s=3).to_result()
    assert (result["ended"], result["rate_per_s"], result["arrivals"]["offered"]) == (71, 71.0, 100)
    assert result["completed"] == Histogram.from_json(result["latency"]).n == 100


def test_an_hour_takes_no_more_memory_than_some_minutes() -> None:
    made = Recorder(first_spawn_ns=0, warmup_s=0.0, window_s=3600.0)
    for second in range(3600):
        for tenth in range(10):
            start_ns = second * SECOND_NS + tenth * 100_000_000
            made.completed(start_ns, start_ns + 1_000_000 + second)
    account = made.account(connections=1, cpu_s=0, wall_s=3600)
    result = account.to_result()
    assert (account.width_s, len(result["per_second"])) == (8.0, 450)
    assert all((found["ended"], found["completed"], found["span_s"]) == (80, 80, 8.0) for found in result["per_second"])
    assert [found["t_s"] for found in result["per_second"]] == list(range(0, 3600, 8))
    assert result["completed"] == 36_000
    assert result["rate_per_s"] == pytest.approx(10)
    merged = Account.merged([account, there_from(0, 5)]).to_result()
    assert merged["per_second"][0]["ended"] == 80 + 50


def test_a_process_that_came_late_or_left_early_adds_what_it_did_where_it_did_it() -> None:
    merged = Account.merged([there_from(2, 5), there_from(0, 5), there_from(0, 1), there_from(1, 4)])
    result = merged.to_result()
    assert result["duration_s"] == 5
    assert result["completed"] == 120
    assert [second["completed"] for second in result["per_second"]] == [20, 20, 30, 30, 20]
    assert [second["span_s"] for second in result["per_second"]] == [1, 1, 1, 1, 1]


def test_a_process_that_came_late_in_a_window_with_wide_slices_does_not_lengthen_it() -> None:
    parts = [dataclasses.replace(there_from(first_s, 20), width_s=8.0) for first_s in (0, 5)]
    assert Account.merged(parts).duration_s == 20


def test_windows_some_milliseconds_apart_are_one() -> None:
    parts = [dataclasses.replace(there_from(0, 3), duration_s=3 + off_s) for off_s in (-0.02, 0.0, 0.08)]
    result = Account.merged(parts).to_result()
    assert result["duration_s"] == pytest.approx(3.02)
    assert [second["completed"] for second in result["per_second"]] == [30, 30, 30]


def test_a_crew_tells_each_process_and_who_is_lost() -> None:
    group = ProcessAccounts(accounts={"one": there_from(0, 2), "two": there_from(1, 2)}, lost=("three",))
    told = group.to_result()
    assert [(found["name"], found["completed"], found["duration_s"]) for found in told["processes"]] == [
        ("one", 20, 2.0),
        ("two", 10, 1.0),
    ]
    assert told["lost"] == ["three"]
    assert group.account is not None
    assert group.account.to_result()["completed"] == 30
    assert ProcessAccounts(accounts={}).account is None
