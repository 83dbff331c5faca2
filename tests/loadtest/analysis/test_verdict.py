from __future__ import annotations

from typing import Any

import pytest

from loadtest.analysis.verdict import judge
from loadtest.data.records import Worker
from prefork.status.histogram import Histogram
from tests.loadtest.records import arrivals, client, queue, signals, usage

SECOND = 1_000_000_000
MS = 1_000_000
IDLE = {"server": usage(cpu_ns=SECOND // 5, busiest_ns=SECOND // 5)} | {
    "generator": usage(cpu_ns=SECOND // 5, busiest_ns=SECOND // 5)
}  # a tenth of a core each
STARVED = usage(
    wait_ns=SECOND, wanted_ns=19 * SECOND // 10
)  # its one thread always wants a CPU, and has it half the time


def workers(*held: float, requests: tuple[int, ...] | None = None, **change: Any) -> tuple[Worker, ...]:
    """Workers with so many connections; they did equal work unless `requests` says otherwise."""
    figures = {"cpu_ns": SECOND // 20, "accepted": None} | change
    return tuple(
        Worker(slot=slot, connections=count, requests=requests[slot] if requests else 500, **figures)
        for slot, count in enumerate(held)
    )


@pytest.mark.parametrize(
    ("seen", "watched", "verdict", "number"),
    [
        ({}, {}, "OK", "nothing"),
        ({"completed": 0, "failures": {"refused": 7}}, {}, "INVALID", "no exchange completed; 7 refused"),
        ({"completed": 0}, {}, "INVALID", "no exchange completed; none failed either: try a longer --duration"),
        (
            {"arrivals": arrivals(offered=2500), "censored": 68, "failures": {"timeout": 9}},
            {},
            "INVALID",
            "1,000/s of 1,250/s; in flight grew by 246/s; 9 timeout, 68 cut off by the end",
        ),
        (
            {"arrivals": arrivals(offered=4), "completed": 4, "ended": 0, "busy_s": 12.0},
            {},
            "INVALID",
            "no exchange ended in the window; try a longer --warmup and --duration",
        ),
        ({"failures": {"timeout": 3}}, {}, "INVALID", "0.1% of the exchanges failed; 3 timeout"),
        ({"failures": {"timeout": 2}}, {}, "OK", "nothing"),
        ({"busy_s": 30.0}, {}, "INVALID", "off by 6%: 15.0 in flight counted, 16.0 by rate x latency"),
        ({}, {"generator": usage(busiest_ns=19 * SECOND // 10)}, "GENERATOR", "used 95% of a core"),
        ({}, {"server": usage(wait_ns=SECOND), "generator": usage(wait_ns=SECOND)}, "SHARED-CPU", "the server 50%"),
        ({}, {"server": usage(wait_ns=SECOND)}, "OK", "nothing"),
        ({}, {"queue": queue(drops=4)}, "BACKLOG-DROP", "4 connections found the accept queue full (limit 100)"),
        ({}, {"queue": queue(depth_max=95)}, "SERVER-QUEUE", "held 95 of at most 100"),
        ({}, {"server": usage(cpu_ns=19 * SECOND // 5)}, "SERVER-CPU", "1.90 of its 2 cores"),
        ({}, {"server": usage(busiest_ns=19 * SECOND // 10)}, "SERVER-CPU", "busiest process used 95% of a core"),
        ({}, {"queue": queue(depth_mean=12.0, depth_max=14)}, "SERVER-QUEUE", "about 12.0 of 16.0 ms"),
        ({}, {"queue": queue(depth_mean=24.0, depth_max=30)}, "SERVER-QUEUE", "about 16.0 of 16.0 ms"),
        (
            {},
            {"server": usage(cpu_ns=19 * SECOND // 5), "queue": queue(depth_mean=12.0, depth_max=14)},
            "SERVER-CPU",
            "1.90 of its 2 cores",
        ),
        ({}, IDLE | {"alone_ns": 15 * MS}, "IDLE-LIMITED", "server 10%, generator 10% of a core"),
        (
            {},
            IDLE | {"alone_ns": 15 * MS},
            "IDLE-LIMITED",
            "took 16.0 ms, that of a client alone 15.0 ms; try more --con",
        ),
        ({}, IDLE | {"alone_ns": 9 * MS}, "OK", "nothing"),  # more connections would bring longer waits
        ({}, IDLE, "OK", "nothing"),
        (
            {},
            IDLE | {"alone_ns": MS},
            "SERVER-THREADS",
            "took 16 ms, that of a client alone 1.0 ms: about 1.0 of 16 were served at a time; its threads",
        ),
        ({}, {"alone_ns": MS}, "OK", "nothing"),  # half a core each: one side waits for the other, in turns
        ({"arrivals": arrivals()}, IDLE | {"alone_ns": MS}, "OK", "nothing"),
        (
            {},
            IDLE | {"alone_ns": 5 * MS, "workers": workers(16, blocked=0.1)},
            "SERVER-THREADS",
            "about 5.0 of 16 were served at a time; its main threads waited for clients meanwhile",
        ),
        (
            {},
            IDLE | {"workers": workers(8, 8, threads=4, busy=3.75, loop=False)},
            "SERVER-THREADS",
            "7.5 of 8 threads were in the application at a time; try more --threads or --workers",
        ),
        ({}, IDLE | {"workers": workers(8, 8, threads=4, busy=3.5, loop=False)}, "OK", "nothing"),
        (
            {},  # a thread for each of 16 clients
            IDLE | {"alone_ns": 15 * MS, "workers": workers(8, 8, threads=8, busy=7.9, loop=False)},
            "IDLE-LIMITED",
            "try more --connections",
        ),
        (
            {},
            {"workers": workers(8, 8, threads=1, busy=1.0), "server": usage(busiest_ns=19 * SECOND // 10)},
            "SERVER-CPU",
            "busiest process used 95% of a core; try more --workers",
        ),
        (
            {},
            IDLE | {"alone_ns": MS, "workers": workers(16, loop=True, blocked=0.97)},
            "LOOP-BLOCKED",
            "asleep in the application 97% of the time",
        ),
        (
            {},
            {"queue": queue(depth_mean=12.0, depth_max=14), "workers": workers(16, loop=True, blocked=0.97)},
            "LOOP-BLOCKED",
            "97% of the time",
        ),
        (
            {},
            {"queue": queue(depth_mean=12.0, depth_max=14), "workers": workers(16, blocked=0.97)},
            "SERVER-QUEUE",
            "12.0 of 16.0 ms; its threads were all taken (try more --threads or --workers, or a larger pool)",
        ),
        ({}, IDLE | {"alone_ns": 15 * MS, "workers": workers(16, loop=True, blocked=0.97)}, "IDLE-LIMITED", "16.0 ms"),
        (
            {},
            {"server": STARVED, "others_cores": 1.3},
            "BUSY-MACHINE",
            "waited for a CPU 50% of the time that it wanted one; other processes used 1.3 of its 2 cores",
        ),
        ({}, {"server": STARVED, "others_cores": 1.3, "alone_ns": 15 * MS}, "OK", "nothing"),  # it is not felt
        (
            {},
            {"server": STARVED, "generator": usage(wait_ns=SECOND), "others_cores": 0.3},
            "SHARED-CPU",
            "the server 50%",
        ),
        ({}, {"server": usage(wait_ns=SECOND), "others_cores": 1.3, "alone_ns": 15 * MS}, "OK", "nothing"),
        (
            {},
            {"server": usage(wait_ns=SECOND), "others_cores": 1.3, "workers": workers(16, threads=8, busy=8.0)},
            "SERVER-THREADS",  # half a thread of eight waits for a CPU: that is not what they are taken by
            "8.0 of 8",
        ),
        (
            {"arrivals": arrivals(lag_ns=1_800_000)},
            {"others_cores": 1.3},
            "GENERATOR",
            "at a median of 16.0 ms; other processes used 1.3 of its 2 cores; stop them",
        ),
        (
            {"scenario": "http"},
            {"alone_ns": MS, "workers": workers(58, 2, 2, 2, requests=(500, 90, 90, 90))},
            "UNEVEN",
            "58 of 64 connections were held by one of 4 workers, and the others had room",
        ),
        (
            {"scenario": "http", "arrivals": arrivals()},
            {"alone_ns": MS, "workers": workers(58, 2, 2, 2, requests=(500, 90, 90, 90))},
            "UNEVEN",
            "58 of 64",
        ),
        (
            {"scenario": "http"},  # all of them are busy all the time
            IDLE | {"alone_ns": MS, "workers": workers(58, 2, 2, 2, threads=1, busy=1.0)},
            "SERVER-THREADS",
            "4.0 of 4",
        ),
        (
            {"scenario": "http"},
            {"alone_ns": 15 * MS, "workers": workers(58, 2, 2, 2, requests=(500, 90, 90, 90))},
            "OK",
            "nothing",
        ),
        (
            {"scenario": "http"},
            {"alone_ns": MS, "workers": workers(7, 4, 3, 2, requests=(500, 90, 90, 90))},
            "OK",
            "nothing",
        ),
        (
            {},  # a connection each: whoever has most of them is the slowest
            {"alone_ns": MS, "workers": workers(58, 2, 2, 2, requests=(500, 90, 90, 90))},
            "OK",
            "nothing",
        ),
        (
            {"busy_s": 64.0},
            {"queue": queue(depth_mean=15.5, depth_max=16)},
            "INVALID",
            "32.0 in flight counted, 16.0 by rate x latency; 15.5 stood in the accept queue all the time",
        ),
        ({"arrivals": arrivals()}, {}, "OK", "nothing"),
        ({"arrivals": arrivals(offered=2012)}, {}, "OK", "nothing"),  # 12 more in flight: three roots of 16, and one
        (
            {"arrivals": arrivals(offered=2060)},  # 3 % more than the server does
            {},
            "INVALID",
            "1,000/s of 1,030/s; in flight grew by 30.0/s",
        ),
        (
            {"arrivals": arrivals(offered=700), "ended": 372, "completed": 700, "busy_s": 600.0},
            {},
            "INVALID",
            "186/s of 350/s; in flight grew by 164/s",
        ),
        (
            {"arrivals": arrivals(offered=2500, missed=500)},
            {},
            "INVALID",
            "1,000/s of 1,250/s; 500 of 2,500 were missed",
        ),
        (
            {"arrivals": arrivals(), "censored": 40},
            {},
            "INVALID",
            "2.0% of the exchanges failed; 40 cut off by the end",
        ),
        ({"arrivals": arrivals(lag_ns=1_500_000)}, {}, "OK", "nothing"),  # a tenth of the median is 1.6 ms
        (
            {"arrivals": arrivals(lag_ns=1_800_000)},
            {},
            "GENERATOR",
            "1.8 ms late or more, at a median of 16.0 ms; try more --generators, or --pin them",
        ),
        (
            {"arrivals": arrivals()},
            IDLE | {"alone_ns": 15 * MS},
            "OK",
            "nothing",
        ),
        ({}, {"server": None, "queue": None, "generator": usage(cpu_ns=0)}, "OK", "nothing"),
    ],
)
def test_the_first_rule_that_applies_decides_and_names_its_number(
    seen: dict[str, Any], watched: dict[str, Any], verdict: str, number: str
) -> None:
    found = judge(client(**seen), signals(**watched), server_cpus=2)
    assert (found.name, number in found.reason) == (verdict, True), found.reason


def test_one_of_few_arrivals_that_is_seen_late_does_not_make_the_generator_the_limit() -> None:
    for late, verdict in ((1, "OK"), (8, "GENERATOR")):  # of 40, which bear no more than a p90
        lag = Histogram()
        lag.record(50_000, 40 - late)
        lag.record(5 * MS, late)
        few = {"offered": 40, "missed": 0, "lag": lag.to_json()}
        found = judge(client(completed=40, busy_s=0.64, arrivals=few), signals(queue=None), server_cpus=2)
        assert found.name == verdict, found.reason
        assert ("1 in 10 exchanges began 5.0 ms late" in found.reason) == (verdict == "GENERATOR")


def test_what_the_edges_of_the_window_cut_does_not_break_littles_law() -> None:
    """Some exchanges of a second each: one more or less at an edge is what chance does. Half of them gone is not."""
    latency = Histogram()
    latency.record(8_000_000, 1950)
    latency.record(1_000_000_000, 50)
    seen = {"completed": 2000, "duration_s": 12.0, "latency": latency.to_json()}
    whole_s = latency.sum_ns / 1e9
    for busy_s, holds in ((whole_s - 6, True), (whole_s + 6, True), (whole_s / 2, False)):
        found = judge(client(**seen, busy_s=busy_s), signals(), server_cpus=2)
        assert ("Little" not in found.reason) == holds, found.reason


def test_a_stall_over_the_opening_does_not_break_littles_law() -> None:
    """What came due in the warm-up is in flight in the window, and in no latency of it."""
    seen = {"busy_s": 32.0 + 16 * 0.3, "longest_ns": 300_000_000}
    assert judge(client(**seen), signals(), server_cpus=2).name == "OK"
    assert "Little" in judge(client(**seen | {"longest_ns": 16_000_000}), signals(), server_cpus=2).reason


def test_a_backlog_that_was_large_when_the_window_opened_is_seen_to_grow() -> None:
    """By 6 a second of 206, when 136 are in flight: the root of that says nothing, but it grows second by second."""
    for grows, verdict in (([6, 6, 6, 6, 6], "INVALID"), ([20, 10, -10, 15, -5], "OK")):
        seconds = [
            {"t_s": t_s, "span_s": 1.0, "ended": 200, "completed": 200 + more, "failed": 0, "p50_ns": 1, "p99_ns": 1}
            for t_s, more in enumerate(grows)
        ]
        latency = Histogram()
        latency.record(661_000_000, 1030)
        seen = {"completed": 1030, "ended": 1000, "rate_per_s": 200.0, "duration_s": 5.0, "busy_s": 680.0}
        open_model = {"arrivals": arrivals(offered=1030), "latency": latency.to_json(), "per_second": seconds}
        found = judge(client(**seen, **open_model), signals(), server_cpus=2)
        assert found.name == verdict, found.reason
        assert ("200/s of 206/s; in flight grew by 6.00/s" in found.reason) == (verdict == "INVALID"), found.reason
