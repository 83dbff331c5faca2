"""The document and the table of `prefork status`, from plain values."""

from __future__ import annotations

import json
from typing import Any

import pytest

from prefork.status.document import WorkerSnapshot, cell, state_of, table, totals
from prefork.status.histogram import ARRAY_DIGITS, Histogram
from prefork.status.scoreboard import COUNTERS, Reading, Work
from prefork.status.server_state import WorkerState

NOW_S = 5000.0


def worker(**given: Any) -> WorkerState:
    known: dict[str, Any] = {
        "pid": 4242,
        "slot": 1,
        "generation": 3,
        "group": 7,
        "spawned_s": 4900.0,
        "ready_s": 4901.0,
    }
    return WorkerState(**(known | given))


def reading(*, since_s: float = 0, held: int = 0, serving: str = "", **counters: int) -> Reading:
    counted = dict.fromkeys(COUNTERS, 0) | counters
    since_ns = round(since_s * 1e9)
    moved_ns = round((NOW_S - 0.1) * 1e9)
    return Reading(since_ns=since_ns, unit_ns=since_ns, moved_ns=moved_ns, serving=serving, held=held, counters=counted)


def latencies(count: int) -> Histogram:
    made = Histogram(ARRAY_DIGITS)
    for n in range(1, count + 1):
        made.record(n * 1_000_000)
    return made


def snapshot(**given: Any) -> WorkerSnapshot:
    known: dict[str, Any] = {
        "worker": worker(), "reading": reading(), "latencies": latencies(0), "busy_ratio": 0.0, "cpu_s": 1.5,
        "pss_bytes": 12_000_000, "held_is_busy": True,
    }  # fmt: skip
    return WorkerSnapshot(**(known | given))


@pytest.mark.parametrize(
    ("known", "seen", "held_is_busy", "expected"),
    [
        (worker(ready_s=None), reading(), True, "STARTING"),
        (worker(), reading(), True, "IDLE"),
        (worker(), reading(since_s=4999, held=1), True, "BUSY"),
        (worker(), reading(held=1), True, "BUSY"),
        (worker(), reading(held=1), False, "IDLE"),
        (worker(), reading(since_s=4999, held=1), False, "BUSY"),
        (worker(retiring_s=4950.0), reading(), True, "DRAINING"),
        (worker(retiring_s=4950.0), reading(since_s=4999, held=1), True, "DRAINING"),
        (worker(ready_s=None, retiring_s=4950.0), reading(), True, "DRAINING"),
    ],
)
def test_the_states(known: WorkerState, seen: Reading, held_is_busy: bool, expected: str) -> None:
    assert state_of(known, seen, held_is_busy=held_is_busy) == expected


def test_a_worker_in_the_middle_of_its_work() -> None:
    counted = {"accepted": 9, "completed": 6, "errors": 1, "bytes_in": 70, "bytes_out": 800}
    seen = reading(since_s=4995, held=2, serving="10.0.0.9:5000", **counted)
    entry = snapshot(reading=seen, latencies=latencies(400), busy_ratio=0.123456).document(timeout_s=30, now_s=NOW_S)
    assert entry == {
        "slot": 1, "pid": 4242, "generation": 3, "state": "BUSY", "age_s": 100.0, "connections": 2, "accepted": 9,
        "requests": 6, "errors": 1,
        "errors_by_kind": {"app": 1, "aborted": 0, "refused": 0, "timeout": 0, "client_gone": 0},
        "bytes_in": 70, "bytes_out": 800, "busy_ratio": 0.1235,
        "p50_us": pytest.approx(200_000, rel=0.01), "p99_us": pytest.approx(396_000, rel=0.01),
        "queue_wait": {"n": 0, "p50_ms": None, "p99_ms": None},
        "cpu_s": 1.5, "pss_bytes": 12_000_000, "serving": "10.0.0.9:5000", "serving_s": 5.0, "deadline_in_s": 25.0,
        "threads": None, "busy": None, "work": [], "slow": [],
    }  # fmt: skip
    assert json.loads(json.dumps(entry)) == entry


