"""How shares and both ends of Little's law are judged, from rounds made to measure."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from loadtest.analysis.compare import compare
from loadtest.analysis.sharing import CPU, REQUESTS, sharing
from loadtest.data.records import Verdict, Worker
from loadtest.plan.plan import Load, Plan, Server
from loadtest.report import render
from loadtest.report.model import SHARING, Report
from tests.loadtest.records import client, measured, queue, signals


def worker(slot: int, **change: Any) -> Worker:
    figures = {"cpu_ns": 10_000_000, "accepted": 500, "requests": 500, "connections": 1.0}
    return Worker(slot=slot, **(figures | change))


def rounds(*workers: Worker, queued: float = 12.0, cycles: int = 3, **change: Any) -> list[Any]:
    """Of 16 exchanges in flight."""
    seen = signals(workers=workers or None, queue=queue(depth_mean=queued))
    return [measured("four", cycle, number=cycle, rate=1000, signals=seen, **change) for cycle in range(cycles)]


def test_even_shares_have_index_one() -> None:
    found = sharing(rounds(*map(worker, range(4))))
    assert found is not None
    assert (found.workers, found.by, found.jain, found.busiest_to_least) == (4, REQUESTS, 1.0, 1.0)
    assert (found.in_flight, found.in_workers, found.in_queue, found.elsewhere) == (16.0, 4.0, 12.0, 0.0)
    assert found.doubt == ""


def test_uneven_shares_and_one_that_got_nothing() -> None:
    found = sharing(rounds(worker(0, requests=300), worker(1, requests=100)))
    assert found is not None
    assert (found.jain, found.busiest_to_least) == (pytest.approx(0.8), 3.0)
    idle = sharing(rounds(worker(0), worker(1, requests=0)))
    assert idle is not None
    assert (idle.jain, idle.busiest_to_least) == (0.5, None)  # a ratio to nothing is no figure


def test_a_single_worker_has_no_share_but_both_ends() -> None:
    found = sharing(rounds(worker(0), queued=15.0))
    assert found is not None
    assert (found.workers, found.jain, found.busiest_to_least, found.elsewhere) == (1, None, None, 0.0)


def test_who_does_not_count_requests_is_judged_by_cpu_time() -> None:
    quiet = {"accepted": None, "requests": None, "connections": None}
    found = sharing(rounds(worker(0, **quiet), worker(1, cpu_ns=30_000_000, **quiet)))
    assert found is not None
    assert (found.by, found.jain, found.busiest_to_least) == (CPU, pytest.approx(0.8), 3.0)
    assert (found.in_flight, found.in_workers, found.elsewhere, found.doubt) == (None, None, None, "")


def test_connections_that_only_the_kernel_counted_are_no_measure_of_exchanges_in_flight() -> None:
    """It misses some of those that live for a few ms, and that is no doubt about anything else."""
    kernels = {"accepted": None, "requests": None, "connections": 0.6}
    found = sharing(rounds(worker(0, **kernels), worker(1, **kernels)))
    assert found is not None
    assert (found.held_most, found.in_workers, found.elsewhere, found.doubt) == (0.6, None, None, "")


def test_unknown_workers_have_no_shares() -> None:
    assert sharing(rounds()) is None


def test_a_gap_between_both_ends_is_told() -> None:
    missing = sharing(rounds(*map(worker, range(4)), queued=2.0))
    assert missing is not None
    assert missing.doubt.startswith(
        "10.0 of 16.0 exchanges in flight were neither with a worker nor in the accept queue"
    )
    strangers = sharing(rounds(*(worker(slot, connections=9.0) for slot in range(4)), queued=0.0))
    assert strangers is not None
    assert strangers.doubt.startswith("the server counts 20.0 connections more than these clients have")


def test_what_a_few_looks_cannot_tell_apart_is_no_gap() -> None:
    found = sharing(rounds(*map(worker, range(4)), queued=11.3))
    assert found is not None
    assert found.elsewhere == pytest.approx(0.7)
    assert found.doubt == ""


def test_kept_connections_are_no_measure_of_exchanges_in_flight() -> None:
    found = sharing(rounds(*map(worker, range(4)), client=client(scenario="http")))
    assert found is not None
    assert found.jain == 1.0
    assert (found.in_flight, found.doubt) == (None, "")


def test_connections_that_are_held_unevenly_are_told() -> None:
    kept = client(scenario="http")
    some = rounds(worker(0, connections=58.0), *(worker(slot, connections=2.0) for slot in range(1, 4)), client=kept)
    found = sharing(some)
    assert found is not None
    assert (found.held_least, found.held_most) == (2.0, 58.0)
    text = render(report(some), "github")
    assert "2-58 |" in text
    assert "- warning: four (nap): 58 of 64 connections were held by one of 4 workers" in text
    said = render(report([replace(done, verdict=Verdict(name="UNEVEN", reason="because")) for done in some]), "text")
    assert "connections were held by" not in said.partition("because")[2]


def test_a_single_process_of_which_only_the_kernel_tells_has_no_row() -> None:
    assert sharing(rounds(worker(0, accepted=None, requests=None))) is None


def report(some: list[Any]) -> Report:
    plan = Plan(name="p", servers=(Server(name="four", command="c {port}"),), loads=(Load(name="nap"),))
    return Report(plan=plan, rounds=some, comparison=compare(plan, some))


def test_the_report_has_a_table_of_it_and_the_doubts_as_warnings() -> None:
    found = report(rounds(*map(worker, range(4)), queued=2.0))
    text = render(found, "github")
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()]
    assert list(SHARING) in lines
    assert ["four", "4", "requests", "1.000", "1.000x", "1", "16.0", "4.0", "2.0", "10.0"] in lines
    assert "- warning: four (nap): 10.0 of 16.0 exchanges in flight" in text
    assert "four,nap" in render(found, "csv")
    assert "sharing_jain" in render(found, "csv")


@pytest.mark.parametrize("verdict", ["GENERATOR", "SHARED-CPU"])
def test_a_verdict_that_explains_the_gap_says_enough(verdict: str) -> None:
    text = render(report(rounds(*map(worker, range(4)), queued=2.0, verdict=verdict)), "text")
    assert "exchanges in flight were neither" not in text


def test_without_workers_there_is_no_such_table() -> None:
    assert "by worker" not in render(report(rounds()), "text")