def test_what_is_not_known_is_null() -> None:
    entry = snapshot(cpu_s=None, pss_bytes=None).document(timeout_s=30, now_s=NOW_S)
    unknown = {key for key, value in entry.items() if value is None}
    assert unknown == {
        "p50_us",
        "p99_us",
        "cpu_s",
        "pss_bytes",
        "serving",
        "serving_s",
        "deadline_in_s",
        "threads",
        "busy",
    }


@pytest.mark.parametrize(("held_is_busy", "busy"), [(False, 1), (True, 2)])
def test_the_busy_ones_of_a_workers_threads_are_counted(held_is_busy: bool, busy: int) -> None:
    """A thread that waits for its client is busy only where no other connection can have it meanwhile."""
    inside = Work(thread=0, since_ns=4_999_000_000_000, unit_ns=0, held=1, text="10.0.0.9:5000")
    waiting = Work(thread=1, since_ns=0, unit_ns=0, held=1, text="10.0.0.9:5001")
    seen = snapshot(held_is_busy=held_is_busy, threads=4, work=[inside, waiting])
    entry = seen.document(timeout_s=30, now_s=NOW_S)
    assert (entry["threads"], entry["busy"]) == (4, busy)


def test_who_was_served_last_is_not_served_now() -> None:
    entry = snapshot(reading=reading(serving="10.0.0.9:5000")).document(timeout_s=30, now_s=NOW_S)
    assert (entry["serving"], entry["serving_s"]) == (None, None)


@pytest.mark.parametrize(("count", "known"), [(5, []), (6, ["p50_us"]), (367, ["p50_us"]), (368, ["p50_us", "p99_us"])])
def test_a_quantile_is_told_only_from_as_many_samples_as_bound_it(count: int, known: list[str]) -> None:
    entry = snapshot(latencies=latencies(count)).document(timeout_s=30, now_s=NOW_S)
    assert [key for key in ("p50_us", "p99_us") if entry[key] is not None] == known


def test_a_deadline_that_has_passed_is_negative() -> None:
    entry = snapshot(reading=reading(since_s=4960)).document(timeout_s=30, now_s=NOW_S)
    assert entry["deadline_in_s"] == -10.0


def test_without_a_timeout_there_is_no_deadline() -> None:
    assert snapshot(reading=reading(since_s=4960)).document(timeout_s=0, now_s=NOW_S)["deadline_in_s"] is None


def document(**server: Any) -> dict[str, Any]:
    head: dict[str, Any] = {
        "version": "1.2.3", "pid": 77, "started": "2026-11-22T16:47:05.123Z", "uptime_s": 3725.0,
        "app": "shop.py:handle",
        "kind": "stream", "engine": "blocking", "accept": "shared", "generation": 3, "workers": 2, "ready": True,
        "unready": None, "reloading": False, "stopping": False, "last_reload": None, "control": None, "config": {},
    }  # fmt: skip
    counters = dict.fromkeys(COUNTERS, 0) | {"completed": 1234, "bytes_out": 5 * 1024 * 1024, "busy_ns": 2_500_000_000}
    busy = snapshot(reading=reading(since_s=4995, held=1, serving="unix:"), latencies=latencies(10), busy_ratio=0.5)
    return {
        "server": head | server,
        "listeners": [
            {"address": "127.0.0.1:1935", "queue": 3, "limit": 128, "drops": 7},
            {"address": "unix:/run/s", "queue": None, "limit": None, "drops": None},
        ],
        "workers": [busy.document(timeout_s=30, now_s=NOW_S)],
        "totals": totals(counters, latencies(10), connections=1, respawns={"SIGSEGV": 2, "reload": 4}),
        "deaths": {"count": 0, "last": None},
    }


def test_totals_name_requests_as_workers_do_and_causes_in_order() -> None:
    made = document()["totals"]
    assert made["requests"] == 1234
    assert made["busy_s"] == 2.5
    assert not {"completed", "busy_ns"} & set(made)
    assert list(made["respawns"].items()) == [("SIGSEGV", 2), ("reload", 4)]


def test_the_table() -> None:
    head, listeners, workers, footer = table(document()).split("\n\n")
    assert head == (
        "prefork 1.2.3  pid 77  shop.py:handle (stream, blocking)  generation 3  2 workers wanted  up 1h 2m  ready"
    )
    assert [line.split() for line in listeners.splitlines()] == [
        ["LISTENER", "QUEUE", "LIMIT", "DROPS"],
        ["127.0.0.1:1935", "3", "128", "7"],
        ["unix:/run/s", "-", "-", "-"],
    ]
    titles, row, total = workers.splitlines()
    assert titles.split()[:4] == ["SLOT", "PID", "GEN", "STATE"]
    assert row.split() == [
        "1", "4242", "3", "BUSY", "1m", "40s", "1", "0", "0", "0", "0", "0", "50%", "5.01ms", "-", "1.5s", "11.4M",
        "25s", "5s", "unix:",
    ]  # fmt: skip
    assert total.split()[:4] == ["all", "1", "0", "1234"]
    assert footer == "workers replaced: SIGSEGV 2, reload 4"


def test_the_table_of_a_server_that_has_not_booted_and_one_whose_reload_was_abandoned() -> None:
    young = document(kind=None, engine=None, ready=False, unready="the server is starting")
    assert "(not loaded yet)" in table(young)
    assert table(young).split("\n")[0].endswith("not ready: the server is starting")
    failed = {"generation": 4, "ok": False, "reason": "SyntaxError: bad", "ended": "2026-11-22T16:50:00.000Z"}
    text = table(document(last_reload=failed, reloading=True))
    assert text.endswith("last reload: generation 4, 2026-11-22T16:50:00.000Z, abandoned: SyntaxError: bad")
    assert text.split("\n")[0].endswith("ready, reloading")
    stopping = document(stopping=True, ready=False, unready="the server is stopping")
    assert table(stopping).split("\n")[0].endswith("not ready: the server is stopping")


def test_the_table_names_the_last_unexpected_death() -> None:
    last = {"slot": 2, "time": "2026-11-22T16:50:00.000Z", "cause": "timeout", "serving": "10.0.0.9:5000"}
    text = table(document() | {"deaths": {"count": 3, "last": last}})
    assert text.split("\n")[-1] == (
        "died unexpectedly: 3, last worker 2, 2026-11-22T16:50:00.000Z, timeout, serving 10.0.0.9:5000 (prefork deaths)"
    )


def test_the_table_of_a_server_without_workers() -> None:
    nobody = document()
    nobody["workers"] = []
    nobody["totals"] = totals(dict.fromkeys(COUNTERS, 0), latencies(0), connections=0, respawns={})
    assert table(nobody).splitlines()[-1].startswith("all")


@pytest.mark.parametrize(
    ("key", "value", "text"),
    [
        ("age_s", None, "-"), ("age_s", 0.25, "0.25s"), ("age_s", 59.5, "59.5s"), ("age_s", 60, "1m 0s"),
        ("age_s", 7199, "1h 59m"), ("age_s", 90_000, "1d 1h"), ("deadline_in_s", -3.0, "-3s"),
        ("p50_us", 999, "999us"), ("p50_us", 1500, "1.5ms"), ("p50_us", 2_500_000, "2.5s"),
        ("bytes_in", 0, "0"), ("bytes_in", 999, "999"), ("pss_bytes", 1536, "1.5k"), ("pss_bytes", 3 << 30, "3G"),
        ("bytes_out", 1 << 50, "1.02e+03T"), ("busy_ratio", 0.5, "50%"), ("requests", 1234567, "1234567"),
        ("state", "IDLE", "IDLE"),
    ],
)  # fmt: skip
def test_cells_carry_their_units(key: str, value: Any, text: str) -> None:
    assert cell(key, value) == text
